"""The files of the prefix store: one block of the KV cache each, with checksums, in one folder.

A file is a header, the block's bytes, and a CRC-32 for each MiB of the block. A file that is incomplete, damaged, or
written for another model, dtype or layout is refused.
"""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edged.engine import lazy_memory
from edged.erasure import erase_file

log = structlog.get_logger(__name__)

PREFIXES = "prefixes"
"""Name of the folder under state_dir."""
SUFFIX, TEMPORARY = ".kv", ".tmp"
_HEADER = struct.Struct("<8s32s32sQII")
"""Magic, identity, key, bytes of the block, CRC-32 of the block's CRCs, CRC-32 of the header before this field."""
_MAGIC = b"edgedkv1"
_PIECE = 1 << 20
"""Bytes of the block that each CRC-32 covers."""
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{64})(-pinned)?\.kv")
"""The first bytes of the identity, the key."""
_FOREIGN = "it is of another model, dtype or layout"
_ERASED = "erased"
"""A file whose modification time is that of the last `edged forget`."""


class RefusedError(Exception):
    """A file does not hold the block that its name stands for; the message says why."""


class BlockFiles:
    """Names, reads and writes the files of one model's blocks. It keeps no state."""

    def __init__(self, folder: Path, identity: bytes, shape: tuple[int, ...], dtype: Any) -> None:
        """`identity`: 32 bytes that stand for model, dtype and layout. `shape`, `dtype`: of every block."""
        self.folder = folder
        self._identity = identity
        self._mark = identity[:8].hex()
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._block_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self.file_bytes = _HEADER.size + self._block_bytes + 4 * -(-self._block_bytes // _PIECE)
        """Size of every file."""

    def path(self, key: bytes, pinned: bool) -> Path:
        """The file for the block with this key."""
        return self.folder / f"{self._mark}-{key.hex()}{'-pinned' * pinned}{SUFFIX}"

    def parse_name(self, path: Path) -> tuple[bytes, bool] | None:
        """The key of a file and whether it is pinned. None: no file of blocks. Raises RefusedError: of another model.

        Only the name is looked at; load() checks the content.
        """
        name = _NAME.fullmatch(path.name)
        if name is not None and name[1] == self._mark:
            return bytes.fromhex(name[2]), bool(name[3])
        if path.suffix == SUFFIX:
            raise RefusedError(_FOREIGN)
        return None

    def load(self, path: Path, key: bytes) -> NDArray[np.generic]:
        """Read the block with this key. Raises RefusedError, OSError, MemoryError."""
        block = lazy_memory.zeros(self._shape, self._dtype)
        payload = block.data.cast("B")
        with path.open("rb", buffering=0) as file:
            found, crc = self._parse_header(file.read(_HEADER.size))
            if found != key:
                raise RefusedError("it holds another block")
            sums = bytearray()
            for start in range(0, len(payload), _PIECE):
                piece = payload[start : start + _PIECE]
                _fill(file, piece)
                sums += zlib.crc32(piece).to_bytes(4, "little")
            stored = bytearray(len(sums))
            _fill(file, memoryview(stored))
            _drop_from_page_cache(file)
        if stored != sums or zlib.crc32(sums) != crc:
            raise RefusedError("its content is damaged")
        return block

    def save(self, path: Path, key: bytes, block: NDArray[np.generic]) -> None:
        """Write and sync a block. Raises OSError, MemoryError."""
        payload = np.ascontiguousarray(block).data.cast("B")
        sums = b"".join(
            zlib.crc32(payload[start : start + _PIECE]).to_bytes(4, "little")
            for start in range(0, len(payload), _PIECE)
        )
        fields = (_MAGIC, self._identity, key, len(payload), zlib.crc32(sums))
        header = _HEADER.pack(*fields, 0)[:-4]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            for part in (header + zlib.crc32(header).to_bytes(4, "little"), payload, sums):
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
            _drop_from_page_cache(file)

    def _parse_header(self, data: bytes) -> tuple[bytes, int]:
        """Key, and CRC of the block's CRCs. Raises RefusedError."""
        if len(data) < _HEADER.size:
            raise RefusedError("it is cut")
        magic, identity, key, size, crc, own = _HEADER.unpack(data)
        if magic != _MAGIC or zlib.crc32(data[:-4]) != own:
            raise RefusedError("its header is damaged")
        if identity != self._identity:
            raise RefusedError(_FOREIGN)
        if size != self._block_bytes:
            raise RefusedError("its block has another size")
        return key, crc


def erase(folder: Path) -> int:
    """Erase every block in `folder`; returns how many. Works beside a running daemon, which then drops its copies."""
    if not folder.is_dir():
        return 0
    mark, now = folder / _ERASED, time.time_ns()
    mark.touch(mode=0o600)
    os.utime(mark, ns=(now, now))  # before the files: a daemon removes what it writes after this
    files = list(folder.glob(f"*{SUFFIX}"))
    for path in files:
        erase_block(path)
    return len(files)


def last_erasure(folder: Path) -> int:
    """When erase() was last called, in nanoseconds since the epoch; 0 for never."""
    try:
        return (folder / _ERASED).stat().st_mtime_ns
    except OSError:
        return 0


def erase_block(path: Path) -> None:
    """Overwrite and remove a file. A failure is logged."""
    try:
        erase_file(path)
    except OSError as error:
        log.warning("prefix_file_not_removed", file=path.name, reason=os_reason(error))


def remove(path: Path) -> None:
    """Remove a file without overwriting it. A failure is logged."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("prefix_file_not_removed", file=path.name, reason=os_reason(error))


def os_reason(error: OSError) -> str:
    """The system's message for an error."""
    return (error.strerror or str(error)).lower()


def _fill(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise RefusedError("it is cut")
        view = view[count:]


def _drop_from_page_cache(file: Any) -> None:
    """Drop the file from the page cache: the block is in memory already, and the model's weights need the space."""
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
