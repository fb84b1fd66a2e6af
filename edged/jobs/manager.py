"""The life of jobs from receipt to delivery: one front for the intake, the dispatch, the committer and maintenance.

It runs on the main thread alone. Other threads read the frozen snapshots that status() returns.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from edged.engine import events as engine_events
from edged.engine.loaded_model import LoadedModel
from edged.faults import Fault
from edged.jobs.admission import Admission
from edged.jobs.committer import Committer
from edged.jobs.crash import CrashLedger
from edged.jobs.dispatch import Dispatch
from edged.jobs.document import Code, State
from edged.jobs.endings import Endings
from edged.jobs.energy import EnergyLedger
from edged.jobs.expiry import JobTimes
from edged.jobs.intake import Acknowledger, Intake
from edged.jobs.interrupted import recover
from edged.jobs.maintenance import Maintenance
from edged.jobs.outbox import Outbox
from edged.jobs.pinned import PinnedPrompts
from edged.jobs.preparer import Prepared, PreparerStatus
from edged.jobs.publisher import Publisher
from edged.jobs.recent import RecentJobs
from edged.jobs.results import Reason
from edged.jobs.running import JobEngine, JobPreparer
from edged.jobs.share_parts import ShareParts
from edged.jobs.sharing import Sharing
from edged.jobs.spool import Spool
from edged.jobs.streams import Streams
from edged.machine.clock import Clock
from edged.mqtt.events import CancelReceived, JobReceived, LinkDown, LinkUp, Published, PublishRefused, ShareReceived
from edged.mqtt.topics import Topics
from edged.report.metrics import Metrics
from edged.status import JobSummary

log = structlog.get_logger(__name__)


class JobLink(Publisher, Acknowledger, Protocol):
    """The part of the link that jobs need."""


class PinPreparer(JobPreparer, Protocol):
    """The part of the preparer that jobs need."""

    @property
    def status(self) -> PreparerStatus: ...

    def pin(self, texts: Sequence[str], loaded: LoadedModel, given_up: Container[int]) -> None:
        """Prepare pinned instructions; a Prepared comes of each."""


@dataclass(frozen=True)
class JobsStatus:
    """All jobs at one moment."""

    queued: int
    """Jobs that wait for a row."""
    running: int
    """Jobs that have a row."""
    outbox: int
    """Publications of results that the broker has not confirmed."""
    warnings: tuple[Fault, ...]
    """Retained documents that the broker does not take as they are."""
    full: bool
    """Further jobs are left at the broker."""
    fault: Fault | None
    """Why the spool cannot be written now; nothing is accepted and nothing lost meanwhile."""
    speed: Mapping[str, float]
    """Tokens per second of the last answer: prefill and decode, as far as known."""
    recent: tuple[JobSummary, ...]
    """Those that run, then those that ended last."""
    ended: Mapping[str, int]
    """How many ended since the start, by state."""
    spool_bytes: int
    damaged_spools: int
    """Damaged spools that were set aside and are still there."""
    shares_load: bool
    """Whether jobs are given to and taken from other members of the device's groups."""
    backlog: bool
    """Whether jobs wait that other members may take."""


