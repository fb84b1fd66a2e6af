"""Holds the engine back where the board is near a limit, before the firmware or the battery does it worse.

The policy is govern(), a pure function. Lower frequencies cost less than pauses, so the firmware may lower them first:
edged pauses where that does not suffice. Pauses between steps lower heat and mean power. They do not lower the power of
a step, so a weak supply makes edged leave the jobs of its groups to others. Rows are lowered for memory alone. Of a
day's energy four fifths are spent at full speed, the rest ever more slowly, so that it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from edged.energy_day import EnergyDay
from edged.engine.steps import EngineLimit
from edged.faults import Fault
from edged.heat import Heat
from edged.machine.sensors.quantities import PRESSURE, TEMPERATURE
from edged.machine.sensors.readings import Readings
from edged.status import GovernorStatus

log = structlog.get_logger(__name__)

LEAST_DUTY = 0.05
"""Share of time in which the engine may compute at the least: jobs end, however late."""
SHED_DUTY = 0.8
"""Below this duty the jobs of groups are left to other devices."""
SHED_SECONDS, MOST_STRAINED = 10.0, 60.0
"""After so many seconds of strain; they count down as they counted up, from the second number at most."""
STARVED, FED = 0.2, 0.05
"""Share of ten seconds that tasks waited for memory: above the one rows are lowered, below the other raised."""
FEWER_SECONDS, MORE_SECONDS = 10.0, 60.0
"""Time from a change of the rows, to fewer or to more, until the next."""
SPENT, REGAINED = 0.8, 0.75
"""Used share of a day's energy: above the one the duty falls, and above the other it stays below 1."""
LAST = 0.95
"""At this share it has fallen to LEAST_DAY_DUTY: what jobs take beyond is in the rest."""
LEAST_DAY_DUTY = 0.01
"""With the day's energy used up."""
UNKNOWN_SECONDS = 60.0
"""Without a known power for so long, a budget is said not to be kept."""
_WATTS_SECONDS = 10.0
"""The power is averaged over about so long."""
_SUPPLY = frozenset({"under_voltage", "average_over_current", "instantaneous_over_current"})
"""Reasons of throttling that are of the power supply."""


@dataclass(frozen=True)
class Strain:
    """What the board suffers now. None: it does not tell, or has no limit."""

    heat_margin: float | None = None
    """Kelvin that its hottest zone is below its limit."""
    weak_supply: bool = False
    watts: float | None = None
    memory_stall: float | None = None
    """Share of the last ten seconds in which some task waited for memory."""
    day_share: float | None = None
    """Used share of the day's energy."""


@dataclass(frozen=True)
class Hold:
    """How the engine is held back: at most `rows` (None: all), and why. `watts`: their mean.

    `duty`: share of its time that heat and watts leave; `day_duty`: what the day's energy leaves.
    """

    duty: float = 1.0
    rows: int | None = None
    reasons: frozenset[str] = frozenset()
    sheds_groups: bool = False
    watts: float | None = None
    strained: float = 0.0
    """Seconds of a reason to shed groups, less those without one."""
    row_pause: float = 0.0
    """Seconds until the rows may change again."""
    day_duty: float = 1.0
    heat: Heat = field(default=Heat(), compare=False)

    @property
    def share(self) -> float:
        """Of its time in which the engine may compute."""
        return min(self.duty, self.day_duty)


def govern(hold: Hold, strain: Strain, seconds: float, *, budget: float | None, most_rows: int) -> Hold:
    """How to hold the engine back for the next second or so, `seconds` after the last decision.

    `budget`: watts that the board may draw on average; `most_rows`: rows of the model.
    """
    watts, heat = _mean(hold.watts, strain.watts, seconds), hold.heat.after(strain.heat_margin, seconds)
    causes, duty = set(), heat.duty(hold.duty, seconds)
    if heat.close > 0 or (duty < hold.duty and heat.margin is not None):
        causes.add("heat")
    if budget is not None and watts is not None and watts > 0.95 * budget:
        duty = min(duty, hold.duty)
        if watts > budget:
            causes.add("power_budget")
            duty *= max(0.8, budget / watts) ** seconds
    duty = min(1.0, max(LEAST_DUTY, duty))
    rows, row_pause = _rows(hold, strain, seconds, most_rows)
    if rows is not None:
        causes.add("memory")
    if strain.weak_supply:
        causes.add("power_supply")
    day_duty = _day_duty(hold.day_duty, strain.day_share)
    if day_duty < 1.0:
        causes.add("energy_budget")
    change = seconds if strain.weak_supply or min(duty, day_duty) < SHED_DUTY else -seconds
    strained = min(MOST_STRAINED, max(0.0, hold.strained + change))
    sheds = strained > (0.0 if hold.sheds_groups else SHED_SECONDS)
    # A reason stands as long as its effect does.
    lasting = {reason for reason in hold.reasons & {"heat", "power_budget"} if duty < 1.0}
    if sheds and "power_supply" in hold.reasons:
        lasting.add("power_supply")
    reasons = frozenset(causes | lasting)
    return Hold(duty, rows, reasons, sheds, watts, strained, row_pause, day_duty, heat)


