"""When a job's time is over, on boards whose clock may be wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from edged.jobs.spool import Queued
from edged.machine.clock import Clock


@dataclass(frozen=True)
class Moment:
    """One reading of all clocks, in seconds. `boottime` counts from the boot named `boot_id`, sleep included."""

    wall: float
    boottime: float
    boot_id: str
    synchronised: bool

    @classmethod
    def now(cls, clock: Clock) -> Moment:
        """Read `clock`."""
        return cls(clock.wall(), clock.boottime(), clock.boot_id(), clock.synchronised())


def age(job: Queued, now: Moment, last_boottime: Callable[[str], float]) -> float:
    """Seconds since receipt as far as they are known.

    Within one boot by its own clock. Across a reboot by wall time only if that was synchronised before and after; else
    the time off does not count. `last_boottime` gives the latest moment known of an earlier boot.
    """
    if job.boot_id == now.boot_id:
        return now.boottime - job.boottime
    if job.synchronised and now.synchronised:
        return now.wall - job.received
    return max(0.0, last_boottime(job.boot_id) - job.boottime) + now.boottime


def seconds_left(job: Queued, now: Moment, last_boottime: Callable[[str], float]) -> float | None:
    """Seconds until the job expires, by ttl or deadline, whichever is earlier; None if it never does.

    A deadline is judged only while the wall clock is synchronised.
    """
    left = []
    if job.ttl is not None:
        left.append(job.ttl - age(job, now, last_boottime))
    if job.deadline is not None and now.synchronised:
        left.append(job.deadline - now.wall)
    return min(left, default=None)


class JobTimes:
    """The ages of jobs by the clocks of this board."""

    def __init__(self, clock: Clock, last_boottime: Callable[[str], float]) -> None:
        """`last_boottime`: as for age()."""
        self._clock = clock
        # Of an earlier boot, so it does not change; asked for every job with a ttl, once a second.
        self._last_boottime = functools.cache(last_boottime)
        self._start = self.now()

    def now(self) -> Moment:
        """All clocks."""
        return Moment.now(self._clock)

    def age(self, job: Queued) -> float:
        """Seconds since receipt as far as they are known."""
        return age(job, self.now(), self._last_boottime)

    def left(self, job: Queued, now: Moment) -> float | None:
        """Seconds until the job expires; None if it never does."""
        return seconds_left(job, now, self._last_boottime)

    def received(self, job: Queued) -> float:
        """When a job came, in seconds of this boot's CLOCK_BOOTTIME; below zero before the boot."""
        if job.boot_id == self._start.boot_id:
            return job.boottime
        return self._start.boottime - age(job, self._start, self._last_boottime)
