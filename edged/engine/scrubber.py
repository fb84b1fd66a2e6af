"""The scrub: a thread that reads the served package from the disk, block by block while idle, and checks each block.

What is served is in memory. The next load reads the card, so decay there must be found, and mended, before that. Blocks
are read in random order, so that a daemon that is often restarted gets round too.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from edged.engine.integrity import DECAYED, Damage, check_blocks
from edged.engine.kept_manifests import Stamp, stamp_of
from edged.engine.manifest import FILE, Manifest, read_manifest
from edged.engine.package_files import PackageError

log = structlog.get_logger(__name__)

BUSY_SECONDS = 600.0
"""Longest time for which a block that is due waits until the engine is idle."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class _Target:
    folder: Path
    manifest: Manifest
    stamps: dict[str, Stamp | None] | None
    """Of the files, where the package has no manifest of its own."""

    def replaced(self, file: str) -> bool:
        """Whether the file is gone or the package another one now, so that other bytes are no decay."""
        try:
            (self.folder / file).stat()
        except OSError as error:  # removed, unmounted, stale
            return error.errno not in DECAYED
        if self.stamps is not None:
            return (self.folder / FILE).exists() or stamp_of(self.folder / file) != self.stamps[file]
        try:
            return read_manifest(self.folder / FILE) != self.manifest
        except PackageError:  # it has decayed too
            return False
        except OSError as error:
            return error.errno not in DECAYED


class Scrubber:
    """Scrubs one package at a time, on its own thread."""

    def __init__(self, interval: float, idle: Callable[[], bool], found: Callable[[], None]) -> None:
        """`interval`: seconds of one pass over all blocks; 0: never. `idle`: whether the engine has nothing to do.

        `found` is called on this thread once `damaged` names a block. The scrub then rests until the next watch(), as
        it does where the package on the disk has been replaced by another one, or removed.
        """
        self._interval = interval
        self._idle = idle
        self._found = found
        self._changed = threading.Condition()
        self._target: _Target | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self.damaged: tuple[Damage, ...] = ()
        """What was found since the last watch(). Any thread may read this and the next."""
        self.bytes = 0
        """Bytes read from the disk and checked since the start."""

    @property
    def ended(self) -> bool:
        """Whether the thread was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, unless the interval is 0."""
        if self._interval:
            self._thread.start()

    def stop(self) -> None:
        """End the thread after its block."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def watch(self, folder: Path, manifest: Manifest | None) -> None:
        """Scrub this package from now on; its load has just checked all of it. None: it has no manifest."""
        with self._changed:
            self.damaged = ()
            self._target = None
            if manifest is not None and manifest.bytes:
                own = (folder / FILE).exists()
                stamps = None if own else {file: stamp_of(folder / file) for file in manifest.files}
                self._target = _Target(folder, manifest, stamps)
            self._changed.notify()

    def rest(self) -> None:
        """Scrub nothing until the next watch()."""
        with self._changed:
            self._target = None
            self._changed.notify()

    # On the thread

    def _run(self) -> None:
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._target is not None)
                target = self._target
            if target is not None:
                self._pass(target)

    def _pass(self, target: _Target) -> None:
        """Every block once, as long as this package is served."""
        manifest, began = target.manifest, time.monotonic()
        blocks = [(file, block) for file, entry in manifest.files.items() for block in range(entry.blocks)]
        for file, block in random.sample(blocks, len(blocks)):
            entry = manifest.files[file]
            size = min(entry.block_bytes, entry.bytes - block * entry.block_bytes)
            if not self._wait(target, self._interval * size / manifest.bytes):
                return
            try:
                damage = tuple(check_blocks(target.folder, file, entry, [block], direct=True))
            except OSError as error:  # no decay: the next pass reads the block again
                log.info("scrub_read_failed", file=file, reason=(error.strerror or str(error)).lower())
                continue
            self.bytes += size
            if damage:
                self._report(target, damage)
                return
        log.info("scrub_passed", bytes=manifest.bytes, seconds=round(time.monotonic() - began))

    def _wait(self, target: _Target, seconds: float) -> bool:
        """Wait until the next block is due and the engine idle; False where the package is served no more."""
        due = time.monotonic() + seconds
        latest = due + BUSY_SECONDS
        with self._changed:
            while not self._stopping and self._target is target:
                now = time.monotonic()
                if now >= due and (self._idle() or now >= latest):
                    return True
                self._changed.wait(due - now if now < due else _POLL_SECONDS)
        return False

    def _report(self, target: _Target, damage: tuple[Damage, ...]) -> None:
        replaced = target.replaced(damage[0].file)
        with self._changed:
            if self._target is not target:  # another load came while it was read
                return
            self._target = None
            if not replaced:
                self.damaged = damage
        if replaced:  # the model in memory is served on; the next load checks what is there then
            log.info("scrub_ended", file=damage[0].file, reason="the package was replaced or removed")
            return
        for one in damage:
            log.error("scrub_found_damage", file=one.file, offset=one.offset, reason=one.what)
        self._found()
