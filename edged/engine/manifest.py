"""A package's manifest: size, SHA-256 and block checksums of its files, in one small JSON document.

The SHA-256 says which content this is; it is computed once. The CRC-32 of each block is quick enough to be computed at
every load, and says where a file has changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edged.checked_json import checked_text, checksum_of
from edged.durable import write_durably
from edged.engine.package import open_package
from edged.engine.package_files import MOST_FILES, PackageError

FILE = "edged-manifest.json"
BLOCK_BYTES = 1 << 20
"""Block size of new manifests. A block is what is read at a time, named when it is damaged, and fetched to mend it."""
_CRC_BYTES = 4
_MOST_BYTES = 4 << 20
"""Largest manifest: of a package of 700 GB."""


def _inside(path: str) -> str:
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("not a path inside a package")
    return path


_Path = Annotated[str, Field(max_length=1024), AfterValidator(_inside)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FileEntry(_Strict):
    """One file: its size and the size of its blocks in bytes, its digest, and the CRC-32 of each block.

    `crc32`: base64 of one little-endian unsigned 32-bit number a block; the last block may be shorter.
    """

    bytes: int = Field(ge=0)
    sha256: _Sha256
    block_bytes: int = Field(ge=4096, le=64 << 20, multiple_of=4096)
    crc32: str

    @model_validator(mode="after")
    def _has_a_crc_for_each_block(self) -> FileEntry:
        if len(base64.b64decode(self.crc32, validate=True)) != _CRC_BYTES * self.blocks:
            raise ValueError(f"crc32 must hold {self.blocks} numbers")
        return self

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.bytes // self.block_bytes)

    @property
    def crcs(self) -> list[int]:
        """The CRC-32 of each block."""
        return list(struct.unpack(f"<{self.blocks}I", base64.b64decode(self.crc32)))


class Manifest(_Strict):
    """The document. `identity`: 64 hex digits that stand for these files with this content."""

    format: Literal[1] = 1
    identity: _Sha256
    files: dict[_Path, FileEntry] = Field(max_length=MOST_FILES)

    @model_validator(mode="after")
    def _identity_is_that_of_the_files(self) -> Manifest:
        if self.identity != _identity(self.files):
            raise ValueError("identity is not that of the files")
        return self

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.bytes for entry in self.files.values())

    def document(self) -> str:
        """The JSON text. Its `crc32` covers all other fields, so that a damaged manifest is known as such."""
        fields = self.model_dump()
        return checked_text(fields, indent=1)


class FileDigest:
    """Computes the entry of a file whose content comes in pieces of any size."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._crcs = bytearray()
        self._crc = 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        self._sha256.update(data)
        view = memoryview(data)
        while view:
            piece = view[: BLOCK_BYTES - self._bytes % BLOCK_BYTES]
            self._crc = zlib.crc32(piece, self._crc)
            self._bytes += len(piece)
            if self._bytes % BLOCK_BYTES == 0:
                self._crcs += self._crc.to_bytes(_CRC_BYTES, "little")
                self._crc = 0
            view = view[len(piece) :]

    @property
    def sha256(self) -> str:
        """The digest of what has come so far, 64 hex digits."""
        return self._sha256.hexdigest()

    def entry(self) -> FileEntry:
        """The entry of a file that holds what has come so far."""
        last = self._crc.to_bytes(_CRC_BYTES, "little") if self._bytes % BLOCK_BYTES else b""
        crcs = base64.b64encode(self._crcs + last).decode("ascii")
        return FileEntry(bytes=self._bytes, sha256=self.sha256, block_bytes=BLOCK_BYTES, crc32=crcs)


def manifest_of(files: dict[str, FileEntry]) -> Manifest:
    """The manifest of these files. Raises PackageError where they are too many, or one has an unusable path."""
    files = dict(sorted(files.items()))
    try:
        return Manifest(identity=_identity(files), files=files)
    except ValidationError as error:
        raise PackageError(f"no manifest can be made: {_first(error)}") from None


def make_manifest(folder: Path, paths: Iterable[str] | None = None) -> Manifest:
    """Read these files of `folder`, by default those that its package uses. Raises PackageError, OSError."""
    entries: dict[str, FileEntry] = {}
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for path in open_package(folder).files if paths is None else paths:
        digest = FileDigest()
        with (folder / path).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
        entries[path] = digest.entry()
    return manifest_of(entries)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at `path`. Raises PackageError where it is damaged, OSError as open does."""
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    return parse_manifest(text, path.name)


def identity_of(folder: Path) -> str | None:
    """Identity of a package's manifest; None where it has none that can be read."""
    try:
        return read_manifest(folder / FILE).identity
    except (PackageError, OSError):
        return None


def parse_manifest(text: bytes, name: str = FILE) -> Manifest:
    """Parse the document. Raises PackageError: too large, no JSON, another format, or changed since it was written."""
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES >> 20} MiB")
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        format_ = fields.get("format")
        if isinstance(format_, int) and format_ > 1:
            raise PackageError(f"{name} has format {format_}, and this edged knows format 1: install a newer edged")
        if fields.pop("crc32", None) != checksum_of(fields):
            raise ValueError("its content does not have its checksum")
        return Manifest.model_validate(fields)
    except PackageError:
        raise
    except ValidationError as error:
        raise PackageError(f"{name} is damaged: {_first(error)}") from None
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{name} is damaged: {error}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into the package's folder, atomically and durably. Raises OSError."""
    write_durably(folder / FILE, manifest.document())


def _identity(files: dict[str, FileEntry]) -> str:
    lines = "".join(f"{files[path].sha256} {path}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _first(error: ValidationError) -> str:
    """The first error on one line."""
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return ascii(f"{where}: {detail['msg']}".removeprefix(": "))[1:-1][:200]
