"""Decides on job messages: accepted, a repeat, a conflict, or rejected. Writes within the caller's transaction.

Everything else that an arrival causes, a log line included, waits for the commit, which may have to be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from edged.engine.events import ModelChanged
from edged.jobs.document import Code, JobError, State, invalid_id, result_document
from edged.jobs.outbox import Outbox
from edged.jobs.publisher import Notice
from edged.jobs.reading import Submission, read_submission
from edged.jobs.recent import RecentJobs
from edged.jobs.records import Known, Moment, Queued
from edged.jobs.shared import Mark
from edged.jobs.spool import Spool
from edged.machine.clock import Clock, format_time
from edged.mqtt.events import ReceivedMessage
from edged.mqtt.topics import Topics
from edged.report.metrics import Metrics
from edged.status import JobSummary

log = structlog.get_logger(__name__)


MAX_WAITERS = 65
"""Places that may wait for one job's result at a time: each takes room on disk and in memory."""


@dataclass
class Batch:
    """What came of the arrivals of one commit; `effects` are to be called after it, in order."""

    arrivals: list[ReceivedMessage] = field(default_factory=list)
    accepted: list[Queued] = field(default_factory=list)
    effects: list[Callable[[], None]] = field(default_factory=list)


class RepeatForwarder(Protocol):
    """The part of load sharing that the admission needs."""

    def repeat(self, submission: Submission, mark: Mark, reply: str | None, correlation: bytes | None) -> None:
        """Forward a repeat to the member that has the job."""


