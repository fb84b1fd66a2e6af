"""What a device of a group says about a rollout, read from its reported document (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.fleet.fields import number_of, object_of, objects_of, seconds_of, text_of
from edged.rollout.desired import Received
from edged.rollout.execution import State

EXECUTED = frozenset({State.SUCCEEDED, State.FAILED, State.REJECTED, State.TIMED_OUT})
"""States that prove something of the package. FAILED too, though the device tries again."""
_STATES = {state.value: state for state in State}


@dataclass(frozen=True)
class Member:
    """A device of the group that follows this rollout, or will."""

    device: str
    place: int
    """Where it stands in the rollout (Desired.place)."""
    here: bool
    """Whether it is online and talks."""
    state: State | None = None
    """None: it has not heard of the rollout yet."""
    failures: int = 0
    step: str | None = None
    progress: float | None = None
    waiting_for: str | None = None
    fault: Mapping[str, Any] | None = None
    """`code`, `message` and `hint`."""
    since: str | None = None

    @property
    def executed(self) -> bool:
        """Whether the rollout came to an end here, for better or worse."""
        return self.state in EXECUTED

    @property
    def counts(self) -> bool:
        """Whether it is waited for: it is there, or has begun. One that went dark after that is held against nobody
        else: no other device takes its part in a wave."""
        return self.here or self.state not in (None, State.QUEUED)


def read_member(device: str, here: bool, report: Mapping[str, Any], received: Received, wall: float) -> Member | None:
    """`report`: its reported document, empty where there is none; `wall`: now, in seconds since the epoch.

    None for a device that follows another document, which goes before this one.
    """
    desired, target = received.desired, received.target
    rollout = (target, desired.rollout, desired.sequence)
    place = desired.place(device)
    for refused in objects_of(report.get("refused")):
        if _rollout_of(refused) == rollout:
            fault = object_of(refused.get("fault")) or None
            return Member(device, place, here, State.REJECTED, fault=fault, since=text_of(report.get("time")))
    if _rollout_of(report) != rollout:
        return None if _goes_before(report, received) else Member(device, place, here)
    failures = int(number_of(report.get("failures")) or 0)
    state = _STATES.get(str(report.get("state")))
    since = text_of(report.get("since"))
    if state in (State.QUEUED, State.IN_PROGRESS) and failures:
        state = State.FAILED  # it tries again
    begun = seconds_of(since)
    if (
        state is State.IN_PROGRESS
        and not here
        and begun is not None
        and wall - begun > desired.timeout + desired.proving.seconds
    ):
        state = State.TIMED_OUT  # it will say so itself, if it ever can
    return Member(
        device,
        place,
        here,
        state,
        failures,
        text_of(report.get("step")),
        number_of(report.get("progress")),
        text_of(report.get("waiting_for")),
        object_of(report.get("fault")) or None,
        since,
    )


def _rollout_of(document: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return document.get("target"), document.get("rollout"), document.get("sequence")


def _goes_before(report: Mapping[str, Any], received: Received) -> bool:
    """Whether the device follows a document of another target that it prefers, as Documents.followed does."""
    target, sequence = report.get("target"), number_of(report.get("sequence"))
    if target == "device":
        return True
    return sequence is not None and (sequence, str(target)) > (received.desired.sequence, received.target)
