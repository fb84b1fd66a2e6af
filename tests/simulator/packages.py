"""Packages that are good, or bad in one way each; on a board each is a folder with its manifest, and no weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edged.engine.manifest import FILE, FileDigest, identity_of, manifest_of
from edged.models.origin import Origin
from edged.models.store import Store


class Kind(str, Enum):
    """How a package behaves on every board."""

    GOOD = "good"
    LOAD = "fails at load"
    ANSWERS = "wrong known answers"
    CRASH = "crashes at load"
    LATER = "crashes after an hour"
    SLOW = "only slow"
    CONTENT = "another digest at the source"


BAD = tuple(kind for kind in Kind if kind is not Kind.GOOD)
LATE_SECONDS = 3600.0
"""After which one of the kind LATER crashes."""


@dataclass(frozen=True)
class Package:
    """Times are those of a board of ordinary speed, in seconds."""

    number: int
    name: str
    kind: Kind
    pull_seconds: float
    load_seconds: float
    step_seconds: float
    digest: str
    manifest: str
    content: str

    @property
    def source(self) -> str:
        return f"https://models.example/{self.number}/SHA256SUMS"

    def stage(self, store: Store) -> None:
        """Write its files where a pull collects them."""
        staging = store.staging(self.name)
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        (staging / FILE).write_text(self.manifest, encoding="utf-8")

    @property
    def origin(self) -> Origin:
        return Origin(source=self.source, content=self.content, pulled_at="2027-01-01T00:00:00Z")


def make_package(
    number: int, name: str, kind: Kind, pull_seconds: float, load_seconds: float, step_seconds: float
) -> Package:
    """A package with a digest of its own."""
    file = FileDigest()
    file.update(f"weights {number}".encode())
    manifest = manifest_of({"model.onnx": file.entry()})
    content = hashlib.sha256(manifest.identity.encode()).hexdigest()[:12]
    return Package(
        number, name, kind, pull_seconds, load_seconds, step_seconds, manifest.identity, manifest.document(), content
    )


def digest_in(folder: Path) -> str | None:
    """The digest of the package in a folder; None where none is whole there."""
    return identity_of(folder.resolve())
