"""Decides on job messages: taken, a repeat, a conflict, or refused. Writes within the caller's transaction.

What an arrival causes beyond the spool, a log line included, waits for the commit: that may have to be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from edged.engine.loaded_model import LoadedModel
from edged.jobs.document import Code, JobError, State, invalid_id, result_document
from edged.jobs.expiry import Moment
from edged.jobs.outbox import Notice, Outbox
from edged.jobs.reading import Submission, read_submission
from edged.jobs.spool import Delivery, Known, Queued, Spool
from edged.machine.clock import Clock, format_time
from edged.mqtt.events import JobReceived
from edged.mqtt.topics import Topics
from edged.report.metrics import Metrics

log = structlog.get_logger(__name__)


MAX_WAITERS = 64
"""Places of one job, beside the first, that wait for its result: each takes room on disk and in memory."""


class Tell(Protocol):
    """Publishes an event of a job."""

    def __call__(self, id: str, event: str, **fields: object) -> None:
        """`fields`: what the document has besides id, event, device and time."""


@dataclass
class Batch:
    """What came of the arrivals of one commit; `effects` are to be called after it, in order."""

    accepted: list[Queued] = field(default_factory=list)
    effects: list[Callable[[], None]] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    """Jobs accepted in this batch, by id."""


class Admission:
    """Reads arrivals against the spool and against what this device serves."""

    def __init__(
        self,
        *,
        device: str,
        topics: Topics,
        spool: Spool,
        outbox: Outbox,
        tell: Tell,
        clock: Clock,
        metrics: Metrics,
        max_bytes: int,
        allow_pin: bool,
    ) -> None:
        """`max_bytes`: of a payload. `allow_pin`: whether jobs may pin their prefix."""
        self._device = device
        self._topics = topics
        self._spool = spool
        self._outbox = outbox
        self._tell = tell
        self._clock = clock
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._allow_pin = allow_pin
        self.loaded: LoadedModel | None = None
        """What is served now; kept current by the desk, as the reason below."""
        self.unavailable: str | None = None
        """Why the model cannot be served; None while it is, or loads."""

    def admit(self, arrival: JobReceived, batch: Batch, now: Moment) -> None:
        """Write one arrival down. Raises SpoolError."""
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
        try:
            submission = _read(arrival.payload, self._max_bytes, reply, correlation)
            if refusal is not None:
                raise JobError(Code.INVALID_JOB, refusal, submission.id)
            known = self._known(submission.id, batch)
            if known is None:
                self._check_possible(submission)
        except JobError as error:
            if error.id is not None and self._known(error.id, batch) is not None:
                # Never on result/<id>: that belongs to the job that has the id.
                self._conflict(error.id, reply, correlation, batch, f"; besides, {error}")
            else:
                self._reject(error, reply, correlation, batch)
            return
        if known is None:
            self._add(submission, arrival, batch, now)
        elif known.digest != submission.digest:
            self._conflict(submission.id, reply, correlation, batch)
        else:
            self._repeat(submission.id, known, reply, correlation, batch)

    def _known(self, id: str, batch: Batch) -> Known | None:
        return batch.known.get(id) or self._spool.find(id)

    def _check_possible(self, submission: Submission) -> None:
        """Refuse at once what cannot run here. While the model loads, a job waits."""
        if submission.job.cache is not None and submission.job.cache.pin and not self._allow_pin:
            raise JobError(
                Code.UNSUPPORTED,
                "this device lets no job pin its prefix: leave cache out, or set cache.allow_pin on the device",
                submission.id,
            )
        if self.unavailable is not None:
            raise JobError(
                Code.MODEL_UNAVAILABLE,
                f"this device cannot serve its model now: {self.unavailable}; the job was not taken, send it again "
                "once the device's status says serving",
                submission.id,
            )
        wanted = submission.job.model
        if self.loaded is not None and wanted is not None and wanted != self.loaded.package.name:
            raise JobError(
                Code.MODEL_MISMATCH,
                f"the job wants model {wanted!r}, this device serves {self.loaded.package.name!r}",
                submission.id,
            )

    def _add(self, submission: Submission, arrival: JobReceived, batch: Batch, now: Moment) -> None:
        job = submission.job
        limits = [limit for limit in (job.ttl, arrival.expiry_seconds) if limit is not None]
        queued = self._spool.add_job(
            submission.id,
            submission.digest,
            submission.canonical,
            priority=job.priority,
            store=job.store,
            received=now.wall,
            boottime=now.boottime,
            boot_id=now.boot_id,
            synchronised=now.synchronised,
            ttl=min(limits, default=None),
            deadline=job.deadline_time,
            reply_topic=arrival.response_topic,
            correlation=arrival.correlation if arrival.response_topic else None,
        )
        batch.known[queued.id] = Known(queued.seq, submission.digest, None, True)
        batch.accepted.append(queued)
        batch.effects.append(lambda: self._tell(queued.id, "accepted"))

    def _repeat(self, id: str, known: Known, reply: str | None, correlation: bytes | None, batch: Batch) -> None:
        """The same job again: say so, and answer (again) where it asks."""
        ended = known.state is not None
        places: list[tuple[str | None, bytes | None]] = [(None, None)] if ended else []
        if reply is not None and (ended or self._spool.first_waiter(known.seq) != (reply, correlation)):
            if len(self._spool.waiters(known.seq)) < MAX_WAITERS:
                places.append((reply, correlation))
            else:
                batch.effects.append(lambda: log.warning("waiter_not_kept", job=id, most=MAX_WAITERS))
        if known.kept or not ended:
            for topic, data in places:
                waiter = self._spool.add_waiter(known.seq, topic, data, self._outbox.told)
                if ended and waiter is not None:
                    delivery = Delivery(known.seq, id, topic, data, waiter)
                    batch.effects.append(lambda d=delivery: self._outbox.add([d]))  # type: ignore[misc]
        # Of a job with store: false nothing is left to answer with once its result was delivered.
        gone = {"kept": False} if ended and not known.kept else {}
        batch.effects.append(lambda: self._tell(id, "accepted", repeat=True, **gone))

    def _conflict(self, id: str, reply: str | None, correlation: bytes | None, batch: Batch, more: str = "") -> None:
        message = f"this id belongs to another job with other content: choose a new id{more}"
        document = result_document(id, self._device, State.REJECTED, error=(Code.ID_CONFLICT, message))

        def tell() -> None:
            self._tell(id, "id_conflict", error={"code": Code.ID_CONFLICT.value, "message": message})
            if reply is not None:
                self._outbox.notify(Notice(reply, document, correlation))
            log.warning("job_conflict", job=id)

        batch.effects.append(tell)

    def _reject(self, error: JobError, reply: str | None, correlation: bytes | None, batch: Batch) -> None:
        """Answer without taking the job: nothing is stored, and its id stays free."""
        id, code = error.id or invalid_id(), error.code
        document = result_document(
            id,
            self._device,
            State.REJECTED,
            model=self.loaded.package.name if self.loaded else None,
            error=(code, str(error)),
            finished=format_time(self._clock.wall()),
        )

        def tell() -> None:
            self._outbox.notify(Notice(self._topics.result(id), document))
            if reply is not None:
                self._outbox.notify(Notice(reply, document, correlation))
            self._metrics.jobs.labels(State.REJECTED.value).inc()
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
