"""The rollout on this device: takes desired documents, drives their execution, and reports. Main thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog

from edged.faults import Fault
from edged.machine.clock import Clock, format_time
from edged.models.store import StoreError, store_of
from edged.mqtt.events import DesiredReceived, Receipt
from edged.mqtt.topics import Topics
from edged.rollout.execution import Execution, Now, Package, State, Step
from edged.rollout.intake import Intake
from edged.rollout.memory import FILE, Memory, write_memory
from edged.rollout.precedence import DEVICE
from edged.rollout.puller import Order, PullEnded, Puller, PullEvent
from edged.rollout.reported import reported_document
from edged.rollout.resume import settle
from edged.rollout.trial import Trial
from edged.settings import Settings
from edged.status import DaemonState, Status

log = structlog.get_logger(__name__)

PROGRESS_STEP = 0.05
"""Share of a download or a trial whose progress is reported."""
COUNT_SECONDS = 60.0
"""How often the time of a download or a trial is written down."""
WRITE_PAUSE = 30.0
"""Seconds before the next try after the memory could not be written."""
RELOAD_PAUSE = 60.0
"""Seconds before the next try to go back, after a reload that wrong settings refused."""
_UNDONE = (State.FAILED, State.TIMED_OUT, State.REJECTED)


class RolloutLink(Protocol):
    """The part of the link that rollouts need."""

    def acknowledge(self, receipt: Receipt) -> object: ...


class Announcing(Protocol):
    """The part of the outbox that rollouts need."""

    def announce(self, topic: str, document: Mapping[str, Any]) -> bool: ...


class Rollout:
    """What is remembered, the pull under way, and the last report."""

    def __init__(
        self,
        settings: Settings,
        memory: Memory,
        topics: Topics,
        link: RolloutLink,
        outbox: Announcing,
        clock: Clock,
        puller: Puller,
        trial: Trial,
        reload: Callable[[], None],
    ) -> None:
        """`memory`: as resume() left it. `reload` ends this process and starts it anew, unless a start would fail."""
        self._settings = settings
        self._memory = memory
        self._topics = topics
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._puller = puller
        self._trial = trial
        self._reload = reload
        self._file = settings.state_dir / FILE
        self._store = store_of(settings)
        self._intake = Intake(settings.fleet)
        self._progress: float | None = None
        self._version: str | None = None
        """What was pulled, while the speed of the package that serves is measured before the switch."""
        self._serving: Package | None = None
        self._reloading = False
        self._reload_at: float | None = None
        self._write_again_at = float("-inf")
        self._published: dict[str, Any] | None = None

    @property
    def state(self) -> str | None:
        """The state of the rollout that is followed."""
        return None if self._memory.execution is None else self._memory.execution.state.value

    @property
    def busy(self) -> bool:
        """Whether something is to be done better than at the next heartbeat."""
        return self._memory.execution is not None and self._memory.execution.state is State.IN_PROGRESS

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Why a desired document is not followed, or what it wanted not done."""
        execution = self._memory.execution
        undone = execution is not None and (execution.state in _UNDONE or execution.waiting_for == "retry")
        faults = [execution.fault] if undone and execution is not None and execution.fault is not None else []
        if execution is not None and execution.waiting_for == "clock":
            faults.append(_NO_CLOCK)
        return (*faults, *(one.fault for one in self._intake.refused.values()))

    # What comes in

    def desired_received(self, event: DesiredReceived) -> None:
        """Take a desired document, or say why not."""
        target = DEVICE if event.group is None else f"group/{event.group}"
        if event.group is None or event.group in self._settings.device.groups:
            self._take(event.message.topic, event.message.payload, target)
        self._link.acknowledge(event.message.receipt)

    def _take(self, topic: str, payload: bytes, target: str) -> None:
        documents = self._intake.take(self._memory.documents, topic, payload, target)
        if documents != self._memory.documents:
            # Where it cannot be written, it counts for this process: the broker has it for the next one.
            self._memory = replace(self._memory, documents=documents)
            self._write(self._memory)

    def pull_event(self, event: PullEvent) -> None:
        """The pull under way has come further, or ended."""
        if not isinstance(event, PullEnded):
            if event.order is self._puller.order and event.total:
                self._progress = _rounded(event.done / event.total)
            return
        execution = self._memory.execution
        if not self._puller.ended(event) or execution is None or not execution.pulls_now:
            return
        now = self._now()
        if event.version is not None:
            self._version = event.version
            return
        hint = "mend the network or the source: it is tried again"
        if event.by == "network":
            fault = Fault("rollout_pull_failed", event.reason, hint)
            log.warning("rollout_pull_failed", rollout=self._id(execution), reason=event.reason, hint=hint)
            self._set(execution.pull_failed(fault, now))
        elif event.by == "content":
            wrong = Fault("rollout_digest_wrong", event.reason, "correct model.digest or the source")
            self._set(execution.package_failed(wrong, now))
        else:
            self._set(execution.package_failed(Fault("rollout_package_failed", event.reason, "mend the package"), now))

    def reload_refused(self, reason: str) -> None:
        """The daemon goes on with the settings that it has, and with the package that it has loaded."""
        execution = self._memory.execution
        if not self._reloading or execution is None:
            return
        self._reloading = False
        if not execution.on_trial:
            self._reload_at = time.monotonic() + RELOAD_PAUSE  # what is served is not what is selected
        else:
            hint = "correct the settings file: edged takes no new model while it is wrong"
            fault = Fault("rollout_reload_refused", f"the settings file is wrong: {reason}", hint)
            self._set(execution.switch_failed(fault, self._now()))
            self._settle()

    # What goes on

    def update(self, status: Status) -> None:
        """Let time pass; call about every second."""
        facts, model = status.model.facts, status.model
        serves = model.state == "serving" and facts is not None
        self._serving = Package(model.name, facts.digest) if serves and facts is not None else None
        now = time.monotonic()
        if status.state is DaemonState.ONLINE and not self._reloading and now >= self._write_again_at:
            if self._reload_at is not None and now >= self._reload_at:
                self._begin_reload()
            self._follow()
            if self._memory.execution is not None:
                self._go_on(self._memory.execution, status)
            self._pull()
        self._report()

    def _follow(self) -> None:
        known = self._memory.documents.followed(self._settings.device.groups)
        execution = self._memory.execution
        if known is None or (execution is not None and execution.known == known):
            return
        if execution is None:
            self._set(Execution(known))
        elif execution.step not in (Step.LOADING, Step.RETURNING):
            self._set(execution.follow(known, self._now()))

    def _go_on(self, execution: Execution, status: Status) -> None:
        now = self._now()
        if execution.step is Step.RETURNING or (execution.candidate is not None and not execution.switching):
            self._settle()  # a disk that took no writes before
            after = self._memory.execution
            returned = execution.step is Step.RETURNING and after is not None and after.step is None
            if returned and self._serving != self._memory.former:
                self._begin_reload()  # the process has loaded the package that was given up
        elif execution.on_trial:
            self._judge(execution, status, now)
        else:
            self._trial.watch(status)
            if self._set(execution.advance(now)) and self._version is not None:
                self._leave(self._memory.execution or execution, self._version, status)

    def _judge(self, execution: Execution, status: Status, now: Now) -> None:
        """The package on trial is loaded, goes on to serve, or cannot be served."""
        model = status.model
        if model.state == "loading":
            return
        if self._serving is None or model.facts is None:
            hint = "mend the package; the device serves the one before"
            judged = execution.package_failed(Fault("rollout_package_failed", model.reason, hint), now)
        else:
            judged = execution.loaded(self._serving, model.facts.verified, now)
        if judged.step is Step.PROVING:
            judged = self._prove(judged.serves(now), status, now)
        if self._set(judged):
            self._settle()
            if judged.step is Step.RETURNING:
                self._begin_reload()

    def _prove(self, execution: Execution, status: Status, now: Now) -> Execution:
        execution = self._trial.measure(execution, status, now.monotonic)
        fault = self._trial.fault(execution, status, now.monotonic)
        if fault is not None:
            return execution.package_failed(fault, now)
        share = execution.proved / max(1, execution.desired.proving.seconds)
        self._progress = _rounded(share)
        return execution.succeeded(now) if self._trial.proved(execution) else execution

    def _leave(self, execution: Execution, version: str, status: Status) -> None:
        """A version is there to be switched to: measure what serves now, and switch."""
        if not execution.pulls_now:  # aborted, or another document
            self._version = None
            self._trial.stop()
            return
        baseline = self._trial.baseline(execution, status, time.monotonic())
        if baseline is not None:
            self._version, now = None, self._now()
            self._switch(execution.pulled(version, baseline, now), now)

    def _switch(self, execution: Execution, now: Now) -> None:
        """Select the new package and begin anew with it; what is served now is kept."""
        former = self._serving or self._memory.former
        if not self._set(execution, former if execution.step is Step.LOADING else None):
            return
        if execution.step is not Step.LOADING:
            return  # the window has closed
        try:
            settle(execution, self._store, now)
        except StoreError as error:
            fault = Fault("rollout_pull_failed", str(error), "make state_dir writable: it is tried again")
            self._set(execution.switch_failed(fault, now))
            self._settle()
            return
        self._begin_reload()

    def _settle(self) -> None:
        execution = self._memory.execution
        if execution is None:
            return
        try:
            self._set(settle(execution, self._store, self._now()))
        except StoreError as error:
            self._not_written(str(error))

    def _begin_reload(self) -> None:
        self._reloading, self._reload_at = True, None
        self._report()
        self._reload()

    def _pull(self) -> None:
        """Run the pull that the execution wants, and no other."""
        execution, order = self._memory.execution, None
        if execution is not None and execution.pulls_now and self._version is None:
            model = execution.desired.model
            order = Order(model.pulled, model.name, model.digest)
        if self._puller.order != order:
            self._puller.stop()
            self._progress = None
            if order is not None:
                try:
                    self._puller.start(order)
                except OSError as error:
                    assert execution is not None
                    fault = Fault("rollout_pull_failed", f"no process can be started: {error.strerror}")
                    self._set(execution.pull_failed(fault, self._now()))

    def stop(self) -> None:
        """The daemon ends in order: end the pull, which the next one resumes."""
        self._puller.stop()
        if self._memory.execution is not None:
            self._set(self._memory.execution.stopping())

    def _now(self) -> Now:
        execution, clock = self._memory.execution, self._clock
        return Now(
            clock.wall(),
            time.monotonic(),
            clock.synchronised(),
            self._topics.device,
            aborted=execution is not None and self._id(execution) in self._memory.documents.aborted,
            percent=100.0 if execution is None else execution.known.percent,
            path_set=self._settings.model.path is not None,
            serving=self._serving,
        )

    @staticmethod
    def _id(execution: Execution) -> str:
        return execution.desired.rollout

    # What is kept

    def _set(self, execution: Execution, former: Package | None = None) -> bool:
        """Go on with this execution, once it is on disk; False, and nothing changed, where that fails."""
        before, now = self._memory.execution, time.monotonic()
        if execution.waiting_for == "clock" and (before is None or before.waiting_for != "clock"):
            reason, hint = _NO_CLOCK.message, _NO_CLOCK.hint
            log.warning("rollout_waits_for_clock", rollout=self._id(execution), reason=reason, hint=hint)
        memory = replace(self._memory, execution=execution, former=former or self._memory.former)
        if before is not None and _kept(before) == _kept(execution):
            self._memory = memory
            return True
        if now < self._write_again_at or not self._write(memory):
            return False
        self._memory = memory
        if before is None or (before.state, before.step) != (execution.state, execution.step):
            self._log(execution)
        return True

    def _log(self, execution: Execution) -> None:
        told = {"rollout": self._id(execution), "state": execution.state.value, "step": execution.step}
        fault = execution.fault
        if execution.state in _UNDONE and fault is not None:
            log.warning("rollout_failed", **told, code=fault.code, reason=fault.message, hint=fault.hint)
        else:
            log.info("rollout_state", **told, waiting_for=execution.waiting_for)

    def _write(self, memory: Memory) -> bool:
        try:
            write_memory(self._file, memory)
        except OSError as error:
            self._not_written(error.strerror or str(error))
            return False
        return True

    def _not_written(self, reason: str) -> None:
        self._write_again_at = time.monotonic() + WRITE_PAUSE
        hint = "make state_dir writable: the rollout goes on then"
        log.warning("rollout_not_kept", file=str(self._file), reason=reason, hint=hint)

    # What is reported

    def publish_again(self) -> None:
        """Publish the report at the next turn, changed or not: the broker may not have it."""
        self._published = None

    def _report(self) -> None:
        execution = self._memory.execution
        if execution is None and not self._intake.refused:
            return  # nobody asked anything of this device
        step: str | None = None if execution is None or execution.step is None else execution.step.value
        if self._reloading and execution is not None and execution.step is Step.LOADING:
            step = "draining"
        document = reported_document(
            self._topics.device,
            execution,
            step,
            self._progress if step in (Step.DOWNLOADING.value, Step.PROVING.value) else None,
            self._serving,
            self._memory.former,
            self._intake.refused.values(),
        )
        if document == self._published:
            return
        if self._outbox.announce(self._topics.reported, {**document, "time": format_time(self._clock.wall())}):
            self._published = document


_NO_CLOCK = Fault(
    "rollout_waits_for_clock",
    "not_before, expires or window need the time of day, and the clock is not synchronised",
    "let the board reach a time server: timedatectl timesync-status",
)


def _rounded(share: float) -> float:
    """A progress, 0 to 1, as it is reported."""
    return round(min(1.0, max(0.0, share)) // PROGRESS_STEP * PROGRESS_STEP, 2)


def _kept(execution: Execution) -> Execution:
    """What of an execution is worth a write."""
    seconds, proved = execution.seconds // COUNT_SECONDS, execution.proved // COUNT_SECONDS
    return replace(execution, pulls=0, retry_at=None, counted_at=None, seconds=seconds, proved=proved)
