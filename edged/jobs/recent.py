"""The jobs that ended last, for people who look at the board: ids, states and times, no text."""

from __future__ import annotations

from collections import deque

from edged.status import JobSummary

KEPT = 20


class RecentJobs:
    """The last KEPT jobs that ended. Main thread only; `all` may be handed to other threads."""

    def __init__(self) -> None:
        self._ended: deque[JobSummary] = deque(maxlen=KEPT)
        self.all: tuple[JobSummary, ...] = ()
        """The latest first."""

    def add(self, job: JobSummary) -> None:
        """A job has ended."""
        self._ended.appendleft(job)
        self.all = tuple(self._ended)
