"""Manifests of packages that came without one, in the state directory: made at a load whose known answers were right.

Such a package may be replaced by hand at any time. So the files' times and inodes are kept with the manifest: a file
that has changed while these did not has decayed, and one that was written is another package's.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from edged.checked_json import DamagedError, form_expected, read_checked, write_checked
from edged.engine.manifest import Manifest, parse_manifest
from edged.engine.package_files import PackageError

log = structlog.get_logger(__name__)

MANIFESTS = "manifests"
"""Name of the folder under state_dir."""
_MOST_BYTES = 8 << 20

Stamp = tuple[int, int, int, int]
"""Inode, bytes, and times of the last write and the last change, in nanoseconds."""


@dataclass(frozen=True)
class Kept:
    """A manifest, and the stamps of the files when it was made."""

    manifest: Manifest
    stamps: dict[str, Stamp]


class KeptManifests:
    """The manifests in one folder, one for each package's folder."""

    def __init__(self, folder: Path, may_add: bool) -> None:
        """`may_add`: for the daemon; commands may run as another user, and only read."""
        self._folder = folder
        self.may_add = may_add

    def find(self, package: Path) -> Kept | None:
        """What is kept for the package in this folder."""
        path = self._path(package)
        try:
            document = read_checked(path, _MOST_BYTES)
            if document is None:
                return None
            with form_expected():
                manifest = parse_manifest(json.dumps(document["manifest"]).encode(), path.name)
                stamps = {str(file): _stamp(numbers) for file, numbers in document["stamps"].items()}
        except (OSError, DamagedError, PackageError) as error:
            log.warning("kept_manifest_refused", file=path.name, reason=" ".join(str(error).split())[:200])
            return None
        return Kept(manifest, stamps)

    def add(self, package: Path, manifest: Manifest, stamps: dict[str, Stamp]) -> None:
        """Keep the manifest, and forget those of packages that are gone. A failure is logged."""
        document = {
            "package": str(package.resolve()),
            "stamps": stamps,
            "manifest": json.loads(manifest.document()),
        }
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_checked(self._path(package), document)
            self._forget_gone()
        except OSError as error:
            log.warning("manifest_not_kept", package=str(package), reason=(error.strerror or str(error)).lower())
        else:
            log.info("manifest_kept", package=str(package), files=len(manifest.files), bytes=manifest.bytes)

    def _path(self, package: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(package.resolve()).encode()).hexdigest()[:32]}.json"

    def _forget_gone(self) -> None:
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                kept = read_checked(path, _MOST_BYTES)
                if kept is not None and not Path(kept["package"]).is_dir():
                    path.unlink()


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file now, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp(numbers: list[int]) -> Stamp:
    inode, size, written, changed = map(int, numbers)
    return inode, size, written, changed
