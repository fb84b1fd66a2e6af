"""Mends an installed package from its source: of a damaged file the blocks that are damaged, else the whole file."""

from __future__ import annotations

import http.client
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.engine.integrity import BlockReader, check_file
from edged.engine.manifest import FILE, FileDigest, FileEntry, manifest_of, read_manifest, write_manifest
from edged.engine.package_files import PackageError
from edged.models import fetch as fetching
from edged.models.fetch import FetchError, Progress, fetch
from edged.models.listing import Listing, SourceFile
from edged.models.web import Remote, WebError, open_url

_PIECE = 1 << 20


@dataclass(frozen=True)
class Mended:
    """What was damaged: blocks, and files that were fetched as a whole; `bytes` were fetched."""

    blocks: int = 0
    files: int = 0
    bytes: int = 0


def mend_package(listing: Listing, folder: Path, staging: Path, progress: Progress) -> Mended:
    """Check each file of the package in `folder` on the disk, and fetch again what is damaged, into its place.

    `listing`: the same content. `staging`: a folder for whole files. A power cut leaves what the next call mends.
    Raises FetchError, OSError.
    """
    try:
        manifest = read_manifest(folder / FILE)
    except (PackageError, OSError):  # damaged, or pulled by an edged that made none
        return _without_manifest(listing, folder, staging, progress)
    blocks = files = count = 0
    for file in listing.files:
        entry = manifest.files.get(file.path)
        if entry is None and _entry_if_right(file, folder / file.path) is not None:
            continue  # not one that a load reads: `edged model verify --record` left it out
        if entry is None or _size(folder / file.path) != entry.bytes:
            _replace(file, folder, staging, progress, entry)
            files, count = files + 1, count + file.bytes
            continue
        damaged = [damage.offset // entry.block_bytes for damage in check_file(folder, file.path, entry, direct=True)]
        if damaged:
            count += _mend_file(file, folder, entry, damaged, progress)
            blocks += len(damaged)
    # A daemon that waits for the package sees files beside the manifest only, and may have read a whole one wrong.
    os.utime(folder / FILE)
    return Mended(blocks, files, count)


def _mend_file(file: SourceFile, folder: Path, entry: FileEntry, damaged: Sequence[int], progress: Progress) -> int:
    """Write the damaged blocks of a file anew, and check all of it; returns the bytes that were fetched."""
    path, count = folder / file.path, 0
    crcs = entry.crcs
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for block, content in _blocks(file, entry, damaged):
            if zlib.crc32(content) != crcs[block]:
                raise FetchError(
                    f"{file.path}: the source has other bytes from {block * entry.block_bytes} on than were pulled"
                )
            if os.pwrite(descriptor, content, block * entry.block_bytes) != len(content):
                raise FetchError(f"{file.path}: the disk is full")
            count += len(content)
            progress(file.path, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if _sha256_on_disk(path, entry) != entry.sha256:
        raise FetchError(f"{file.path}: it was written anew, and the disk gives back other bytes: replace the card")
    return count


def _replace(file: SourceFile, folder: Path, staging: Path, progress: Progress, entry: FileEntry | None) -> FileEntry:
    """Fetch a whole file and put it in its place."""
    fetched = fetch(file, staging / file.path, progress).entry
    if entry is not None and fetched.sha256 != entry.sha256:
        raise FetchError(f"{file.path}: the source has another content than was pulled")
    (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    (staging / file.path).replace(folder / file.path)
    return fetched


def _without_manifest(listing: Listing, folder: Path, staging: Path, progress: Progress) -> Mended:
    """Compare each file with the source's digest, fetch those that differ, and write the manifest."""
    entries: dict[str, FileEntry] = {}
    files = count = 0
    for file in listing.files:
        found = _entry_if_right(file, folder / file.path)
        if found is None:
            found = _replace(file, folder, staging, progress, None)
            files, count = files + 1, count + file.bytes
        entries[file.path] = found
    write_manifest(folder, manifest_of(entries))
    return Mended(0, files, count)


def _entry_if_right(file: SourceFile, path: Path) -> FileEntry | None:
    digest = FileDigest()
    hasher = file.digest.hasher(file.bytes) if file.digest is not None else None
    try:
        with path.open("rb", buffering=0) as content:
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk
            while piece := content.read(_PIECE):
                digest.update(piece)
                if hasher is not None:
                    hasher.update(piece)
    except OSError:  # missing, or it cannot be read
        return None
    value = digest.sha256 if hasher is None else hasher.hexdigest()
    return digest.entry() if file.digest is not None and value == file.digest.value else None


def _sha256_on_disk(path: Path, entry: FileEntry) -> str:
    digest = FileDigest()
    with BlockReader(path, entry, direct=True) as reader:
        for block in range(entry.blocks):
            digest.update(reader.read(block))
    return digest.sha256


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# What is fetched


def _blocks(file: SourceFile, entry: FileEntry, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The wanted blocks out of the source, in order. Raises FetchError, OSError."""
    if not isinstance(file.origin, Remote):
        for block in wanted:
            file.origin.seek(block * entry.block_bytes)
            yield block, file.origin.read(entry.block_bytes)
        return
    left, failures = list(wanted), 0
    while left:
        try:
            for block, content in _from_web(file.origin, entry, left):
                yield block, content
                left.remove(block)
                failures = 0
        except WebError as error:
            failures += 1
            if not error.passing or failures > len(fetching.PAUSES):
                raise FetchError(f"{file.path}: {error}") from None
            time.sleep(fetching.PAUSES[failures - 1])


def _from_web(remote: Remote, entry: FileEntry, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The first run of wanted blocks; all of them where the server knows no ranges. Raises WebError."""
    run = [block for at, block in enumerate(wanted) if block == wanted[0] + at]
    start = run[0] * entry.block_bytes
    end = min(entry.bytes, (run[-1] + 1) * entry.block_bytes)
    with open_url(remote, more={"Range": f"bytes={start}-{end - 1}"}) as answer:
        if answer.status == 206:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-{end - 1}/"):
                raise WebError("the server sends another range than was asked for", passing=False)
            wanted = run
        else:
            start = 0
        place = start
        for block in tuple(wanted):
            offset = block * entry.block_bytes
            for _ in _pieces(answer, offset - place):
                pass
            length = min(entry.block_bytes, entry.bytes - offset)
            yield block, b"".join(_pieces(answer, length))
            place = offset + length


def _pieces(answer: Any, length: int) -> Iterator[bytes]:
    """The next `length` bytes. Raises WebError where they do not come."""
    while length:
        try:
            piece = answer.read(min(length, _PIECE))
        except (OSError, http.client.HTTPException) as error:
            raise WebError(f"the connection was cut: {error}", passing=True) from None
        if not piece:
            raise WebError("the connection was cut", passing=True)
        length -= len(piece)
        yield piece
