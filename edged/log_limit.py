"""Limits how many lines of one event are written, so that a storm costs the card little: the others are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

BURST, PER_SECOND = 100, 10
"""Lines of one event that are written at once, and in each further second."""
OF_JOBS = frozenset({"job_accepted", "job_succeeded", "job_ended"})
"""Events that come once for each job that was taken: never held back."""


@dataclass
class _Flow:
    """One event at one level: how many lines may be written now, and the last one that was held back."""

    at: float
    left: float = BURST
    count: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class LineLimit:
    """Any thread may use it. Events are constants of the code, so there are few."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: monotonic seconds."""
        self._now = now
        self._flows: dict[tuple[str, str], _Flow] = {}
        self._lock = threading.Lock()

    def take(self, level: str, fields: MutableMapping[str, Any]) -> bool:
        """Whether to write a line now, with `suppressed` added: how many of its event were not written before it."""
        if fields["event"] in OF_JOBS:
            return True
        with self._lock:
            flow = self._flow(level, fields["event"])
            if flow.left < 1:
                flow.count += 1
                # No frames of a traceback: they hold much more than the line.
                flow.last = {name: value for name, value in fields.items() if name != "exc_info"}
                return False
            flow.left -= 1
            if flow.count:
                fields["suppressed"] = flow.count
                flow.count = 0
            return True

    def held(self, *, all: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """The last line held back of each event whose storm is over (`all`: or not), to be written now; by level."""
        with self._lock:
            due = []
            for level, event in self._flows:
                flow = self._flow(level, event)
                if flow.count and (all or flow.left >= 1):
                    flow.left -= 1
                    due.append((level, {**flow.last, "suppressed": flow.count - 1}))
                    flow.count = 0
            return due

    def _flow(self, level: str, event: str) -> _Flow:
        now = self._now()
        flow = self._flows.setdefault((level, event), _Flow(now))
        flow.left = min(float(BURST), flow.left + PER_SECOND * (now - flow.at))
        flow.at = now
        return flow
