"""A small disk of its own for the daemon's state."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_fixtures import Daemon, Place


class Disk:
    """A small ext4 in a file."""

    def __init__(self, folder: Path) -> None:
        self.image, self.mount = folder / "disk.img", folder / "disk"
        self.image.touch()
        os.truncate(self.image, 96 << 20)
        self.mount.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self.image)], check=True)
        made = subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mount)], capture_output=True)
        if made.returncode:
            pytest.skip("no loop device here")

    def holds(self, *traces: bytes) -> list[bytes]:
        """Which of these stand anywhere on the disk."""
        os.sync()
        raw = self.image.read_bytes()
        return [trace for trace in traces if trace in raw]

    def fill(self, room: int) -> None:
        """Leave about `room` bytes."""
        ballast = os.open(self.mount / "ballast", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(ballast, bytes(4096))
        os.ftruncate(ballast, os.fstat(ballast).st_size - room)
        os.close(ballast)

    def empty(self) -> None:
        """Take the ballast away."""
        (self.mount / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    subprocess.run(["umount", "-l", str(disk.mount)], check=True)


def on(place: Place, disk: Disk, **settings: Any) -> Daemon:
    """A daemon whose state lies there."""
    daemon = place.daemon(STATE_DIR=str(disk.mount / "state"), LOG__LEVEL="debug", **settings)
    daemon.state_dir = disk.mount / "state"
    return daemon
