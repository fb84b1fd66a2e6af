"""What speaks for a package on trial and against it, beside the package before. Main thread only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import structlog

from edged.engine.self_bench import KEY, SelfBench
from edged.engine.sequence import Request
from edged.faults import Fault
from edged.rollout.execution import Baseline, Execution
from edged.status import Status

log = structlog.get_logger(__name__)

STRAINS = frozenset({"heat", "memory", "power_supply"})
"""Reasons of the governor that a package may cause; budgets are the operator's wish."""
STRAIN_SECONDS = 60.0
"""For so long in all the board is held back for a new reason, while jobs run, before that is the package's fault."""
MOST_PASSED = 5.0
"""Seconds between two looks that count at the most."""
SLOW_BENCHES, BENCH_PAUSE = 3, 5.0
"""So many benches in a row that were too slow are the package's fault; other programs may have slowed one."""
BENCH_SECONDS = 300.0
"""The longest that a bench may wait for a row and run."""
LEAST_FAILED, MOST_FAILED_SHARE = 3, 0.1
"""So many jobs at which the engine failed, and so many of all, are the package's fault."""


class Trial:
    """The benches of the package that is served, and the strains of the board while it is."""

    def __init__(
        self, bench: SelfBench, submit: Callable[[Request], None], cancel: Callable[[int], None], comparable: bool
    ) -> None:
        """`submit`, `cancel`: the engine's. `comparable`: whether what is served now is no demo model."""
        self._bench = bench
        self._submit = submit
        self._cancel = cancel
        self._comparable = comparable
        self._strains: set[str] = set()
        self._began: float | None = None
        """When the bench under way began, CLOCK_MONOTONIC seconds."""
        self._again_at = -math.inf
        self._proved_then = 0.0
        """Seconds of the trial when the bench under way began."""
        self._fast_until: float | None = None
        """The same of the last bench that was fast enough."""
        self._slow = 0
        self._strained = 0.0
        """Seconds for which jobs ran and the board was held back for a new reason."""
        self._watched_at: float | None = None

    # Before the switch

    def watch(self, status: Status) -> None:
        """Note what strains the board with the package that serves, about every second."""
        self._strains |= STRAINS & set(status.governor.reasons)

    def baseline(self, execution: Execution, status: Status, now: float) -> Baseline | None:
        """What the package that serves now does; None while its speed is being measured."""
        facts, seconds = status.model.facts, None
        if execution.desired.proving.speed and self._comparable and facts is not None:
            if self._began is None:
                self._begin(facts.context, now, 0.0)
                return None
            seconds = self._bench.seconds
            if seconds is None and now - self._began < BENCH_SECONDS:
                return None
            self.stop()
            if seconds is None or math.isinf(seconds):
                seconds = None
                log.info("rollout_speed_not_compared", rollout=execution.desired.rollout)
        return Baseline(seconds, tuple(sorted(self._strains)))

    def stop(self) -> None:
        """End the bench under way."""
        if self._began is not None:
            self._cancel(KEY)
            self._began = None

    def _begin(self, context: int, now: float, proved: float) -> None:
        self._began, self._proved_then = now, proved
        self._submit(self._bench.begin(context))

    # On trial

    def fault(self, execution: Execution, status: Status, now: float) -> Fault | None:
        """What is the package's fault so far; call about every second while it is served on trial."""
        return self._failing() or self._straining(execution.baseline, status, now) or self._slowness(execution)

    def measure(self, execution: Execution, status: Status, now: float) -> Execution:
        """Let benches go on: one at once, and one when the time of the trial is over."""
        facts, before = status.model.facts, execution.baseline.step_seconds
        if facts is None or before is None:
            return execution
        if self._began is not None:
            seconds = self._bench.seconds
            if seconds is None:
                if now - self._began >= BENCH_SECONDS:
                    self.stop()  # its row went with a session that was lost, or never came: another one
                return execution
            self._began, speed = None, before / seconds
            if speed >= execution.desired.proving.speed:
                self._slow, self._fast_until = 0, self._proved_then
            else:
                self._slow, self._again_at = self._slow + 1, now + BENCH_PAUSE
            return replace(execution, speed=float(f"{speed:.3g}"))
        over = execution.proved >= execution.proving_seconds
        if now >= self._again_at and (self._fast_until is None or (over and not self._fast_at_the_end(execution))):
            self._begin(facts.context, now, execution.proved)
        return execution

    def proved(self, execution: Execution) -> bool:
        """Whether the trial is over, and nothing is the package's fault."""
        if execution.proved < execution.proving_seconds:
            return False
        return execution.baseline.step_seconds is None or self._fast_at_the_end(execution)

    def _fast_at_the_end(self, execution: Execution) -> bool:
        return self._fast_until is not None and self._fast_until >= execution.proving_seconds

    def _failing(self) -> Fault | None:
        failed, all_ = self._bench.failed, self._bench.failed + self._bench.answered
        if failed < LEAST_FAILED or failed <= MOST_FAILED_SHARE * all_:
            return None
        hint = "look for engine_step_failed in the log; mend the package"
        return Fault("rollout_package_failed", f"the engine failed at {failed} of {all_} jobs with the package", hint)

    def _straining(self, before: Baseline, status: Status, now: float) -> Fault | None:
        strains = sorted((STRAINS & set(status.governor.reasons)) - set(before.strains))
        passed, self._watched_at = 0.0 if self._watched_at is None else now - self._watched_at, now
        if strains and status.running:
            self._strained += min(passed, MOST_PASSED)
        if self._strained < STRAIN_SECONDS or not strains:
            return None
        told = f"the board is held back because of {', '.join(strains)}, which it was not with the package before"
        return Fault("rollout_package_failed", told, "improve cooling or power supply, or take a smaller package")

    def _slowness(self, execution: Execution) -> Fault | None:
        before, least, speed = execution.baseline.step_seconds, execution.desired.proving.speed, execution.speed
        if self._slow < SLOW_BENCHES or before is None or speed is None:
            return None
        told = f"it decodes {speed / before:.3g} tokens a second, {speed:.2g} times as many as the package before"
        hint = "take a smaller package, or publish it with a smaller proving.speed"
        return Fault("rollout_package_failed", f"{told}: at least {least:g} times are wanted (proving.speed)", hint)
