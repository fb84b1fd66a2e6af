"""Runs jobs: gives waiting jobs to the preparer and the engine, the most urgent first, and takes their events."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from edged.engine import events as engine_events
from edged.engine.loaded_model import LoadedModel
from edged.engine.sequence import Request, rank
from edged.jobs.document import Code, JobError, State
from edged.jobs.endings import Endings
from edged.jobs.energy import EnergyLedger
from edged.jobs.expiry import JobTimes
from edged.jobs.outbox import Outbox
from edged.jobs.pinned import PinnedPrompts
from edged.jobs.preparer import Prepared
from edged.jobs.queue import JobQueue
from edged.jobs.reading import read_stored
from edged.jobs.records import Queued
from edged.jobs.results import Reason
from edged.jobs.running import Active, JobEngine, JobPreparer
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.jobs.streams import Streams
from edged.report.metrics import Metrics
from edged.status import JobSummary

log = structlog.get_logger(__name__)

CANCELLED = Reason(State.CANCELLED, Code.CANCELLED, "cancelled on request")
CANCELLED_EARLY = Reason(State.CANCELLED, Code.CANCELLED, "cancelled before it arrived")
EXPIRED = Reason(State.EXPIRED, Code.EXPIRED, "the job's ttl or deadline passed before its answer was ready")
_LOOKED_AT = 32
"""Waiting jobs among which one that need not wait for other members is looked for."""
_NEWER_HINT = "another version of edged accepted it; it waits until a version that serves it starts, or it is cancelled"


class Dispatch:
    """The jobs without a result: those that wait, and those that are prepared or run."""

    def __init__(
        self,
        *,
        spool: Spool,
        outbox: Outbox,
        engine: JobEngine,
        preparer: JobPreparer,
        pinned: PinnedPrompts,
        endings: Endings,
        times: JobTimes,
        metrics: Metrics,
        streams: Streams,
        energy: EnergyLedger,
    ) -> None:
        self._spool = spool
        self._outbox = outbox
        self._engine = engine
        self._preparer = preparer
        self._pinned = pinned
        self._endings = endings
        self._times = times
        self._metrics = metrics
        self._streams = streams
        self._energy = energy
        self._queue = JobQueue(lambda queued: rank(queued.priority, times.received(queued)))
        self._active: dict[int, Active] = {}
        self._preparing: int | None = None
        """The job whose request is being prepared, one at a time, so that the most urgent is always next."""
        self._loaded: LoadedModel | None = None
        self._draining = False
        self.defers: Callable[[Queued], bool] = lambda _queued: False
        """Whether a job that could start waits for a faster member; set by the manager where load is shared."""

    @property
    def queued(self) -> int:
        """Jobs that wait for a row."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that have a row."""
        return sum(active.started for active in list(self._active.values()))  # a copy: any thread may ask

    @property
    def active(self) -> int:
        """Jobs that are prepared or run."""
        return len(self._active)

    @property
    def unfinished(self) -> int:
        """All jobs here."""
        return len(self._queue) + len(self._active)

    def summaries(self) -> tuple[JobSummary, ...]:
        """The jobs that have a row."""
        return tuple(
            JobSummary(active.queued.shown_id, "running", active.queued.received.wall, queued_seconds=active.waited)
            for active in self._active.values()
            if active.started
        )

    def put(self, queued: Queued) -> None:
        """Add a job that waits."""
        self._queue.put(queued)

    # Load sharing

    @property
    def serves(self) -> bool:
        """Whether waiting jobs are started."""
        return self._loaded is not None and not self._draining

    @property
    def draining(self) -> bool:
        """Whether no further job starts here before a restart."""
        return self._draining

    @property
    def model(self) -> str | None:
        """Name of the model that is served."""
        return self._loaded.package.name if self._loaded is not None else None

    @property
    def rows(self) -> int:
        """Jobs that run at the same time; 0 without a model."""
        return self._loaded.rows if self._loaded is not None else 0

    def upcoming(self, most: int) -> list[Queued]:
        """The jobs that wait and are not held, the most urgent first."""
        return self._queue.upcoming(most)

    def waits(self, number: int) -> bool:
        """Whether the job waits, or is held."""
        return self._queue.waiting(number) is not None

    def hold(self, queued: Queued) -> None:
        """Do not start a waiting job; it can still end."""
        self._queue.hold(queued)

    def release(self, queued: Queued) -> None:
        """Let a job that was held start, unless it has ended."""
        if self.waits(queued.number):
            self._queue.release(queued)

    def forget(self, queued: Queued) -> None:
        """Another member has the job."""
        self._queue.remove(queued)

    # Events of the preparer and the engine

    def model_changed(self, loaded: LoadedModel | None) -> None:
        """Serve with another model from now on; None while there is none."""
        self._loaded = loaded
        self._endings.model = loaded.package.name if loaded else None
        self._pinned.model_changed()

    def prepared(self, event: Prepared) -> None:
        """Give a request to the engine, or end the job that has none."""
        if event.number < 0:
            if event.loaded is self._loaded and isinstance(event.outcome, Request):
                self._pinned.prepared(event.outcome)
            return
        self._preparing = None
        active = self._active.get(event.number)
        if active is None:  # ended meanwhile
            return
        if event.loaded is not self._loaded:  # of a model that is gone
            self._take_back(active)
        elif isinstance(event.outcome, JobError):
            error = event.outcome
            state = State.FAILED if error.code is Code.INTERNAL else State.REJECTED
            self._end_active(active, Reason(state, error.code, str(error)))
        else:
            self._engine.submit(event.outcome)

    def engine_event(
        self, event: engine_events.Started | engine_events.Piece | engine_events.Finished | engine_events.Ended
    ) -> None:
        """Note that a job has started, made a piece of its answer, finished, or ended without an answer."""
        number, energy = event.key, None
        if isinstance(event, (engine_events.Finished, engine_events.Ended)):
            energy = self._energy.take(number)
        if number < 0:
            if isinstance(event, (engine_events.Finished, engine_events.Ended)):
                self._pinned.ended(number, answered=isinstance(event, engine_events.Finished))
            return
        active = self._active.get(number)
        if active is None:
            return
        queued = active.queued
        if isinstance(event, engine_events.Started):
            active.started = True
            active.waited = max(0.0, self._times.age(queued))
            self._outbox.tell(queued.id, "retrying" if queued.starts else "started")
        elif isinstance(event, engine_events.Piece):
            self._streams.add(number, queued.id, event.text)
        elif isinstance(event, engine_events.Finished):
            self._streams.end(number)
            self._remove(active)
            self._endings.with_answer(queued, active.job, active.waited, event, energy)
        else:
            self._ended(active, event)

    # What runs next

    def hand_over(self) -> None:
        """Keep the engine's rows filled and one job ready behind them, the most urgent first. Raises SpoolError."""
        loaded = self._loaded
        if loaded is None or self._draining:
            return
        suspect = any(active.queued.suspect for active in self._active.values())
        if not self._pinned.submit(self._engine, company=bool(self._active), suspect=suspect):
            return
        while self._preparing is None and (first := self._next()) is not None:
            urgency, queued = first
            if queued.suspect and (self._active or self._pinned.under_way):
                return  # a suspect runs alone
            if any(active.queued.suspect for active in self._active.values()):
                return
            if not self._has_place(urgency, loaded.rows):
                return
            if self._times.over(queued, self._times.now()):
                self._stop(queued.number, EXPIRED)
                continue
            document = self._spool.document(queued.number)
            if document is None:  # forgotten meanwhile
                self._queue.remove(queued)
                continue
            self._prepare(queued, document, urgency, loaded)

    def _next(self) -> tuple[float, Queued] | None:
        """The most urgent job that does not wait for another member, and its rank."""
        first = self._queue.first()
        if first is None or not self.defers(first[1]):
            return first
        others = (queued for queued in self._queue.upcoming(_LOOKED_AT) if not self.defers(queued))
        return next(((self._queue.rank(queued), queued) for queued in others), None)

    def _has_place(self, urgency: float, rows: int) -> bool:
        """Whether one more job may be prepared; recalls a less urgent one that has no row yet where that makes room."""
        mine = [active for active in self._active.values() if not active.recalled]
        if len(mine) > rows:
            ready = [active for active in mine if not active.started]
            least = max(ready, key=lambda active: active.rank, default=None)
            if least is None or least.rank <= urgency:
                return False
            least.recalled = True  # it comes back as Ended and waits again
            self._engine.cancel(least.queued.number)
        return True

    def _prepare(self, queued: Queued, document: bytes, urgency: float, loaded: LoadedModel) -> None:
        """Give a job to the preparer. One that cannot be read costs itself alone."""
        try:
            job = read_stored(document, queued.id)
        except JobError as error:
            self._queue.hold(queued)
            log.warning("job_of_newer_version", job=queued.id, reason=str(error), hint=_NEWER_HINT)
            return
        except Exception as error:  # raised again after every start, it would keep the daemon down for good
            self._end_unreadable(queued, error)
            return
        self._queue.take(queued)
        active = self._active[queued.number] = Active(queued, job, urgency)
        self._preparing = queued.number
        try:
            self._preparer.submit(job, queued.number, queued.id, loaded, self._times.received(queued))
        except Exception as error:
            self._preparing = None
            self._take_back(active)
            self._end_unreadable(queued, error)

    def _end_unreadable(self, queued: Queued, error: Exception) -> None:
        kind = type(error).__name__  # its text may hold the prompt
        log.error("job_unreadable", job=queued.id, error=kind)
        self.end_waiting(queued, Reason(State.FAILED, Code.INTERNAL, f"reading the job failed: {kind}"))

    # How jobs end

    def expire(self) -> None:
        """End the jobs whose ttl or deadline has passed."""
        if timed := self._queue.timed:
            now = self._times.now()
            for queued in timed:
                if self._times.over(queued, now):
                    self._stop(queued.number, EXPIRED)

    def stop(self, id: str, reason: Reason) -> bool:
        """End the job with this id: at once where it waits, at its next step where it runs. False if there is none."""
        number = self._queue.find(id)
        if number is not None:
            self._stop(number, reason)
        return number is not None

    def drain(self) -> None:
        """Give the engine no further job; those that run may finish."""
        self._draining = True
        for number, active in list(self._active.items()):
            if number == self._preparing:
                self._take_back(active)
            elif not active.started:
                self._engine.cancel(number)

    def abandon(self) -> list[str]:
        """Forget what runs: it is on disk without a result and runs again after the next start. Returns the ids."""
        cut: list[Queued] = []
        for number, active in list(self._active.items()):
            self._streams.end(number)
            if active.stopping is not None:
                self._end_active(active, active.stopping)
            elif active.started:
                cut.append(active.queued)
        self._active.clear()
        if cut:
            try:
                with self._spool.transaction():
                    for queued in cut:
                        self._spool.note_interrupted(queued.number, crashed_alone=False, suspect=False)
            except SpoolError as error:
                log.error("spool_fault", reason=str(error))  # only the count of attempts is lost
        return [queued.id for queued in cut]

    def end_waiting(self, queued: Queued, reason: Reason) -> None:
        """End a job that is neither prepared nor running."""
        self._queue.remove(queued)
        self._endings.of_stored(queued, reason)

    def _stop(self, number: int, reason: Reason) -> None:
        active = self._active.get(number)
        if (waiting := self._queue.waiting(number)) is not None:
            self.end_waiting(waiting, reason)
        elif active is None:  # given up, as the process ends
            return
        elif not active.started:  # the engine may be in a long step; what it says of the job later is ignored
            self._engine.cancel(number)
            self._end_active(active, reason)
        elif active.stopping is None:
            active.stopping = reason
            self._engine.cancel(number)

    def _take_back(self, active: Active) -> None:
        """Return a job that has no row to the queue."""
        del self._active[active.queued.number]
        self._queue.put(active.queued)

    def _ended(self, active: Active, event: engine_events.Ended) -> None:
        self._metrics.generated_tokens.inc(event.tokens)
        self._streams.end(event.key)
        if active.stopping is not None:
            self._end_active(active, active.stopping)
        elif event.failure is not None:
            self._end_active(active, Reason(State.FAILED, Code.INTERNAL, event.failure))
        else:  # recalled from the engine before it had a row
            self._take_back(active)

    def _end_active(self, active: Active, reason: Reason) -> None:
        queued = active.queued
        self._remove(active)
        self._endings.without_answer(queued, reason, active.job.metadata, queued.starts + active.started)

    def _remove(self, active: Active) -> None:
        del self._active[active.queued.number]
        self._queue.remove(active.queued)
