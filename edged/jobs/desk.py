"""The desk: the life of a job from receipt to delivery. Runs on the main thread alone.

Everything that must survive waits in memory until one commit holds it; only then does the world hear of it: `accepted`
after the job is on disk, PUBACK after that, the result published after it is on disk.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from edged.engine import engine as engine_events
from edged.engine.scheduler import Request, rank
from edged.engine.serving import Serving
from edged.health.clock import Clock
from edged.health.metrics import Metrics
from edged.jobs.crash import CrashLedger
from edged.jobs.document import (
    Code,
    Job,
    JobError,
    State,
    Submission,
    format_time,
    invalid_id,
    read_submission,
    result_document,
)
from edged.jobs.expiry import Moment, age, seconds_left
from edged.jobs.outbox import Notice, Outbox, Publisher
from edged.jobs.prompt import prepare
from edged.jobs.results import Course, speed, success
from edged.jobs.spool import Delivery, Known, Queued, Spool, SpoolError
from edged.mqtt.events import CancelReceived, JobReceived, Published, PublishRefused, Receipt
from edged.mqtt.topics import Topics, is_id

log = structlog.get_logger(__name__)

BATCH = 256
"""Most arrivals in one commit, so that results and cancels never wait long behind a flood."""
MAX_CRASHES = 3
CANCEL_MEMORY_SECONDS = 600.0
CANCEL_MEMORY = 10_000
CONFIRMATION_DELAY = 1.0
"""Confirmations of the broker are written down with the next commit, or alone after this many seconds."""
PRUNE_SECONDS = 3600.0
"""Between two prunings, less where retention is short."""
SCRUB_SECONDS = 60.0
"""What is erased leaves the write-ahead log at the next idle moment, or after this time without one."""
HELD = 4096
"""Arrivals that may wait for a place. MQTT 5 limits them by Receive Maximum, 3.1.1 only at the broker's discretion."""
START_SECONDS = 0.5
"""Preparing jobs that turn out not to run (a template that loops takes seconds) pauses after this for other work."""


class JobLink(Publisher, Protocol):
    """What the desk needs of the link."""

    def acknowledge(self, receipt: Receipt) -> object:
        """Send the PUBACK for a message."""


class JobEngine(Protocol):
    """What the desk needs of the engine."""

    def submit(self, request: Request) -> None:
        """Run a request."""

    def cancel(self, key: int) -> None:
        """End a request."""


@dataclass
class _Active:
    """A job that the engine has."""

    queued: Queued
    job: Job
    rank: float
    waited: float = 0.0
    started: bool = False
    pieces: int = 0
    recalled: bool = False
    """Asked back from the engine in favour of a more urgent one, before it had a row."""
    stopping: tuple[State, Code, str] | None = None


@dataclass(frozen=True)
class _Ending:
    """A job's end that is not on disk yet."""

    queued: Queued
    state: State
    document: bytes


@dataclass
class _Admission:
    """What came of one flush's arrivals, told to the world after the commit."""

    accepted: list[Queued] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    effects: list[Callable[[], None]] = field(default_factory=list)
    batch: dict[str, Known] = field(default_factory=dict)


