"""The states of one rollout on this device (pure): AWS IoT Jobs' names, and what may follow on what.

A pull leads from `downloading` to `loading`, which a restart begins; where only settings change, `checking` does. The
model that is loaded then proves itself by its known answers and by serving for a while (`proving`), or the device goes
back to the package and the settings before (`returning`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from edged.faults import Fault
from edged.rollout.desired import Desired, Received
from edged.rollout.precedence import Known

MOST_FAILURES = 3
"""Failures of the package, never of the network, after which it is rejected."""
MOST_LOADS = 3
"""Starts that may end before the package is loaded, and again before it is proved: further ones are a failure of it."""
PACKAGE_PAUSE = 600.0
"""Seconds between a failure of the package and the next try."""
PULL_PAUSES = (10.0, 30.0, 60.0, 300.0)
"""Seconds before each further pull after one that failed; the last one repeats."""


class State(str, Enum):
    """AWS IoT Jobs' states of a job execution."""

    QUEUED = "QUEUED"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    REJECTED = "REJECTED"
    CANCELED = "CANCELED"


UNDONE = (State.FAILED, State.TIMED_OUT, State.REJECTED)


class Step(str, Enum):
    """What an execution does, on disk before it is done."""

    DOWNLOADING = "downloading"
    CHECKING = "checking"
    """Nothing is to be pulled: the speed of what serves now is measured."""
    LOADING = "loading"
    PROVING = "proving"
    RETURNING = "returning"
    """What was before is put in its place again; the state says already how the rollout ended."""


@dataclass(frozen=True)
class Package:
    """A package that is or was served."""

    name: str
    digest: str | None


@dataclass(frozen=True)
class Baseline:
    """What the package before did on this board."""

    step_seconds: float | None = None
    """Time of a decode step of one row; None: not known, or not to be compared with."""
    strains: tuple[str, ...] = ()
    """Reasons for which the board was held back with it."""


@dataclass(frozen=True)
class Now:
    """What a decision needs to know. `wall`: seconds since the epoch, `monotonic`: CLOCK_MONOTONIC seconds."""

    wall: float
    monotonic: float
    synchronised: bool
    device: str
    aborted: bool = False
    """The rollout was aborted, by any document."""
    percent: float = 100.0
    path_set: bool = False
    """The setting model.path names the package."""
    serving: Package | None = None
    """What is served now; None while nothing is."""
    settings_changed: bool = False
    """The document has settings that differ from what rollouts set so far."""


