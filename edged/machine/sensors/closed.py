"""Sensors that edged's service may not read until a drop-in opens them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edged.machine.board import Board
from edged.machine.board.generic import folders, read

_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")


@dataclass(frozen=True)
class Closed:
    """`what` cannot be read; the example `drop_in`.conf of edged.service.d opens it."""

    what: str
    drop_in: str


def closed(board: Board) -> list[Closed]:
    """Where the service is installed: what no drop-in of its opens. Elsewhere: what this user may not read."""
    found = []
    mailbox = board.root / "dev/vcio"
    if board.kind == "raspberry_pi" and mailbox.exists() and not _is_open(board.root, mailbox, "DeviceAllow=/dev/vcio"):
        found.append(Closed("why a Raspberry Pi slows down or was started, and what a Pi 5 draws", "raspberry-pi"))
    for zone in folders(board.root / "sys/class/powercap", "intel-rapl:")[:1]:
        if not _is_open(board.root, zone / "energy_uj", "energy_uj"):
            found.append(Closed("what the processor draws", "rapl"))
    return found


def _is_open(root: Path, path: Path, word: str) -> bool:
    if not any((root / folder / "edged.service").exists() for folder in _UNITS):
        return os.access(path, os.R_OK)
    drop_ins = sorted((root / _UNITS[0] / "edged.service.d").glob("*.conf"))
    lines = [line for drop_in in drop_ins for line in (read(drop_in) or "").splitlines()]
    return any(word in line and not line.lstrip().startswith("#") for line in lines)
