"""The check of a package's files beside its load, so that nothing is served from a file that has decayed.

Small files are checked before they are read. The weights are checked on a thread while onnxruntime loads them, which
needs no more reads of the disk; the load ends when both have ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from edged.engine.integrity import (
    ABSENT,
    DECAYED,
    CorruptPackageError,
    Damage,
    UnreadableError,
    check_file,
    still_damaged,
)
from edged.engine.kept_manifests import KeptManifests, Stamp, stamp_of
from edged.engine.manifest import FILE, Manifest, make_manifest, read_manifest
from edged.engine.package_files import PackageError

log = structlog.get_logger(__name__)

FIRST_BYTES = 64 << 20
"""Files of up to this size are checked before any file is used: all but weights."""


class LoadCheck:
    """One check: check_small(), then start() as the weights are about to be loaded, then finish()."""

    def __init__(self, folder: Path, kept: KeptManifests | None = None, suspects: Sequence[Damage] = ()) -> None:
        """`kept`: has the manifest of a package without one of its own. `suspects`: damage that a scrub has found.

        Raises CorruptPackageError where the package's own manifest is damaged, UnreadableError where it cannot be read.
        """
        self._folder = folder.resolve()
        self._kept = kept
        self._suspects = suspects
        self._stamps: dict[str, Stamp] | None = None
        """Of the files when a kept manifest was made; None: the package has its own, which no stamp outweighs."""
        self._files: Sequence[str] = ()
        self._damage: list[Damage] = []
        self._made: tuple[Manifest, dict[str, Stamp]] | None = None
        self._error: OSError | None = None
        """What kept the thread from reading a file."""
        self._thread: threading.Thread | None = None
        self.manifest: Manifest | None = None
        """What the files are checked against."""
        try:
            self.manifest = read_manifest(self._folder / FILE)
        except PackageError as error:
            raise CorruptPackageError(str(error)) from None
        except OSError as error:
            if error.errno in DECAYED:
                raise CorruptPackageError(f"{FILE}: it cannot be read: {_reason(error)}") from None
            if error.errno not in ABSENT:
                raise UnreadableError(f"{FILE} cannot be read: {_reason(error)}") from None
            found = kept.find(self._folder) if kept is not None else None
            if found is not None:
                self.manifest, self._stamps = found.manifest, found.stamps

    def check_small(self) -> None:
        """Check all files but large ones. Raises CorruptPackageError, UnreadableError."""
        if self.manifest is not None:
            # The page cache may still hold what the disk has lost.
            self._damage += self._suspects
            self._check(large=False)
            self._raise_damage()

    def start(self, files: Sequence[str]) -> None:
        """Check the large files, or compute the manifest of a package that has none, on a thread.

        `files`: Package.files, those that a kept manifest has.
        """
        self._files = files
        if self.manifest is not None:
            self._run(lambda: self._check(large=True))
        elif self._may_keep:
            self._run(self._make)

    def finish(self) -> None:
        """Wait for the end of the check. Raises CorruptPackageError, UnreadableError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        suspects = list(self._damage)
        self._raise_damage()
        if suspects := [one for one in suspects if not self._is_replaced(one.file)]:
            # onnxruntime may have read the same wrong bytes.
            raise UnreadableError(f"{suspects[0].file} at byte {suspects[0].offset} was read wrong once")

    def keep_manifest(self) -> None:
        """After finish(), and once the known answers were right: keep a manifest of a package without its own."""
        if not self._may_keep or (self.manifest is not None and self._stamps is None):
            return
        if self._made is None and self._replaced():
            self._make()
        if self._made is not None:
            assert self._kept is not None
            self.manifest, self._stamps = self._made
            self._kept.add(self._folder, self.manifest, self._stamps)

    @property
    def identity(self) -> str | None:
        """After finish(): what all files are, 64 hex digits; None where no manifest says so."""
        if self._made is not None:
            return self._made[0].identity
        if self.manifest is None or (self._stamps is not None and self._replaced()):
            return None
        return self.manifest.identity

    @property
    def _may_keep(self) -> bool:
        return self._kept is not None and self._kept.may_add

    def _run(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="load-check", daemon=True)
        self._thread.start()

    def _check(self, large: bool) -> None:
        assert self.manifest is not None
        try:
            for file, entry in self.manifest.files.items():
                if (entry.bytes > FIRST_BYTES) == large:
                    self._damage += check_file(self._folder, file, entry)
        except OSError as error:
            self._error = error

    def _raise_damage(self) -> None:
        """Read what seems damaged once more, from the disk, and forget what is not."""
        suspects, self._damage = [one for one in self._damage if not self._is_replaced(one.file)], []
        try:
            if self.manifest is not None and suspects:
                found = still_damaged(self._folder, self.manifest, suspects)
                if decayed := {(one.file, one.offset): one for one in found}:
                    raise CorruptPackageError.of(list(decayed.values()))
            if self._error is not None:
                raise self._error
        except OSError as error:
            raise UnreadableError(f"a file of the package cannot be read: {_reason(error)}") from None

    def _is_replaced(self, file: str) -> bool:
        """Whether somebody wrote this file since the manifest was kept."""
        return self._stamps is not None and stamp_of(self._folder / file) != self._stamps.get(file)

    def _replaced(self) -> bool:
        assert self._stamps is not None
        return set(self._files) != self._stamps.keys() or any(map(self._is_replaced, self._stamps))

    def _make(self) -> None:
        try:
            # Before the content: what is written meanwhile has another stamp.
            stamps = {file: stamp for file in self._files if (stamp := stamp_of(self._folder / file))}
            self._made = make_manifest(self._folder, self._files), stamps
        except (PackageError, OSError) as error:
            log.warning("manifest_not_kept", package=str(self._folder), reason=" ".join(str(error).split())[:200])


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