class Desk:
    """Takes arrivals and engine events, keeps the queue, and answers."""

    def __init__(
        self,
        *,
        device: str,
        topics: Topics,
        spool: Spool,
        link: JobLink,
        engine: JobEngine,
        ledger: CrashLedger,
        clock: Clock,
        metrics: Metrics,
        max_queued: int,
        max_bytes: int,
        retention: float,
        allow_pin: bool,
    ) -> None:
        self._device = device
        self._topics = topics
        self._spool = spool
        self._link = link
        self._engine = engine
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        self._retention = retention
        self._allow_pin = allow_pin
        self._arrivals: deque[JobReceived] = deque()
        self._endings: deque[_Ending] = deque()
        self._waiting: dict[int, Queued] = {}
        self._order: list[tuple[float, int]] = []
        self._ids: dict[str, int] = {}
        self._timed: dict[int, Queued] = {}
        self._active: dict[int, _Active] = {}
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self._serving: Serving | None = None
        self._model_reason: str | None = None
        self._unwritten_since: float | None = None
        # A process that was killed may have left erased rows in the write-ahead log.
        self._scrub_by: float | None = time.monotonic()
        self._last_boottimes: dict[str, float] = {}
        self._more_to_start = False
        self._next_prune = 0.0
        self._start_moment = Moment.now(clock)
        self._draining = False
        self.fault: str | None = None
        """Why the spool cannot be written now; nothing is accepted and nothing lost meanwhile."""
        self.speed: dict[str, float] = {}
        """Tokens per second of the last answer, prefill and decode."""
        self._recover()
        self.outbox = Outbox(spool, link, topics)

    # What others ask

    @property
    def queued(self) -> int:
        """Jobs on board that wait for a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that have a row."""
        return sum(active.started for active in list(self._active.values()))  # a copy: any thread may ask

    @property
    def full(self) -> bool:
        """Whether further jobs are left at the broker."""
        return len(self._waiting) + len(self._active) >= self._max_queued

    @property
    def hurried(self) -> bool:
        """Whether another flush() is due at once, though nothing new comes in."""
        if self.fault is not None:
            return False
        return bool(self._endings or (self._arrivals and not self.full) or self._more_to_start)

    @property
    def busy(self) -> bool:
        """Whether time matters: something is on its way, or waits for something better than the next heartbeat."""
        return bool(
            self._waiting or self._active or self._endings or self._arrivals or self.fault or self.outbox.unsettled
        )

    @property
    def settled(self) -> bool:
        """Nothing runs and nothing waits to be written."""
        return not (self._active or self._endings)

    # What comes in

    def job_received(self, event: JobReceived) -> None:
        """A job message; accepted or refused at the next flush."""
        if len(self._arrivals) >= HELD and event.receipt.qos == 0:
            log.warning("job_dropped", reason="no place, and at QoS 0 the broker does not keep it")
            return
        self._arrivals.append(event)

    def cancel_received(self, event: CancelReceived) -> None:
        """A cancel message."""
        if event.retained:
            log.warning("retained_cancel_ignored", topic=event.topic)
        else:
            self._cancel(event.payload)
        self._link.acknowledge(event.receipt)

    def jobs_disconnected(self) -> None:
        """What was not acknowledged will be delivered again: forget it."""
        self._arrivals.clear()

    def published(self, event: Published | PublishRefused) -> None:
        """The broker confirmed or refused a result."""
        if isinstance(event, Published):
            self.outbox.confirmed(event.token)
        else:
            self.outbox.refused(event.token, event.reason)

    def engine_event(self, event: engine_events.EngineEvent) -> None:
        """News from the engine."""
        if isinstance(event, engine_events.ModelChanged):
            self._serving = event.serving
            self._model_reason = event.reason if event.state == "unavailable" else None
            return
        active = self._active.get(event.key)
        if active is None:
            return
        if isinstance(event, engine_events.Started):
            active.started = True
            active.waited = max(0.0, age(active.queued, self._now(), self._last_boottime))
            self._tell(active.queued.id, "retrying" if active.queued.starts else "started")
        elif isinstance(event, engine_events.Piece):
            piece = {"seq": active.pieces, "text": event.text}
            active.pieces += 1
            self.outbox.pump_notices()  # `started` goes before the first piece
            self._link.publish(self._topics.stream(active.queued.id), _json(piece), qos=0)
        elif isinstance(event, engine_events.Finished):
            self._finished(active, event)
        else:
            self._ended(active, event)

    # What goes on

    def flush(self) -> None:
        """Write everything that waits in one commit, then tell of it, then give the engine its next jobs."""
        if self._arrivals or self._endings or self._confirmations_due() or self.fault is not None:
            try:
                self._commit()
            except SpoolError as error:
                if self.fault is None:
                    log.error("spool_fault", reason=str(error))
                self.fault = str(error)
            else:
                if self.fault is not None:
                    log.info("spool_mended")
                self.fault = None
        self.outbox.pump()
        if self.fault is None:  # else answers would pile up in memory
            self._hand_over()

    def tick(self) -> None:
        """Once a second: end what has expired, prune, tidy. Raises SpoolError."""
        if self._timed:
            now = self._now()
            for job in list(self._timed.values()):
                left = seconds_left(job, now, self._last_boottime)
                if left is not None and left <= 0:
                    self._expire(job)
        monotonic = time.monotonic()
        if monotonic >= self._next_prune:
            self._next_prune = monotonic + min(PRUNE_SECONDS, self._retention / 10)
            self._prune()
        if self._scrub_by is not None and (not self._active or monotonic >= self._scrub_by):
            self._scrub_by = None if self._spool.scrub() else monotonic + SCRUB_SECONDS

    def drain(self) -> None:
        """Give the engine no further job; those that run may finish."""
        self._draining = True
        for seq, active in self._active.items():
            if not active.started:
                self._engine.cancel(seq)

    def abandon(self) -> list[str]:
        """Forget what runs: it is on disk without a result and runs again after the next start. Returns the ids."""
        cut = []
        for active in self._active.values():
            if active.stopping is not None:
                self._end(active.queued, *active.stopping, active.job.metadata, active.started)
            elif active.started:
                cut.append(active.queued)
        self._active.clear()
        if cut:
            try:
                with self._spool.transaction():
                    for queued in cut:
                        self._spool.note_interrupted(queued.seq, crashed_alone=False, suspect=False)
            except SpoolError as error:
                log.error("spool_fault", reason=str(error))  # only the count of attempts is lost
        return [queued.id for queued in cut]

    # Acceptance

    def _commit(self) -> None:
        admission = _Admission()
        taken: list[JobReceived] = []
        endings = list(self._endings)
        with self._spool.transaction():
            if self.fault is not None:
                self._spool.touch()
            now = self._now()
            for ending in endings:
                seq = ending.queued.seq
                if self._spool.add_result(
                    seq, ending.state.value, ending.document, now.wall, now.boottime, now.boot_id
                ):
                    # Here, before a repeat among the arrivals adds a waiter that is told of separately.
                    admission.deliveries += self._deliveries(ending.queued)
            room = self._max_queued - len(self._waiting) - len(self._active)
            for arrival in self._arrivals:
                if len(taken) == BATCH or len(admission.accepted) >= room:
                    break
                taken.append(arrival)
                self._admit(arrival, admission, now)
            self._write_confirmations()
        # On disk. From here on nothing can fail but the process.
        self._unwritten_since = None
        self.outbox.written_down()
        for ending in endings:
            self._endings.popleft()
            self._metrics.jobs.labels(ending.state.value).inc()
        self.outbox.add(admission.deliveries)
        for _ in taken:
            self._arrivals.popleft()
        for queued in admission.accepted:
            self._enqueue(queued)
        for effect in admission.effects:
            effect()
        for arrival in taken:
            self._link.acknowledge(arrival.receipt)
        for queued in admission.accepted:
            if self._cancelled.pop(queued.id, 0.0) > time.monotonic():
                self._end_waiting(queued, State.CANCELLED, Code.CANCELLED, "cancelled before it arrived")

    def _admit(self, arrival: JobReceived, admission: _Admission, now: Moment) -> None:
        """Write one arrival down. What it tells, log included, waits for the commit: that may have to be repeated."""
        topic = arrival.topic
        if arrival.retained:
            admission.effects.append(lambda: log.warning("retained_job_ignored", topic=topic))
            return
        if arrival.expiry_seconds == 0:
            admission.effects.append(lambda: log.info("expired_job_ignored", topic=topic))
            return
        reply, correlation = arrival.response_topic, arrival.correlation
        refusal = self._topics.reply_refusal(reply) if reply is not None else None
        if refusal is not None:
            reply = correlation = None
        try:
            submission = _read(arrival.payload, self._max_bytes, reply, correlation)
            if refusal is not None:
                raise JobError(Code.INVALID_JOB, refusal, submission.id)
            known = self._known(submission.id, admission)
            if known is None:
                self._check_possible(submission)
        except JobError as error:
            if error.id is not None and self._known(error.id, admission) is not None:
                # Never on result/<id>: that belongs to the job that has the id.
                self._conflict(error.id, reply, correlation, admission, f"; besides, {error}")
            else:
                self._reject(error, reply, correlation, admission)
            return
        if known is None:
            self._add(submission, arrival, admission, now)
        elif known.digest != submission.digest:
            self._conflict(submission.id, reply, correlation, admission)
        else:
            self._repeat(submission.id, known, reply, correlation, admission)

    def _known(self, id: str, admission: _Admission) -> Known | None:
        return admission.batch.get(id) or self._spool.find(id)

    def _check_possible(self, submission: Submission) -> None:
        """Refuse at once what cannot run here. While the model loads, a job waits."""
        if submission.job.cache is not None and submission.job.cache.pin and not self._allow_pin:
            raise JobError(
                Code.UNSUPPORTED,
                "this device lets no job pin its prefix: leave cache out, or set cache.allow_pin on the device",
                submission.id,
            )
        if self._model_reason is not None:
            raise JobError(
                Code.MODEL_UNAVAILABLE,
                f"this device cannot serve its model now: {self._model_reason}; the job was not taken, send it again "
                "once the device's status says serving",
                submission.id,
            )
        wanted = submission.job.model
        if self._serving is not None and wanted is not None and wanted != self._serving.package.name:
            raise JobError(
                Code.MODEL_MISMATCH,
                f"the job wants model {wanted!r}, this device serves {self._serving.package.name!r}",
                submission.id,
            )

    def _add(self, submission: Submission, arrival: JobReceived, admission: _Admission, now: Moment) -> None:
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
        admission.batch[queued.id] = Known(queued.seq, submission.digest, None, True)
        admission.accepted.append(queued)
        admission.effects.append(lambda: self._tell(queued.id, "accepted"))

    def _repeat(
        self, id: str, known: Known, reply: str | None, correlation: bytes | None, admission: _Admission
    ) -> None:
        """The same job again: say so, and answer (again) where it asks."""
        ended = known.state is not None
        places: list[tuple[str | None, bytes | None]] = [(None, None)] if ended else []
        if reply is not None and (ended or self._spool.first_waiter(known.seq) != (reply, correlation)):
            places.append((reply, correlation))
        if known.kept or not ended:
            for topic, data in places:
                waiter = self._spool.add_waiter(known.seq, topic, data)
                if ended and waiter is not None:
                    delivery = Delivery(known.seq, id, topic, data, waiter)
                    admission.effects.append(lambda d=delivery: self.outbox.add([d]))  # type: ignore[misc]
        # Of a job with store: false nothing is left to answer with once its result was delivered.
        gone = {"kept": False} if ended and not known.kept else {}
        admission.effects.append(lambda: self._tell(id, "accepted", repeat=True, **gone))

    def _conflict(
        self, id: str, reply: str | None, correlation: bytes | None, admission: _Admission, more: str = ""
    ) -> None:
        message = f"this id belongs to another job with other content: choose a new id{more}"
        document = result_document(id, self._device, State.REJECTED, error=(Code.ID_CONFLICT, message))

        def tell() -> None:
            self._tell(id, "id_conflict", error={"code": Code.ID_CONFLICT.value, "message": message})
            if reply is not None:
                self.outbox.notify(Notice(reply, document, correlation))
            log.warning("job_conflict", job=id)

        admission.effects.append(tell)

    def _reject(self, error: JobError, reply: str | None, correlation: bytes | None, admission: _Admission) -> None:
        """Answer without taking the job: nothing is stored, and its id stays free."""
        id = error.id or invalid_id()
        document = result_document(
            id,
            self._device,
            State.REJECTED,
            model=self._serving.package.name if self._serving else None,
            error=(error.code, str(error)),
            finished=format_time(self._clock.wall()),
        )

        def tell() -> None:
            self.outbox.notify(Notice(self._topics.result(id), document))
            if reply is not None:
                self.outbox.notify(Notice(reply, document, correlation))
            self._metrics.jobs.labels(State.REJECTED.value).inc()
            log.info("job_rejected", job=id, code=error.code.value)

        admission.effects.append(tell)

    # Running

    def _enqueue(self, queued: Queued) -> None:
        self._waiting[queued.seq] = queued
        self._ids[queued.id] = queued.seq
        if len(self._order) > 2 * len(self._waiting) + 1000:  # mostly of jobs that were cancelled
            self._order = [(self._rank(waiting), waiting.seq) for waiting in self._waiting.values()]
            heapq.heapify(self._order)
        else:
            heapq.heappush(self._order, (self._rank(queued), queued.seq))
        if queued.ttl is not None or queued.deadline is not None:
            self._timed[queued.seq] = queued

    def _received(self, queued: Queued) -> float:
        """When a job came, in seconds of this boot's CLOCK_BOOTTIME; below zero before the boot."""
        start = self._start_moment
        if queued.boot_id == start.boot_id:
            return queued.boottime
        return start.boottime - age(queued, start, self._last_boottime)

    def _rank(self, queued: Queued) -> float:
        return rank(queued.priority, self._received(queued))

    def _hand_over(self) -> None:
        """Keep the engine's rows filled and one job ready behind them, the most urgent first."""
        serving = self._serving
        self._more_to_start = False
        if serving is None or self._draining:
            return
        until = time.monotonic() + START_SECONDS
        while self._order:
            queued = self._waiting.get(self._order[0][1])
            if queued is None:
                heapq.heappop(self._order)
                continue
            if self._active and (queued.suspect or any(a.queued.suspect for a in self._active.values())):
                return  # a suspect runs alone
            if time.monotonic() >= until:
                self._more_to_start = True
                return
            mine = [active for active in self._active.values() if not active.recalled]
            if len(mine) > serving.rows:
                ready = [active for active in mine if not active.started]
                least = max(ready, key=lambda active: active.rank, default=None)
                if least is None or least.rank <= self._order[0][0]:
                    return
                least.recalled = True  # it comes back as Ended and waits again
                self._engine.cancel(least.queued.seq)
            left = seconds_left(queued, self._now(), self._last_boottime)
            if left is not None and left <= 0:
                self._expire(queued)
                continue
            document = self._spool.document(queued.seq)
            heapq.heappop(self._order)  # after the read, which may fail
            del self._waiting[queued.seq]
            if document is None:
                self._leave(queued)  # forgotten meanwhile
            else:
                self._start(queued, Job.model_validate(json.loads(document)), serving)

    def _start(self, queued: Queued, job: Job, serving: Serving) -> None:
        try:
            request = prepare(job, queued.seq, queued.id, serving, self._received(queued))
        except JobError as error:
            failed = error.code is Code.INTERNAL
            self._end(queued, State.FAILED if failed else State.REJECTED, error.code, str(error), job.metadata)
            return
        except Exception as error:  # raised again after every start, it would keep the daemon down for good
            kind = type(error).__name__  # its text may hold the prompt
            log.error("job_unpreparable", job=queued.id, error=kind)
            self._end(queued, State.FAILED, Code.INTERNAL, f"preparing the prompt failed: {kind}", job.metadata)
            return
        self._active[queued.seq] = _Active(queued, job, request.rank)
        self._engine.submit(request)

    def _finished(self, active: _Active, event: engine_events.Finished) -> None:
        now = self._now()
        metrics = self._metrics
        queued = active.queued
        course = Course(
            id=queued.id,
            device=self._device,
            model=self._serving.package.name if self._serving else None,
            received=queued.received,
            waited=active.waited,
            attempts=queued.starts + 1,
            unjudged_deadline=queued.deadline is not None and not now.synchronised,
        )
        metrics.prompt_tokens.inc(event.prompt_tokens)
        metrics.cached_tokens.inc(event.cached_tokens)
        metrics.generated_tokens.inc(len(event.tokens))
        metrics.first_token.observe(active.waited + event.first_token - event.started)
        metrics.duration.observe(active.waited + event.ended - event.started)
        for earlier, later in itertools.pairwise(event.token_times):
            metrics.inter_token.observe(later - earlier)
        log.info(
            "job_succeeded",
            job=queued.id,
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            completion_tokens=len(event.tokens),
            seconds=round(event.ended - event.started, 3),
        )
        self.speed = speed(event)
        self._close(active, _Ending(queued, State.SUCCEEDED, success(active.job, course, event, now.wall)))

    def _ended(self, active: _Active, event: engine_events.Ended) -> None:
        self._metrics.generated_tokens.inc(event.tokens)
        if active.stopping is not None:
            state, code, message = active.stopping
        elif event.failure is not None:
            state, code, message = State.FAILED, Code.INTERNAL, event.failure
        else:  # taken back from the engine before it had a row
            del self._active[active.queued.seq]
            self._enqueue(active.queued)
            return
        del self._active[active.queued.seq]
        self._end(active.queued, state, code, message, active.job.metadata, active.started)

    def _close(self, active: _Active, ending: _Ending) -> None:
        del self._active[active.queued.seq]
        self._leave(active.queued)
        self._endings.append(ending)

    def _end(
        self,
        queued: Queued,
        state: State,
        code: Code,
        message: str,
        metadata: dict[str, Any] | None,
        started: bool = False,
    ) -> None:
        """End a job that has no answer."""
        self._leave(queued)
        now = self._clock.wall()
        document = result_document(
            queued.id,
            self._device,
            state,
            model=self._serving.package.name if self._serving else None,
            error=(code, message),
            metadata=metadata,
            attempts=queued.starts + started,
            received=format_time(queued.received),
            finished=format_time(now),
        )
        log.info("job_ended", job=queued.id, state=state.value, code=code.value)
        self._endings.append(_Ending(queued, state, document))

    def _leave(self, queued: Queued) -> None:
        self._waiting.pop(queued.seq, None)
        self._timed.pop(queued.seq, None)
        if self._ids.get(queued.id) == queued.seq:  # else it was forgotten, and its id taken by another
            del self._ids[queued.id]

    def _end_waiting(self, queued: Queued, state: State, code: Code, message: str) -> None:
        try:
            document = self._spool.document(queued.seq)
        except SpoolError:  # an end without its metadata is better than none
            document = None
        metadata = json.loads(document).get("metadata") if document else None
        self._end(queued, state, code, message, metadata)

    def _expire(self, queued: Queued) -> None:
        self._stop(
            queued.seq,
            State.EXPIRED,
            Code.EXPIRED,
            "the job's ttl or deadline passed before its answer was ready",
        )

    def _cancel(self, payload: bytes) -> None:
        try:
            document = json.loads(payload)
            id = document["id"] if set(document) == {"id"} else None
        except (ValueError, TypeError, KeyError, RecursionError):
            id = None
        if not isinstance(id, str) or not is_id(id):
            error = (Code.INVALID_JOB, 'a cancel must be {"id": "…"} with the id of a job')
            log.info("cancel_rejected")
            unusable = invalid_id()
            document = result_document(unusable, self._device, State.REJECTED, error=error)
            self.outbox.notify(Notice(self._topics.result(unusable), document))
            return
        seq = self._ids.get(id)
        if seq is not None and (seq in self._waiting or seq in self._active):
            self._stop(seq, State.CANCELLED, Code.CANCELLED, "cancelled on request")
        elif self._spool.find(id) is None:
            self._cancelled[id] = time.monotonic() + CANCEL_MEMORY_SECONDS
            self._cancelled.move_to_end(id)
            while self._cancelled and (
                len(self._cancelled) > CANCEL_MEMORY or next(iter(self._cancelled.values())) < time.monotonic()
            ):
                self._cancelled.popitem(last=False)

    def _stop(self, seq: int, state: State, code: Code, message: str) -> None:
        """End a job that waits at once, one that runs at its next step."""
        active = self._active.get(seq)
        if active is None:
            self._end_waiting(self._waiting[seq], state, code, message)
        elif not active.started:  # ready in the engine, which may be in a long step; what it says of it is ignored
            del self._active[seq]
            self._engine.cancel(seq)
            self._end(active.queued, state, code, message, active.job.metadata)
        elif active.stopping is None:
            active.stopping = (state, code, message)
            self._engine.cancel(seq)

    # Delivery

    def _deliveries(self, queued: Queued) -> list[Delivery]:
        topic, correlation = self._spool.first_waiter(queued.seq)
        places = [Delivery(queued.seq, queued.id, None, None)]
        if topic is not None:
            places.append(Delivery(queued.seq, queued.id, topic, correlation))
        return places + [Delivery(queued.seq, queued.id, t, c, n) for n, t, c in self._spool.waiters(queued.seq)]

    def _confirmations_due(self) -> bool:
        if not self.outbox.unwritten:
            return False
        if self._unwritten_since is None:
            self._unwritten_since = time.monotonic()
        return self._draining or time.monotonic() - self._unwritten_since >= CONFIRMATION_DELAY

    def _write_confirmations(self) -> None:
        waiters, complete = self.outbox.done()
        for waiter in waiters:
            self._spool.answered(waiter)
        for seq in complete:
            self._spool.mark_delivered(seq)
            if not self._spool.stores(seq):
                self._spool.erase(seq)
                self._scrub_later()

    def _scrub_later(self) -> None:
        if self._scrub_by is None:
            self._scrub_by = time.monotonic() + SCRUB_SECONDS

    def _prune(self) -> None:
        now = self._now()
        with self._spool.transaction():
            removed = self._spool.prune(self._retention, now.wall, now.boottime, now.boot_id, BATCH)
        if removed:
            self._scrub_later()
        if removed == BATCH:
            self._next_prune = 0.0

    # Recovery

    def _recover(self) -> None:
        """Queue what has no result, and account for what the last process was running when it ended."""
        end = self._ledger.last_end
        unfinished = {queued.seq: queued for queued in self._spool.queued()}
        running = [seq for seq in end.running if seq in unfinished]
        if end.crash is not None:
            log.error("crashed_before", reason=end.crash, jobs=[unfinished[seq].id for seq in running])
        if running:
            alone = len(running) == 1
            with self._spool.transaction():
                for seq in running:
                    self._spool.note_interrupted(
                        seq,
                        crashed_alone=end.crash is not None and alone,
                        suspect=end.crash is not None and not alone,
                    )
            unfinished = {queued.seq: queued for queued in self._spool.queued()}
        for queued in unfinished.values():
            if queued.crashes >= MAX_CRASHES:
                last = f", last by {end.crash}" if end.crash is not None else ""
                reason = f"the daemon crashed {queued.crashes} times while it ran this job alone{last}"
                self._end_waiting(queued, State.FAILED, Code.CRASH_LOOP, reason)
            else:
                self._enqueue(queued)
        if unfinished:
            log.info("jobs_recovered", queued=len(unfinished), interrupted=len(running))

    # Small things

    def _tell(self, id: str, event: str, **fields: object) -> None:
        document = {
            "event": event,
            "id": id,
            "device": self._device,
            "time": format_time(self._clock.wall()),
            **fields,
        }
        self.outbox.notify(Notice(self._topics.event(id), _json(document)))

    def _now(self) -> Moment:
        return Moment.now(self._clock)

    def _last_boottime(self, boot_id: str) -> float:
        """Of an earlier boot, so it does not change; asked for every job with a ttl, once a second."""
        if boot_id not in self._last_boottimes:
            self._last_boottimes[boot_id] = self._spool.last_boottime(boot_id)
        return self._last_boottimes[boot_id]


def _read(payload: bytes, limit: int, reply: str | None, correlation: bytes | None) -> Submission:
    try:
        return read_submission(payload, limit, reply, correlation)
    except JobError:
        raise
    except Exception as error:  # the broker would send it again after every start
        kind = type(error).__name__  # its text may hold the prompt
        log.error("job_unreadable", error=kind)
        raise JobError(Code.INTERNAL, f"reading the job failed: {kind}") from None


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()
