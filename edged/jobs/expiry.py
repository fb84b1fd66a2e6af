"""When a job's time is over, on boards whose clock may be wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable

from edged.jobs.records import Moment, Queued
from edged.machine.clock import Clock


def age(job: Queued, now: Moment, last_boottime: Callable[[str], float]) -> float:
    """Seconds since receipt as far as they are known.

    Within one boot by its own clock. Across a reboot by wall time only if that was synchronised before and after; else
    the time off does not count. `last_boottime` gives the latest moment known of an earlier boot.
    """
    received = job.received
    if received.boot_id == now.boot_id:
        return now.boottime - received.boottime
    if received.synchronised and now.synchronised:
        return now.wall - received.wall
    return max(0.0, last_boottime(received.boot_id) - received.boottime) + now.boottime


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

    def over(self, job: Queued, now: Moment) -> bool:
        """Whether the job's ttl or deadline has passed."""
        left = seconds_left(job, now, self._last_boottime)
        return left is not None and left <= 0

    def received(self, job: Queued) -> float:
        """When a job came, in seconds of this boot's CLOCK_BOOTTIME; below zero before the boot."""
        if job.received.boot_id == self._start.boot_id:
            return job.received.boottime
        return self._start.boottime - age(job, self._start, self._last_boottime)
