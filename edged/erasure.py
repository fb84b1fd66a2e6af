"""Removes files so that their content does not stay in free blocks of the disk."""

from __future__ import annotations

import os
from pathlib import Path

_PIECE = 1 << 20


def erase_file(path: Path) -> None:
    """Overwrite a file with zeros and remove it, if it exists. Raises OSError.

    Effective on disks that overwrite in place; flash may keep the old blocks for a while.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size
            while left > 0:
                left -= file.write(bytes(min(left, _PIECE)))
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink(missing_ok=True)
