"""Ends jobs: builds each result document, counts and logs it, and gives it to the committer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from edged.engine.events import Finished
from edged.jobs.document import Job, State
from edged.jobs.energy import JobEnergy
from edged.jobs.expiry import JobTimes
from edged.jobs.recent import RecentJobs
from edged.jobs.records import Queued
from edged.jobs.results import Reason, speed, success, without_answer
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.report.metrics import Metrics
from edged.status import JobSummary

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ending:
    """A job's end that is not on disk yet: its state and its result document."""

    queued: Queued
    state: State
    document: bytes


class Endings:
    """Makes the ends of jobs of one device."""

    def __init__(
        self,
        device: str,
        spool: Spool,
        times: JobTimes,
        metrics: Metrics,
        recent: RecentJobs,
        commit: Callable[[Ending], None],
    ) -> None:
        """`commit` takes each end, to be written with the next commit."""
        self._device = device
        self._spool = spool
        self._times = times
        self._metrics = metrics
        self._recent = recent
        self._commit = commit
        self.model: str | None = None
        """Name of the model that is loaded."""
        self.speed: dict[str, float] = {}
        """Tokens per second of the last answer, prefill and decode."""

    def with_answer(
        self, queued: Queued, job: Job, waited: float, event: Finished, energy: JobEnergy | None = None
    ) -> None:
        """The engine has the job's answer; `waited`: seconds from receipt to its row."""
        now = self._times.now()
        judged = queued.deadline is None or now.synchronised
        if not judged:
            log.warning("deadline_not_judged", job=queued.id, reason="the clock is not synchronised")
        if job.response_format is not None and job.response_format.type != "text":
            self._metrics.structured_answers.labels(job.response_format.type, event.reason).inc()
        log.info(
            "job_succeeded",
            job=queued.id,
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            completion_tokens=len(event.tokens),
            seconds=round(event.ended - event.started, 3),
        )
        document = success(
            job,
            event,
            id=queued.id,
            device=self._device,
            model=self.model,
            received=queued.received.wall,
            now=now.wall,
            waited=waited,
            attempts=queued.starts + 1,
            deadline_judged=judged,
            energy=energy,
        )
        received, state, tokens = queued.received.wall, State.SUCCEEDED, len(event.tokens)
        summary = JobSummary(queued.shown_id, state.value, received, now.wall, waited, tokens)
        self._measure(summary, waited, event)
        self._recent.add(summary)
        self._commit(Ending(queued, state, document))

    def without_answer(self, queued: Queued, reason: Reason, metadata: dict[str, object] | None, attempts: int) -> None:
        """The job ends for this reason; `attempts`: runs, those cut short by an end of the process among them."""
        now = self._times.now().wall
        document = without_answer(
            queued, reason, device=self._device, model=self.model, metadata=metadata, attempts=attempts, now=now
        )
        log.info("job_ended", job=queued.id, state=reason.state.value, code=reason.code.value)
        summary = JobSummary(queued.shown_id, reason.state.value, queued.received.wall, now, code=reason.code.value)
        self._recent.add(summary)
        self._commit(Ending(queued, reason.state, document))

    def of_stored(self, queued: Queued, reason: Reason) -> None:
        """A job whose document is on disk alone ends for this reason."""
        try:
            document = self._spool.document(queued.number)
        except SpoolError:  # an end without its metadata is better than none
            document = None
        metadata = json.loads(document).get("metadata") if document else None
        self.without_answer(queued, reason, metadata, queued.starts)

    def _measure(self, job: JobSummary, waited: float, event: Finished) -> None:
        metrics = self._metrics
        metrics.prompt_tokens.inc(event.prompt_tokens)
        metrics.cached_tokens.inc(event.cached_tokens)
        metrics.generated_tokens.inc(len(event.tokens))
        metrics.answered(job, waited + event.first_token - event.started, waited + event.ended - event.started)
        for earlier, later in itertools.pairwise(event.token_times):
            metrics.inter_token.observe(later - earlier)
        self.speed = speed(event)
