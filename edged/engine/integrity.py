"""Finds blocks of a package's files that are not what its manifest says: as a load reads them, or as the disk has them.

A load reads through the page cache, so that what is checked is what onnxruntime maps. The disk itself is read with
O_DIRECT: the page cache would answer with what it read long ago, and reading through it would push other files out.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.engine.manifest import FILE, FileEntry, Manifest
from edged.engine.package_files import PackageError
from edged.faults import Fault

ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
DECAYED = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
"""Errors of the medium, the latter two of a file system's own checksums. Others pass: too few handles, no memory."""
_ALIGNMENT = 4096
"""Of offsets, sizes and memory for O_DIRECT: no disk has larger sectors."""
_HINT = (
    "edged model pull SOURCE fetches what is damaged (edged model list shows the source); a package that was copied by "
    f"hand must be copied again; where you changed it on purpose, edged model verify --record makes a new {FILE}"
)


@dataclass(frozen=True)
class Damage:
    """A block that is not as the manifest says: `offset` in bytes, and what is wrong on a few words."""

    file: str
    offset: int
    what: str


class CorruptPackageError(PackageError):
    """Files of the package have changed since its manifest was made. `blocks`: how many blocks."""

    def __init__(self, message: str, blocks: int = 1) -> None:
        super().__init__(message)
        self.fault = Fault("model_corrupt", f"the model package is damaged: {message}", _HINT)
        self.blocks = blocks

    @classmethod
    def of(cls, damage: Sequence[Damage]) -> CorruptPackageError:
        """The error for one or more blocks; the message names the first."""
        first = damage[0]
        more = f", and {len(damage) - 1} more blocks" if len(damage) > 1 else ""
        return cls(f"{first.file} at byte {first.offset}: {first.what}{more}", len(damage))


class UnreadableError(PackageError):
    """The files could not be read now, or not rightly, though the disk has what it should: a later load may."""


class BlockReader:
    """Reads the blocks of one file. `direct`: from the disk, neither out of the page cache nor into it."""

    def __init__(self, path: Path, entry: FileEntry, direct: bool) -> None:
        """Open the file. Raises OSError."""
        self._path = path
        self._entry = entry
        self._direct = direct
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self._direct = False  # a file system without O_DIRECT
            self._file = os.open(path, flags)
        self._evict = direct and not self._direct
        self._buffer = mmap.mmap(-1, entry.block_bytes)  # anonymous memory begins at a page

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        with contextlib.suppress(BufferError):  # a caller keeps a view of the last block
            self._buffer.close()

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self._file).st_size

    def read(self, block: int) -> memoryview:
        """Block number `block`, shorter where the file is cut. The next call overwrites it. Raises OSError."""
        offset = block * self._entry.block_bytes
        length = min(self._entry.block_bytes, self._entry.bytes - offset)
        if self._evict:  # pages that are mapped stay, and are read from memory
            os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_DONTNEED)
        done, wanted = 0, -(-length // _ALIGNMENT) * _ALIGNMENT if self._direct else length
        view = memoryview(self._buffer)
        while done < wanted:
            try:
                count = os.preadv(self._file, [view[done:wanted]], offset + done)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._reopen()  # a file system that lets O_DIRECT be opened and not read
                return self.read(block)
            done += count
            if not count or (self._direct and done % _ALIGNMENT):  # the end of the file
                break
        if self._evict:
            os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_DONTNEED)
        return view[: min(done, length)]

    def _reopen(self) -> None:
        """Go on without O_DIRECT."""
        file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._file)
        self._file, self._direct, self._evict = file, False, True
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _check_block(reader: BlockReader, file: str, entry: FileEntry, block: int, crc: int) -> Damage | None:
    """Whether a block is as it should be; an error of the disk is damage too. Raises OSError: one that may pass."""
    offset = block * entry.block_bytes
    try:
        content = reader.read(block)
    except OSError as error:
        if error.errno not in DECAYED:
            raise
        return Damage(file, offset, f"it cannot be read: {(error.strerror or str(error)).lower()}")
    if len(content) < min(entry.block_bytes, entry.bytes - offset):
        return Damage(file, offset + len(content), "the file ends here and should be longer")
    if zlib.crc32(content) != crc:
        return Damage(file, offset, f"the {len(content)} bytes from here on do not have their checksum")
    return None


def check_blocks(
    folder: Path, file: str, entry: FileEntry, blocks: Iterable[int], direct: bool = False
) -> Iterator[Damage]:
    """The damage of these blocks of one file, and of its size. Raises OSError: one that may pass."""
    try:
        reader = BlockReader(folder / file, entry, direct)
    except OSError as error:
        if error.errno not in ABSENT | DECAYED:
            raise
        yield Damage(file, 0, (error.strerror or str(error)).lower())
        return
    crcs = entry.crcs
    with reader:
        if reader.size > entry.bytes:
            yield Damage(file, entry.bytes, "the file should end here and is longer")
        for block in blocks:
            if (damage := _check_block(reader, file, entry, block, crcs[block])) is not None:
                yield damage


def check_file(folder: Path, file: str, entry: FileEntry, direct: bool = False) -> list[Damage]:
    """The damage of one file."""
    return list(check_blocks(folder, file, entry, range(entry.blocks), direct))


def find_damage(folder: Path, manifest: Manifest, direct: bool = False) -> list[Damage]:
    """The damage of all files."""
    return [damage for file, entry in manifest.files.items() for damage in check_file(folder, file, entry, direct)]


def still_damaged(folder: Path, manifest: Manifest, suspects: Iterable[Damage]) -> list[Damage]:
    """The damage that is still there, of what an earlier check has found; a page that was read wrong is dropped.

    Raises OSError.
    """
    found: list[Damage] = []
    for suspect in suspects:
        entry = manifest.files.get(suspect.file)
        if entry is not None:  # else of another package
            block = suspect.offset // entry.block_bytes
            blocks = [block] if block < entry.blocks else []
            with contextlib.suppress(OSError), (folder / suspect.file).open("rb") as content:
                os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # a part of a large page would stay
            # A page that a process has mapped stays, though the disk is right.
            found += list(check_blocks(folder, suspect.file, entry, blocks, direct=True)) or list(
                check_blocks(folder, suspect.file, entry, blocks)
            )
    return found
