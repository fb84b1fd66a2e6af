"""The desk: the life of a job from receipt to delivery. Runs on the main thread alone.

Everything that must survive waits in memory until one commit holds it; only then does the world hear of it: `accepted`
after the job is on disk, PUBACK after that, the result published after it is on disk.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from edged.engine import engine as engine_events
from edged.engine.loaded_model import LoadedModel
from edged.engine.sequence import Request, rank
from edged.jobs.admission import Admission, Batch
from edged.jobs.crash import CrashLedger
from edged.jobs.document import Code, Job, JobError, State, invalid_id, result_document
from edged.jobs.expiry import JobTimes
from edged.jobs.interrupted import recover
from edged.jobs.outbox import Notice, Outbox, Publisher
from edged.jobs.prompt import Prepared
from edged.jobs.queue import JobQueue
from edged.jobs.reading import read_stored
from edged.jobs.results import Course, speed, success
from edged.jobs.spool import Delivery, Queued, Spool, SpoolError
from edged.machine.clock import Clock, format_time
from edged.mqtt.events import CancelReceived, JobReceived, Published, PublishRefused, Receipt
from edged.mqtt.topics import Topics, is_id
from edged.report.metrics import Metrics

log = structlog.get_logger(__name__)

BATCH = 256
"""Most arrivals in one commit, so that results and cancels never wait long behind a flood."""
CANCEL_MEMORY_SECONDS = 600.0
CANCEL_MEMORY = 10_000
CONFIRMATION_DELAY = 1.0
"""Confirmations of the broker are written down with the next commit, or alone after this many seconds."""
GATHER_SECONDS = 0.05
"""A commit waits this long for company where more is under way: a commit costs the card far more than a job in it."""
PRUNE_SECONDS = 3600.0
"""Between two prunings, less where retention is short."""
SCRUB_SECONDS = 60.0
"""What is erased leaves the write-ahead log at the next idle moment, or after this time without one."""
HELD_BYTES = 16 << 20
"""Of arrivals at QoS 0 that may wait for a place; those at QoS 1 are limited by what the link reads."""
_NEWER_HINT = "it was accepted by another version of edged, and waits until one that knows it runs, or it is cancelled"
_ARRIVAL_BYTES = 1024
"""What an arrival takes in memory besides, about."""


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


class JobPreparer(Protocol):
    """What the desk needs of the preparer."""

    def submit(self, job: Job, key: int, id: str, loaded: LoadedModel, received: float) -> None:
        """Turn a job into a request; Prepared comes of it."""


@dataclass
class _Active:
    """A job that the engine has, or will have once it is prepared."""

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
        preparer: JobPreparer,
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
        self._preparer = preparer
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._max_queued = max_queued
        self._retention = retention
        self._arrivals: deque[JobReceived] = deque()
        self._endings: deque[_Ending] = deque()
        self._times = JobTimes(clock, spool.last_boottime)
        self._queue = JobQueue(lambda queued: rank(queued.priority, self._times.received(queued)))
        self._active: dict[int, _Active] = {}
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self._loaded: LoadedModel | None = None
        self._unwritten_since: float | None = None
        self._gathering_since: float | None = None
        self._held_back = False
        self._held_bytes = 0
        # A process that was killed may have left erased rows in the write-ahead log.
        self._scrub_by: float | None = time.monotonic()
        self.preparing: int | None = None
        """The number of the job whose request is being prepared; others of the queue wait, the most urgent is next."""
        self._next_prune = 0.0
        self._draining = False
        self.fault: str | None = None
        """Why the spool cannot be written now; nothing is accepted and nothing lost meanwhile."""
        self.speed: dict[str, float] = {}
        """Tokens per second of the last answer, prefill and decode."""
        self.outbox = Outbox(spool, link, topics)
        self._admission = Admission(
            device=device,
            topics=topics,
            spool=spool,
            outbox=self.outbox,
            tell=self._tell,
            clock=clock,
            metrics=metrics,
            max_bytes=max_bytes,
            allow_pin=allow_pin,
        )
        again, never = recover(spool, ledger.last_end)
        for queued in again:
            self._queue.put(queued)
        for queued, reason in never:
            self._end_waiting(queued, State.FAILED, Code.CRASH_LOOP, reason)

    # What others ask

    @property
    def queued(self) -> int:
        """Jobs on board that wait for a row."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that have a row."""
        return sum(active.started for active in list(self._active.values()))  # a copy: any thread may ask

    @property
    def full(self) -> bool:
        """Whether further jobs are left at the broker. Of a flood each job that ends makes room for one that waited."""
        return self._held_back or not self._room

    @property
    def due_in(self) -> float:
        """Seconds until another flush() is due, though nothing new comes in."""
        if self.fault is not None:
            return math.inf
        if self._endings or (self._arrivals and self._room):
            return self._gather_left()
        return math.inf

    @property
    def busy(self) -> bool:
        """Whether time matters: something is on its way, or waits for something better than the next heartbeat."""
        return bool(
            len(self._queue) or self._active or self._endings or self._arrivals or self.fault or self.outbox.unsettled
        )

    @property
    def settled(self) -> bool:
        """Nothing runs and nothing waits to be written."""
        return not (self._active or self._endings)

    # What comes in

    def job_received(self, event: JobReceived) -> None:
        """A job message; accepted or refused at the next flush."""
        if event.receipt.qos == 0:
            size = event.receipt.size + _ARRIVAL_BYTES
            if self._held_bytes + size > HELD_BYTES:
                log.warning("job_dropped", reason="no place, and at QoS 0 the broker does not keep it")
                return
            self._held_bytes += size
        self._arrivals.append(event)

    def cancel_received(self, event: CancelReceived) -> None:
        """A cancel message."""
        if event.retained:
            log.warning("retained_cancel_ignored", topic=event.topic)
        else:
            self._cancel(event.payload)
        self._link.acknowledge(event.receipt)

    def jobs_disconnected(self) -> None:
        """Forget all arrivals: the broker sends again what was not acknowledged, except at QoS 0."""
        if lost := sum(arrival.receipt.qos == 0 for arrival in self._arrivals):
            log.warning(
                "jobs_dropped",
                jobs=lost,
                reason="they came at QoS 0 and the connection was lost before they were written to disk",
                hint="send jobs at QoS 1",
            )
        self._arrivals.clear()
        self._held_bytes = 0
        self._held_back = False

    def published(self, event: Published | PublishRefused) -> None:
        """The broker confirmed or refused a result."""
        if isinstance(event, Published):
            self.outbox.confirmed(event.token)
        else:
            self.outbox.refused(event.token, event.reason)

    def engine_event(self, event: engine_events.EngineEvent) -> None:
        """News from the engine."""
        if isinstance(event, engine_events.ModelChanged):
            self._loaded = event.loaded
            self._admission.loaded = event.loaded
            self._admission.unavailable = event.reason if event.state == "unavailable" else None
            return
        active = self._active.get(event.key)
        if active is None:
            return
        if isinstance(event, engine_events.Started):
            active.started = True
            active.waited = max(0.0, self._times.age(active.queued))
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

    def prepared(self, event: Prepared) -> None:
        """A job's request is there, or why it has none."""
        self.preparing = None
        active = self._active.get(event.key)
        if active is None:  # ended meanwhile
            return
        if event.loaded is not self._loaded:  # of a model that is gone
            self._take_back(active)
        elif isinstance(event.outcome, JobError):
            del self._active[event.key]
            error = event.outcome
            state = State.FAILED if error.code is Code.INTERNAL else State.REJECTED
            self._end(active.queued, state, error.code, str(error), active.job.metadata)
        else:
            self._engine.submit(event.outcome)

    # What goes on

    def flush(self) -> None:
        """Write everything that waits in one commit, then tell of it, then give the engine its next jobs."""
        if self._commit_due():
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
        if timed := self._queue.timed:
            now = self._times.now()
            for job in timed:
                left = self._times.left(job, now)
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
        for seq, active in list(self._active.items()):
            if seq == self.preparing:
                self._take_back(active)
            elif not active.started:
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

    @property
    def _room(self) -> int:
        return max(0, self._max_queued - len(self._queue) - len(self._active))

    def _commit_due(self) -> bool:
        if self.fault is not None or self._confirmations_due():
            return True
        return bool(self._arrivals or self._endings) and self._gather_left() <= 0.0

    def _gather_left(self) -> float:
        """Seconds that a commit still waits for company. One that would hold all there is does not wait."""
        if self._draining or not (self._active or len(self._arrivals) > 1):
            return 0.0
        now = time.monotonic()
        if self._gathering_since is None:
            self._gathering_since = now
        return self._gathering_since + GATHER_SECONDS - now

    def _commit(self) -> None:
        batch = Batch()
        deliveries: list[Delivery] = []
        ahead: list[Delivery] = []
        """Whoever cancels looks on, and thousands of results may be due."""
        taken: list[JobReceived] = []
        endings = list(self._endings)
        with self._spool.transaction():
            if self.fault is not None:
                self._spool.touch()
            # First: what was delivered is no answer to a repeat that arrives now.
            self._write_confirmations()
            now = self._times.now()
            for ending in endings:
                seq = ending.queued.seq
                if self._spool.add_result(
                    seq, ending.state.value, ending.document, now.wall, now.boottime, now.boot_id
                ):
                    # Here, before a repeat among the arrivals adds a waiter that is told of separately.
                    places = ahead if ending.state is State.CANCELLED else deliveries
                    places += self._deliveries(ending.queued)
            room = self._room
            for arrival in self._arrivals:
                if len(taken) == BATCH or len(batch.accepted) >= room:
                    break
                taken.append(arrival)
                self._admission.admit(arrival, batch, now)
        # On disk. From here on nothing can fail but the process.
        self._unwritten_since = self._gathering_since = None
        self.outbox.written_down()
        for ending in endings:
            self._endings.popleft()
            self._metrics.jobs.labels(ending.state.value).inc()
        self.outbox.add(deliveries)
        self.outbox.add(ahead, ahead=True)
        for arrival in taken:
            self._arrivals.popleft()
            if arrival.receipt.qos == 0:
                self._held_bytes -= arrival.receipt.size + _ARRIVAL_BYTES
        held_back = bool(self._arrivals) and len(batch.accepted) >= room
        if held_back and not self._held_back:
            log.warning("spool_full", jobs=self._max_queued, hint="further ones are left at the broker")
        self._held_back = held_back
        for queued in batch.accepted:
            self._queue.put(queued)
        for effect in batch.effects:
            effect()
        for arrival in taken:
            self._link.acknowledge(arrival.receipt)
        for queued in batch.accepted:
            if self._cancelled.pop(queued.id, 0.0) > time.monotonic():
                self._end_waiting(queued, State.CANCELLED, Code.CANCELLED, "cancelled before it arrived")

    # Running

    def _hand_over(self) -> None:
        """Keep the engine's rows filled and one job ready behind them, the most urgent first."""
        loaded = self._loaded
        if loaded is None or self._draining:
            return
        while self.preparing is None and (first := self._queue.first()) is not None:
            urgency, queued = first
            if self._active and (queued.suspect or any(a.queued.suspect for a in self._active.values())):
                return  # a suspect runs alone
            mine = [active for active in self._active.values() if not active.recalled]
            if len(mine) > loaded.rows:
                ready = [active for active in mine if not active.started]
                least = max(ready, key=lambda active: active.rank, default=None)
                if least is None or least.rank <= urgency:
                    return
                least.recalled = True  # it comes back as Ended and waits again
                self._engine.cancel(least.queued.seq)
            left = self._times.left(queued, self._times.now())
            if left is not None and left <= 0:
                self._expire(queued)
                continue
            document = self._spool.document(queued.seq)
            if document is None:  # forgotten meanwhile
                self._queue.remove(queued)
                continue
            try:
                self._prepare(queued, document, urgency, loaded)
            except JobError as error:
                self._queue.hold(queued)
                log.warning("job_of_newer_version", job=queued.id, reason=str(error), hint=_NEWER_HINT)
            except Exception as error:  # raised again after every start, it would keep the daemon down for good
                kind = type(error).__name__  # its text may hold the prompt
                log.error("job_unreadable", job=queued.id, error=kind)
                self._active.pop(queued.seq, None)
                self.preparing = None
                message = f"reading the job failed: {kind}"
                self._end_waiting(queued, State.FAILED, Code.INTERNAL, message)

    def _prepare(self, queued: Queued, document: bytes, urgency: float, loaded: LoadedModel) -> None:
        job = read_stored(document, queued.id)
        self._queue.take(queued)
        self._active[queued.seq] = _Active(queued, job, urgency)
        self.preparing = queued.seq
        self._preparer.submit(job, queued.seq, queued.id, loaded, self._times.received(queued))

    def _take_back(self, active: _Active) -> None:
        """A job that has no row waits again."""
        del self._active[active.queued.seq]
        self._queue.put(active.queued)

    def _finished(self, active: _Active, event: engine_events.Finished) -> None:
        now = self._times.now()
        metrics = self._metrics
        queued = active.queued
        course = Course(
            id=queued.id,
            device=self._device,
            model=self._loaded.package.name if self._loaded else None,
            received=queued.received,
            waited=active.waited,
            attempts=queued.starts + 1,
            unjudged_deadline=queued.deadline is not None and not now.synchronised,
        )
        if course.unjudged_deadline:
            log.warning("deadline_not_judged", job=queued.id, reason="the clock is not synchronised")
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
            self._take_back(active)
            return
        del self._active[active.queued.seq]
        self._end(active.queued, state, code, message, active.job.metadata, active.started)

    def _close(self, active: _Active, ending: _Ending) -> None:
        del self._active[active.queued.seq]
        self._queue.remove(active.queued)
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
        self._queue.remove(queued)
        now = self._clock.wall()
        document = result_document(
            queued.id,
            self._device,
            state,
            model=self._loaded.package.name if self._loaded else None,
            error=(code, message),
            metadata=metadata,
            attempts=queued.starts + started,
            received=format_time(queued.received),
            finished=format_time(now),
        )
        log.info("job_ended", job=queued.id, state=state.value, code=code.value)
        self._endings.append(_Ending(queued, state, document))

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
            log.warning("cancel_rejected", reason=error[1])
            unusable = invalid_id()
            document = result_document(unusable, self._device, State.REJECTED, error=error)
            self.outbox.notify(Notice(self._topics.result(unusable), document))
            return
        seq = self._queue.find(id)
        if seq is not None:
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
        if (waiting := self._queue.waiting(seq)) is not None:
            self._end_waiting(waiting, state, code, message)
        elif active is None:  # given up, as the process ends
            return
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
        now = self._times.now()
        with self._spool.transaction():
            removed = self._spool.prune(self._retention, now.wall, now.boottime, now.boot_id, BATCH)
        if removed:
            self._scrub_later()
        if removed == BATCH:
            self._next_prune = 0.0

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


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()
