"""The prefix cache's second tier: blocks on disk, found again after a restart or a crash.

One file a block, written by a thread of its own while the engine is idle, under a byte budget and a budget of writes a
day: flash wears out. A file that is not whole, or was made with another model, dtype or layout, is refused, counted and
removed. Requests come in through a queue and answers go out through a callable.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edged.engine import lazy_memory
from edged.erasure import erase_file

log = structlog.get_logger(__name__)

_HEADER = struct.Struct("<8s32s32sQII")
"""Magic, identity, key, payload bytes, CRC-32 of the payload's CRCs, CRC-32 of the header before it."""
_MAGIC = b"edgedkv1"
_PIECE = 1 << 20
"""The payload has a CRC-32 for each piece of this size, behind it."""
_SUFFIX, _TEMPORARY = ".kv", ".tmp"
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{64})(-pinned)?\.kv")
"""The beginning of the identity, the key."""
_FOREIGN = "it is of another model, dtype or layout"
_LEDGER = "written.json"
_ERASED = "erased"
"""A file whose time says when `edged forget` was last here."""
_LOOK_SECONDS = 3600.0
"""Between two looks for blocks that were kept long enough."""
_DAY = 86400
PREFIXES = "prefixes"
"""Name of the folder under state_dir."""


@dataclass(frozen=True)
class Found:
    """A block that was asked for, number `depth` of its prompt; None where its file is gone or refused.

    One comes for each block as soon as it is read, so that others who decode need not wait for a copy of all; `last`:
    no more come, they were all or the next one is missing.
    """

    row: int
    depth: int
    key: bytes
    block: NDArray[np.generic] | None
    last: bool


@dataclass(frozen=True)
class Changed:
    """Which keys came to lie on disk, pinned there or not, and which left it.

    `rest`: nothing more can be written for a while. `forget`: keys that memory must not keep either; None: all.
    """

    added: Mapping[bytes, bool] = field(default_factory=dict)
    removed: frozenset[bytes] = frozenset()
    rest: bool = False
    forget: frozenset[bytes] | None = frozenset()


DiskEvent = Found | Changed


@dataclass(frozen=True)
class _Read:
    row: int
    first: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True)
class _Write:
    key: bytes
    block: NDArray[np.generic]
    pinned: bool


@dataclass
class _File:
    path: Path
    size: int
    pinned: bool


class RefusedError(Exception):
    """A file is not what its name says; the message says how."""


