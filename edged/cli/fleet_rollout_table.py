"""How a rollout is told to people and scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edged.rollout.conductor_member import Member
from edged.rollout.conductor_run import Picture
from edged.rollout.desired import within
from edged.rollout.execution import UNDONE, State

_WAITS = {
    "devices": "waits: fewer devices are known and there than --min-executed",
    "wave": "waits for the devices of this wave",
    "pace": "waits for --per-minute",
}


def counts(members: Sequence[Member], percent: float) -> dict[str, int]:
    """How many devices are in each state; `WAITING`: in the wave and silent, `LATER`: not in it yet."""
    return dict(Counter(_state(member, percent) for member in members))


def _state(member: Member, percent: float) -> str:
    if member.state not in (None, State.QUEUED):
        return str(member.state.value) if member.state is not None else ""
    if not within(member.place, percent):
        return "LATER"
    return "QUEUED" if member.state is State.QUEUED else "WAITING"


def _state_and_wait(member: Member, percent: float) -> str:
    """What a device waits for that is to begin: without a person, its clock may never be right."""
    state = _state(member, percent)
    waits = state == "QUEUED" and member.waiting_for not in (None, "percent")  # its report is older than this wave
    return f"{state} (waits for {member.waiting_for})" if waits else state


def as_json(picture: Picture) -> dict[str, Any]:
    """The rollout as `--json` prints it."""
    received, decision = picture.received, picture.decision
    desired, wave = received.desired, decision.wave
    return {
        "group": received.target.partition("/")[2],
        "rollout": desired.rollout,
        "sequence": desired.sequence,
        "model": None if desired.model is None else desired.model.model_dump(exclude_none=True),
        "settings": desired.settings,
        "state": decision.verdict.value,
        "percent": wave.percent,
        "paused": wave.paused,
        "aborted": wave.abort,
        "waits_for": decision.waits_for,
        "counts": counts(picture.members, wave.percent),
        "devices": [_device(member, wave.percent) for member in picture.members],
    }


def _device(member: Member, percent: float) -> dict[str, Any]:
    told = asdict(member)
    place, state = told.pop("place"), told.pop("state")
    return {
        **told,
        "state": None if state is None else state.value,
        "fault": None if member.fault is None else dict(member.fault),
        "included": within(place, percent),
    }


def headline(picture: Picture) -> str:
    """Which rollout it is."""
    desired = picture.received.desired
    here = sum(member.here for member in picture.members)
    return (
        f"{picture.received.target}: rollout {desired.rollout}, sequence {desired.sequence}; "
        f"{len(picture.members)} devices, {here} there"
    )


def not_heeded(picture: Picture) -> str | None:
    """That the broker has a document which is none, or of a wrong key; None where it has not."""
    fault = picture.refused
    return None if fault is None else f"the document that the broker has for the group is not heeded: {fault.message}"


def line(picture: Picture) -> str:
    """How far it is."""
    decision = picture.decision
    states = Counter(_state_and_wait(member, decision.wave.percent) for member in picture.members)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    waits = "" if decision.waits_for is None else f"; {_WAITS[decision.waits_for]}"
    return f"{decision.verdict.value} at {decision.wave.percent:g} %: {told or 'no devices'}{waits}"


def faults(members: Sequence[Member]) -> list[str]:
    """A line for each device that failed, or has failed and tries again."""
    return [
        f"{member.device} {member.state.value}: {_fault(member.fault)}"
        for member in members
        if member.state is not None and _failed(member)
    ]


def _failed(member: Member) -> bool:
    return member.state in UNDONE or (member.state is State.IN_PROGRESS and member.fault is not None)


def _fault(fault: Mapping[str, Any] | None) -> str:
    if fault is None:
        return "it does not say why"
    hint = fault.get("hint")
    return f"{fault.get('code')}: {fault.get('message')}" + (f"; {hint}" if hint else "")


def rows(picture: Picture) -> list[str]:
    """A line for each device, those that failed first."""
    percent = picture.decision.wave.percent
    order = sorted(picture.members, key=lambda member: (member.state not in UNDONE, member.place))
    wide = max((len(member.device) for member in order), default=0)
    return [f"{member.device:{wide}}  {_state(member, percent):11}  {_more(member)}".rstrip() for member in order]


def _more(member: Member) -> str:
    progress = None if member.progress is None else f"{member.progress:.0%}"
    waits = None if member.waiting_for is None else f"waits for {member.waiting_for}"
    away = None if member.here else "away"
    fault = _fault(member.fault) if _failed(member) else None
    return " · ".join(word for word in (away, member.step, progress, waits, fault) if word)
