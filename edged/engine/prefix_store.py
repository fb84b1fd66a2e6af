"""The prefix cache's second tier: a thread that keeps blocks on disk, so that they outlive a restart or a crash.

It keeps to a byte budget and a budget of bytes written a day, since flash wears out. Requests come in through a queue,
and events go out through a callable. Every request is answered, even when memory runs out.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edged.durable import sync_folder
from edged.engine.prefix_files import (
    TEMPORARY,
    BlockFiles,
    RefusedError,
    erase_block,
    last_erasure,
    os_reason,
    remove,
)

log = structlog.get_logger(__name__)

_LEDGER = "written.json"
_EXPIRY_SECONDS = 3600.0
"""The longest time between two searches for expired blocks."""
_DAY = 86400


@dataclass(frozen=True)
class Found:
    """Block number `depth` of a prompt that was asked for; None if there is no valid file.

    Each block is delivered as soon as it is read, so that other rows need not wait until all are copied. `last`: the
    request is answered; no more blocks follow.
    """

    row: int
    depth: int
    key: bytes
    block: NDArray[np.generic] | None
    last: bool


@dataclass(frozen=True)
class Changed:
    """Keys that are on disk now, with whether they are pinned there, and keys that are no longer.

    `rest`: a write failed; pause writing. `forget`: keys that the cache in memory must drop too; None: all.
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


