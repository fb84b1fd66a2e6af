"""How hot a board's zones may get before its firmware or its kernel does worse than lower a frequency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edged.machine.board import Board
from edged.machine.board.generic import folders, read
from edged.machine.sensors.quantities import BROKEN, number

_PI = 85.0
"""A Raspberry Pi lowers the frequency of its cores from 80 °C on, and at 85 °C that of the GPU and the memory's
controller too: raspberrypi.com/documentation/computers/raspberry-pi.html, Frequency management and thermal control."""
_BELOW_CRITICAL = 10.0
"""A kernel shuts the board down at a zone's critical trip point: Documentation/driver-api/thermal/sysfs-api.rst."""


def thermal_limits(board: Board) -> Mapping[str, float]:
    """Degrees Celsius by zone; a zone without a critical trip point has no limit."""
    limits: dict[str, float] = {}
    for zone in folders(board.root / "sys/class/thermal", "thermal_zone"):
        name = read(zone / "type")
        critical = _critical(zone)
        if not name:
            continue
        if board.kind == "raspberry_pi":
            limits[name] = _PI
        elif critical is not None:
            limits[name] = critical - _BELOW_CRITICAL
    return limits


def _critical(zone: Path) -> float | None:
    for trip in sorted(zone.glob("trip_point_*_type")):
        if read(trip) == "critical":
            try:
                celsius = number(trip.with_name(trip.name.replace("_type", "_temp")), 1e-3)
            except BROKEN:
                continue
            if 50 <= celsius <= 150:  # firmware that does not know gives 0 or 200
                return celsius
    return None
