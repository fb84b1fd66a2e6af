"""Promises broken on purpose, one at a time, by replacing one function of the real code: the oracles must see each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edged.rollout.desired import Received
from edged.rollout.execution import Execution
from edged.rollout.precedence import Documents, Known
from edged.rollout.trial import Trial


@dataclass(frozen=True)
class Sabotage:
    """`owner.name` is replaced by `by`; `seen_by`: the oracles of which at least one must find it."""

    owner: type
    name: str
    by: Callable[..., Any]
    seen_by: tuple[str, ...]


def _proved_at_once(_trial: Trial, _execution: Execution) -> bool:
    return True


def _take_any(documents: Documents, received: Received) -> Documents:
    """The latest arrival wins."""
    known = Known(received, received.desired.percent)
    return Documents({**documents.known, received.target: known}, documents.aborted)


SABOTAGES = {
    "prove skipped": Sabotage(Trial, "proved", _proved_at_once, ("trial",)),
    "sequence ignored": Sabotage(Documents, "take", _take_any, ("sequence",)),
}


@contextmanager
def sabotaged(sabotage: Sabotage) -> Iterator[None]:
    """Break this promise meanwhile."""
    original = getattr(sabotage.owner, sabotage.name)
    setattr(sabotage.owner, sabotage.name, sabotage.by)
    try:
        yield
    finally:
        setattr(sabotage.owner, sabotage.name, original)
