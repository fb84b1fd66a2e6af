"""A package before it is fetched: its files, their sizes and digests. Sources make one; pull fetches it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

from edged.engine.package_files import MOST_FILES, may_hold
from edged.models.web import Remote

SUMS = "SHA256SUMS"
"""The list of files, in the form of sha256sum: beside the files on a web server, and in a folder if it has one."""
NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
NAME_ALLOWED = "1 to 64 characters out of A-Z a-z 0-9 . _ -, the first no dot"
RESERVED = ("current", "origin.json", SUMS)
_MOST_FOLDERS = 8
_WEIGHTS = {".onnx", ".data", ".onnx_data"}


class SourceError(Exception):
    """The source cannot be used; the message is one line with the reason. `bad_use`: its name is wrong."""

    def __init__(self, message: str, bad_use: bool = False) -> None:
        super().__init__(message)
        self.bad_use = bad_use


@dataclass(frozen=True)
class Digest:
    """The digest that a file must have. Git's is SHA-1 of a header with the size, then the content."""

    kind: Literal["sha256", "git-sha1"]
    value: str

    def hasher(self, size: int) -> Any | None:
        """A new hashlib object for a file of `size` bytes; None for SHA-256, which a manifest needs anyway."""
        return None if self.kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


@dataclass(frozen=True)
class SourceFile:
    """One file: its path in the package, its size in bytes, and where to read it."""

    path: str
    bytes: int
    digest: Digest | None
    origin: Remote | BinaryIO

    @property
    def is_weights(self) -> bool:
        return PurePosixPath(self.path).suffix in _WEIGHTS


@dataclass(frozen=True)
class Listing:
    """The files of a source. `source`: pull this to get the same content again. `name`: default name of the package."""

    source: str
    name: str
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def content(self) -> str | None:
        """As content_id; None if the source has no digest for a file."""
        digests = {file.path: file.digest.value for file in self.files if file.digest}
        return content_id(digests) if len(digests) == len(self.files) else None

    @property
    def identity(self) -> str | None:
        """Identity of the manifest that a pull makes, 64 hex digits; None if the source lacks a file's SHA-256."""
        sums = {file.path: file.digest.value for file in self.files if file.digest and file.digest.kind == "sha256"}
        return _hash(sums) if len(sums) == len(self.files) else None


def content_id(digests: Mapping[str, str]) -> str:
    """12 hex digits that identify these files with this content."""
    return _hash(digests)[:12]


def _hash(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{digests[path]} {path}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def listing(source: str, name: str, files: Iterator[tuple[str, Callable[[str], SourceFile]]]) -> Listing:
    """A Listing of the files that a package may hold. Raises SourceError: a path is invalid, or there are too many."""
    taken: dict[str, Callable[[str], SourceFile]] = {}
    left_out = []
    for path, make in files:
        plain = path_inside(path)
        if not may_hold(plain):
            left_out.append(plain)
        elif plain in taken:
            raise SourceError(f"{plain} is listed twice in {source}")
        elif len(taken) == MOST_FILES:
            raise SourceError(f"{source} has more than {MOST_FILES} files: that is no package")
        else:
            taken[plain] = make
    if "genai_config.json" not in taken:
        raise SourceError(f"{source} has no genai_config.json: it must be the folder of one package")
    return Listing(source, name, tuple(make(path) for path, make in taken.items()), tuple(sorted(left_out)))


def path_inside(path: str) -> str:
    """The path without a leading `./`. Raises SourceError where it is not a path inside a package."""
    plain = path.removeprefix("./")
    parts = plain.split("/")
    if not plain.isprintable() or "\\" in plain or any(part in ("", ".", "..") for part in parts):
        raise SourceError(f"{ascii(path)[:80]} is not a path inside a package")
    if len(parts) > _MOST_FOLDERS or any(len(part.encode()) > 200 for part in parts):
        raise SourceError(f"{ascii(path)[:80]} is too long a path for a package")
    return plain
