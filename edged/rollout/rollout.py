"""The rollout on this device: takes desired documents, drives their execution, and reports. Main thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from edged.faults import Fault
from edged.machine.clock import Clock, format_time
from edged.models.store import StoreError
from edged.mqtt.events import DesiredReceived, Receipt
from edged.mqtt.topics import Topics
from edged.rollout.execution import Baseline, Execution, Now, Package, State, Step
from edged.rollout.intake import Intake
from edged.rollout.keeping import NO_CLOCK, Keeper
from edged.rollout.memory import Memory
from edged.rollout.precedence import DEVICE
from edged.rollout.puller import Order, PullEnded, Puller, PullEvent
from edged.rollout.remote_settings import RemoteSettings, refused, reported_settings, warnings
from edged.rollout.reported import reported_document
from edged.rollout.trial import Trial
from edged.settings import Loaded
from edged.settings.remote import UNNOTICED
from edged.status import DaemonState, Status

log = structlog.get_logger(__name__)

PROGRESS_STEP = 0.05
"""Share of a download or a trial whose progress is reported."""
RELOAD_PAUSE = 60.0
"""Seconds before the next try to go back, after a reload that wrong settings refused."""


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
        loaded: Loaded,
        memory: Memory,
        remote: RemoteSettings,
        topics: Topics,
        link: RolloutLink,
        outbox: Announcing,
        clock: Clock,
        puller: Puller,
        trial: Trial,
        reload: Callable[[], None],
    ) -> None:
        """`memory`, `remote`: as resume() left them; `loaded`: the settings with the latter.

        `reload` ends this process and starts it anew, unless a start would fail.
        """
        self._loaded, self._settings = loaded, loaded.settings
        self._remote = remote
        self._keeper = Keeper(loaded.settings, memory, remote)
        self._topics = topics
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._puller = puller
        self._trial = trial
        self._reload = reload
        self._intake = Intake(loaded.settings.fleet)
        self._progress: float | None = None
        self._version: str | None = None
        """What was pulled, while the speed of the package that serves is measured before the switch."""
        self._serving: Package | None = None
        self._reloading = False
        self._reload_at: float | None = None
        self._published: dict[str, Any] | None = None

    @property
    def state(self) -> str | None:
        """The state of the rollout that is followed."""
        return None if self._keeper.execution is None else self._keeper.execution.state.value

    @property
    def busy(self) -> bool:
        """Whether something is to be done better than at the next heartbeat."""
        return self._keeper.execution is not None and self._keeper.execution.state is State.IN_PROGRESS

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Why a desired document is not followed, or what it wanted not done."""
        execution = self._keeper.execution
        faults = [] if execution is None or execution.warning is None else [execution.warning]
        if execution is not None and execution.waiting_for == "clock":
            faults.append(NO_CLOCK)
        return (*faults, *(one.fault for one in self._intake.refused.values()), *warnings(self._loaded))

    # What comes in

    def desired_received(self, event: DesiredReceived) -> None:
        """Take a desired document, or say why not."""
        target = DEVICE if event.group is None else f"group/{event.group}"
        if event.group is None or event.group in self._settings.device.groups:
            self._take(event.message.topic, event.message.payload, target)
        self._link.acknowledge(event.message.receipt)

    def _take(self, topic: str, payload: bytes, target: str) -> None:
        known = self._keeper.memory.documents
        self._keeper.keep_documents(self._intake.take(known, topic, payload, target))

    def pull_event(self, event: PullEvent) -> None:
        """The pull under way has come further, or ended."""
        if not isinstance(event, PullEnded):
            if event.order is self._puller.order and event.total:
                self._progress = _rounded(event.done / event.total)
            return
        execution = self._keeper.execution
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
            self._keeper.go_on(execution.pull_failed(fault, now))
        elif event.by == "content":
            wrong = Fault("rollout_digest_wrong", event.reason, "correct model.digest or the source")
            self._keeper.go_on(execution.package_failed(wrong, now))
        else:
            failed = Fault("rollout_package_failed", event.reason, "mend the package")
            self._keeper.go_on(execution.package_failed(failed, now))

    def reload_refused(self, reason: str) -> None:
        """The daemon goes on with the settings that it has, and with the package that it has loaded."""
        execution = self._keeper.execution
        if not self._reloading or execution is None:
            return
        self._reloading = False
        if not execution.on_trial:
            self._reload_at = time.monotonic() + RELOAD_PAUSE  # what is served is not what is selected
        else:
            hint = "correct the settings file: edged takes no new model while it is wrong"
            fault = Fault("rollout_reload_refused", f"the settings file is wrong: {reason}", hint)
            self._keeper.go_on(execution.switch_failed(fault, self._now()))
            self._keeper.settle(self._now())

    # What goes on

    def update(self, status: Status) -> None:
        """Let time pass; call about every second."""
        facts, model = status.model.facts, status.model
        serves = model.state == "serving" and facts is not None
        self._serving = Package(model.name, facts.digest) if serves and facts is not None else None
        now = time.monotonic()
        if status.state is DaemonState.ONLINE and not self._reloading and self._keeper.may_write:
            if self._reload_at is not None and now >= self._reload_at:
                self._begin_reload()
            self._follow()
            if self._keeper.execution is not None:
                self._go_on(self._keeper.execution, status)
            self._pull()
        self._report()

    def _follow(self) -> None:
        known = self._keeper.memory.documents.followed(self._settings.device.groups)
        execution = self._keeper.execution
        if known is None or (execution is not None and execution.known == known):
            return
        if execution is not None and (execution.step is Step.LOADING or self._keeper.unsettled):
            return
        new, now = Execution(known), self._now()
        following = new if execution is None else execution.follow(known, now)
        fault = self._remote.refusal(known.received) if following == new else None
        self._keeper.go_on(following if fault is None else following.reject(fault, now))

    def _go_on(self, execution: Execution, status: Status) -> None:
        now = self._now()
        if self._keeper.unsettled:
            self._keeper.settle(now)  # a disk that took no writes before
            after = self._keeper.execution
            returned = execution.step is Step.RETURNING and after is not None and after.step is None
            other = self._serving != self._keeper.memory.former or self._remote.serving != self._loaded.remote
            if returned and other:
                self._begin_reload()  # the process has loaded what was given up
        elif execution.on_trial:
            self._judge(execution, status, now)
        else:
            self._trial.watch(status)
            if self._keeper.go_on(execution.advance(now)):
                self._leave(self._keeper.execution or execution, status)

    def _judge(self, execution: Execution, status: Status, now: Now) -> None:
        """What is on trial is loaded, goes on to serve, or cannot be served."""
        model = status.model
        if model.state == "loading":
            return
        if self._loaded.left_out is not None and execution.desired.settings is not None:
            judged = execution.package_failed(refused(self._loaded.left_out), now)
        elif self._serving is None or model.facts is None:
            hint = "mend the package or the settings; the device serves as before"
            judged = execution.package_failed(Fault("rollout_package_failed", model.reason, hint), now)
        else:
            judged = execution.loaded(self._serving, model.facts.verified, now)
        if judged.step is Step.PROVING:
            judged = self._prove(judged.serves(now), status, now)
        if self._keeper.go_on(judged):
            self._keeper.settle(self._now())
            if judged.step is Step.RETURNING:
                self._begin_reload()

    def _prove(self, execution: Execution, status: Status, now: Now) -> Execution:
        execution = self._trial.measure(execution, status, now.monotonic)
        fault = self._trial.fault(execution, status, now.monotonic)
        if fault is not None:
            return execution.package_failed(fault, now)
        share = execution.proved / max(1, execution.proving_seconds)
        self._progress = _rounded(share)
        return execution.succeeded(now) if self._trial.proved(execution) else execution

    def _leave(self, execution: Execution, status: Status) -> None:
        """Where what is wanted is there to be switched to: measure what serves now, and switch."""
        if not execution.pulls_now:  # aborted, or another document
            self._version = None
        if self._version is None and execution.step is not Step.CHECKING:
            self._trial.stop()
            return
        if execution.step is Step.CHECKING and status.model.state == "loading":
            return  # there is nothing yet to compare with
        received = execution.known.received
        proves = self._version is not None or not self._remote.changes(received) <= UNNOTICED
        baseline = self._trial.baseline(execution, status, time.monotonic()) if proves else Baseline()
        if baseline is None:
            return
        version, self._version, now = self._version, None, self._now()
        fault = self._remote.refusal(received)
        if fault is not None:  # somebody has changed the board's own since
            self._keeper.go_on(execution.reject(fault, now))
        else:
            self._switch(execution.pulled(version, baseline, now, proves), now)

    def _switch(self, execution: Execution, now: Now) -> None:
        """Select the new package and settings and begin anew with them; those that serve now are kept."""
        former = self._serving or self._keeper.memory.former
        if not self._keeper.go_on(execution, former if execution.step is Step.LOADING else None):
            return
        if execution.step is not Step.LOADING:
            return  # the window has closed
        try:
            self._keeper.put_in_place(now)
        except (StoreError, OSError) as error:
            fault = Fault("rollout_pull_failed", str(error), "make state_dir writable: it is tried again")
            self._keeper.go_on(execution.switch_failed(fault, now))
            self._keeper.settle(now)
            return
        self._begin_reload()

    def _begin_reload(self) -> None:
        self._reloading, self._reload_at = True, None
        self._report()
        self._reload()

    def _pull(self) -> None:
        """Run the pull that the execution wants, and no other."""
        execution, order = self._keeper.execution, None
        if execution is not None and execution.pulls_now and self._version is None:
            model = execution.desired.model
            order = None if model is None else Order(model.pulled, model.name, model.digest)
        if self._puller.order != order:
            self._puller.stop()
            self._progress = None
            if order is not None:
                try:
                    self._puller.start(order)
                except OSError as error:
                    assert execution is not None
                    fault = Fault("rollout_pull_failed", f"no process can be started: {error.strerror}")
                    self._keeper.go_on(execution.pull_failed(fault, self._now()))

    def stop(self) -> None:
        """The daemon ends in order: end the pull, which the next one resumes."""
        self._puller.stop()
        if self._keeper.execution is not None:
            self._keeper.go_on(self._keeper.execution.stopping())

    def _now(self) -> Now:
        execution, clock = self._keeper.execution, self._clock
        return Now(
            clock.wall(),
            time.monotonic(),
            clock.synchronised(),
            self._topics.device,
            aborted=execution is not None and self._id(execution) in self._keeper.memory.documents.aborted,
            percent=100.0 if execution is None else execution.known.percent,
            path_set=self._settings.model.path is not None,
            serving=self._serving,
            settings_changed=execution is not None and bool(self._remote.changes(execution.known.received)),
        )

    @staticmethod
    def _id(execution: Execution) -> str:
        return execution.desired.rollout

    # What is reported

    def publish_again(self) -> None:
        """Publish the report at the next turn, changed or not: the broker may not have it."""
        self._published = None

    def _report(self) -> None:
        execution = self._keeper.execution
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
            self._keeper.memory.former,
            self._intake.refused.values(),
            reported_settings(self._loaded),
        )
        if document == self._published:
            return
        if self._outbox.announce(self._topics.reported, {**document, "time": format_time(self._clock.wall())}):
            self._published = document


def _rounded(share: float) -> float:
    """A progress, 0 to 1, as it is reported."""
    return round(min(1.0, max(0.0, share)) // PROGRESS_STEP * PROGRESS_STEP, 2)
