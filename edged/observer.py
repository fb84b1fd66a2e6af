"""Makes the status snapshot. The one place that reads the engine, the jobs and the link for those that report.

Runs on the main thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from edged import liveness
from edged.certificates import Certificates
from edged.engine import ort
from edged.engine.engine import Engine
from edged.engine.events import ModelChanged
from edged.engine.own_speed import OwnSpeed
from edged.engine.scrubber import Scrubber
from edged.engine.status import EngineStatus
from edged.faults import Fault
from edged.governor import Governor, limited
from edged.jobs.energy import EnergyLedger
from edged.jobs.manager import JobManager, JobsStatus
from edged.jobs.preparer import Preparer, PreparerStatus
from edged.liveness import EndedThread, Failure, Task, find_failure, load_limit
from edged.machine.clock import Clock
from edged.mqtt.events import ConnectionName, DeviceIdFree, DeviceIdTaken, LinkDown, LinkUp
from edged.mqtt.link import Link
from edged.mqtt.link_types import LinkStatus
from edged.report.http import HttpServer
from edged.rollout.rollout import Rollout
from edged.settings import Settings
from edged.status import DaemonState, ModelFacts, ModelStatus, PrefixStatus, Status

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Observed:
    """The parts that the snapshot is made of."""

    engine: Engine
    scrubber: Scrubber
    preparer: Preparer
    jobs: JobManager
    link: Link
    http: HttpServer
    energy: EnergyLedger
    speed: OwnSpeed
    governor: Governor
    rollout: Rollout


class Observer:
    """Remembers what events told of model and link, and makes snapshots."""

    def __init__(
        self,
        parts: Observed,
        settings: Settings,
        clock: Clock,
        *,
        device: str,
        instance: str,
        model_path: Path,
        model_name: str | None,
    ) -> None:
        """`model_name`: what jobs call the model; None: by its folder's name."""
        self._parts = parts
        self._settings = settings
        self._certificates = Certificates(settings)
        self._clock = clock
        self._device = device
        self._instance = instance
        self._model_path = model_path
        self._model_name = model_name
        self._started = clock.wall()
        self._changed = ModelChanged("loading")
        self._model = ModelStatus(name=self._name())
        self._load_limit = load_limit(model_path, settings.model.kv_cache == "int8")
        self._last_load = 0.0
        self._onnxruntime: str | None = None
        self._device_id_taken = False
        self._logged_fault: Fault | None = None
        self._logged_warning: Fault | None = None
        self._link_faults: dict[ConnectionName, dict[str, Fault]] = {"control": {}, "jobs": {}}
        """Why there is no connection, by the broker's address."""
        self._connected = {"jobs": False, "control": False}
        self.failure: Failure | None = None
        """The thread that will not go on, as of the last snapshot."""

    def model_changed(self, event: ModelChanged) -> None:
        """The engine loads, serves or cannot serve its model."""
        self._changed = event
        loaded, facts = event.loaded, None
        if event.state == "loading":
            self._load_limit = load_limit(self._model_path, self._settings.model.kv_cache == "int8")
        elif self._onnxruntime is None:  # only now: the import of onnxruntime is a matter of the engine's thread
            self._onnxruntime = ort.version()
        if loaded is not None:
            self._last_load = loaded.load_seconds
            facts = ModelFacts(
                architecture=loaded.package.architecture,
                execution_provider=loaded.session.providers[0],
                execution_provider_reason=loaded.choice.reason,
                threads=loaded.threads,
                planned_bytes=loaded.plan.peak,
                verified=loaded.verified is not None,
                digest=loaded.manifest.identity if loaded.manifest is not None else None,
                lone_rows_padded=loaded.bits.lone_row_differs,
                same_ids_in_any_company=loaded.same_ids_in_any_company,
                logits=loaded.session.logits_computed,
                logits_reason=loaded.logits_reason,
                response_formats=("text", *(["choice"] if loaded.tokenizer.eos else []), *loaded.grammars.formats),
                response_formats_reason=loaded.grammars.unavailable,
                kv_cache=loaded.cache.layout.dtype,
                kv_cache_reason=loaded.kv_reason,
                speculation=loaded.drafts is not None,
                speculation_reason=loaded.speculation_reason,
                split_tokens=loaded.splits.grain,
                chat=loaded.tokenizer.chat,
                load_seconds=loaded.load_seconds,
                rows=loaded.rows,
                context=loaded.context,
                prefix_bytes=loaded.prefixes.memory.budget,
            )
        name = loaded.package.name if loaded else self._name()
        self._model = ModelStatus(event.state, name, event.reason, facts)

    def link_changed(self, event: LinkUp | LinkDown) -> None:
        """A connection to the broker stands, or was lost."""
        self._connected[event.which] = isinstance(event, LinkUp)
        faults = self._link_faults[event.which]
        if isinstance(event, LinkDown):
            message = f"broker {event.broker} not connected: {event.fault.message}"
            faults[event.broker] = Fault(event.fault.code, message, event.fault.hint)
            return
        faults.clear()

    def device_id_changed(self, event: DeviceIdTaken | DeviceIdFree) -> None:
        """Another device uses this device's id, or does so no more."""
        self._device_id_taken = isinstance(event, DeviceIdTaken)

    def snapshot(self, stopping: Fault | None = None) -> Status:
        """The status now. `stopping`: the fault of a daemon that drains."""
        parts, now = self._parts, time.monotonic()
        engine, jobs, preparer = parts.engine.status, parts.jobs.status(), parts.preparer.status
        link, governor = parts.link.status(), parts.governor.status
        self.failure = find_failure(self._tasks(engine, preparer), self._ended_threads(engine, preparer), now)
        stalled = [self.failure.fault] if self.failure is not None else []
        still = max(liveness.STUCK_SECONDS, self._settings.mqtt.keep_alive)
        if link.stalled_seconds > still:
            message = f"the connection to the broker has stood still for more than {still:.0f} s"
            stalled.append(Fault("link_stalled", message))
        return Status(
            state=DaemonState.ONLINE if stopping is None else DaemonState.DRAINING,
            instance=self._instance,
            started=self._started,
            wall_time=self._clock.wall(),
            monotonic_time=now,
            stalled=tuple(stalled),
            unready=tuple([] if stopping is None else [stopping]) + self._unready(jobs, link),
            warnings=(
                *link.warnings,
                *self._note_delivery_warning(link.delivery_warning),
                *jobs.warnings,
                *_left_groups(link),
                *limited(governor),
                *parts.rollout.warnings,
            ),
            model=self._model,
            onnxruntime=self._onnxruntime,
            last_load_seconds=self._last_load,
            groups=link.groups,
            connected=dict(self._connected),
            broker=link.broker,
            protocol=link.protocol,
            brokers=tuple(broker.address for broker in self._settings.mqtt.brokers),
            queued=jobs.queued,
            running=jobs.running,
            outbox=jobs.outbox,
            spool_bytes=jobs.spool_bytes,
            damaged_spools=jobs.damaged_spools,
            corrupt_blocks=self._changed.corrupt_blocks,
            scrubbed_bytes=parts.scrubber.bytes,
            shares_load=jobs.shares_load,
            backlog=jobs.backlog,
            batch_rows=engine.batch_rows,
            prompt_tokens=engine.prompt_tokens,
            generated_tokens=engine.generated_tokens,
            accepted_drafts=engine.accepted_drafts,
            rejected_drafts=engine.rejected_drafts,
            forced_tokens=engine.forced_tokens,
            kv_used_ratio=engine.kv_used_ratio,
            prefixes=engine.prefixes if self._model.state == "serving" else PrefixStatus(),
            max_stall_kept=engine.max_stall_kept,
            jobs=jobs.recent,
            ended=jobs.ended,
            tokens_per_second=jobs.speed,
            slowdown=parts.speed.ratio,
            energy=parts.energy.status(),
            governor=governor,
            rollout=parts.rollout.state,
            certificates=self._certificates.ends(),
        )

    def _unready(self, jobs: JobsStatus, link: LinkStatus) -> tuple[Fault, ...]:
        faults = []
        if self._model.state == "loading":
            faults.append(Fault("model_loading", "model loading"))
        elif self._model.state == "unavailable":
            unavailable = Fault("model_unavailable", f"model unavailable: {self._model.reason}")
            faults.append(self._changed.fault or unavailable)
        if self._device_id_taken:
            hint = "give one of them another device.id"
            faults.append(Fault("device_id_taken", f"another device uses the id {self._device!r}", hint))
        elif not link.connected:
            # The job connection waits for the other one, so the other one's reason comes first.
            told = self._link_faults["control"] or self._link_faults["jobs"]
            unknown = Fault("broker_not_connected", f"broker {self._settings.mqtt.address} not connected")
            if link.refused:
                message = f"the broker refuses to subscribe {', '.join(link.refused)}"
                unknown = Fault("mqtt_subscription_refused", message, "check its access list")
            faults.extend(told.values() or [unknown])
        elif (fault := self._note_delivery_fault(link.delivery_fault)) is not None:
            faults.append(fault)
        if jobs.fault is not None:
            faults.append(jobs.fault)
        elif jobs.full:
            message = f"spool full: {self._settings.jobs.max_queued} jobs wait (jobs.max_queued)"
            faults.append(Fault("spool_full", message))
        return tuple(faults)

    def _note_delivery_fault(self, fault: Fault | None) -> Fault | None:
        """Log what the broker grants and does not do when it changes."""
        if fault is not None and fault != self._logged_fault:
            log.error("mqtt_not_delivered", code=fault.code, reason=fault.message, hint=fault.hint)
        self._logged_fault = fault
        return fault

    def _note_delivery_warning(self, warning: Fault | None) -> tuple[Fault, ...]:
        if warning is not None and warning != self._logged_warning:
            log.warning("mqtt_not_delivered", code=warning.code, reason=warning.message, hint=warning.hint)
        self._logged_warning = warning
        return () if warning is None else (warning,)

    def _tasks(self, engine: EngineStatus, preparer: PreparerStatus) -> tuple[Task, ...]:
        stuck = liveness.STUCK_SECONDS
        return (
            Task("load_hung", "loading the model", engine.loading_since, self._load_limit),
            Task("step_hung", "a step of the model", engine.busy_since, stuck, jobs=None),
            Task("prompt_hung", "preparing a prompt", preparer.busy_since, stuck, _numbers(preparer)),
        )

    def _ended_threads(self, engine: EngineStatus, preparer: PreparerStatus) -> list[EndedThread]:
        parts, ended = self._parts, []
        if parts.engine.ended:
            ended.append(EndedThread("engine", engine.failed or "", jobs=None))
        if parts.preparer.ended:
            ended.append(EndedThread("preparer", jobs=_numbers(preparer)))
        if parts.scrubber.ended:
            ended.append(EndedThread("scrub"))
        if parts.http.ended:
            ended.append(EndedThread("http"))
        return ended

    def _name(self) -> str:
        return self._model_name or self._model_path.resolve().name


def _left_groups(link: LinkStatus) -> list[Fault]:
    hint = "mend what the device's faults name: it takes these jobs again once it serves"
    return [
        Fault("group_left", f"jobs of the group {group} go to other devices, since this one cannot serve", hint)
        for group in link.left
    ]


def _numbers(preparer: PreparerStatus) -> tuple[int, ...]:
    return () if preparer.number is None else (preparer.number,)
