"""Who may ask for a command: settings and signatures, Ed25519 (RFC 8032) over the topic and canonical JSON.

The topic holds the device or group, the command and its id, so that a document is worth nothing anywhere else.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from edged.commands.document import Code, Command, RefusedError
from edged.rollout.signing import is_signed
from edged.settings.fleet import FleetSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def signed_bytes(command: Command, topic: str) -> bytes:
    """What is signed: a line for the format, one with the topic, then the document's JSON."""
    return f"edged command 1\n{topic}\n".encode() + command.signed


def sign(command: Command, topic: str, key: Ed25519PrivateKey) -> str:
    """The signature in base64."""
    return base64.b64encode(key.sign(signed_bytes(command, topic))).decode("ascii")


def check_signature(command: Command, topic: str, fleet: FleetSettings) -> None:
    """Raise RefusedError where the device has keys and the document no signature of one of them."""
    if not fleet.trusted_keys:
        return
    signature = command.asked.signature
    if signature is None:
        hint = "send it with edged fleet command --key"
        raise RefusedError(Code.UNSIGNED, "signature is missing, and fleet.trusted_keys is set", hint)
    if not is_signed(signed_bytes(command, topic), signature, fleet.trusted_keys):
        hint = "sign it for this topic, with a key that the device's settings list, after the last change"
        raise RefusedError(Code.SIGNATURE_WRONG, f"signature is of none of the keys for {topic}", hint)


def check_allowed(command: Command, fleet: FleetSettings) -> None:
    """Raise RefusedError where the settings do not allow this command."""
    if command.name not in fleet.commands:
        listed = ", ".join(fleet.commands) or "none"
        hint = f"add {command.name} to fleet.commands in the device's settings"
        raise RefusedError(Code.NOT_ALLOWED, f"{command.name} is not allowed here; allowed: {listed}", hint)
