"""`edged fleet sign`: signs what devices are to serve."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edged.cli.common import FAILED, BadUseError, end
from edged.mqtt.topics import ID_PATTERN
from edged.rollout.desired import RefusedError, read_desired
from edged.rollout.signing import Part, signed_document

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TOPIC = re.compile(rf"[^+#\0]+/(device|group)/({ID_PATTERN})/desired")


def sign(
    document: Annotated[Path, typer.Argument(help="The desired document, JSON.")],
    key: Annotated[Path, typer.Option("--key", help="PEM file of the Ed25519 private key.")],
    topic: Annotated[str, typer.Option("--topic", help="Where it is published: …/group/NAME/desired.")],
    wave: Annotated[
        bool, typer.Option("--wave", help="Sign only percent, abort and pauses, with a conductor's key.")
    ] = False,
) -> None:
    """Sign a desired document for a topic and print it."""
    if (match := _TOPIC.fullmatch(topic)) is None:
        raise BadUseError(f"--topic {topic}: it must be ROOT/device/ID/desired or ROOT/group/NAME/desired")
    target = "device" if match[1] == "device" else f"group/{match[2]}"
    private = private_key(key)
    parts: tuple[Part, ...] = ("wave",) if wave else ("release", "wave")
    try:
        received = read_desired(document.read_bytes(), target)
        signed = signed_document(received.document, target, topic, private, parts)
    except OSError as error:
        raise BadUseError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
    except RefusedError as error:
        raise BadUseError(f"{document}: {error}") from None
    typer.echo(json.dumps(signed, ensure_ascii=False))


def private_key(file: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key in PEM. Raises BadUseError, and ends with 1 without the package cryptography."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        end(FAILED, "cryptography is not installed: pip install 'edged[fleet]'")
    try:
        private: object = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise BadUseError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise BadUseError(
            f"--key {file}: it must be an Ed25519 key without a password (openssl genpkey -algorithm ed25519)"
        )
    return private