class Admission:
    """Checks arrivals against the spool and against the model that is served."""

    def __init__(
        self,
        *,
        device: str,
        topics: Topics,
        spool: Spool,
        outbox: Outbox,
        clock: Clock,
        metrics: Metrics,
        recent: RecentJobs,
        max_bytes: int,
        allow_pin: bool,
    ) -> None:
        """`max_bytes`: of a payload. `allow_pin`: whether jobs may pin their prefix."""
        self._device = device
        self._topics = topics
        self._spool = spool
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._recent = recent
        self._max_bytes = max_bytes
        self._allow_pin = allow_pin
        self.model = ModelChanged("loading")
        """The model's state now; set by the manager."""
        self.sharing: RepeatForwarder | None = None
        """Set by the manager where load is shared."""

    def admit(self, arrival: ReceivedMessage, batch: Batch, now: Moment) -> None:
        """Write one arrival down. Raises SpoolError."""
        batch.arrivals.append(arrival)
        topic = arrival.topic
        if arrival.retained:
            batch.effects.append(lambda: log.warning("retained_job_ignored", topic=topic))
            return
        if arrival.expiry_seconds == 0:
            batch.effects.append(lambda: log.warning("expired_job_ignored", topic=topic))
            return
        reply, correlation = arrival.response_topic, arrival.correlation
        refusal = self._topics.reply_refusal(reply, correlation) if reply is not None else None
        if refusal is not None:
            reply = correlation = None
        submission: Submission | None = None
        try:
            submission = _read(arrival.payload, self._max_bytes, reply, correlation)
            if refusal is not None:
                raise JobError(Code.INVALID_JOB, refusal, submission.id)
            known = self._spool.find(submission.id)
            mark = self._spool.shared.mark_of(submission.id) if self.sharing is not None and known is None else None
            if known is None and mark is None:
                self._check_possible(submission)
        except JobError as error:
            if error.id is not None and self._spool.find(error.id) is not None:
                # Never on result/<id>: that belongs to the job that has the id.
                self._conflict(error.id, reply, correlation, batch, f"; besides, {error}")
            else:
                shown = submission is None or submission.job.store
                self._reject(error, reply, correlation, batch, shown)
            return
        if mark is not None and mark.digest == submission.digest:
            self._forward(submission, mark, reply, correlation, batch)
        elif known is None and mark is None:
            self._add(submission, arrival, batch, now)
        elif known is None or known.digest != submission.digest:
            self._conflict(submission.id, reply, correlation, batch)
        else:
            self.repeat(submission.id, known, reply, correlation, batch)

    def _check_possible(self, submission: Submission) -> None:
        """Refuse at once what cannot run here. While the model loads, a job waits."""
        job, loaded = submission.job, self.model.loaded
        if job.cache is not None and job.cache.pin and not self._allow_pin:
            raise JobError(
                Code.UNSUPPORTED,
                "this device lets no job pin its prefix: leave cache out, or set cache.allow_pin on the device",
                submission.id,
            )
        if self.model.state == "unavailable":
            raise JobError(
                Code.MODEL_UNAVAILABLE,
                f"this device cannot serve its model now: {self.model.reason}; the job was not taken, send it again "
                "once the device's status says serving",
                submission.id,
            )
        if loaded is not None and job.model not in (None, loaded.package.name):
            raise JobError(
                Code.MODEL_MISMATCH,
                f"the job wants model {job.model!r}, this device serves {loaded.package.name!r}",
                submission.id,
            )

    def _add(self, submission: Submission, arrival: ReceivedMessage, batch: Batch, now: Moment) -> None:
        job = submission.job
        limits = [limit for limit in (job.ttl, arrival.expiry_seconds) if limit is not None]
        queued = self._spool.add_job(
            submission.id,
            submission.digest,
            submission.canonical,
            now,
            priority=job.priority,
            store=job.store,
            ttl=min(limits, default=None),
            deadline=job.deadline_time,
        )
        if arrival.response_topic is not None:
            self._outbox.remember(queued.number, queued.id, arrival.response_topic, arrival.correlation)
        channel = self._topics.channel(arrival.topic)
        if self.sharing is not None and channel is not None and channel.group is not None:
            self._spool.shared.add(queued.number, channel.group)
        batch.accepted.append(queued)

        def tell() -> None:
            self._outbox.tell(queued.id, "accepted")
            log.info("job_accepted", job=queued.id, priority=queued.priority)

        batch.effects.append(tell)

    def _forward(
        self, submission: Submission, mark: Mark, reply: str | None, correlation: bytes | None, batch: Batch
    ) -> None:
        sharing = self.sharing
        if sharing is not None:
            batch.effects.append(lambda: sharing.repeat(submission, mark, reply, correlation))

    def repeat(self, id: str, known: Known, reply: str | None, correlation: bytes | None, batch: Batch) -> None:
        """The same job again: say so, and answer (again) where it asks."""
        ended = known.state is not None
        places: list[tuple[str | None, bytes | None]] = [(None, None)] if ended else []
        if reply is not None:
            waiting = [row[2:] for row in self._spool.waiters.of(known.number)]
            if len(waiting) < MAX_WAITERS or (reply, correlation) in waiting:
                places.append((reply, correlation))
            else:
                batch.effects.append(lambda: log.warning("waiter_not_kept", job=id, most=MAX_WAITERS))
        if known.kept or not ended:
            for place in places:
                delivery = self._outbox.remember(known.number, id, *place)
                if ended and delivery is not None:
                    batch.effects.append(lambda d=delivery: self._outbox.add([d]))  # type: ignore[misc]
        # Of a job with store: false nothing is left to answer with once its result was delivered.
        gone = {"kept": False} if ended and not known.kept else {}
        batch.effects.append(lambda: self._outbox.tell(id, "accepted", repeat=True, **gone))

    def _conflict(self, id: str, reply: str | None, correlation: bytes | None, batch: Batch, more: str = "") -> None:
        message = f"this id belongs to another job with other content: choose a new id{more}"
        document = result_document(id, self._device, State.REJECTED, error=(Code.ID_CONFLICT, message))

        def tell() -> None:
            self._outbox.tell(id, "id_conflict", error={"code": Code.ID_CONFLICT.value, "message": message})
            if reply is not None:
                self._outbox.notify(Notice(reply, document, correlation))
            log.warning("job_conflict", job=id)

        batch.effects.append(tell)

    def _reject(self, error: JobError, reply: str | None, correlation: bytes | None, batch: Batch, shown: bool) -> None:
        """Answer without taking the job: nothing is stored, and its id stays free. `shown`: in the last jobs."""
        id, code, now = error.id or invalid_id(), error.code, self._clock.wall()
        loaded = self.model.loaded
        document = result_document(
            id,
            self._device,
            State.REJECTED,
            model=loaded.package.name if loaded else None,
            error=(code, str(error)),
            finished=format_time(now),
        )

        def tell() -> None:
            self._outbox.notify(Notice(self._topics.result(id), document))
            if reply is not None:
                self._outbox.notify(Notice(reply, document, correlation))
            self._metrics.jobs.labels(State.REJECTED.value).inc()
            self._recent.add(JobSummary(id if shown else None, State.REJECTED.value, now, now, code=code.value))
            log.info("job_rejected", job=id, code=code.value)  # not of the error, whose frames hold the payload

        batch.effects.append(tell)


def _read(payload: bytes, limit: int, reply: str | None, correlation: bytes | None) -> Submission:
    try:
        return read_submission(payload, limit, reply, correlation)
    except JobError:
        raise
    except Exception as error:  # the broker would send it again after every start
        kind = type(error).__name__  # its text may hold the prompt
        log.error("job_unreadable", error=kind)
        raise JobError(Code.INTERNAL, f"reading the job failed: {kind}") from None
