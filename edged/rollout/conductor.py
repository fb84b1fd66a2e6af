"""When the wave of a rollout grows, and when the rollout ends (pure).

What is known of a wave only grows: `percent` by the maximum, `abort` for good, `pauses` by the maximum. So conductors
that know different things, or publish late, end at the same wave: retained messages need no compare-and-set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from edged.rollout.conductor_member import Member
from edged.rollout.desired import PLACES, Desired, within
from edged.rollout.execution import State

MINUTE = 60.0


@dataclass(frozen=True)
class Wave:
    """The fields of a desired document that change while the rollout goes on."""

    percent: float = 0.0
    abort: bool = False
    pauses: int = 0

    @property
    def paused(self) -> bool:
        """Whether no conductor raises the percent."""
        return self.pauses % 2 == 1

    def merge(self, other: Wave) -> Wave:
        """What is known where both are known."""
        pauses = max(self.pauses, other.pauses)
        return Wave(max(self.percent, other.percent), self.abort or other.abort, pauses)


def wave_of(desired: Desired) -> Wave:
    """The wave of a document."""
    return Wave(desired.percent, desired.abort, desired.pauses)


@dataclass(frozen=True)
class Options:
    """How a rollout is conducted; the last two as in AWS IoT Jobs' abortConfig, with their names there."""

    waves: tuple[float, ...] = (5.0, 25.0, 100.0)
    """Percent of the devices, each larger than the one before."""
    per_minute: int | None = None
    """Most devices that a wave takes in within a minute; None: no limit."""
    abort_over: float = 10.0
    """Percent of failures among the devices that executed, above which it is aborted (thresholdPercentage)."""
    min_executed: int = 3
    """Devices that must have executed before that counts, and that a wave must hold (minNumberOfExecutedThings)."""


class Verdict(str, Enum):
    """What becomes of the rollout."""

    IN_PROGRESS = "IN_PROGRESS"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    """The last wave has proved itself."""
    ABORTED = "ABORTED"
    SUPERSEDED = "SUPERSEDED"
    """The group has another document with this sequence or a higher one."""


WaitsFor = Literal["devices", "wave", "pace"]
"""`devices`: fewer than min_executed are known and there; `wave`: its devices; `pace`: per_minute."""


@dataclass(frozen=True)
class Decision:
    """The wave to publish, and what it waits for where it does not grow further at once."""

    verdict: Verdict
    wave: Wave
    waits_for: WaitsFor | None = None
    goal: float = 0.0
    """The percent that the wave under way has in the end."""


def decide(members: Sequence[Member], wave: Wave, options: Options, since_raise: float = MINUTE) -> Decision:
    """The next wave. `wave`: all that is known of it; `since_raise`: seconds since its percent was raised last.

    The wave of the result is never below `wave`.
    """
    if wave.abort:
        return Decision(Verdict.ABORTED, wave)
    executed = [member for member in members if member.executed]
    failed = sum(member.state is not State.SUCCEEDED for member in executed)
    if len(executed) >= options.min_executed and failed * 100.0 > options.abort_over * len(executed):
        return Decision(Verdict.ABORTED, replace(wave, abort=True))
    goal = _goal(members, wave.percent, options)
    if goal is None:
        return Decision(Verdict.SUCCEEDED, wave, goal=wave.percent)
    if wave.paused:
        return Decision(Verdict.PAUSED, wave, goal=goal)
    percent = max(wave.percent, _paced(members, wave.percent, goal, options.per_minute, since_raise))
    held = sum(member.counts and within(member.place, goal) for member in members)
    waits_for: WaitsFor = "pace" if percent < goal else "wave" if held >= options.min_executed else "devices"
    return Decision(Verdict.IN_PROGRESS, replace(wave, percent=percent), waits_for, goal)


def _goal(members: Sequence[Member], percent: float, options: Options) -> float | None:
    """The percent that may be reached without further proof; None where the last wave has proved itself.

    A wave counts by its devices, whoever raised it: so another conductor goes on where one ended. The first wave holds
    min_executed devices, even if it must be larger for that: with none, nothing would be proved.
    """
    seen = [share for share in (*options.waves, percent) if share <= percent]
    proved = max((share for share in seen if _proved(members, share, options.min_executed)), default=0.0)
    if not proved:
        places = sorted(member.place for member in members if member.counts)
        if len(places) < options.min_executed:
            return percent if percent >= options.waves[0] else 0.0
        needed = percent_of(places[options.min_executed - 1])
        return max(percent, options.waves[0], min(needed, options.waves[-1]))
    further = next((share for share in options.waves if share > proved), None)
    if further is not None:
        return max(percent, further)
    return None if proved >= percent else percent


def _proved(members: Sequence[Member], percent: float, min_executed: int) -> bool:
    """Whether enough devices of this wave have executed, and none is still to: those that are away are not waited for.

    How many of them failed is asked of the whole rollout.
    """
    inside = [member for member in members if member.counts and within(member.place, percent)]
    return len(inside) >= min_executed and all(member.executed for member in inside)


def _paced(members: Sequence[Member], percent: float, goal: float, per_minute: int | None, since_raise: float) -> float:
    """How far to raise the percent now. Devices that are away count too: they may come at any time."""
    if per_minute is None:
        return goal
    places = sorted(
        member.place for member in members if within(member.place, goal) and not within(member.place, percent)
    )
    taken = min(per_minute, int(since_raise * per_minute / MINUTE))
    if len(places) <= taken:
        return goal
    return min(goal, percent_of(places[taken - 1])) if taken else percent


def percent_of(place: int) -> float:
    """The smallest percent, in steps of 0.001, that takes in the device at this place."""
    return min(100.0, math.floor(place * 100_000 / PLACES + 1) / 1000)