@dataclass(frozen=True)
class Execution:
    """One rollout on this device. Times are seconds since the epoch by the board's clock."""

    known: Known
    state: State = State.QUEUED
    step: Step | None = None
    since: float = 0.0
    """When the state was entered."""
    waiting_for: str | None = None
    """`percent`, `clock`, `not_before`, `window` or `retry`; None: it goes on."""
    seconds: float = 0.0
    """Time of the download so far, pauses included."""
    failures: int = 0
    loads: int = 0
    baseline: Baseline = Baseline()
    proved: float = 0.0
    """Seconds for which the package has served on trial."""
    speed: float | None = None
    """Its decode speed by that of the package before; None: not compared."""
    fault: Fault | None = None
    candidate: str | None = None
    """Where the new package lies, below the store's folder; there from the switch on, until nothing is left to do.
    None also where the package stays."""
    proves: bool = True
    """Whether it must prove itself; not where only settings change that the engine does not notice."""
    pulls: int = 0
    """Pulls that failed in a row; not kept over a restart."""
    retry_at: float | None = None
    """CLOCK_MONOTONIC seconds; not kept over a restart."""
    counted_at: float | None = None
    """The same, until when `seconds` or `proved` counts."""

    @property
    def desired(self) -> Desired:
        return self.known.received.desired

    @property
    def proving_seconds(self) -> int:
        """How long it must serve on trial."""
        return self.desired.proving.seconds if self.proves else 0

    @property
    def switching(self) -> bool:
        """Whether package or settings may be such as are not proved: nothing else may begin."""
        return self.on_trial or self.step is Step.RETURNING

    @property
    def on_trial(self) -> bool:
        """Whether the new package is selected, or the new settings are, and not proved."""
        return self.step in (Step.LOADING, Step.PROVING)

    @property
    def warning(self) -> Fault | None:
        """Why the document is not carried out, or not yet: what failed last, also while it is tried again."""
        return self.fault if self.state in (*UNDONE, State.IN_PROGRESS) else None

    def follow(self, known: Known, now: Now) -> Execution:
        """Take the newest form of the same document, or begin with another one. Not while it loads or goes back.

        While a package is being proved, a document that wants the same one with the same settings takes over its trial;
        another ends it.
        """
        if (known.received.target, known.content) == (self.known.received.target, self.known.content):
            return replace(self, known=known)
        if self.step is not Step.PROVING:
            return Execution(known)
        if _tried(known.received) == _tried(self.known.received):
            return replace(self, known=known, failures=0)
        told = f"another document came while {self.desired.rollout} was being proved"
        return self._enter(State.CANCELED, now, Fault("rollout_aborted", told), Step.RETURNING)

    def advance(self, now: Now) -> Execution:
        """What time and circumstances make of it."""
        if self.switching:
            return self
        if self.state is State.FAILED and now.monotonic >= (self.retry_at or 0.0):
            return replace(self._enter(State.QUEUED, now), fault=self.fault).advance(now)
        if self.state is State.QUEUED:
            return self._begin(now)
        if self.state is State.IN_PROGRESS:
            return self._prepare(now)
        return self

    def _enter(self, state: State, now: Now, fault: Fault | None = None, step: Step | None = None) -> Execution:
        since = self.since if state is self.state else now.wall
        return replace(self, state=state, step=step, since=since, fault=fault, waiting_for=None, retry_at=None)

    def _begin(self, now: Now) -> Execution:
        if (ended := self._ended(now)) is not None:
            return ended
        waiting_for = self._waits(now)
        if waiting_for is not None:
            since = self.since or now.wall
            return replace(self, waiting_for=waiting_for, since=since)
        step = Step.CHECKING if self._has_package(now) else Step.DOWNLOADING
        begun = self._enter(State.IN_PROGRESS, now, self.fault, step)
        return replace(begun, seconds=0.0, counted_at=now.monotonic, pulls=0)

    def _ended(self, now: Now) -> Execution | None:
        """The end of an execution that needs no work or must not begin."""
        desired = self.desired
        if now.aborted:
            return self._enter(State.CANCELED, now, _aborted(desired.rollout))
        if now.path_set and desired.model is not None:
            return self._enter(State.REJECTED, now, _path_set())
        expires = desired.expires_time
        if expires is not None and now.synchronised and now.wall >= expires:
            hint = "publish it anew with a higher sequence and a later time"
            return self._enter(State.REJECTED, now, Fault("desired_expired", f"expired at {desired.expires}", hint))
        if self._has_package(now) and not now.settings_changed:
            return self._enter(State.SUCCEEDED, now)
        return None

    def _has_package(self, now: Now) -> bool:
        """Whether the package that is wanted is served already, or none is wanted."""
        model, serving = self.desired.model, now.serving
        if model is None or serving is None:
            return model is None
        return serving.digest == model.digest and model.name in (None, serving.name)

    def _waits(self, now: Now) -> str | None:
        desired = self.desired
        if not desired.includes(now.device, now.percent):
            return "percent"
        if desired.needs_clock and not now.synchronised:
            return "clock"
        if desired.not_before_time is not None and now.wall < desired.not_before_time:
            return "not_before"
        if desired.window is not None and not desired.window.open_at(now.wall):
            return "window"
        return None

    def _prepare(self, now: Now) -> Execution:
        """What time makes of it before the switch; that of a download counts."""
        if self.step is Step.CHECKING:
            return self._enter(State.CANCELED, now, _aborted(self.desired.rollout)) if now.aborted else self
        passed = 0.0 if self.counted_at is None else now.monotonic - self.counted_at
        counted = replace(self, seconds=self.seconds + passed, counted_at=now.monotonic)
        if now.aborted:
            return counted._enter(State.CANCELED, now, _aborted(self.desired.rollout))
        if counted.seconds >= self.desired.timeout:
            told = f"the download took longer than {self.desired.timeout} s (timeout)"
            if self.fault is not None:
                told += f"; its last fault: {self.fault.message}"
            hint = "mend the network or the source, and publish it anew with a higher sequence"
            return counted._enter(State.TIMED_OUT, now, Fault("rollout_timed_out", told, hint))
        if counted.retry_at is not None and now.monotonic >= counted.retry_at:
            return replace(counted, retry_at=None, waiting_for=None)
        return counted

    @property
    def pulls_now(self) -> bool:
        """Whether a pull is to run."""
        return self.step is Step.DOWNLOADING and self.retry_at is None

    def pull_failed(self, fault: Fault, now: Now) -> Execution:
        """A pull failed, and not by the package's fault: try again after a pause, until the time is over."""
        pause = PULL_PAUSES[min(self.pulls, len(PULL_PAUSES) - 1)]
        return replace(self, pulls=self.pulls + 1, fault=fault, waiting_for="retry", retry_at=now.monotonic + pause)

    def reject(self, fault: Fault, now: Now) -> Execution:
        """The board cannot have what is wanted; nothing was changed."""
        return self._enter(State.REJECTED, now, fault)

    def pulled(self, candidate: str | None, baseline: Baseline, now: Now, proves: bool = True) -> Execution:
        """The package is on the disk, complete and with the right digest: switch, or wait for the window.

        `candidate` None: it is the one that serves.
        """
        if self._waits(now) is not None:
            return self._enter(State.QUEUED, now).advance(now)
        loading = self._enter(State.IN_PROGRESS, now, step=Step.LOADING)
        return replace(loading, candidate=candidate, baseline=baseline, speed=None, proves=proves)

    def starting(self, now: Now, crash: str | None = None) -> Execution:
        """A process starts: count them, so that a package that ends every process does not do so for ever.

        `crash`: how the process before crashed by itself, which is the fault of a package on trial at once.
        """
        if self.state is State.FAILED:  # the pause begins anew: a restart is part of each failure
            return replace(self, retry_at=now.monotonic + PACKAGE_PAUSE)
        if not self.on_trial:
            return self
        does, hint = "loaded" if self.step is Step.LOADING else "proved", "look at the log and at the package"
        if crash is not None:
            told = f"the process crashed while it {does} the package: {crash}"
            return self.package_failed(Fault("rollout_package_failed", told, hint), now)
        if self.loads >= MOST_LOADS:
            told = f"the process ended {self.loads} times while it {does} the package"
            return self.package_failed(Fault("rollout_package_failed", told, hint), now)
        return replace(self, loads=self.loads + 1)

    def stopping(self) -> Execution:
        """The process ends in order, which is nothing against the package."""
        return replace(self, loads=max(0, self.loads - 1)) if self.on_trial else self

    def loaded(self, package: Package, verified: bool, now: Now) -> Execution:
        """The package is served, and its known answers were right, if it has any: from now on it is proved."""
        wanted = self.desired.digest or package.digest
        if now.aborted:
            return self._enter(State.CANCELED, now, _aborted(self.desired.rollout), Step.RETURNING)
        if package.digest != wanted:
            told = f"the package that was loaded has the digest {package.digest}, and {wanted} is wanted"
            return self.package_failed(Fault("rollout_digest_wrong", told, "correct model.digest or the source"), now)
        if self.candidate is not None and not verified:
            hint = "edged model verify --record, where the package is made, and a new digest"
            return self.package_failed(Fault("rollout_package_failed", "it has no known answers", hint), now)
        if self.step is Step.PROVING:
            return self
        proving = self._enter(State.IN_PROGRESS, now, step=Step.PROVING)
        return replace(proving, loads=0, proved=0.0, counted_at=None)

    def serves(self, now: Now) -> Execution:
        """The package on trial goes on to serve: count the time."""
        passed = 0.0 if self.counted_at is None else now.monotonic - self.counted_at
        return replace(self, proved=self.proved + passed, counted_at=now.monotonic)

    def succeeded(self, now: Now) -> Execution:
        """The package has proved itself."""
        return replace(self._enter(State.SUCCEEDED, now), loads=0)

    def package_failed(self, fault: Fault, now: Now) -> Execution:
        """The package is at fault. After a switch, the device goes back first."""
        failures = self.failures + 1
        state = State.REJECTED if failures >= MOST_FAILURES else State.FAILED
        failed = self._enter(state, now, fault, Step.RETURNING if self.on_trial else None)
        return replace(failed, failures=failures, retry_at=now.monotonic + PACKAGE_PAUSE)

    def switch_failed(self, fault: Fault, now: Now) -> Execution:
        """The switch cannot be done now, and the package is not at fault: go back, and try again later."""
        return replace(self._enter(State.FAILED, now, fault, Step.RETURNING), retry_at=now.monotonic + PACKAGE_PAUSE)

    def path_was_set(self, now: Now) -> Execution:
        """Somebody set model.path while it was switching: go back, which counts once that is removed."""
        tries = self.on_trial and self.candidate is not None
        return self._enter(State.REJECTED, now, _path_set(), Step.RETURNING) if tries else self

    def returned(self, now: Now) -> Execution:
        """The package before is selected again."""
        pause = now.monotonic + PACKAGE_PAUSE if self.state is State.FAILED else None
        return replace(self, step=None, candidate=None, loads=0, retry_at=pause)

    def adopted(self) -> Execution:
        """The new package has its name, and the one before is removed."""
        return replace(self, candidate=None)


def _tried(received: Received) -> object:
    """What a trial is of: package and settings; what these replace depends on the target."""
    model, settings = received.desired.model, received.desired.settings
    package = None if model is None else (model.digest, model.name)
    return package, None if settings is None else (received.target, settings)


def _path_set() -> Fault:
    hint = "remove model.path from the device's settings, and publish the document with a higher sequence"
    return Fault("rollout_model_path_set", "the setting model.path names the package", hint)


def _aborted(rollout: str) -> Fault:
    return Fault("rollout_aborted", f"the rollout {rollout} was aborted")
