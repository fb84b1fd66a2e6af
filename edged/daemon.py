"""The daemon's main loop: takes events, lets time pass, publishes its status, drains, reloads and stops.

The loop runs on the thread that calls run(). Other threads reach it through the inbox, and read the status snapshot.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import structlog

import edged
from edged import logs
from edged.announcer import Announcer, warn_about_storage
from edged.commands.commands import Commands
from edged.commands.worker import WorkerEnded
from edged.engine.engine import Engine
from edged.engine.events import ModelChanged
from edged.engine.own_speed import OwnSpeed
from edged.engine.scrubber import Scrubber
from edged.faults import Fault
from edged.governor import Governor
from edged.inbox import Inbox, InboxEvent, Reload, Stop
from edged.jobs.crash import CrashLedger
from edged.jobs.manager import JobManager
from edged.jobs.preparer import Prepared, Preparer
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.jobs.spool_recovery import mark_damaged
from edged.liveness import Failure
from edged.machine.board import Board
from edged.machine.sensors.sampler import Sampler
from edged.membership import Groups
from edged.mqtt.events import (
    CancelReceived,
    CommandReceived,
    DesiredReceived,
    DeviceIdFree,
    DeviceIdTaken,
    GroupPing,
    GroupPong,
    JobReceived,
    LinkDown,
    LinkUp,
    Published,
    PublishRefused,
    ShareReceived,
    StatusOutdated,
)
from edged.mqtt.link import Link
from edged.observer import Observer
from edged.report.history import History
from edged.report.http import HttpServer
from edged.report.metrics import Metrics
from edged.report.supervisor import Supervisor
from edged.rollout.puller import PullEnded, PullProgress
from edged.rollout.rollout import Rollout
from edged.settings import Settings, SettingsError, address
from edged.startup import StartError, check_settings
from edged.status import LatestStatus, Status

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
IDLE_SECONDS = 5.0
"""The longest turn of the main loop while nothing happens."""
LINK_STOP_SECONDS = 3.0
EVENTS = 1000
"""Most events of one turn, so that a flood does not delay the commit without end."""


@dataclass(frozen=True)
class Parts:
    """Everything that the main loop uses; app.build() constructs it."""

    settings: Settings
    load_settings: Callable[[], Settings]
    """Reads the settings anew for a reload; raises SettingsError."""
    device: str
    board: Board
    sampler: Sampler
    governor: Governor
    lock: int
    """File descriptor of the lock on state_dir."""
    inbox: Inbox
    latest: LatestStatus
    supervisor: Supervisor
    ledger: CrashLedger
    spool: Spool
    link: Link
    groups: Groups
    engine: Engine
    speed: OwnSpeed
    scrubber: Scrubber
    preparer: Preparer
    jobs: JobManager
    metrics: Metrics
    http: HttpServer
    history: History
    observer: Observer
    announcer: Announcer
    rollout: Rollout
    commands: Commands


class Daemon:
    """One daemon. run() blocks until stop() is called, from any thread or a signal handler."""

    def __init__(self, parts: Parts) -> None:
        """Nothing listens or connects before run()."""
        self._parts = parts
        self._settings = parts.settings
        self._supervisor, self._link, self._jobs = parts.supervisor, parts.link, parts.jobs
        self._observer, self._announcer, self._inbox = parts.observer, parts.announcer, parts.inbox
        self._reloading = self._stop_asked = False
        self._stops = 0
        """Requests to stop: the first one drains, the second one ends at once."""
        self._ticked_at = float("-inf")
        self._connected_before: set[str] = set()
        self._take_snapshot()

    @property
    def status(self) -> Status:
        """The newest snapshot. Any thread may read it."""
        return self._parts.latest.current

    @property
    def http_port(self) -> int:
        """The TCP port of the HTTP endpoint."""
        return self._parts.http.port

    @property
    def engine_busy(self) -> bool:
        """Whether the engine's thread is still at work after run(): nothing can interrupt a load."""
        return not self._parts.engine.ended

    def run(self) -> bool:
        """Serve until stop() or reload(). Then drain: running jobs get drain_seconds, the rest stays on disk.

        True after reload(): the caller starts the program anew, with its new settings.
        """
        parts, settings = self._parts, self._settings
        log.info(
            "starting",
            version=edged.__version__,
            device=parts.device,
            board=parts.board.model,
            broker=settings.mqtt.address,
            http=address(settings.http.host, self.http_port),
        )
        warn_about_storage(settings.state_dir, parts.board.root)
        parts.sampler.start()
        parts.http.start()
        parts.engine.start()
        parts.scrubber.start()
        parts.preparer.start()
        self._link.start()
        next_heartbeat, longest = time.monotonic(), min(IDLE_SECONDS, self._supervisor.interval)
        while not self._stops:
            until_heartbeat = max(0.05, next_heartbeat - time.monotonic())
            busy = self._jobs.busy or parts.rollout.busy or parts.commands.busy
            self.turn(min(TICK_SECONDS if busy else until_heartbeat, longest))
            if (now := time.monotonic()) >= next_heartbeat:
                next_heartbeat = max(next_heartbeat + settings.heartbeat_seconds, now)  # one late delays no other
                self._announcer.heartbeat(self.status)
        self.drain()
        return self._reloading and not self._stop_asked

    def stop(self, now: bool = False) -> None:
        """Drain and end run(); a second call, or `now`, stops at once. One during a reload makes it a stop."""
        self._stop_asked = True  # for the end of a drain, when the inbox is not read any more
        self._inbox.put(Stop(now))

    def reload(self) -> None:
        """End run() as stop() does, so that it can be run anew, unless a start would refuse the new settings."""
        self._inbox.put(Reload())

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT call stop(), and SIGHUP reload(). Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self.stop())
        signal.signal(signal.SIGHUP, lambda _number, _frame: self.reload())

    def turn(self, timeout: float) -> None:
        """One turn of the main loop: take the events of up to `timeout` seconds in one commit, then report."""
        wait = max(0.0, min(timeout, self._jobs.due_in))
        for _ in range(EVENTS):
            try:
                event = self._inbox.get(timeout=wait)
            except queue.Empty:
                break
            wait = 0.0
            try:
                self._handle(event)
            except SpoolError as error:
                log.error("spool_fault", reason=str(error))
        try:
            self._jobs.flush()
            if time.monotonic() - self._ticked_at >= TICK_SECONDS:
                self._ticked_at = time.monotonic()
                self._govern()
                self._take_snapshot()
                self._parts.groups.update(self.status)
                self._parts.rollout.update(self.status)
                self._parts.commands.update(self.status)
                self._announcer.publish_changes(self.status)
                self._jobs.tick(self.status.governor.sheds_groups)
                logs.tell_held()
        except SpoolError as error:
            log.error("spool_fault", reason=str(error))
        spool = self._parts.spool
        if spool.damage is not None and not self._stops:
            self._recover_spool(spool.damage)
        status = self._take_snapshot()
        self._parts.history.record(status)
        self._parts.speed.keep()
        if (failure := self._observer.failure) is not None:
            self._abort(failure)
        if not status.stalled:
            self._supervisor.alive()

    def _govern(self) -> None:
        facts = self.status.model.facts
        self._parts.governor.update(self._ticked_at, facts.rows if facts else 1, running=self.status.running > 0)

    # Events

    def _handle(self, event: InboxEvent) -> None:
        if isinstance(event, Stop):
            self._handle_stop(event)
        elif isinstance(event, Reload):
            self._handle_reload(event)
        elif isinstance(event, (JobReceived, CancelReceived, ShareReceived)):
            self._jobs.received(event)
        elif isinstance(event, (Published, PublishRefused)):
            self._jobs.published(event)
        elif isinstance(event, (LinkUp, LinkDown)):
            self._link_changed(event)
        elif isinstance(event, Prepared):
            self._jobs.prepared(event)
        elif isinstance(event, GroupPing):
            self._parts.groups.pinged(event, self.status)
        elif isinstance(event, GroupPong):
            self._parts.groups.ponged(event)
        elif isinstance(event, (DeviceIdTaken, DeviceIdFree)):
            self._observer.device_id_changed(event)
        elif isinstance(event, DesiredReceived):
            self._parts.rollout.desired_received(event)
            self._ticked_at = float("-inf")
        elif isinstance(event, (PullProgress, PullEnded)):
            self._parts.rollout.pull_event(event)
            self._ticked_at = float("-inf")
        elif isinstance(event, CommandReceived):
            self._parts.commands.received(event)
            self._ticked_at = float("-inf")
        elif isinstance(event, WorkerEnded):
            self._parts.commands.worker_ended(event)
            self._ticked_at = float("-inf")
        elif isinstance(event, StatusOutdated):
            self._announcer.publish_again()
        else:
            if isinstance(event, ModelChanged):
                self._model_changed(event)
            self._jobs.engine_event(event)

    def _handle_stop(self, event: Stop) -> None:
        if self._reloading and not event.now:  # the drain of the reload goes on as the drain of the stop
            self._reloading = False
            self._supervisor.stopping()
        else:
            self._stops += 2 if event.now else 1

    def _handle_reload(self, event: Reload) -> None:
        if self._stops:
            return
        try:
            check_settings(self._parts.load_settings(), self._parts.board, running=self._settings)
        except (SettingsError, StartError) as error:
            log.error("reload_refused", reason=str(error), hint="edged goes on with the settings it has")
            self._parts.rollout.reload_refused(str(error))
            self._parts.commands.reload_refused(str(error))
            return
        log.info("reloading")
        self._supervisor.reloading()
        self._reloading = True
        self._stops += 2 if event.now else 1

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        self._observer.link_changed(event)
        if isinstance(event, LinkUp):
            if event.which in self._connected_before:
                self._parts.metrics.reconnects.labels(event.which).inc()
            self._connected_before.add(event.which)
            if event.which == "control":
                self._announcer.publish_again()
                self._parts.rollout.publish_again()
                self._parts.commands.publish_again()
        elif event.which == "jobs":
            self._jobs.jobs_disconnected()
        if event.which == "control":
            self._jobs.control_changed(event)
        self._take_snapshot()
        self._announcer.publish_changes(self.status)

    def _model_changed(self, event: ModelChanged) -> None:
        self._observer.model_changed(event)
        if event.loaded is not None:
            self._parts.scrubber.watch(event.loaded.package.folder, event.loaded.manifest)
        else:
            self._parts.scrubber.rest()
        self._parts.groups.update(self._take_snapshot())
        self._parts.rollout.update(self.status)
        self._announcer.publish_changes(self.status)

    def _recover_spool(self, damage: str) -> None:
        """End at once to run anew: a start recovers a damaged spool, and until then nothing can be written to it."""
        log.error("spool_damaged", reason=damage, hint="edged starts anew and recovers what can be read")
        mark_damaged(self._parts.spool.path, damage)
        self._supervisor.reloading()
        self._reloading = True
        self._stops = 2

    def _abort(self, failure: Failure) -> NoReturn:
        """End the process by SIGABRT, a crash that is held against the failure's jobs: a thread cannot be ended alone.

        systemd or a container's restart policy starts it again, also without a watchdog.
        """
        log.error("thread_stuck", reason=failure.reason, jobs=self.status.running, then="the process ends itself")
        if failure.jobs is not None:
            self._parts.ledger.write_running(failure.jobs)
        self._parts.ledger.note_crash(failure.reason)
        os.abort()

    # The end

    def drain(self) -> None:
        """Let running jobs finish within drain_seconds, publish their results, and close everything."""
        parts = self._parts
        if not self._reloading:
            self._supervisor.stopping()
        log.info("draining", running=self.status.running, queued=self.status.queued)
        parts.rollout.stop()
        parts.commands.stop()
        self._link.close_jobs()
        self._jobs.drain()
        self._take_snapshot()
        self._announcer.publish_changes(self.status)
        until = time.monotonic() + self._settings.drain_seconds
        while self._stops < 2 and not self._jobs.settled and time.monotonic() < until:
            self.turn(0.1)
        left = self._jobs.abandon()
        if left:
            log.warning("drain_cut_short", jobs=left, hint="they run again after the next start")
        self.turn(0.01)
        self._publish_last()
        self._link.stop(LINK_STOP_SECONDS if self._stops < 2 else 0.5)
        parts.preparer.stop()
        parts.scrubber.stop()
        parts.engine.stop(timeout=2.0)
        parts.http.stop()
        parts.sampler.stop()
        parts.governor.close()
        parts.speed.save()
        parts.ledger.close()
        parts.spool.close()
        os.close(parts.lock)
        log.info("stopped", outbox=len(self._jobs.outbox), queued=self._jobs.status().queued)
        logs.tell_held(all=True)

    def _publish_last(self) -> None:
        """Publish the results that wait, then the status `offline`, for LINK_STOP_SECONDS at most."""
        until = time.monotonic() + LINK_STOP_SECONDS
        connected = self._link.connected
        while self._stops < 2 and connected("control") and len(self._jobs.outbox) and time.monotonic() < until:
            self.turn(0.1)
        reason = "reloading" if self._reloading else "stopped"
        while not self._announcer.publish_offline(self.status, reason):
            if self._stops >= 2 or not connected("control") or time.monotonic() >= until + 1.0:
                break
            self.turn(0.1)  # the window of publications under way is full

    # Status

    def _take_snapshot(self) -> Status:
        stopping = None
        if self._stops:
            stopping = Fault("reloading", "reloading") if self._reloading else Fault("draining", "draining")
        status = self._parts.latest.current = self._observer.snapshot(stopping)
        return status
