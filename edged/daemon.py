"""The daemon: the one place where everything is wired, started, watched, drained and stopped.

Threads: paho's network threads parse and hand over, the engine's thread owns the session, the preparer's renders and
tokenizes, and the thread that calls run() owns everything else. They meet in one inbox.
"""

from __future__ import annotations

import os
import queue
import signal
import ssl
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

import edged
from edged.engine import runtime
from edged.engine.engine import Engine, EngineEvent, ModelChanged
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import signature
from edged.engine.prefix_files import PREFIXES
from edged.jobs.crash import CrashLedger
from edged.jobs.desk import Desk
from edged.jobs.prompt import Prepared, Preparer
from edged.jobs.spool import SpoolError
from edged.jobs.spool_recovery import mark_damaged, open_spool
from edged.machine.board import Board, DeviceIdError, detect, device_id
from edged.machine.clock import Clock
from edged.machine.memory import available
from edged.machine.storage import mount_of, swaps_on_card
from edged.models.store import DEMO_FOLDER, served
from edged.mqtt.events import (
    CancelReceived,
    DeviceIdFree,
    DeviceIdTaken,
    Event,
    JobReceived,
    LinkDown,
    LinkUp,
    Published,
    PublishRefused,
)
from edged.mqtt.link import Link
from edged.mqtt.topics import Topics
from edged.report.documents import health_document, info_document, model_labels, status_document
from edged.report.http import HttpServer
from edged.report.metrics import Metrics
from edged.report.supervisor import Supervisor
from edged.settings import Settings, SettingsError, address
from edged.tls import CredentialsError, server_context

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
IDLE_SECONDS = 5.0
"""The longest turn of the main loop while nothing happens."""
STUCK_SECONDS = 120.0
"""A step that takes longer than this, or a main loop that stands still as long, is not alive. The engine sees to it
that a step stays far below."""
LINK_STOP_SECONDS = 3.0
_WARM_KEY = -1
"""Key of the first pinned instruction's request; the next have the numbers below. Jobs have positive ones."""
EVENTS = 1000
"""Most events of one turn, so that a flood does not put off the commit for ever."""
SLOWEST_CARD = 20e6
"""Bytes a second that a slow SD card still reads, and so how long a load may take."""
LOAD_SECONDS = 120.0
"""What a load may take besides. One that takes longer hangs."""


class DaemonError(Exception):
    """The daemon cannot start; one line that says why and what would help."""


@dataclass(frozen=True)
class _Stop:
    now: bool


@dataclass(frozen=True)
class _Reload:
    pass


_News = Event | EngineEvent | Prepared | _Stop | _Reload