class JobManager:
    """Routes events to the parts that handle them."""

    def __init__(
        self,
        *,
        device: str,
        topics: Topics,
        spool: Spool,
        link: JobLink,
        engine: JobEngine,
        preparer: PinPreparer,
        ledger: CrashLedger,
        clock: Clock,
        metrics: Metrics,
        max_queued: int,
        max_bytes: int,
        retention: float,
        pieces_per_second: int,
        allow_pin: bool,
        energy: EnergyLedger,
        pinned: Sequence[str] = (),
        share_groups: Sequence[str] = (),
    ) -> None:
        """`pinned`: instructions that each model reads once it is loaded. `share_groups`: those that share their load.

        Raises SpoolError.
        """
        self._preparer = preparer
        self._pinned_texts = tuple(pinned)
        self.outbox = Outbox(spool, link, topics, device, clock)
        again, never = recover(spool, ledger.last_end)
        times = JobTimes(clock, spool.last_boottime)
        self._recent = RecentJobs()
        self._committer = Committer(spool, self.outbox, times, metrics, self._recent)
        self._endings = Endings(device, spool, times, metrics, self._recent, commit=self._committer.end)
        self._pinned = PinnedPrompts(spool)
        self._streams = Streams(self.outbox.stream, pieces_per_second)
        self._dispatch = Dispatch(
            spool=spool,
            outbox=self.outbox,
            engine=engine,
            preparer=preparer,
            pinned=self._pinned,
            endings=self._endings,
            times=times,
            metrics=metrics,
            streams=self._streams,
            energy=energy,
        )
        self._admission = Admission(
            device=device,
            topics=topics,
            spool=spool,
            outbox=self.outbox,
            clock=clock,
            metrics=metrics,
            recent=self._recent,
            max_bytes=max_bytes,
            allow_pin=allow_pin,
        )
        self._intake = Intake(
            admission=self._admission,
            dispatch=self._dispatch,
            spool=spool,
            outbox=self.outbox,
            link=link,
            topics=topics,
            device=device,
            max_queued=max_queued,
        )
        self._maintenance = Maintenance(spool, times, retention, self._recent, metrics.exemplars)
        for queued in again:
            self._dispatch.put(queued)
        for queued, message in never:
            self._dispatch.end_waiting(queued, Reason(State.FAILED, Code.CRASH_LOOP, message))
        self._sharing: Sharing | None = None
        if share_groups:
            parts = ShareParts(
                device,
                topics,
                spool,
                self._dispatch,
                self._committer,
                self._admission,
                self._intake,
                self.outbox,
                times,
                metrics,
                max_bytes,
            )
            self._sharing = Sharing(parts, share_groups, link, lambda: self._endings.speed.get("decode"))
            self._sharing.resume(again)
            self._intake.sharing = self._admission.sharing = self._sharing
            self._dispatch.defers = self._sharing.defers

    # What others ask

    def status(self) -> JobsStatus:
        """A snapshot as of now."""
        return JobsStatus(
            queued=self._dispatch.queued,
            running=self._dispatch.running,
            outbox=len(self.outbox),
            warnings=self.outbox.warnings,
            full=self._intake.full,
            fault=self._committer.fault,
            speed=dict(self._endings.speed),
            recent=self._dispatch.summaries() + self._recent.all,
            ended=self._recent.counts,
            spool_bytes=self._maintenance.spool_bytes,
            damaged_spools=self._maintenance.damaged_spools,
            shares_load=self._sharing is not None,
            backlog=self._sharing is not None and self._sharing.backlog,
        )

    @property
    def due_in(self) -> float:
        """Seconds until another flush() is due, though nothing new comes in."""
        commit = self._committer.due_in(self._intake, company=self._dispatch.active > 0)
        return min(commit, self._streams.due_in)

    @property
    def busy(self) -> bool:
        """Whether something is on its way, or waits for something better than the next heartbeat."""
        waiting = self._dispatch.unfinished + len(self._committer) + len(self._intake)
        asks = self._sharing is not None and self._sharing.busy
        return bool(waiting or asks or self._committer.fault or self.outbox.unsettled)

    @property
    def settled(self) -> bool:
        """For a daemon that drains: whether nothing runs, waits to be written, or may yet go to another member."""
        given = self._sharing is None or self._sharing.settled
        return given and not (self._dispatch.active or len(self._committer))

    # What comes in

    def received(self, event: JobReceived | CancelReceived | ShareReceived) -> None:
        """Take a message. Raises SpoolError."""
        if isinstance(event, JobReceived):
            self.job_received(event)
        elif isinstance(event, CancelReceived):
            self.cancel_received(event)
        elif self._sharing is not None:
            self._sharing.received(event)

    def job_received(self, event: JobReceived) -> None:
        """Hold a job message until the next flush()."""
        self._intake.job_received(event.message)

    def cancel_received(self, event: CancelReceived) -> None:
        """Obey a cancel message."""
        self._intake.cancel_received(event.message)

    def control_changed(self, event: LinkUp | LinkDown) -> None:
        """The control connection stands, or was lost."""
        if isinstance(event, LinkUp):
            self.outbox.connected(event)
        else:
            self.outbox.disconnected(event)
        if self._sharing is not None:
            self._sharing.connection(isinstance(event, LinkUp))

    def jobs_disconnected(self) -> None:
        """The job connection is lost, and with it every arrival that was not acknowledged."""
        self._intake.disconnected()

    def published(self, event: Published | PublishRefused) -> None:
        """The broker confirmed or refused a publication."""
        if isinstance(event, Published):
            self.outbox.confirmed(event.token)
        else:
            self.outbox.refused(event.token, event.reason, event.code)

    def engine_event(self, event: engine_events.EngineEvent) -> None:
        """Take an event of the engine. Raises SpoolError."""
        if not isinstance(event, engine_events.ModelChanged):
            self._dispatch.engine_event(event)
            return
        self._admission.model = event
        self._dispatch.model_changed(event.loaded)
        if event.loaded is not None:
            self._preparer.pin(self._pinned_texts, event.loaded, self._pinned.given_up)

    def prepared(self, event: Prepared) -> None:
        """Take a request that was prepared, or the reason why there is none."""
        self._dispatch.prepared(event)

    # What goes on

    def flush(self) -> None:
        """Commit what waits, publish what that allows, and give the engine its next jobs. Raises SpoolError."""
        self._streams.flush()
        self._committer.flush(self._intake, company=self._dispatch.active > 0)
        if self._committer.erased:
            self._committer.erased = False
            self._maintenance.scrub_later()
        self.outbox.pump()
        if self._committer.fault is None:  # else answers would pile up in memory
            self._dispatch.hand_over()
        if self._sharing is not None:
            self._sharing.flush()

    def tick(self, sheds: bool = False) -> None:
        """Once a second: end jobs that have expired, share load, and maintain the spool. Raises SpoolError.

        `sheds`: the board's limits leave jobs of groups to others.
        """
        self._dispatch.expire()
        if self._sharing is not None:
            self._sharing.tick(sheds)
        self._maintenance.tick(idle=not self._dispatch.active)

    def drain(self) -> None:
        """Give the engine no further job; those that run may finish."""
        self._committer.drain()
        self._dispatch.drain()
        if self._sharing is not None:
            self._sharing.withdraw()

    def abandon(self) -> list[str]:
        """Forget what runs: it is on disk without a result and runs again after the next start. Returns the ids."""
        return self._dispatch.abandon()
