"""When a job's time is over, on boards whose clock may be wrong. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged.health.clock import Clock
from edged.jobs.spool import Queued


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
