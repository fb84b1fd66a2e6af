"""Removes files in such a way that nothing of what stood in them is left in free blocks of the disk."""

from __future__ import annotations

import os
from pathlib import Path

_PIECE = 1 << 20


def erase_file(path: Path) -> None:
    """Overwrite a file with zeros and remove it; one that is not there is fine. Raises OSError.

    A promise for disks that overwrite in place: flash keeps the old copy for a while.
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
