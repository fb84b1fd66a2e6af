"""Finds the file system that holds a folder, and the swap devices, from /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.machine.board.generic import read

SPARE_BYTES = 256 << 20
"""Bytes of the disk that are left free for jobs and results when other files are stored."""
_VOLATILE = {"tmpfs", "ramfs", "overlay"}
"""overlay: Raspberry Pi OS can protect the card with an overlay in memory."""


@dataclass(frozen=True)
class Mount:
    """A mounted file system from /proc/self/mountinfo (proc(5))."""

    point: Path
    kind: str
    source: str
    read_only: bool

    @property
    def volatile(self) -> bool:
        """Whether files may be lost at a reboot."""
        return self.kind in _VOLATILE

    @property
    def on_card(self) -> bool:
        """Whether it is an SD card or eMMC."""
        return self.source.startswith("/dev/mmcblk")


def mount_of(path: Path, root: Path = Path("/")) -> Mount | None:
    """The file system that holds `path`, an absolute path; None if the kernel does not tell."""
    found: Mount | None = None
    for mount in _mounts(root):
        # A later mount hides an earlier one at the same path.
        holds = path == mount.point or mount.point in path.parents
        if holds and (found is None or len(mount.point.parts) >= len(found.point.parts)):
            found = mount
    return found


def swaps_on_card(root: Path = Path("/")) -> list[str]:
    """Swap partitions and swap files on a card."""
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
    """Decode a name in which the kernel has escaped blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