class PrefixStore:
    """The blocks of one model in the files of one folder."""

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
        which a block that is not pinned is erased; one that is still in use is written again.
        """
        self._folder = folder
        self._format = BlockFiles(folder, identity, shape, dtype)
        self._budget = budget
        self._daily_writes = daily_writes
        self._keep = keep
        self._last_erasure = 0
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        """The least recently used first."""
        self._requests: queue.SimpleQueue[_Read | _Write | None] = queue.SimpleQueue()
        self._deliver: Callable[[DiskEvent], None] = lambda _event: None
        self._thread = threading.Thread(target=self._run, name="prefix-disk", daemon=True)
        self.bytes = 0
        """Size of the files. Any thread may read this and the attributes below."""
        self.refused = 0
        """Files that were refused."""
        self.failed = 0
        """Requests that failed by something other than the disk, such as a lack of memory."""
        self.written = 0
        """Bytes written by this process."""

    def start(self, deliver: Callable[[DiskEvent], None]) -> dict[bytes, bool]:
        """Scan the folder and start the thread, which calls `deliver`.

        Returns the keys on disk, and whether each is pinned there.
        """
        self._scan()
        self._deliver = deliver
        self._thread.start()
        return {key: file.pinned for key, file in self._files.items()}

    def read(self, row: int, first: int, keys: Sequence[bytes]) -> None:
        """Request the blocks of a prompt from number `first` on, one or more. Found events answer."""
        self._requests.put(_Read(row, first, tuple(keys)))

    def write(self, key: bytes, block: NDArray[np.generic], pinned: bool) -> None:
        """Write a block, or pin the one on disk. A Changed event answers."""
        self._requests.put(_Write(key, block, pinned))

    def close(self) -> None:
        """End the thread after its current request."""
        self._requests.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    # On the thread

    def _run(self) -> None:
        expiry = time.monotonic()
        while True:
            if (now := time.monotonic()) >= expiry:
                expiry = now + min(_EXPIRY_SECONDS, self._keep / 10)
                try:
                    self._erase_expired()
                except Exception as error:
                    self._note_failure(error)
            try:
                request = self._requests.get(timeout=expiry - now)
            except queue.Empty:
                continue
            if request is None:
                return
            if isinstance(request, _Read):
                self._read(request)
            else:
                self._write(request)

    def _read(self, request: _Read) -> None:
        depth = request.first
        try:
            self._drop_erased()
            for key in request.keys:
                block = self._read_block(key)
                last = block is None or key == request.keys[-1]
                self._deliver(Found(request.row, depth, key, block, last))
                if last:
                    return
                depth += 1
        except Exception as error:  # such as MemoryError; the row must not wait for ever
            self._deliver(Found(request.row, depth, request.keys[depth - request.first], None, last=True))
            self._note_failure(error)

    def _read_block(self, key: bytes) -> NDArray[np.generic] | None:
        if key not in self._files:
            return None
        path = self._files[key].path
        try:
            block = self._format.load(path, key)
        except (RefusedError, OSError) as error:
            self._refuse(path, error)
            self._forget(key)
            self._deliver(Changed(removed=frozenset({key})))
            return None
        self._files.move_to_end(key)
        return block

    def _write(self, request: _Write) -> None:
        evicted: list[bytes] = []
        try:
            if self._drop_erased():
                return
            file = self._files.get(request.key)
            if file is not None and request.pinned and not file.pinned and file.path.exists():
                self._pin(request.key, file)
            else:
                self._add(request, evicted)
        except Exception as error:
            self._deliver(Changed(removed=frozenset(evicted), rest=True))
            if isinstance(error, OSError):
                log.warning("prefix_write_failed", reason=os_reason(error))
            else:
                self._note_failure(error)

    def _pin(self, key: bytes, file: _File) -> None:
        """Pin the block on disk. Raises OSError."""
        path = self._format.path(key, pinned=True)
        os.replace(file.path, path)
        file.path, file.pinned = path, True
        self._deliver(Changed(added={key: True}))

    def _add(self, request: _Write, evicted: list[bytes]) -> None:
        """Write a block. `evicted` receives the keys of blocks removed for it. Raises OSError, MemoryError."""
        size = self._format.file_bytes
        day, spent = self._written_today()
        fits = self._make_room(size, request.pinned, evicted)
        if spent + size > self._daily_writes or not fits:
            reason = "the day's writes are used up" if fits else "no room"
            log.info("prefix_not_written", reason=reason, pinned=request.pinned)
            self._deliver(Changed(removed=frozenset(evicted), rest=True))
            return
        path = self._format.path(request.key, request.pinned)
        temporary = path.with_suffix(TEMPORARY)
        try:
            self._note_written(day, spent + size)
            self._format.save(temporary, request.key, request.block)
            os.replace(temporary, path)
            sync_folder(self._folder)
        except BaseException:
            remove(temporary)
            raise
        self._files[request.key] = _File(path, size, request.pinned)
        self.bytes += size
        self.written += size
        if self._drop_erased():  # erase() may have missed this file, which had no name yet
            erase_block(path)
            return
        self._deliver(Changed(added={request.key: request.pinned}, removed=frozenset(evicted)))

    def _note_failure(self, error: Exception) -> None:
        """Count a failure that is not the disk's. Only the first is logged: the next requests may fail the same way."""
        self.failed += 1
        if self.failed == 1:
            reason = " ".join(str(error).split())[:400]
            log.error("prefix_store_failed", reason=f"{type(error).__name__}: {reason}".removesuffix(": "))

    def _erase_expired(self) -> None:
        expired = []
        for key, file in list(self._files.items()):
            with contextlib.suppress(OSError):
                if not file.pinned and file.path.stat().st_mtime < time.time() - self._keep:
                    expired.append(key)
                    erase_block(file.path)
                    self._forget(key)
        if expired:
            self._deliver(Changed(removed=frozenset(expired), forget=frozenset(expired)))

    def _drop_erased(self) -> bool:
        """Whether `edged forget` has erased all blocks since the last call.

        The cache in memory must then drop its blocks too: otherwise they would be written again.
        """
        erasure = last_erasure(self._folder)
        if erasure == self._last_erasure:
            return False
        self._last_erasure = erasure
        gone = frozenset(self._files)
        self._files.clear()
        self.bytes = 0
        self._deliver(Changed(removed=gone, forget=None))
        return True

    def _scan(self) -> None:
        """List the blocks in the folder, the least recently written first, and remove files that are of no use."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._last_erasure = last_erasure(self._folder)
            entries = [(path, path.stat()) for path in self._folder.iterdir()]
        except OSError as error:
            log.warning("prefix_folder_unusable", folder=str(self._folder), reason=os_reason(error))
            return
        entries.sort(key=lambda entry: entry[1].st_mtime)
        for path, status in entries:
            try:
                if path.suffix == TEMPORARY:
                    remove(path)
                elif (name := self._format.parse_name(path)) is not None:
                    key, pinned = name
                    self._files[key] = _File(path, status.st_size, pinned)
            except RefusedError as error:
                self._refuse(path, error)
        self.bytes = sum(file.size for file in self._files.values())

    def _refuse(self, path: Path, error: RefusedError | OSError) -> None:
        self.refused += 1
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        log.warning("prefix_file_refused", file=path.name, reason=reason)
        remove(path)

    def _forget(self, key: bytes) -> None:
        self.bytes -= self._files.pop(key).size

    def _make_room(self, size: int, pinned: bool, evicted: list[bytes]) -> bool:
        """Remove the least recently used blocks until `size` fits, and add their keys to `evicted`.

        False where it cannot fit. Pinned blocks are removed only for pinned ones.
        """
        free = self._budget - self.bytes
        chosen = []
        for wanted in (False, True) if pinned else (False,):
            for key, file in self._files.items():
                if free >= size:
                    break
                if file.pinned == wanted:
                    chosen.append(key)
                    free += file.size
        if free < size:
            return False
        for key in chosen:
            remove(self._files[key].path)
            self._forget(key)
            evicted.append(key)
        return True

    def _written_today(self) -> tuple[int, int]:
        """Today, in days since the epoch, and the bytes written today, by earlier processes too."""
        today = int(time.time() // _DAY)
        try:
            ledger = json.loads((self._folder / _LEDGER).read_text("ascii"))
            return today, int(ledger["bytes"]) if ledger["day"] == today else 0
        except (OSError, ValueError, KeyError, TypeError):
            return today, 0

    def _note_written(self, day: int, total: int) -> None:
        """Store the day's bytes. Called before the write, so that one that a crash interrupts counts too."""
        path = self._folder / _LEDGER
        temporary = path.with_suffix(TEMPORARY)
        temporary.write_text(json.dumps({"day": day, "bytes": total}), "ascii")
        os.replace(temporary, path)
