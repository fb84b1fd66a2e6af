"""Commits: writes everything that waits in one transaction, then publishes what it allows.

`accepted` leaves after the job is on disk, PUBACK after that, a result after it is on disk. A commit costs the card far
more than a job in it, so it waits a moment for company where more is under way.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import structlog

from edged.faults import Fault
from edged.jobs.document import State
from edged.jobs.endings import Ending
from edged.jobs.expiry import JobTimes
from edged.jobs.intake import Intake
from edged.jobs.outbox import Outbox
from edged.jobs.recent import RecentJobs
from edged.jobs.records import Delivery, Moment
from edged.jobs.results import too_large
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.report.metrics import Metrics

log = structlog.get_logger(__name__)

CONFIRMATION_DELAY = 1.0
"""Confirmations of the broker are committed with the next commit, or alone after this many seconds."""
GATHER_SECONDS = 0.05
"""How long a commit waits for company."""


Write = Callable[[Moment], Callable[[], None]]
"""Writes within the commit's transaction, anew after each commit that failed; what it returns is called after it."""


class Committer:
    """The ends of jobs that are not on disk yet, the gather window, and the fault of a spool that takes no writes."""

    def __init__(self, spool: Spool, outbox: Outbox, times: JobTimes, metrics: Metrics, recent: RecentJobs) -> None:
        self._spool = spool
        self._outbox = outbox
        self._times = times
        self._metrics = metrics
        self._recent = recent
        self._endings: deque[Ending] = deque()
        self._writes: deque[Write] = deque()
        self._gathering_since: float | None = None
        self._unwritten_since: float | None = None
        self._draining = False
        self.erased = False
        """Set where a commit has erased documents; cleared by whoever scrubs."""
        self.fault: Fault | None = None
        """Why the spool cannot be written now. Nothing is accepted and nothing lost meanwhile."""

    def __len__(self) -> int:
        """Ends of jobs and other writes that are not on disk yet."""
        return len(self._endings) + len(self._writes)

    def end(self, ending: Ending) -> None:
        """Write a job's end with the next commit."""
        self._endings.append(ending)

    def add(self, write: Write) -> None:
        """Write something else with the next commit."""
        self._writes.append(write)

    def drain(self) -> None:
        """Wait for company no more: the process is about to end."""
        self._draining = True

    def due_in(self, intake: Intake, company: bool) -> float:
        """Seconds until flush() is due although nothing new comes in. `company`: whether jobs are under way."""
        if self.fault is None and (len(self) or (len(intake) and intake.room)):
            return self._gather_left(intake, company)
        return math.inf

    def flush(self, intake: Intake, company: bool) -> None:
        """Commit if a commit is due."""
        if not self._due(intake, company):
            return
        try:
            self._commit(intake)
        except SpoolError as error:
            if self.fault is None:
                log.error("spool_fault", reason=str(error))
            self.fault = Fault("spool_fault", str(error), "make space, or look at the card")
        else:
            if self.fault is not None:
                log.info("spool_mended")
            self.fault = None

    def _due(self, intake: Intake, company: bool) -> bool:
        if self.fault is not None or self._confirmations_due():
            return True
        return bool(len(intake) or len(self)) and self._gather_left(intake, company) <= 0.0

    def _confirmations_due(self) -> bool:
        if not self._outbox.uncommitted:
            return False
        if self._unwritten_since is None:
            self._unwritten_since = time.monotonic()
        return self._draining or time.monotonic() - self._unwritten_since >= CONFIRMATION_DELAY

    def _gather_left(self, intake: Intake, company: bool) -> float:
        """Seconds that a commit still waits for company. One that would hold all there is does not wait."""
        if self._draining or not (company or len(intake) > 1):
            return 0.0
        now = time.monotonic()
        if self._gathering_since is None:
            self._gathering_since = now
        return self._gathering_since + GATHER_SECONDS - now

    def _commit(self, intake: Intake) -> None:
        endings, writes = list(self._endings), list(self._writes)
        with self._spool.transaction():
            if self.fault is not None:
                self._spool.touch()
            # First: an answer that was delivered is no answer to a repeat that arrives now.
            self._write_confirmations()
            replaced = self._replace_results()
            now = self._times.now()
            # Before the arrivals: a repeat among them may add a waiter, which gets a delivery of its own.
            deliveries = [(ending, self._write_ending(ending, now)) for ending in endings]
            effects = [write(now) for write in writes]
            batch = intake.admit(now)
        # On disk. From here on nothing can fail but the process.
        self._unwritten_since = self._gathering_since = None
        self._outbox.committed()
        self._metrics.results_too_large.inc(replaced)
        for ending, places in deliveries:
            self._endings.popleft()
            self._metrics.jobs.labels(ending.state.value).inc()
            # Send cancelled results first: their sender is waiting, and thousands of others may be due.
            self._outbox.add(places, ahead=ending.state is State.CANCELLED)
        for effect in effects:
            self._writes.popleft()
            effect()
        intake.committed(batch)

    def _write_ending(self, ending: Ending, now: Moment) -> list[Delivery]:
        """Write a result; the publications that it makes due, none where the job was forgotten meanwhile."""
        if not self._spool.add_result(ending.queued.number, ending.state.value, ending.document, now):
            self._recent.keep(lambda job: job.id != ending.queued.id)
            return []
        return self._spool.deliveries(ending.queued)

    def _replace_results(self) -> int:
        """Replace the results that the broker does not take, so that a repeat gets the same; returns how many."""
        replaced = 0
        for number in self._outbox.too_large():
            document = self._spool.result(number)
            if document is not None:  # else it was forgotten meanwhile
                self._spool.replace_result(number, State.FAILED.value, too_large(document))
                replaced += 1
        return replaced

    def _write_confirmations(self) -> None:
        waiters, numbers = self._outbox.confirmations()
        for waiter in waiters:
            self._spool.waiters.answered(waiter)
        for number in numbers:
            self._spool.mark_delivered(number)
            if not self._spool.stores(number):
                self._spool.erase(number)
                self.erased = True
