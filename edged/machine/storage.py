"""On what a folder lies and where memory is swapped to, read from /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.machine.board.generic import read

SPARE_BYTES = 256 << 20
"""Left free on the disk for jobs and results, whatever else is laid there."""
_VOLATILE = {"tmpfs", "ramfs", "overlay"}
"""Raspberry Pi OS, told to protect the card, lays an overlay in memory over it."""


@dataclass(frozen=True)
class Mount:
    """A mounted file system, of /proc/self/mountinfo (proc(5))."""

    point: Path
    kind: str
    source: str
    read_only: bool

    @property
    def volatile(self) -> bool:
        """Whether what is written there is gone, or may be, after a reboot."""
        return self.kind in _VOLATILE

    @property
    def on_card(self) -> bool:
        """Whether it is an SD card or eMMC."""
        return self.source.startswith("/dev/mmcblk")


def mount_of(path: Path, root: Path = Path("/")) -> Mount | None:
    """The file system that holds `path`, an absolute path; None where the kernel does not say."""
    found: Mount | None = None
    for mount in _mounts(root):
        # What is mounted later on the same place hides what was there.
        holds = path == mount.point or mount.point in path.parents
        if holds and (found is None or len(mount.point.parts) >= len(found.point.parts)):
            found = mount
    return found


def swaps_on_card(root: Path = Path("/")) -> list[str]:
    """Partitions and files on a card to which memory is swapped."""
    lines = (read(root / "proc/swaps") or "").splitlines()[1:]
    found = []
    for line in lines:
        words = line.split()
        if len(words) < 2:
            continue
        name = _plain(words[0])
        mount = mount_of(Path(name), root) if words[1] == "file" else None
        if name.startswith("/dev/mmcblk") or (mount is not None and mount.on_card):
            found.append(name)
    return found


def _mounts(root: Path) -> Iterator[Mount]:
    for line in (read(root / "proc/self/mountinfo") or "").splitlines():
        words = line.split()
        if len(words) < 10 or "-" not in words[6:]:
            continue
        end = words.index("-", 6)
        kind, source, options = [*words[end + 1 :], "", "", ""][:3]
        read_only = "ro" in (words[5] + "," + options).split(",")
        yield Mount(Path(_plain(words[4])), kind, _plain(source), read_only)


def _plain(name: str) -> str:
    """A name in which the kernel has written blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
