"""Shares the energy of the board among the jobs that ran. Pure: power and steps come in, with the times they belong to.

Power arrives as intervals with their mean watts, from the sensors' thread; steps arrive from the engine's. A step takes
its seconds times the power above idle, and its rows share that by their tokens. All else is idle. What cannot be
divided (the model loads, or the idle power is not known yet) is kept apart as `other`, so that the phases always add up
to the integral of the power.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edged.engine.steps import StepObserver, StepRecord
from edged.status import EnergyStatus

CONFIGURED = "configured"
"""The source of energy that no sensor measured."""
IDLE_SECONDS = 2.0
"""So long must the engine have been idle until its idle power is known."""
SETTLE_SECONDS = 0.5
"""What a board draws so shortly after a step is not taken for its idle power."""
QUIET_SECONDS = 1.0
"""After a step the power is read often for so long, and the next step after that asks for a reading."""
LOST_SECONDS = 15.0
"""Steps that no interval has reached in this time stay without energy: the sensor gives nothing."""
_MEMORY_SECONDS = 60.0
"""The idle power follows what is measured with this time constant."""
_FULL_SHARE = 0.8
"""An interval with steps in this share of its seconds tells what steps draw."""
_LEAST_SHARE = 0.05
"""In an interval with less of it, steps are lost in the noise of the idle power."""
_UNKNOWN_SHARE = 0.02
"""A job has no energy if more than this share of its seconds has none."""


@dataclass(frozen=True)
class FixedPower:
    """Configured watts of a board without a sensor: while idle, and while a step runs."""

    idle: float
    busy: float


@dataclass(frozen=True)
class JobEnergy:
    """Joules above idle that a job took, for its prompt and for its answer. `source`: what measured them."""

    prefill: float
    decode: float
    source: str

    @property
    def joules(self) -> float:
        """Both together."""
        return self.prefill + self.decode


@dataclass(eq=False)
class _Account:
    """One job's: joules by whether they were for its prompt, its seconds, and those of them without a known power."""

    joules: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    seconds: float = 0.0
    unknown: float = 0.0


@dataclass(eq=False)
class _Step:
    """A step whose energy is not fully known: `known` of its seconds lay in intervals with known power."""

    record: StepRecord
    accounts: list[_Account]
    known: float = 0.0

    def __post_init__(self) -> None:
        rows = self.record.rows
        tokens = sum(row.tokens for row in rows)
        self.shares = [row.tokens / tokens for row in rows]
        self.seconds = self.record.ended - self.record.began
        self.prompt = any(row.prompt for row in rows)


@dataclass(frozen=True)
class _Interval:
    began: float
    ended: float
    watts: float
    loading: bool

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def overlap(self, step: StepRecord) -> float:
        return max(0.0, min(step.ended, self.ended) - max(step.began, self.began))


