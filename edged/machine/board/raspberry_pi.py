"""Recognises a Raspberry Pi."""

from __future__ import annotations

from pathlib import Path

from edged.machine.board.generic import Board, device_tree, online, serial


def raspberry_pi(root: Path) -> Board | None:
    """The Raspberry Pi below ``root``, if it is one."""
    if "raspberrypi," not in (device_tree(root, "compatible") or ""):
        return None
    model = device_tree(root, "model") or "Raspberry Pi"
    return Board("raspberry_pi", model, serial(root), None, online(root), root)
