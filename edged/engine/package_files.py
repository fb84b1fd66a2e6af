"""The files of a package: which belong to one, and reads that leave its folder or are too large are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

TEXTS = {
    "genai_config.json": 1 << 20,
    "generation_config.json": 1 << 20,
    "tokenizer_config.json": 8 << 20,
    "special_tokens_map.json": 1 << 20,
    "tokenizer.json": 128 << 20,
    "chat_template.jinja": 1 << 20,
    "chat_template.json": 1 << 20,
    "known_answers.json": 64 << 10,
}
"""The texts that a package is served by, and the most bytes of each."""
MOST_FILES = 256
"""Most files of a package."""
# What a package may hold. edged runs none of it; pickles (.bin, .pt, …) and code are left out.
_SUFFIXES = {".json", ".jinja", ".txt", ".md", ".onnx", ".data", ".onnx_data", ".model"}
_NAMES = {"LICENSE", "LICENCE", "NOTICE"}
_EDGEDS_OWN = {"origin.json", "edged-manifest.json"}
"""What edged writes beside a package's files."""
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_MAX_POINTER_BYTES = 1024


class PackageError(ValueError):
    """The package cannot be served; the message is one line that says what is wrong and what would be right."""


def may_hold(path: str) -> bool:
    """Whether a file of this path, relative to the package's folder, can belong to a package."""
    parts = PurePosixPath(path)
    if any(part.startswith(".") for part in parts.parts) or path in _EDGEDS_OWN:
        return False
    return parts.suffix in _SUFFIXES or parts.name in _NAMES


def held_by(folder: Path) -> Iterator[str]:
    """The files of `folder` that can belong to a package, relative to it, sorted. Raises OSError."""
    return (path for path in walk(folder) if may_hold(path))


def walk(folder: Path) -> Iterator[str]:
    """All files of `folder` relative to it, sorted, but those of hidden folders. Raises OSError."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in sorted(names))


def inside(folder: Path, relative: object, told_by: str = "") -> Path:
    """The file `relative` of the package; `told_by` begins the message where it names the file.

    Raises PackageError when it is absent, outside the folder, or a Git LFS pointer in the file's place.
    """
    if not isinstance(relative, str) or not relative or not relative.isprintable():
        raise PackageError(f"{told_by}{short(relative)} is not a file name")
    path = folder / relative
    try:
        within = not PurePosixPath(relative).is_absolute() and path.resolve().is_relative_to(folder.resolve())
        found = within and path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, not in the file system's encoding
        raise PackageError(f"{told_by}{short(relative)} is not a file name that can be opened") from None
    if not within:
        raise PackageError(
            f"{told_by}{short(relative)} leaves the package folder: every file must lie inside it "
            "(copy links with cp -rL)"
        )
    if not found:
        raise PackageError(f"{relative} is missing from the package {folder}: copy the package again")
    if path.stat().st_size <= _MAX_POINTER_BYTES and path.read_bytes().startswith(_POINTER):
        raise PackageError(
            f"{relative} is a Git LFS pointer in place of the file: run git lfs pull in the repository that it came "
            "from, then copy the package again"
        )
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a package's file `name`. Raises PackageError: absent, outside, too large or no JSON object."""
    path = inside(folder, name)
    check_size(path, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise PackageError(f"{name} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise PackageError(f"{name} is not a JSON object")
    return value


def read_optional_json(folder: Path, name: str) -> dict[str, Any]:
    """As read_json, an empty object where the package has no such file."""
    return read_json(folder, name) if (folder / name).exists() else {}


def check_size(path: Path, name: str) -> None:
    """Raises PackageError where the text file is larger than any package's."""
    if path.stat().st_size > TEXTS[name]:
        raise PackageError(f"{name} is larger than {TEXTS[name] >> 10} KiB: that is not a package's file")


def short(value: object) -> str:
    """A value from a package, fit for a message of one line."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
