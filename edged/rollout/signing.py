"""Signatures of desired documents: Ed25519 (RFC 8032) over the topic and canonical JSON.

The fleet's key signs the release, once and offline. A conductor's key signs the wave, which changes while a rollout
goes on. The topic is part of what is signed, so that a document for one group is worth nothing on another's topic.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edged.faults import Fault
from edged.rollout.desired import Received, RefusedError, check_desired, invalid
from edged.settings.fleet import FleetSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KEY_BYTES = 32
Part = Literal["release", "wave"]


def signed_bytes(received: Received, topic: str, part: Part) -> bytes:
    """What is signed: a line for the format, one for the part, one with the topic, then the part's JSON."""
    body = received.release if part == "release" else received.wave
    return f"edged desired 1\n{part}\n{topic}\n".encode() + body


def sign(received: Received, topic: str, part: Part, key: Ed25519PrivateKey) -> str:
    """The signature of one part, in base64."""
    return base64.b64encode(key.sign(signed_bytes(received, topic, part))).decode("ascii")


def signed_document(
    document: Mapping[str, Any], target: str, topic: str, key: Ed25519PrivateKey, parts: Collection[Part]
) -> dict[str, Any]:
    """The document with new signatures of these parts. Raises RefusedError where every device would refuse it."""
    fields = {"release": "signature", "wave": "wave_signature"}
    plain = {name: value for name, value in document.items() if name not in {fields[part] for part in parts}}
    received = check_desired(plain, target)
    check_expires(received)
    return {**plain, **{fields[part]: sign(received, topic, part, key) for part in parts}}


def public_key(key: Ed25519PrivateKey) -> str:
    """The public key that belongs to it, as fleet.trusted_keys has it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode("ascii")


def check_allowed(received: Received, topic: str, fleet: FleetSettings) -> None:
    """Raise RefusedError where the settings do not allow to follow this document, or its signatures are not right."""
    desired = received.desired
    if not fleet.trusted_keys:
        if fleet.unsigned:
            return
        hint = "set fleet.trusted_keys in the device's settings, or fleet.unsigned = true"
        raise RefusedError(Fault("desired_unsigned", "the device has no fleet.trusted_keys to check it with", hint))
    _check(received, topic, "release", "signature", desired.signature, fleet.trusted_keys)
    keys = [*fleet.trusted_keys, *fleet.conductor_keys]
    check_wave(received, topic, keys)
    check_expires(received)


def check_wave(received: Received, topic: str, keys: Sequence[str]) -> None:
    """Raise RefusedError where the wave is signed with none of these public keys, each as in fleet.trusted_keys."""
    _check(received, topic, "wave", "wave_signature", received.desired.wave_signature, keys)


def check_expires(received: Received) -> None:
    """Raise RefusedError where a document that is signed does not expire."""
    if received.desired.expires is None:
        raise invalid("expires must be there where documents are signed: an old one must not be held back for ever")


def _check(received: Received, topic: str, part: Part, field: str, signature: str | None, keys: Sequence[str]) -> None:
    if signature is None:
        hint = "sign it with edged fleet sign"
        raise RefusedError(Fault("desired_unsigned", f"{field} is missing, and fleet.trusted_keys is set", hint))
    if not is_signed(signed_bytes(received, topic, part), signature, keys):
        hint = "sign it for this topic, with a key that the device's settings list, after the last change"
        raise RefusedError(Fault("desired_signature_wrong", f"{field} is of none of the keys for {topic}", hint))


def is_signed(message: bytes, signature: str, keys: Sequence[str]) -> bool:
    """Whether `signature`, in base64, is of one of these public keys, each as in the settings."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for key in keys:
        try:
            public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key)[-_KEY_BYTES:])
            public.verify(base64.b64decode(signature), message)
        except InvalidSignature:
            continue
        return True
    return False
