"""The jobs without a result, in memory: by urgency, by id, and those with a time limit. The spool has them on disk."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from edged.jobs.records import Queued

_SLACK = 1000
"""Entries of jobs that no longer wait which the heap may hold, beside as many as wait."""


class JobQueue:
    """Jobs by urgency, id and time limit."""

    def __init__(self, rank: Callable[[Queued], float]) -> None:
        """`rank` of a job: the lowest goes first; among equals the first that came."""
        self._rank = rank
        self._waiting: dict[int, Queued] = {}
        self._held: set[int] = set()
        self._order: list[tuple[float, int]] = []
        self._ids: dict[str, int] = {}
        self._timed: dict[int, Queued] = {}

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return len(self._waiting)

    @property
    def entries(self) -> int:
        """Entries of the heap, those of jobs that no longer wait among them."""
        return len(self._order)

    @property
    def timed(self) -> list[Queued]:
        """Jobs with a ttl or deadline, waiting or running."""
        return list(self._timed.values())

    def waiting(self, number: int) -> Queued | None:
        """The job of this number, if it waits."""
        return self._waiting.get(number)

    def find(self, id: str) -> int | None:
        """The number of the job with this id, waiting or running."""
        return self._ids.get(id)

    def put(self, queued: Queued) -> None:
        """Add a waiting job, or return one from running to waiting."""
        self._waiting[queued.number] = queued
        self._ids[queued.id] = queued.number
        if len(self._order) > 2 * len(self._waiting) + _SLACK:  # mostly of jobs that were cancelled
            waiting = (job for job in self._waiting.values() if job.number not in self._held)
            self._order = [(self._rank(job), job.number) for job in waiting]
            heapq.heapify(self._order)
        else:
            heapq.heappush(self._order, (self._rank(queued), queued.number))
        if queued.ttl is not None or queued.deadline is not None:
            self._timed[queued.number] = queued

    def first(self) -> tuple[float, Queued] | None:
        """The most urgent waiting job, and its rank."""
        while self._order:
            rank, number = self._order[0]
            if number not in self._held and (queued := self._waiting.get(number)) is not None:
                return rank, queued
            heapq.heappop(self._order)
        return None

    def rank(self, queued: Queued) -> float:
        """Of a job, as first() says it."""
        return self._rank(queued)

    def hold(self, queued: Queued) -> None:
        """Keep a waiting job from being first(), since this process cannot run it. It can still end."""
        self._held.add(queued.number)

    def release(self, queued: Queued) -> None:
        """Let a job that was held run again."""
        self._held.discard(queued.number)
        self.put(queued)

    def upcoming(self, most: int) -> list[Queued]:
        """The most urgent waiting jobs that are not held, in their order."""
        free = ((rank, n) for rank, n in self._order if n in self._waiting and n not in self._held)
        return [self._waiting[n] for n in dict.fromkeys(n for _, n in heapq.nsmallest(most, free))]

    def take(self, queued: Queued) -> None:
        """Move a job from waiting to running."""
        del self._waiting[queued.number]

    def remove(self, queued: Queued) -> None:
        """Remove a job that has ended."""
        self._waiting.pop(queued.number, None)
        self._held.discard(queued.number)
        self._timed.pop(queued.number, None)
        if self._ids.get(queued.id) == queued.number:  # else it was forgotten, and its id taken by another job
            del self._ids[queued.id]
