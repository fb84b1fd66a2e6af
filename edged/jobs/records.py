"""Values that the spool gives out: a job without a result, the job that has an id, a publication that is due."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Queued:
    """A job without a result. `ttl` counts in seconds from `received`; `deadline` is wall-clock seconds."""

    number: int
    """The job's number, in the order of receipt: its name inside the process and in the spool."""
    id: str
    priority: int
    store: bool
    received: Moment
    ttl: float | None
    deadline: float | None
    starts: int = 0
    """Runs that an end of the process cut short."""
    crashes: int = 0
    """Of these, crashes of the process's own making while it ran this job alone."""
    suspect: bool = False
    """It ran beside others in such a crash: it runs alone from now on."""

    @property
    def shown_id(self) -> str | None:
        """The id for the list of last jobs, which has none of a job with `store: false`."""
        return self.id if self.store else None


@dataclass(frozen=True)
class Known:
    """The job that has an id. `state` is None while it has no result."""

    number: int
    digest: bytes
    state: str | None
    kept: bool
    """False once the result was erased (store: false)."""


@dataclass(frozen=True)
class Delivery:
    """One publication of a result that is due. `topic` None is the job's own result topic."""

    number: int
    id: str
    topic: str | None = None
    correlation: bytes | None = None
    waiter: int | None = None
    """The row in the spool's table of waiters; None for the publication that every result gets."""