def _mean(before: float | None, now: float | None, seconds: float) -> float | None:
    if before is None or now is None:
        return now
    return before + min(1.0, seconds / _WATTS_SECONDS) * (now - before)


def _day_duty(before: float, share: float | None) -> float:
    """What the day's energy leaves, of which `share` is used; `before`: what it left last."""
    begins = REGAINED if before < 1.0 else SPENT
    if share is None or share <= begins:
        return 1.0
    return max(LEAST_DAY_DUTY, (LAST - share) / (LAST - begins))


def _rows(hold: Hold, strain: Strain, seconds: float, most: int) -> tuple[int | None, float]:
    """The rows, and how long they stay."""
    rows, pause, stall = hold.rows or most, max(0.0, hold.row_pause - seconds), strain.memory_stall
    if stall is not None and pause == 0.0:
        if stall > STARVED and rows > 1:
            rows, pause = rows - 1, FEWER_SECONDS
        elif stall < FED and rows < most:
            rows, pause = rows + 1, MORE_SECONDS
    return (None if rows >= most else rows), pause


_HINTS = {
    "heat": "improve the cooling",
    "energy_budget": "raise power.budget_joules_per_day, or send fewer jobs",
    "memory": "lower model.rows or cache.ram_bytes, or stop other programs",
    "power_budget": "raise power.budget_watts, or send fewer jobs",
    "power_supply": "use a stronger power supply and a shorter cable",
}


def limited(status: GovernorStatus) -> list[Fault]:
    """The warning of a board that holds the engine back; none where it does not."""
    if not status.reasons:
        return []
    message = f"jobs take longer, or go to other devices: the board is near a limit ({', '.join(status.reasons)})"
    return [Fault("board_limited", message, "; ".join(_HINTS[reason] for reason in status.reasons))]


class Governor:
    """Reads the board's strain each second and tells the engine. Main thread only."""

    def __init__(
        self,
        readings: Callable[[], Readings],
        limits: Mapping[str, float],
        apply: Callable[[EngineLimit], None],
        configured: Callable[[float], float | None] = lambda _duty: None,
        *,
        budget: float | None = None,
        day: EnergyDay | None = None,
    ) -> None:
        """`limits`: degrees Celsius by zone. `apply` tells the engine.

        `configured`: watts at a duty, of a board without a sensor, where the settings tell them. `budget`: watts;
        `day`: the energy of the last 24 hours, where that has a budget.
        """
        self._readings = readings
        self._limits = limits
        self._apply = apply
        self._budget = budget
        self._day = day
        self._configured = configured
        self._hold = Hold()
        self._at: float | None = None
        self._unknown = 0.0
        """Seconds without a power to hold against a budget."""

    def update(self, now: float, most_rows: int, running: bool) -> None:
        """Decide anew, at this CLOCK_MONOTONIC second. `running`: whether jobs run."""
        seconds = min(5.0, now - self._at) if self._at is not None else 1.0
        self._at = now
        before = self._hold
        if self._day is not None:
            self._day.update()
        strain = self._strain(now, running)
        self._hold = govern(before, strain, seconds, budget=self._budget, most_rows=most_rows)
        self._note_unknown(strain, seconds)
        self._apply(EngineLimit(self._hold.share, self._hold.rows))
        if self._hold.reasons - before.reasons:
            log.warning("board_limited", reasons=sorted(self._hold.reasons), duty=round(self._hold.share, 2))
        elif before.reasons and not self._hold.reasons:
            log.info("board_unlimited")

    def _note_unknown(self, strain: Strain, seconds: float) -> None:
        """Say that a budget cannot be kept."""
        before, hopeless = self._unknown, strain.day_share == math.inf
        unknown = self._budget is not None and strain.watts is None
        unknown = unknown or (self._day is not None and strain.day_share is None)
        self._unknown = before + seconds if unknown or hopeless else 0.0
        if before < UNKNOWN_SECONDS <= self._unknown:
            hint = "no sensor measures the power here: set power.idle_watts and power.busy_watts, or no budget"
            if hopeless:
                hint = "the idle board alone takes as much: raise power.budget_joules_per_day"
            log.warning("power_budget_not_kept", hint=hint)

    def close(self) -> None:
        """Write down what must outlive a restart."""
        if self._day is not None:
            self._day.update()
            self._day.save()

    @property
    def status(self) -> GovernorStatus:
        """What was decided last."""
        hold, day = self._hold, self._day
        reasons = tuple(sorted(hold.reasons))
        used, budget = (day.joules, day.budget) if day is not None else (None, None)
        return GovernorStatus(hold.share, hold.rows, reasons, hold.sheds_groups, used, budget)

    def _strain(self, now: float, running: bool) -> Strain:
        readings = self._readings()
        zones = readings.by_name(TEMPERATURE, now)
        margins = [limit - zones[zone] for zone, limit in self._limits.items() if zone in zones]
        watts = readings.total
        if watts is None:
            watts = self._configured(self._hold.duty if running else 0.0)
        return Strain(
            heat_margin=min(margins, default=None),
            weak_supply=not _SUPPLY.isdisjoint(readings.throttled(now)),
            watts=watts,
            memory_stall=readings.of(PRESSURE, now).get(("memory", "some")),
            day_share=self._day.share if self._day is not None else None,
        )
