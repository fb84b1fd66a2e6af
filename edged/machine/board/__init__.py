"""Detects the board and derives a device id from it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from edged.machine.board.generic import Board, generic, read
from edged.machine.board.jetson import jetson
from edged.machine.board.raspberry_pi import raspberry_pi

__all__ = ["Board", "DeviceIdError", "detect", "device_id"]


class DeviceIdError(Exception):
    """The board has no unique id; the message is one line."""


def detect(root: Path = Path("/")) -> Board:
    """The board whose /proc, /sys and /etc are below ``root``."""
    return raspberry_pi(root) or jetson(root) or generic(root)


def device_id(board: Board, root: Path = Path("/")) -> str:
    """A permanent id of the device for topics: its serial number, else a hash of machine-id(5).

    The machine-id itself is confidential. Raises DeviceIdError if there is neither.
    """
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "", board.serial or "")[:64]
    if cleaned:
        return cleaned
    machine = read(root / "etc/machine-id")
    if not machine or not re.fullmatch(r"[0-9a-f]{32}", machine):  # "uninitialized" during the first boot
        raise DeviceIdError("this board has no serial number and no /etc/machine-id: set device.id")
    return "edged-" + hashlib.sha256(f"edged{machine}".encode()).hexdigest()[:16]
