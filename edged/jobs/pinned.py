"""Pinned prompts on their way through the engine, and which of them crashed the process before.

They are requests with numbers below zero. Like jobs they are to blame for a crash of the process: one that ran beside
others in a crash runs alone afterwards, and one that crashed alone MAX_CRASHES times in a row is not warmed again.
"""

from __future__ import annotations

from collections import deque

from edged.engine.sequence import Request
from edged.jobs.interrupted import MAX_CRASHES
from edged.jobs.running import JobEngine
from edged.jobs.spool import Spool


class PinnedPrompts:
    """Which pinned prompts wait for the engine, which it has, and their crashes."""

    def __init__(self, spool: Spool) -> None:
        """Raises SpoolError."""
        self._spool = spool
        self._attempts = spool.pinned_attempts()
        self._waiting: deque[Request] = deque()
        self._under_way: set[int] = set()

    @property
    def under_way(self) -> bool:
        """Whether the engine has one."""
        return bool(self._under_way)

    @property
    def given_up(self) -> frozenset[int]:
        """Numbers of those that are not warmed any more."""
        return frozenset(number for number, (crashes, _) in self._attempts.items() if crashes >= MAX_CRASHES)

    def prepared(self, request: Request) -> None:
        """One more prompt is ready for the engine."""
        self._waiting.append(request)

    def submit(self, engine: JobEngine, company: bool, suspect: bool) -> bool:
        """Give the engine what it may have now; False while jobs must wait for a prompt that runs alone.

        `company`: whether jobs are prepared or run; `suspect`: whether one of them must run alone.
        """
        while self._waiting:
            request = self._waiting[0]
            alone = self._suspect(request.key) and (company or self._under_way)
            if alone or suspect or self._suspect_under_way:
                return False
            self._under_way.add(self._waiting.popleft().key)
            engine.submit(request)
        return not self._suspect_under_way

    def model_changed(self) -> None:
        """Forget what waits: its tokens are those of another model."""
        self._waiting.clear()

    def ended(self, number: int, answered: bool) -> None:
        """The engine is done with a prompt; `answered`: without a failure. Raises SpoolError."""
        self._under_way.discard(number)
        if answered and number in self._attempts:
            with self._spool.transaction():
                self._spool.forget_attempts(number)
            del self._attempts[number]

    @property
    def _suspect_under_way(self) -> bool:
        return any(self._suspect(number) for number in self._under_way)

    def _suspect(self, number: int) -> bool:
        return number in self._attempts