class EnergyLedger(StepObserver):
    """Accounts of energy, behind a lock that nobody holds for long; the engine's thread only appends to a queue."""

    def __init__(
        self,
        fixed: FixedPower | None = None,
        *,
        wake: Callable[[], None] = lambda: None,
        loading: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` asks for a reading of the power; `loading`: whether a model is being loaded.

        With `fixed` watts nobody calls add_power().
        """
        self._fixed = fixed
        self._wake = wake
        self._loading = loading
        self._now = now
        self._was_loading = True  # a daemon that starts is about to load
        self._lock = threading.Lock()
        self._accounts: dict[int, _Account] = {}
        self._new: deque[_Step] = deque()
        """Steps as the engine's thread appends them."""
        self._steps: deque[_Step] = deque()
        self._intervals: deque[_Interval] = deque()
        self._running: float | None = None
        self._last_ended = self._last_booked = -math.inf
        self._idle_watts = self._idle_seconds = 0.0
        self._step_watts: dict[bool, float] = {}
        """Above idle, by whether steps read a prompt."""
        self._joules = dict.fromkeys(("prefill", "decode", "idle", "other"), 0.0)
        self._told = dict(self._joules)
        self._tokens = {"prefill": 0, "decode": 0}
        self._source = CONFIGURED if fixed is not None else ""
        self._counted_until = now()

    # The engine's thread

    def began(self, at: float) -> None:
        """A step begins."""
        self._running = at
        if at - self._last_ended > QUIET_SECONDS:
            self._wake()

    def ended(self, step: StepRecord) -> None:
        """It has ended."""
        accounts = [self._accounts.setdefault(row.key, _Account()) for row in step.rows]
        if self._source:
            self._new.append(_Step(step, accounts))
        else:
            for account in accounts:
                account.seconds += step.ended - step.began
                account.unknown += step.ended - step.began
        self._last_ended, self._running = step.ended, None  # in this order: _settle() looks at `running` first

    # The sensors' thread

    def busy(self) -> bool:
        """Whether steps run or have just run, so that the power is worth frequent readings."""
        return self._running is not None or self._now() - self._last_ended < QUIET_SECONDS

    def add_power(self, began: float, ended: float, watts: float, source: str) -> None:
        """The board drew `watts` on average between two CLOCK_MONOTONIC times. Intervals come in order, gaps may be."""
        loading = self._loading()
        with self._lock:
            self._intervals.append(_Interval(began, ended, watts, loading or self._was_loading))
            self._was_loading = loading
            self._source = source
            self._settle()

    # The main thread

    def take(self, key: int) -> JobEnergy | None:
        """The energy of a job that has ended, which is forgotten here; None where too little of it is known.

        For what no reading covers yet, the power of the last steps stands in.
        """
        with self._lock:
            self._settle()
            account = self._accounts.pop(key, None)
            if account is None:
                return None
            joules, seconds, unknown = dict(account.joules), account.seconds, account.unknown
            for step in self._steps:
                for row, share, of in zip(step.record.rows, step.shares, step.accounts, strict=True):
                    if of is account:
                        seconds += step.seconds
                        watts = self._watts_of(step)
                        if watts is None:
                            unknown += step.seconds - step.known
                        else:
                            joules[row.prompt] += watts * (step.seconds - step.known) * share
            if unknown > _UNKNOWN_SHARE * seconds:
                return None
            return JobEnergy(max(0.0, joules[True]), max(0.0, joules[False]), self._source)

    def status(self) -> EnergyStatus:
        """Totals since the start. They never fall, although what is booked may be corrected by a little."""
        with self._lock:
            self._settle()
            now = self._now()
            if self._fixed is not None:
                self._joules["idle"] += self._fixed.idle * (now - self._counted_until)
                self._counted_until = now
            for phase, joules in self._joules.items():
                self._told[phase] = max(self._told[phase], joules)
            return EnergyStatus(self._source, dict(self._told), dict(self._tokens), self._known_idle())

    # Bookkeeping, under the lock

    def _settle(self) -> None:
        """Book the intervals that no running step reaches into, and give up steps that none has reached for long."""
        running = self._running
        while self._new:
            self._steps.append(self._new.popleft())
        while self._intervals and (running is None or self._intervals[0].ended <= running):
            self._book(self._intervals.popleft())
        if self._fixed is not None:
            for step in self._steps:
                self._share(step, (self._fixed.busy - self._fixed.idle) * step.seconds, step.seconds)
            self._close_until(math.inf)
        elif not self._intervals:
            self._close_until(self._now() - LOST_SECONDS)

    def _book(self, interval: _Interval) -> None:
        within = [(step, interval.overlap(step.record)) for step in self._steps if step.record.began < interval.ended]
        busy = sum(seconds for _, seconds in within)
        joules, idle = interval.watts * interval.seconds, self._known_idle()
        if interval.loading or (busy and idle is None):
            self._joules["other"] += joules
        elif idle is None or not busy:
            self._joules["idle"] += joules
            if not busy and interval.began >= self._last_booked + SETTLE_SECONDS:
                self._learn_idle(interval)
        else:
            share, above = busy / interval.seconds, (joules - idle * interval.seconds) / busy
            if share >= _FULL_SHARE:
                self._learn_step_watts([step for step, _ in within], above)
            for step, seconds in within:
                # An interval that steps share with idle time says little of the power of steps.
                known = self._watts_of(step) if share < _FULL_SHARE else above
                if known is None:
                    known = above if share >= _LEAST_SHARE else 0.0
                self._share(step, known * seconds, seconds)
                joules -= known * seconds
            self._joules["idle"] += joules
        self._close_until(interval.ended)

    def _learn_idle(self, interval: _Interval) -> None:
        self._idle_seconds += interval.seconds
        weight = max(interval.seconds / self._idle_seconds, 1 - math.exp(-interval.seconds / _MEMORY_SECONDS))
        self._idle_watts += weight * (interval.watts - self._idle_watts)

    def _known_idle(self) -> float | None:
        """What the board draws while the engine is idle; None while that is not known."""
        if self._fixed is not None:
            return self._fixed.idle
        return self._idle_watts if self._idle_seconds >= IDLE_SECONDS else None

    def _learn_step_watts(self, steps: list[_Step], watts: float) -> None:
        for kind in {step.prompt for step in steps}:
            known = self._step_watts.get(kind, watts)
            self._step_watts[kind] = known + 0.3 * (watts - known)

    def _watts_of(self, step: _Step) -> float | None:
        """What such a step draws above idle, by those before it."""
        return self._step_watts.get(step.prompt, self._step_watts.get(not step.prompt))

    def _share(self, step: _Step, joules: float, seconds: float) -> None:
        step.known += seconds
        for row, share, account in zip(step.record.rows, step.shares, step.accounts, strict=True):
            account.joules[row.prompt] += share * joules
            self._joules["prefill" if row.prompt else "decode"] += share * joules

    def _close_until(self, at: float) -> None:
        """Forget the steps that ended by then."""
        while self._steps and self._steps[0].record.ended <= at:
            step = self._steps.popleft()
            self._last_booked = step.record.ended
            for account in step.accounts:
                account.seconds += step.seconds
                account.unknown += step.seconds - step.known
            if step.known:
                for row in step.record.rows:
                    self._tokens["prefill" if row.prompt else "decode"] += row.tokens
