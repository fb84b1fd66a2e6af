"""Promises broken on purpose, one at a time, by replacing one function of the real code: the oracles must see each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edged.jobs.giving import Giver
from edged.jobs.shared import SharedJobs
from edged.rollout.desired import Received
from edged.rollout.precedence import Documents, Known
from edged.rollout.trial import Trial
from edged.sharing.credits import Credits
from edged.sharing.messages import Answer

Function = Callable[..., Any]


@dataclass(frozen=True)
class Sabotage:
    """`owner.name` is replaced by what `by` makes of it; `seen_by`: oracles of which at least one must find it."""

    owner: type
    name: str
    by: Callable[[Function], Function]
    seen_by: tuple[str, ...]
    jobs: bool = False
    """Whether it shows in jobs."""


def _prove_at_once(_original: Function) -> Function:
    return lambda _trial, _execution: True


def _take_the_latest(_original: Function) -> Function:
    def take(documents: Documents, received: Received) -> Documents:
        known = Known(received, received.desired.percent)
        return Documents({**documents.known, received.target: known}, documents.aborted)

    return take


def _drop_when_sent(original: Function) -> Function:
    def send(giver: Giver, one: Any, message: bytes | None) -> None:
        original(giver, one, message)
        giver.answered(Answer(device=one.taker, id=one.queued.id, give=one.give, answer="accepted"))

    return send


def _redeem_all(_original: Function) -> Function:
    return lambda _credits, _credit, _now: True


def _leave_no_mark(_original: Function) -> Function:
    return lambda _jobs, _id, _mark, _now: None


SABOTAGES = {
    "prove skipped": Sabotage(Trial, "proved", _prove_at_once, ("trial",)),
    "sequence ignored": Sabotage(Documents, "take", _take_the_latest, ("sequence",)),
    "drop before accepted": Sabotage(Giver, "_send", _drop_when_sent, ("lost",), jobs=True),
    "credit not checked": Sabotage(Credits, "redeem", _redeem_all, ("credit",), jobs=True),
    "tombstone forgotten": Sabotage(SharedJobs, "mark", _leave_no_mark, ("given",), jobs=True),
}


@contextmanager
def sabotaged(sabotage: Sabotage) -> Iterator[None]:
    """Break this promise meanwhile."""
    original = getattr(sabotage.owner, sabotage.name)
    setattr(sabotage.owner, sabotage.name, sabotage.by(original))
    try:
        yield
    finally:
        setattr(sabotage.owner, sabotage.name, original)
