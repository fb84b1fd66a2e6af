"""Virtual time: one queue of events, and the clocks that each host reads."""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

START = 1_800_000_000.0
"""2027-01-15T08:00:00Z, in seconds since the epoch."""
HOUR, DAY = 3600.0, 86400.0
_DRIVEN = ("edged.rollout.", "edged.fleet.", "edged.jobs.", "edged.sharing.")
"""Packages whose modules read the virtual time."""


class Timeline:
    """What happens when. Events of one moment happen in the order in which they were put."""

    def __init__(self) -> None:
        self.now = START
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Do it at this moment."""
        self._count += 1
        heapq.heappush(self._queue, (max(moment, self.now), self._count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it so many seconds from now."""
        self.at(self.now + seconds, action)

    def run(self, until: float) -> None:
        """Let time pass until then."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, action = heapq.heappop(queue)
            self.events += 1
            action()
        self.now = until


class Host:
    """A computer's clocks, with the methods of edged's Clock."""

    def __init__(self, timeline: Timeline, name: str) -> None:
        self._timeline = timeline
        self.name = name
        self.boots = 0
        self.booted_at = timeline.now - 10.0
        self.error = 0.0
        """Seconds by which its wall clock is ahead."""
        self.disciplined = True
        """Whether a time server keeps it right, or it believes so."""

    def boot(self) -> None:
        """The time since boot begins anew."""
        self.boots += 1
        self.booted_at = self._timeline.now - 10.0

    def wall(self) -> float:
        return self._timeline.now + self.error

    def boottime(self) -> float:
        return self._timeline.now - self.booted_at

    def boot_id(self) -> str:
        return f"{self.name}-{self.boots}"

    def synchronised(self) -> bool:
        return self.disciplined


class HostTime:
    """Takes the place of the module `time` in edged's modules: the clocks of the host whose code runs."""

    def __init__(self) -> None:
        self.host: Host | None = None

    def monotonic(self) -> float:
        assert self.host is not None
        return self.host.boottime()

    def time(self) -> float:
        assert self.host is not None
        return self.host.wall()

    def sleep(self, _seconds: float) -> None:
        raise AssertionError("nothing may sleep here")


@contextmanager
def virtual_time(hosts: HostTime) -> Iterator[None]:
    """Let edged's modules read the time of these hosts; all that are used must have been imported."""
    from edged.jobs.outbox import Outbox

    replaced, defaults = _with_real_time(), Outbox.__init__.__defaults__
    Outbox.__init__.__defaults__ = (hosts.monotonic,)
    for module in replaced:
        module.time = hosts
    try:
        yield
        late = [module.__name__ for module in _with_real_time()]
        assert not late, f"imported too late to read the virtual time: {late}"
    finally:
        Outbox.__init__.__defaults__ = defaults
        for module in replaced:
            module.time = time


def _with_real_time() -> list[Any]:
    modules = list(sys.modules.items())
    return [one for name, one in modules if name.startswith(_DRIVEN) and getattr(one, "time", None) is time]
