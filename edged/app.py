"""Wires the daemon: build() constructs every part and hands each of them what it needs."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog

from edged import energy_day, logs
from edged.announcer import Announcer
from edged.commands import commands
from edged.commands.commands import Commands
from edged.commands.worker import Worker
from edged.daemon import Daemon, Parts
from edged.energy_day import EnergyDay
from edged.engine import runtime
from edged.engine.engine import Engine
from edged.engine.kept_bits import BITS
from edged.engine.kept_manifests import MANIFESTS, KeptManifests
from edged.engine.kv_scales import SCALES, KeptScales
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.own_speed import SPEED, OwnSpeed
from edged.engine.package import signature
from edged.engine.prefix_files import PREFIXES
from edged.engine.scrubber import Scrubber
from edged.engine.self_bench import SelfBench
from edged.engine.steps import EngineLimit, StepObservers
from edged.governor import Governor
from edged.inbox import Inbox, Reload
from edged.jobs.crash import CrashLedger
from edged.jobs.document import State
from edged.jobs.energy import EnergyLedger, FixedPower
from edged.jobs.manager import JobManager
from edged.jobs.preparer import Preparer
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.jobs.spool_recovery import open_spool
from edged.liveness import load_limit
from edged.machine.board import Board, detect
from edged.machine.clock import Clock
from edged.machine.memory import available
from edged.machine.sensors import facts, find_sensors, power_meter
from edged.machine.sensors.limits import thermal_limits
from edged.machine.sensors.sampler import Sampler
from edged.membership import Groups
from edged.models.store import DEMO_FOLDER, served
from edged.mqtt.known_sessions import KnownSessions
from edged.mqtt.link import Link
from edged.observer import Observed, Observer
from edged.report.documents import encode, health_document, info_document, offline_document
from edged.report.history import History
from edged.report.http import HttpServer
from edged.report.metrics import Metrics
from edged.report.overview import Overview
from edged.report.routes import daemon_routes
from edged.report.supervisor import Supervisor
from edged.rollout.puller import Puller
from edged.rollout.remote_settings import Load, RemoteSettings
from edged.rollout.resume import resume
from edged.rollout.rollout import Rollout
from edged.rollout.trial import Trial
from edged.settings import Loaded, Settings
from edged.startup import StartError, address_refused, check_settings, lock_state_dir, state_dir_refused
from edged.status import LatestStatus

log = structlog.get_logger(__name__)


def build(
    settings: Settings,
    *,
    root: Path = Path("/"),
    supervisor: Supervisor | None = None,
    load_settings: Load | None = None,
) -> Daemon:
    """Lock state_dir, open the spool and construct the daemon; nothing connects before its run(). Raises StartError.

    `root`: where the board's /proc, /sys and /etc lie. `load_settings` reads the settings anew, for a reload and with
    those of rollouts, and raises SettingsError; None: they stay as they are.
    """
    load = load_settings or (lambda _remote: Loaded(settings))
    board, clock, supervisor = detect(root), Clock(), supervisor or Supervisor()
    identity = check_settings(settings, board)
    device, instance = identity.device, uuid.uuid4().hex
    with contextlib.ExitStack() as undo:
        lock = lock_state_dir(settings)
        undo.callback(os.close, lock)
        spool, ledger = _open_state(settings, clock, supervisor)
        undo.callback(spool.close)
        remote = RemoteSettings(settings.state_dir, load)
        memory = resume(settings, clock, device, ledger.last_end.crash, remote)  # before the package is chosen
        loaded = _as_resumed(settings, load)
        settings = loaded.settings
        remembered = commands.begin(settings)
        latest = LatestStatus()
        energy = _energy(settings, lambda: sampler.wake(), lambda: engine.status.loading_since is not None)
        sampler = _sampler(board, settings, energy)
        metrics = Metrics(
            board, lambda: sampler.readings, latest, [state.value for state in State], exemplars=settings.http.exemplars
        )
        history = History(lambda: sampler.readings)
        overview = Overview(
            latest,
            history,
            info=functools.partial(info_document, device, settings, board),
            health=lambda status: health_document(device, sampler.readings, status),
        )
        routes = daemon_routes(metrics.served, latest, overview.document)
        try:
            http = HttpServer(settings.http.host, settings.http.port, routes, identity.http_context)
        except OSError as error:
            raise address_refused(settings, error) from None
        undo.pop_all()
    inbox: Inbox = queue.SimpleQueue()
    model_path, model_name = served(settings)
    if model_path == DEMO_FOLDER:
        log.warning("model_is_demo", hint="no package is chosen (edged model use, or model.path)")
    link = _link(settings, device, instance, inbox, latest)
    scrubber = Scrubber(
        settings.model.scrub_interval, idle=lambda: not engine.status.rows, found=lambda: engine.check_again()
    )
    speed, bench = OwnSpeed(settings.state_dir / SPEED), SelfBench(inbox.put)
    engine = Engine(
        load=_loader(settings, board, supervisor, model_path, model_name, scrubber, speed),
        watch=lambda: signature(model_path),
        deliver=bench.deliver,
        note_running=ledger.write_running,
        observer=StepObservers(energy, speed, bench),
    )
    governor = _governor(settings, board, clock, sampler, engine, energy)
    preparer = Preparer(inbox.put)
    jobs = JobManager(
        device=device,
        topics=link.topics,
        spool=spool,
        link=link,
        engine=engine,
        preparer=preparer,
        ledger=ledger,
        clock=clock,
        metrics=metrics,
        max_queued=settings.jobs.max_queued,
        max_bytes=settings.jobs.max_bytes,
        retention=settings.jobs.retention,
        pieces_per_second=settings.jobs.pieces_per_second,
        allow_pin=settings.cache.allow_pin,
        pinned=settings.cache.pinned,
        energy=energy,
        share_groups=settings.device.groups if settings.device.share_load else (),
    )
    puller = Puller(settings.state_dir, inbox.put, settings.fleet.pull_bytes_per_second)
    trial = Trial(bench, engine.submit, engine.cancel, comparable=model_path != DEMO_FOLDER)
    rollout = Rollout(
        loaded, memory, remote, link.topics, link, jobs.outbox, clock, puller, trial, reload=lambda: inbox.put(Reload())
    )
    asked = Commands(
        settings,
        remembered,
        link.topics,
        link,
        jobs.outbox,
        clock,
        Worker(settings, inbox.put),
        reload=lambda now: inbox.put(Reload(now)),
    )
    observer = Observer(
        Observed(engine, scrubber, preparer, jobs, link, http, energy, speed, governor, rollout),
        settings,
        clock,
        device=device,
        instance=instance,
        model_path=model_path,
        model_name=model_name,
    )
    return Daemon(
        Parts(
            settings=settings,
            load_settings=lambda: load(None).settings,
            device=device,
            board=board,
            sampler=sampler,
            governor=governor,
            lock=lock,
            inbox=inbox,
            latest=latest,
            supervisor=supervisor,
            ledger=ledger,
            spool=spool,
            link=link,
            groups=Groups(settings.device.groups, link, settings.state_dir),
            engine=engine,
            speed=speed,
            scrubber=scrubber,
            preparer=preparer,
            jobs=jobs,
            metrics=metrics,
            http=http,
            history=history,
            observer=observer,
            rollout=rollout,
            commands=asked,
            announcer=Announcer(link, jobs.outbox, supervisor, settings, board, lambda: sampler.readings, device),
        )
    )


def _as_resumed(settings: Settings, load: Load) -> Loaded:
    """The settings with those of rollouts that resume() has put in place. Raises SettingsError."""
    loaded = load(None)
    if loaded.left_out is not None:
        hint = "mend the board's settings, or publish a desired document with other settings"
        log.error("remote_settings_left_out", reason=loaded.left_out, hint=hint)
    if loaded.settings.log != settings.log:
        logs.configure(loaded.settings.log.level, loaded.settings.log.format)
    for name, one in loaded.overridden.items():
        log.warning("remote_setting_overridden", setting=name, by=loaded.origins[name], rollout=one.rollout)
    return loaded


def _open_state(settings: Settings, clock: Clock, supervisor: Supervisor) -> tuple[Spool, CrashLedger]:
    """Choose the onnxruntime, then open the spool and the crash ledger. Raises StartError."""
    folder = settings.state_dir
    try:
        if settings.model.runtime_wheels is not None:
            supervisor.long_work(runtime.UNPACK_SECONDS + runtime.CHECK_SECONDS)
        runtime.remove_unused(folder, keep=runtime.select_runtime(settings, DEMO_FOLDER))
        supervisor.long_work_done()
        return open_spool(folder / "spool.db"), CrashLedger(folder, clock.boot_id())
    except SpoolError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise state_dir_refused(settings, error) from None


def _governor(
    settings: Settings, board: Board, clock: Clock, sampler: Sampler, engine: Engine, energy: EnergyLedger
) -> Governor:
    power = settings.power
    idle, busy, joules, day = power.idle_watts, power.busy_watts, power.budget_joules_per_day, None
    if joules is not None:
        day = EnergyDay(joules, settings.state_dir / energy_day.FILE, clock, energy.status)

    def apply(limit: EngineLimit) -> None:
        engine.limit = limit

    def configured(duty: float) -> float | None:
        return idle + duty * (busy - idle) if idle is not None and busy is not None else None

    return Governor(
        lambda: sampler.readings, thermal_limits(board), apply, configured, budget=power.budget_watts, day=day
    )


def _energy(settings: Settings, wake: Callable[[], None], loading: Callable[[], bool]) -> EnergyLedger:
    power = settings.power
    if power.idle_watts is not None and power.busy_watts is not None:
        return EnergyLedger(FixedPower(power.idle_watts, power.busy_watts))
    return EnergyLedger(wake=wake, loading=loading)


def _sampler(board: Board, settings: Settings, energy: EnergyLedger) -> Sampler:
    sensors, meter = find_sensors(board, settings.state_dir), power_meter(board)
    if settings.power.busy_watts is not None:
        return Sampler(sensors, meter, lambda: facts(board))
    return Sampler(sensors, meter, lambda: facts(board), busy=energy.busy, take_power=energy.add_power)


def _link(settings: Settings, device: str, instance: str, inbox: Inbox, latest: LatestStatus) -> Link:
    return Link(
        settings.mqtt,
        device,
        settings.device.groups,
        instance=instance,
        deliver=inbox.put,
        will_payload=lambda: encode(offline_document(device, latest.current, "the connection was lost")),
        sessions=KnownSessions(settings.state_dir / "sessions.json"),
    )


def _loader(
    settings: Settings,
    board: Board,
    supervisor: Supervisor,
    path: Path,
    name: str | None,
    scrubber: Scrubber,
    speed: OwnSpeed,
) -> Callable[[], LoadedModel]:
    manifests = KeptManifests(settings.state_dir / MANIFESTS, may_add=True)
    scales = KeptScales(settings.state_dir / SCALES, may_add=True)

    def load() -> LoadedModel:
        """Load the package; called on the engine's thread."""
        # onnxruntime 1.23 holds the GIL during a load: no thread can send a sign of life.
        supervisor.long_work(load_limit(path, settings.model.kv_cache == "int8"))
        try:
            loaded = load_model(
                settings,
                board,
                available,
                path=path.resolve(),  # all files of one version, even if a pull replaces the package during the load
                name=name,
                prefix_folder=settings.state_dir / PREFIXES,
                manifests=manifests,
                suspects=scrubber.damaged,
                bits_file=settings.state_dir / BITS,
                scales=scales,
            )
            speed.serve(loaded, board)
            return loaded
        finally:
            supervisor.long_work_done()

    return load