class Daemon:
    """One daemon. run() blocks until stop() is called, from any thread or a signal handler."""

    def __init__(
        self,
        settings: Settings,
        root: Path = Path("/"),
        supervisor: Supervisor | None = None,
        check_settings: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the spool and wire everything; nothing listens or connects yet. Raises DaemonError.

        `check_settings` is called at reload() and raises SettingsError where a new process would not start.
        """
        self._settings = settings
        self._supervisor = supervisor or Supervisor()
        self._check_settings = check_settings
        self._reloading = self._stop_asked = False
        self._announced = False
        self._clock = Clock()
        self._board: Board = detect(root)
        try:
            self.device = settings.device.id or device_id(self._board, root)
        except DeviceIdError as error:
            raise DaemonError(f"{error}: set device.id") from None
        self._instance = uuid.uuid4().hex
        self._started_at = time.time()
        self._inbox: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._metrics = Metrics(self._board)
        self._model_path, self._model_name = served(settings)
        self._model = ModelChanged("loading")
        self._id_taken: str | None = None
        self._stops = 0
        self._turned_at = self._ticked_at = time.monotonic()
        self._load_limit = LOAD_SECONDS
        self._throttled: set[str] = set()
        self._link_reasons: dict[str, str] = {}
        self._told: tuple[object, ...] | None = None
        self._told_info: tuple[object, ...] | None = None
        folder = settings.state_dir
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder / "lock")
            self._choose_runtime()
            self._spool = open_spool(folder / "spool.db")
            ledger = CrashLedger(folder, self._clock.boot_id())
        except BlockingIOError:
            raise DaemonError(f"another edged runs on {folder}: stop it, or give this one its own state_dir") from None
        except SpoolError as error:
            raise DaemonError(str(error)) from None
        except OSError as error:
            raise DaemonError(
                f"state_dir {folder} cannot be written: {(error.strerror or str(error)).lower()}"
            ) from None
        self._ledger = ledger
        self._broker = settings.mqtt.address
        self._link = Link(
            settings.mqtt,
            self.device,
            settings.device.groups,
            instance=self._instance,
            deliver=self._inbox.put,
            will_payload=lambda: self._status("offline", "the connection was lost"),
        )
        self._topics: Topics = self._link.topics
        self._engine = Engine(
            load=self._load,
            watch=lambda: signature(self._model_path),
            deliver=self._inbox.put,
            note_running=ledger.write_running,
        )
        self._preparer = Preparer(self._inbox.put)
        self._desk = Desk(
            device=self.device,
            topics=self._topics,
            spool=self._spool,
            link=self._link,
            engine=self._engine,
            preparer=self._preparer,
            ledger=ledger,
            clock=self._clock,
            metrics=self._metrics,
            max_queued=settings.jobs.max_queued,
            max_bytes=settings.jobs.max_bytes,
            retention=settings.jobs.retention,
            allow_pin=settings.cache.allow_pin,
        )
        self._metrics.watch(
            ready=lambda: not self.ready_faults(),
            queued=lambda: self._desk.queued,
            running=lambda: self._desk.running,
            outbox=lambda: len(self._desk.outbox),
            spool_bytes=lambda: self._spool.bytes,
            damaged_spools=lambda: len(self._spool.set_aside),
            batch_rows=lambda: self._engine.batch_rows,
            kv_used_ratio=lambda: self._engine.kv_used_ratio,
            prefixes=lambda: self._model.loaded.prefixes if self._model.loaded else None,
        )
        http = settings.http
        try:
            self.http = HttpServer(
                http.host, http.port, self._metrics.text, self.alive_faults, self.ready_faults, http_context(settings)
            )
        except CredentialsError as error:
            self._spool.close()
            raise DaemonError(str(error)) from None
        except OSError as error:
            self._spool.close()
            raise DaemonError(
                f"http.port = {http.port} on {http.host} cannot be had: {(error.strerror or str(error)).lower()}"
            ) from None

    def _choose_runtime(self) -> None:
        if self._settings.model.runtime_wheels is not None:
            self._supervisor.long_work(runtime.UNPACK_SECONDS + runtime.CHECK_SECONDS)
        unpacked = runtime.select_runtime(self._settings, DEMO_FOLDER)
        runtime.remove_unused(self._settings.state_dir, keep=unpacked)
        self._supervisor.long_work_done()

    def run(self) -> bool:
        """Serve until stop() or reload(). Then drain: running jobs get drain_seconds, the rest stays on disk.

        True after reload(): the caller starts the program anew, with its new settings.
        """
        log.info(
            "starting",
            version=edged.__version__,
            device=self.device,
            board=self._board.model,
            broker=self._broker,
            http=address(self._settings.http.host, self.http.port),
        )
        if self._model_path == DEMO_FOLDER:
            log.warning("model_is_demo", hint="no package is chosen (edged model use, or model.path)")
        self._warn_of_the_disk()
        self.http.start()
        self._engine.start()
        self._preparer.start()
        self._link.start()
        next_heartbeat, longest = time.monotonic(), min(IDLE_SECONDS, self._supervisor.interval)
        while not self._stops:
            until_heartbeat = max(0.05, next_heartbeat - time.monotonic())
            self._turn(min(TICK_SECONDS if self._desk.busy else until_heartbeat, longest))
            if (now := time.monotonic()) >= next_heartbeat:
                next_heartbeat = max(next_heartbeat + self._settings.heartbeat_seconds, now)  # one late delays no other
                self._heartbeat()
        self._drain()
        return self._reloading and not self._stop_asked

    def stop(self, now: bool = False) -> None:
        """Drain and end run(); a second call, or `now`, stops at once. One during a reload makes it a stop."""
        self._stop_asked = True  # seen even where the inbox is not read any more
        self._inbox.put(_Stop(now))

    def reload(self) -> None:
        """End run() as stop() does, so that it can be run anew, unless the new settings are wrong."""
        self._inbox.put(_Reload())

    def heed_signals(self) -> None:
        """Let SIGTERM and SIGINT call stop(), and SIGHUP reload(). Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self.stop())
        signal.signal(signal.SIGHUP, lambda _number, _frame: self.reload())

    def alive_faults(self) -> list[str]:
        """Which loop makes no progress."""
        faults, now = [], time.monotonic()
        if now - self._turned_at > STUCK_SECONDS:
            faults.append(f"the main loop has stood still for {now - self._turned_at:.0f} s")
        if (hung := self._hung()) is not None:
            faults.append("{} has taken {:.0f} s so far".format(*hung[:2]))
        if (still := self._link.stood_still()) > max(STUCK_SECONDS, self._settings.mqtt.keep_alive):
            faults.append(f"the connection to the broker has stood still for {still:.0f} s")
        return faults

    def ready_faults(self) -> list[str]:
        """Why a job sent now would not be answered."""
        faults = self.alive_faults()
        if self._stops:
            faults.append("reloading" if self._reloading else "draining")
        if self._model.state != "serving":
            faults.append(f"model {self._model.state}: {self._model.reason}".removesuffix(": "))
        if self._id_taken is not None:
            faults.append(f"another device uses the id {self.device!r}: give one of them another device.id")
        elif not (self._link.connected("jobs") and self._link.connected("control")):
            reasons = [reason for which in ("control", "jobs") if (reason := self._link_reasons.get(which))]
            faults.append(f"broker {self._broker} not connected" + "".join(f": {reason}" for reason in reasons[:1]))
        if self._desk.fault is not None:
            faults.append(self._desk.fault)
        elif self._desk.full:
            faults.append(f"spool full: {self._settings.jobs.max_queued} jobs wait (jobs.max_queued)")
        return faults

    # The main loop

    def _turn(self, timeout: float) -> None:
        """Take what has come, all of it in one commit, and let time pass."""
        wait = max(0.0, min(timeout, self._desk.due_in))
        for _ in range(EVENTS):
            try:
                event = self._inbox.get(timeout=wait)
            except queue.Empty:
                break
            wait = 0.0
            try:
                self._take(event)
            except SpoolError as error:
                log.error("spool_fault", reason=str(error))
        try:
            self._desk.flush()
            if time.monotonic() - self._ticked_at >= TICK_SECONDS:
                self._ticked_at = time.monotonic()
                self._tell_what_changed()
                self._desk.tick()
        except SpoolError as error:
            log.error("spool_fault", reason=str(error))
        if self._spool.damage is not None and not self._stops:
            self._recover_spool(self._spool.damage)
        self._turned_at = time.monotonic()
        if not self.alive_faults():
            self._supervisor.alive()
        elif (hung := self._hung()) is not None:
            self._crash_of_a_thread(*hung)

    def _hung(self) -> tuple[str, float, tuple[int, ...] | None] | None:
        """What takes a thread longer than it may, for how many seconds now, and which jobs are to blame.

        None for jobs: those that have a row, as they are noted.
        """
        now, preparing = time.monotonic(), self._desk.preparing
        at_work: tuple[tuple[str, float | None, float, tuple[int, ...] | None], ...] = (
            ("loading the model", self._engine.loading_since, self._load_limit, ()),
            ("a step of the model", self._engine.busy_since, STUCK_SECONDS, None),
            ("preparing a prompt", self._preparer.busy_since, STUCK_SECONDS, () if preparing is None else (preparing,)),
        )
        for what, since, most, blamed in at_work:
            if since is not None and now - since > most:
                return what, now - since, blamed
        return None

    def _crash_of_a_thread(self, what: str, seconds: float, blamed: tuple[int, ...] | None) -> NoReturn:
        """End at once, as a crash that counts against the jobs that are to blame: a thread cannot be ended alone.

        What starts the process anew (systemd, a container's restart policy) need not know of a watchdog.
        """
        reason = f"{what} hung for {seconds:.0f} s"
        log.error("engine_stuck", reason=reason, jobs=self._desk.running, then="the process ends itself")
        if blamed is not None:
            self._ledger.write_running(blamed)
        self._ledger.note_crash(reason)
        os.abort()

    def _take(self, event: _News) -> None:
        if isinstance(event, _Stop):
            if self._reloading and not event.now:  # what drains for a reload, drains for a stop
                self._reloading = False
                self._supervisor.stopping()
            else:
                self._stops += 2 if event.now else 1
        elif isinstance(event, _Reload):
            self._reload()
        elif isinstance(event, JobReceived):
            self._desk.job_received(event)
        elif isinstance(event, CancelReceived):
            self._desk.cancel_received(event)
        elif isinstance(event, (Published, PublishRefused)):
            self._desk.published(event)
        elif isinstance(event, (LinkUp, LinkDown)):
            self._link_changed(event)
        elif isinstance(event, Prepared):
            self._desk.prepared(event)
        elif isinstance(event, DeviceIdTaken):
            self._id_taken = event.other
        elif isinstance(event, DeviceIdFree):
            self._id_taken = None
        else:
            if isinstance(event, ModelChanged):
                self._model_changed(event)
            self._desk.engine_event(event)

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        up = isinstance(event, LinkUp)
        self._metrics.connected.labels(event.which).set(up)
        if isinstance(event, LinkUp):
            self._link_reasons[event.which] = (
                f"the broker refuses to subscribe {', '.join(event.refused)}: check its access list"
                if event.refused
                else ""
            )
            if self._link.reconnects[event.which]:
                self._metrics.reconnects.labels(event.which).inc()
            if event.which == "control":
                self._desk.outbox.connected()
                self._told = self._told_info = None
        else:
            self._link_reasons[event.which] = event.reason
            if event.which == "control":
                self._desk.outbox.disconnected()
            else:
                self._desk.jobs_disconnected()
        self._tell_what_changed()

    def _model_changed(self, event: ModelChanged) -> None:
        self._model = event
        if event.loaded is not None:
            self._metrics.model_load.set(event.loaded.load_seconds)
            self._preparer.pin(self._settings.cache.pinned, event.loaded, _WARM_KEY, self._engine.submit)
        self._metrics.model_info.info(self._model_labels())
        self._tell_what_changed()

    def _reload(self) -> None:
        if self._stops:
            return
        try:
            self._check_settings()
        except SettingsError as error:
            log.error("reload_refused", reason=str(error), hint="edged goes on with the settings it has")
            return
        log.info("reloading")
        self._supervisor.reloading()
        self._reloading = True
        self._stops += 1

    def _recover_spool(self, damage: str) -> None:
        """Start anew at once: a start recovers what can be read, and nothing can be written down before."""
        log.error("spool_damaged", reason=damage, hint="edged starts anew and recovers what can be read")
        mark_damaged(self._spool.path, damage)
        self._supervisor.reloading()
        self._reloading = True
        self._stops = 2

    def _load(self) -> LoadedModel:
        # onnxruntime 1.23 holds the GIL meanwhile: nobody can give a sign of life.
        self._load_limit = LOAD_SECONDS + _folder_bytes(self._model_path) / SLOWEST_CARD
        self._supervisor.long_work(self._load_limit)
        try:
            return load_model(
                self._settings,
                self._board,
                available,
                path=self._model_path.resolve(),  # all of one version, whatever a pull does meanwhile
                name=self._model_name,
                prefix_folder=self._settings.state_dir / PREFIXES,
            )
        finally:
            self._supervisor.long_work_done()

    # The end

    def _drain(self) -> None:
        if not self._reloading:
            self._supervisor.stopping()
        log.info("draining", running=self._desk.running, queued=self._desk.queued)
        self._link.close_jobs()
        self._desk.drain()
        self._tell_what_changed()
        until = time.monotonic() + self._settings.drain_seconds
        while self._stops < 2 and not self._desk.settled and time.monotonic() < until:
            self._turn(0.1)
        left = self._desk.abandon()
        if left:
            log.warning("drain_cut_short", jobs=left, hint="they run again after the next start")
        self._turn(0.01)
        until = time.monotonic() + LINK_STOP_SECONDS
        while (
            self._stops < 2 and self._link.connected("control") and len(self._desk.outbox) and time.monotonic() < until
        ):
            self._turn(0.1)
        status = self._status("offline", "reloading" if self._reloading else "stopped")
        while not self._link.publish(self._topics.status, status, qos=1, retain=True):
            if self._stops >= 2 or not self._link.connected("control") or time.monotonic() >= until + 1.0:
                break
            self._turn(0.1)  # no place yet among the results under way
        self._link.stop(LINK_STOP_SECONDS if self._stops < 2 else 0.5)
        self._preparer.stop()
        self._engine.stop(timeout=2.0)
        self.http.stop()
        self._ledger.close()
        self._spool.close()
        os.close(self._lock)
        log.info("stopped", outbox=len(self._desk.outbox), queued=self._desk.queued)

    # What the daemon says of itself

    def _warn_of_the_disk(self) -> None:
        """What makes a board lose its jobs or wear out its card, though all works."""
        mount = mount_of(self._settings.state_dir.resolve(), self._board.root)
        if mount is not None and mount.volatile:
            log.warning("state_dir_volatile", kind=mount.kind, hint="what is in memory is lost with the power")
        for swap in swaps_on_card(self._board.root):
            log.warning("memory_swapped_to_card", place=swap, hint="zram does no harm")

    def _heartbeat(self) -> None:
        throttled = {reason for reason, on in self._board.throttled().items() if on}
        if throttled - self._throttled:
            log.warning("board_throttled", reasons=sorted(throttled))
        self._throttled = throttled
        self._link.publish(self._topics.health, self._health(), qos=0)

    def _tell_what_changed(self) -> None:
        """Renew the retained documents; what finds no place now is tried again at the next tick."""
        news = (self._model.state, self._model.reason, bool(self._desk.speed))
        if news != self._told_info and self._link.publish(self._topics.info, self._info(), qos=1, retain=True):
            self._told_info = news
        faults = [fault.partition(" has taken")[0] for fault in self.ready_faults()]  # not news each second
        state = "draining" if self._stops else "online"
        self._supervisor.status("; ".join(faults) or f"serving {self._model_labels()['name']}")
        if self._model.state != "loading" and not self._announced:
            self._announced = True
            self._supervisor.ready()
        summary = (state, *faults)
        if summary != self._told and self._link.publish(
            self._topics.status, self._status(state, "; ".join(faults)), qos=1, retain=True
        ):
            self._told = summary

    def _status(self, state: str, reason: str) -> bytes:
        return status_document(state, reason, self._model, self._instance, self._clock.wall())

    def _info(self) -> bytes:
        return info_document(self.device, self._settings, self._board, self._started_at, self._model, self._desk.speed)

    def _health(self) -> bytes:
        ready, wall = not self.ready_faults(), self._clock.wall()
        return health_document(self._board, self._desk, self._spool.bytes, self._started_at, ready, wall)

    def _model_labels(self) -> dict[str, str]:
        return model_labels(self._model, self._model_name or self._model_path.resolve().name)


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # the load will say why
        return 0


def http_context(settings: Settings) -> ssl.SSLContext | None:
    """What the HTTP endpoint is served with; None: plain text. Raises CredentialsError."""
    http = settings.http
    if http.cert_file is None or http.key_file is None:
        return None
    return server_context(http.cert_file, http.key_file, http.client_ca_file)


def _lock(path: Path) -> int:
    """Hold `path` for this process alone. Raises BlockingIOError when another one does."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
