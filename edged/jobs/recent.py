"""The jobs that ended: how many in each state, and the last ones with ids, states and times, no text."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

from edged.status import JobSummary

KEPT = 20


class RecentJobs:
    """Main thread only; `all` and `counts` may be handed to other threads."""

    def __init__(self) -> None:
        self._ended: deque[JobSummary] = deque(maxlen=KEPT)
        self.all: tuple[JobSummary, ...] = ()
        """The last KEPT ones, the latest first."""
        self.counts: Mapping[str, int] = {}
        """How many ended since the start, by state."""

    def add(self, job: JobSummary) -> None:
        """A job has ended."""
        self._ended.appendleft(job)
        self.all = tuple(self._ended)
        self.counts = Counter(self.counts) + Counter([job.state])

    def keep(self, wanted: Callable[[JobSummary], bool]) -> None:
        """Drop all others from the list; they still count."""
        kept = [job for job in self._ended if wanted(job)]
        self._ended = deque(kept, maxlen=KEPT)
        self.all = tuple(kept)
