"""Power meters: watts by rail, and which rails make up the board's power."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edged.machine.board.generic import folders, read
from edged.machine.sensors.quantities import BROKEN, number


@dataclass(frozen=True)
class Power:
    """A reading: watts by rail, and their `total`, of what `source` names; None where the rails do not tell it."""

    rails: Mapping[str, float]
    total: float | None = None
    source: str = ""
    mean: bool = False
    """Whether it is the mean since the reading before, by a counter of energy; else it is of one moment."""


class PowerMeter(Protocol):
    """Reads what a board draws."""

    def read(self) -> Power:
        """The power now. A rail that cannot be read is left out."""


class RaplMeter:
    """A PC's counters of energy: the mean power since the last reading, so nothing between two readings is missed.

    /sys/class/powercap/intel-rapl:N/{name,energy_uj,max_energy_range_uj}, of AMD's processors too, as
    Documentation/power/powercap/powercap.rst of Linux describes them. Only root may read them (CVE-2020-8694).
    `psys` is the whole platform where the firmware counts it; `package-N` is a processor, without the board around it.
    """

    def __init__(self, root: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._zones = root / "sys/class/powercap"
        self._now = now
        self._last: dict[str, tuple[float, float]] = {}

    def read(self) -> Power:
        """Nothing at the first reading, which a second one is needed for."""
        rails, last, packages = {}, self._last, set()
        self._last = {}
        for zone in folders(self._zones, "intel-rapl:"):
            name = read(zone / "name") or zone.name
            if name.startswith("package"):
                packages.add(name)
            with suppress(*BROKEN):
                joules, at = number(zone / "energy_uj", 1e-6), self._now()
                self._last[name] = joules, at
                if name in last and at > last[name][1]:
                    used = joules - last[name][0]
                    if used < 0:  # the counter has begun anew
                        used += number(zone / "max_energy_range_uj", 1e-6)
                    rails[name] = used / (at - last[name][1])
        if rails.get("psys"):  # some firmware counts nothing there
            return Power(rails, rails["psys"], "psys", mean=True)
        if not packages or not packages <= rails.keys():
            return Power(rails, mean=True)
        return Power(rails, sum(rails[name] for name in packages), "+".join(sorted(packages)), mean=True)

    def unreadable(self) -> bool:
        """Whether there are counters that this user may not read."""
        zones = folders(self._zones, "intel-rapl:")
        return bool(zones) and all(read(zone / "energy_uj") is None for zone in zones)
