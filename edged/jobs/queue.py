"""The jobs on board that have no end yet: who waits and is next, who has which id, whose time may run out.

In memory alone; the spool has them on disk.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from edged.jobs.spool import Queued

_SLACK = 1000
"""Entries of jobs that wait no more, which the heap may hold besides as many as wait."""


class JobQueue:
    """Jobs by urgency, id and time."""

    def __init__(self, rank: Callable[[Queued], float]) -> None:
        """`rank`: where a job stands; lower goes first, and the first that came among equals."""
        self._rank = rank
        self._waiting: dict[int, Queued] = {}
        self._order: list[tuple[float, int]] = []
        self._held: set[int] = set()
        self._ids: dict[str, int] = {}
        self._timed: dict[int, Queued] = {}

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def waiting(self, seq: int) -> Queued | None:
        """The job of this number, if it waits."""
        return self._waiting.get(seq)

    def find(self, id: str) -> int | None:
        """The number of the job with this id, waiting or running."""
        return self._ids.get(id)

    @property
    def timed(self) -> list[Queued]:
        """Jobs with a ttl or deadline, waiting or running."""
        return list(self._timed.values())

    def put(self, queued: Queued) -> None:
        """A job that waits from now on, or again."""
        self._waiting[queued.seq] = queued
        self._ids[queued.id] = queued.seq
        if len(self._order) > 2 * len(self._waiting) + _SLACK:  # mostly of jobs that were cancelled
            waiting = (job for job in self._waiting.values() if job.seq not in self._held)
            self._order = [(self._rank(job), job.seq) for job in waiting]
            heapq.heapify(self._order)
        else:
            heapq.heappush(self._order, (self._rank(queued), queued.seq))
        if queued.ttl is not None or queued.deadline is not None:
            self._timed[queued.seq] = queued

    def first(self) -> tuple[float, Queued] | None:
        """The most urgent job that waits, and its rank."""
        while self._order:
            rank, seq = self._order[0]
            if seq not in self._held and (queued := self._waiting.get(seq)) is not None:
                return rank, queued
            heapq.heappop(self._order)
        return None

    def hold(self, queued: Queued) -> None:
        """Keep a waiting job from being first(): this process cannot run it. It can still end."""
        self._held.add(queued.seq)

    def take(self, queued: Queued) -> None:
        """A job waits no more, but has no end yet."""
        del self._waiting[queued.seq]

    def remove(self, queued: Queued) -> None:
        """A job has its end."""
        self._waiting.pop(queued.seq, None)
        self._held.discard(queued.seq)
        self._timed.pop(queued.seq, None)
        if self._ids.get(queued.id) == queued.seq:  # else it was forgotten, and its id taken by another
            del self._ids[queued.id]
