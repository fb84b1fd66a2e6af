"""Recognises an NVIDIA Jetson and its release of Linux for Tegra."""

from __future__ import annotations

import re
from pathlib import Path

from edged.machine.board.generic import Board, device_tree, online, read, serial


def jetson(root: Path) -> Board | None:
    """The Jetson below ``root``, if it is one. A container may see only the device tree."""
    release = read(root / "etc/nv_tegra_release")
    if release is None and "nvidia,tegra" not in (device_tree(root, "compatible") or ""):
        return None
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    l4t = f"{match[1]}.{match[2]}" if match else None
    model = device_tree(root, "model") or "NVIDIA Jetson"
    return Board("jetson", model, serial(root), l4t, online(root), root)
