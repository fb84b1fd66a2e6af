"""The energy of the last 24 hours, of a board with a budget for them; kept over restarts.

It is counted in quarters of an hour while edged runs. A quarter leaves the count a day after its end, so that no 24
hours have more than what is counted.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from edged.durable import write_durably
from edged.machine.clock import Clock
from edged.status import EnergyStatus

log = structlog.get_logger(__name__)

DAY = 86400.0
SLICE = 900.0
"""Seconds that are counted together, and after which the count is written down."""
FILE = "energy.json"
"""Its name in state_dir."""
MOST_SLICES = 200
"""A process that starts again and again continues the last one from here on."""


@dataclass
class _Slice:
    """Joules until `ended` (seconds of this boot): of the whole board, and of that above idle."""

    ended: float
    total: float = 0.0
    work: float = 0.0


class EnergyDay:
    """Counts what the energy ledger measures. Main thread only."""

    def __init__(self, budget: float, file: Path, clock: Clock, measured: Callable[[], EnergyStatus]) -> None:
        """`budget`: joules of the whole board in 24 hours. `measured`: totals since the process began."""
        self.budget = budget
        self._file = file
        self._clock = clock
        self._measured = measured
        self._slices: deque[_Slice] = deque()
        self._began = clock.boottime()
        self._before = (0.0, 0.0)
        self._idle_watts: float | None = None
        self._known = False
        self._logged = False
        self._load()
        if len(self._slices) < MOST_SLICES:
            self._slices.append(_Slice(self._began))

    def update(self) -> None:
        """Count what was measured since the last call."""
        status, now = self._measured(), self._clock.boottime()
        self._known, self._idle_watts = bool(status.source), status.idle_watts
        total = sum(status.joules.values())
        work = total - status.joules.get("idle", 0.0)
        current = self._slices[-1]
        current.ended = now
        current.total += total - self._before[0]
        current.work += work - self._before[1]
        self._before = total, work
        while self._slices[0].ended < now - DAY:
            self._slices.popleft()
        if now - self._began >= SLICE:
            self._began = now
            self._slices.append(_Slice(now))
            self.save()

    @property
    def joules(self) -> float | None:
        """What the board took in the last 24 hours; None while nothing tells the power."""
        return sum(one.total for one in self._slices) if self._known else None

    @property
    def share(self) -> float | None:
        """Used share of what the budget leaves for jobs, since the idle board takes its part all day.

        None while nothing tells the power; infinite where the idle board alone takes as much as the budget.
        """
        if not self._known:
            return None
        left = self.budget - (self._idle_watts or 0.0) * DAY
        return sum(one.work for one in self._slices) / left if left > 0 else math.inf

    def save(self) -> None:
        """Write the count down. A failure is logged once."""
        now = self._clock.boottime()
        document = {
            "boot_id": self._clock.boot_id(),
            "boottime": now,
            "wall": self._clock.wall(),
            "slices": [[round(now - one.ended, 1), round(one.total, 1), round(one.work, 1)] for one in self._slices],
        }
        try:
            write_durably(self._file, json.dumps(document) + "\n")
            self._logged = False
        except OSError as error:
            if not self._logged:
                log.warning("energy_day_not_kept", file=str(self._file), reason=error.strerror or str(error))
            self._logged = True

    def _load(self) -> None:
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            passed = self._passed(document)
            slices = [
                _Slice(self._began - _number(age) - passed, _number(total), _number(work))
                for age, total, work in document["slices"]
            ]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = getattr(error, "strerror", None) or f"it is damaged ({type(error).__name__})"
            log.warning("energy_day_refused", file=str(self._file), reason=reason)
            return
        self._slices.extend([one for one in slices if one.ended >= self._began - DAY][-MOST_SLICES:])

    def _passed(self, document: dict[str, Any]) -> float:
        """Seconds since the count was written; 0, the cautious answer, where a wall clock went back."""
        if document["boot_id"] == self._clock.boot_id():
            return max(0.0, self._began - _number(document["boottime"]))
        return max(0.0, self._clock.wall() - _number(document["wall"]))


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError
    return float(value)