class PrefixStore:
    """Blocks in the files of one folder."""

    def __init__(
        self,
        folder: Path,
        identity: bytes,
        shape: tuple[int, ...],
        dtype: Any,
        budget: int,
        daily_writes: int,
        keep: float,
    ) -> None:
        """`identity`: 32 bytes that stand for model, dtype and layout. `shape`, `dtype`: of every block.

        `budget`: the most bytes in the folder. `daily_writes`: the most bytes written in a day. `keep`: seconds after
        which a block that nobody pinned is erased; what is still in use is written again.
        """
        self._folder = folder
        self._identity = identity
        self._mark = identity[:8].hex()
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._budget = budget
        self._daily_writes = daily_writes
        self._keep = keep
        self._erasures = 0
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        self._requests: queue.SimpleQueue[_Read | _Write | None] = queue.SimpleQueue()
        self._deliver: Callable[[DiskEvent], None] = lambda _event: None
        self._thread = threading.Thread(target=self._run, name="prefix-disk", daemon=True)
        self.bytes = 0
        """Size of the files. Any thread may read this and the two below."""
        self.refused = 0
        self.written = 0
        """Bytes written by this process."""

    def start(self, deliver: Callable[[DiskEvent], None]) -> dict[bytes, bool]:
        """Look at what is there and start the thread, on which `deliver` is called.

        Returns the keys on disk, and whether each is pinned there.
        """
        self._scan()
        self._deliver = deliver
        self._thread.start()
        return {key: file.pinned for key, file in self._files.items()}

    def read(self, row: int, first: int, keys: Sequence[bytes]) -> None:
        """Ask for a prompt's blocks from number `first` on, one or more; a Found for each answers."""
        self._requests.put(_Read(row, first, tuple(keys)))

    def write(self, key: bytes, block: NDArray[np.generic], pinned: bool) -> None:
        """Write one block, or pin the one that is there; a Changed answers."""
        self._requests.put(_Write(key, block, pinned))

    def close(self) -> None:
        """End the thread after what it is doing."""
        self._requests.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    # On the thread

    def _run(self) -> None:
        look = time.monotonic()
        while True:
            if (now := time.monotonic()) >= look:
                self._erase_old()
                look = now + min(_LOOK_SECONDS, self._keep / 10)
            try:
                request = self._requests.get(timeout=look - now)
            except queue.Empty:
                continue
            if request is None:
                return
            if isinstance(request, _Read):
                self._read(request)
            else:
                self._write(request)

    def _erase_old(self) -> None:
        old = []
        for key, file in list(self._files.items()):
            with contextlib.suppress(OSError):
                if not file.pinned and file.path.stat().st_mtime < time.time() - self._keep:
                    old.append(key)
                    _erase(file.path)
                    self._drop(key)
        if old:
            self._deliver(Changed(removed=frozenset(old), forget=frozenset(old)))

    def _all_forgotten(self) -> bool:
        """Whether `edged forget` was here since: then memory must forget too, or it would all be written again."""
        erasures = _erasures(self._folder)
        if erasures == self._erasures:
            return False
        self._erasures = erasures
        gone = frozenset(self._files)
        self._files.clear()
        self.bytes = 0
        self._deliver(Changed(removed=gone, forget=None))
        return True

    def _scan(self) -> None:
        """Learn what is there, the least recently written first; remove what is none of ours."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._erasures = _erasures(self._folder)
            entries = [(path, path.stat()) for path in self._folder.iterdir()]
        except OSError as error:
            log.warning("prefix_folder_unusable", folder=str(self._folder), reason=_why(error))
            return
        entries.sort(key=lambda entry: entry[1].st_mtime)
        for path, status in entries:
            name = _NAME.fullmatch(path.name)
            if path.suffix == _TEMPORARY:
                _unlink(path)
            elif name is not None and name[1] == self._mark:
                # What is in it is checked when it is read.
                self._files[bytes.fromhex(name[2])] = _File(path, status.st_size, bool(name[3]))
            elif path.suffix == _SUFFIX:
                self._refuse(path, RefusedError(_FOREIGN))
        self.bytes = sum(file.size for file in self._files.values())

    def _read(self, request: _Read) -> None:
        self._all_forgotten()
        final = len(request.keys) - 1
        for place, key in enumerate(request.keys):
            block = self._read_block(key)
            last = block is None or place == final
            self._deliver(Found(request.row, request.first + place, key, block, last))
            if last:
                return

    def _read_block(self, key: bytes) -> NDArray[np.generic] | None:
        if key not in self._files:
            return None
        path = self._files[key].path
        try:
            block = self._load(path, key)
        except (RefusedError, OSError) as error:
            self._refuse(path, error)
            self._drop(key)
            self._deliver(Changed(removed=frozenset({key})))
            return None
        self._files.move_to_end(key)
        return block

    def _load(self, path: Path, key: bytes) -> NDArray[np.generic]:
        """The block in a file. Raises RefusedError, OSError."""
        block = lazy_memory.zeros(self._shape, self._dtype)
        payload = block.data.cast("B")
        with path.open("rb", buffering=0) as file:
            found, crc = self._header(file.read(_HEADER.size))
            if found != key:
                raise RefusedError("it holds another block")
            sums = bytearray()
            for start in range(0, len(payload), _PIECE):
                piece = payload[start : start + _PIECE]
                _fill(file, piece)
                sums += zlib.crc32(piece).to_bytes(4, "little")
            stored = bytearray(len(sums))
            _fill(file, memoryview(stored))
            _forget_pages(file)
        if stored != sums or zlib.crc32(sums) != crc:
            raise RefusedError("its content is damaged")
        return block

    def _write(self, request: _Write) -> None:
        if self._all_forgotten():
            return
        there = self._files.get(request.key)
        if there is not None and request.pinned and not there.pinned and there.path.exists():
            self._pin(request.key, there)
            return
        size = _HEADER.size + request.block.nbytes + 4 * -(-request.block.nbytes // _PIECE)
        day, spent = self._spent()
        evicted = self._make_room(size, request.pinned)
        if spent + size > self._daily_writes or evicted is None:
            log.info(
                "prefix_not_written",
                reason="the day's writes are used up" if evicted is not None else "no room",
                pinned=request.pinned,
            )
            self._deliver(Changed(removed=frozenset(evicted or ()), rest=True))
            return
        path = self._path(request.key, request.pinned)
        temporary = path.with_suffix(_TEMPORARY)
        try:
            self._note_spent(day, spent + size)
            self._save(temporary, request)
            os.replace(temporary, path)
            _sync_folder(self._folder)
        except OSError as error:
            log.warning("prefix_write_failed", reason=_why(error))
            _unlink(temporary)
            self._deliver(Changed(removed=frozenset(evicted), rest=True))
            return
        self._files[request.key] = _File(path, size, request.pinned)
        self.bytes += size
        self.written += size
        if self._all_forgotten():  # meanwhile; it may have looked before this file had its name
            _erase(path)
            return
        self._deliver(Changed(added={request.key: request.pinned}, removed=frozenset(evicted)))

    def _pin(self, key: bytes, file: _File) -> None:
        path = self._path(key, pinned=True)
        try:
            os.replace(file.path, path)
        except OSError as error:
            log.warning("prefix_write_failed", reason=_why(error))
            self._deliver(Changed(rest=True))
            return
        file.path, file.pinned = path, True
        self._deliver(Changed(added={key: True}))

    def _path(self, key: bytes, pinned: bool) -> Path:
        return self._folder / f"{self._mark}-{key.hex()}{'-pinned' * pinned}{_SUFFIX}"

    def _save(self, path: Path, request: _Write) -> None:
        payload = np.ascontiguousarray(request.block).data.cast("B")
        sums = b"".join(
            zlib.crc32(payload[start : start + _PIECE]).to_bytes(4, "little")
            for start in range(0, len(payload), _PIECE)
        )
        fields = (_MAGIC, self._identity, request.key, len(payload), zlib.crc32(sums))
        header = _HEADER.pack(*fields, 0)[:-4]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            for part in (header + zlib.crc32(header).to_bytes(4, "little"), payload, sums):
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
            _forget_pages(file)

    def _header(self, data: bytes) -> tuple[bytes, int]:
        """Key, and CRC of the payload's CRCs. Raises RefusedError."""
        if len(data) < _HEADER.size:
            raise RefusedError("it is cut")
        magic, identity, key, size, crc, own = _HEADER.unpack(data)
        if magic != _MAGIC or zlib.crc32(data[:-4]) != own:
            raise RefusedError("its header is damaged")
        if identity != self._identity:
            raise RefusedError(_FOREIGN)
        if size != int(np.prod(self._shape)) * self._dtype.itemsize:
            raise RefusedError("its block has another size")
        return key, crc

    def _refuse(self, path: Path, error: Exception) -> None:
        self.refused += 1
        reason = _why(error) if isinstance(error, OSError) else str(error)
        log.warning("prefix_file_refused", file=path.name, reason=reason)
        _unlink(path)

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._files.pop(key).size

    def _make_room(self, size: int, pinned: bool) -> list[bytes] | None:
        """Remove the least recently used until `size` fits; None if it cannot. Pinned ones only give way to pinned."""
        free = self._budget - self.bytes
        evicted = []
        for wanted in (False, True) if pinned else (False,):
            for key, file in self._files.items():
                if free >= size:
                    break
                if file.pinned == wanted:
                    evicted.append(key)
                    free += file.size
        if free < size:
            return None
        for key in evicted:
            _unlink(self._files[key].path)
            self._drop(key)
        return evicted

    def _spent(self) -> tuple[int, int]:
        """Today, in days since the epoch, and the bytes written today, by earlier processes too."""
        today = int(time.time() // _DAY)
        try:
            ledger = json.loads((self._folder / _LEDGER).read_text("ascii"))
            return today, int(ledger["bytes"]) if ledger["day"] == today else 0
        except (OSError, ValueError, KeyError, TypeError):
            return today, 0

    def _note_spent(self, day: int, spent: int) -> None:
        """Before the write, so that a crash in its middle is counted too."""
        path = self._folder / _LEDGER
        temporary = path.with_suffix(_TEMPORARY)
        temporary.write_text(json.dumps({"day": day, "bytes": spent}), "ascii")
        os.replace(temporary, path)


def erase(folder: Path) -> int:
    """Erase every block in `folder`; returns how many. Works beside a running daemon, which forgets them too."""
    if not folder.is_dir():
        return 0
    mark, now = folder / _ERASED, time.time_ns()
    mark.touch(mode=0o600)
    os.utime(mark, ns=(now, now))  # before the files go: what a daemon writes from now on, it takes back itself
    files = list(folder.glob(f"*{_SUFFIX}"))
    for path in files:
        _erase(path)
    return len(files)


def _erasures(folder: Path) -> int:
    """Changes with every erase()."""
    try:
        return (folder / _ERASED).stat().st_mtime_ns
    except OSError:
        return 0


def _erase(path: Path) -> None:
    try:
        erase_file(path)
    except OSError as error:
        log.warning("prefix_file_not_removed", file=path.name, reason=_why(error))


def _fill(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise RefusedError("it is cut")
        view = view[count:]


def _forget_pages(file: Any) -> None:
    """Leave the page cache to the model's weights: what lies in a row or in RAM is not wanted there, too."""
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("prefix_file_not_removed", file=path.name, reason=_why(error))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
