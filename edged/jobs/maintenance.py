"""Regular work on the spool: prunes old jobs, scrubs erased content from the write-ahead log, measures its size.

What is gone from the spool leaves the list of last jobs and the exemplars too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edged.jobs.expiry import JobTimes
from edged.jobs.recent import RecentJobs
from edged.jobs.spool import Spool
from edged.report.exemplars import Exemplars
from edged.status import JobSummary

PRUNE_SECONDS = 3600.0
"""Between two prunings, less where retention is short."""
PRUNED = 256
"""Most jobs that one transaction removes, so that the main loop goes on between two."""
SCRUB_SECONDS = 60.0
"""Erased content leaves the write-ahead log at the next idle moment, or after this time without one."""


class Maintenance:
    """When the spool is pruned and scrubbed next."""

    def __init__(
        self, spool: Spool, times: JobTimes, retention: float, recent: RecentJobs, exemplars: Exemplars
    ) -> None:
        """`retention`: seconds for which a delivered job is kept."""
        self._spool = spool
        self._times = times
        self._retention = retention
        self._recent = recent
        self._exemplars = exemplars
        self._version = spool.version
        self._next_prune = 0.0
        # A process that was killed may have left erased rows in the write-ahead log.
        self._scrub_by: float | None = time.monotonic()
        self._measure()

    def tick(self, idle: bool) -> None:
        """Do what is due; `idle`: no job runs. Raises SpoolError."""
        now = time.monotonic()
        if now >= self._next_prune:
            self._next_prune = now + min(PRUNE_SECONDS, self._retention / 10)
            self._prune()
        if self._version != (version := self._spool.version):  # `edged forget`
            self._version = version
            self._keep(lambda job: job.id is not None and self._spool.find(job.id) is not None)
        if self._scrub_by is not None and (idle or now >= self._scrub_by):
            self._scrub_by = None if self._spool.scrub() else now + SCRUB_SECONDS
        self._measure()

    def scrub_later(self) -> None:
        """Something was erased."""
        if self._scrub_by is None:
            self._scrub_by = time.monotonic() + SCRUB_SECONDS

    def _keep(self, wanted: Callable[[JobSummary], bool]) -> None:
        self._recent.keep(wanted)
        self._exemplars.keep(wanted)

    def _prune(self) -> None:
        moment = self._times.now()
        with self._spool.transaction():
            removed = self._spool.prune(self._retention, moment, PRUNED)
        self._keep(lambda job: job.finished is None or job.finished >= moment.wall - self._retention)
        if removed:
            self.scrub_later()
        if removed == PRUNED:
            self._next_prune = 0.0

    def _measure(self) -> None:
        self.spool_bytes = self._spool.bytes
        self.damaged_spools = len(self._spool.set_aside)
