"""A short answer of edged's own, run alone beside the jobs: how long the served model takes for a token on this board.

Its steps are shared with no job, so their time compares with that of another package on the same board.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.sequence import Request
from edged.engine.steps import StepObserver, StepRecord

KEY = 0
"""Of its request: jobs have numbers above, pinned prompts below."""
PROMPT, ANSWER = 32, 33
"""Tokens, where the context holds as many."""


class SelfBench(StepObserver):
    """Hears of steps and events on the engine's thread; the main thread starts benches and reads the figures."""

    def __init__(self, forward: Callable[[EngineEvent], None]) -> None:
        """`forward`: where the engine's events go."""
        self._forward = forward
        self._steps: list[float] = []
        self.answered = 0
        """Answers of jobs since the start."""
        self.failed = 0
        """Jobs that the engine has failed at since the start."""
        self.seconds: float | None = None
        """Time of a step of the last bench: the lower quartile. Infinite: the bench failed; None: it has not ended."""

    def deliver(self, event: EngineEvent) -> None:
        """Take note of an event and pass it on."""
        if isinstance(event, Finished):
            if event.key > KEY:
                self.answered += 1
            elif event.key == KEY:
                self.seconds = sorted(self._steps)[len(self._steps) // 4] if self._steps else math.inf
        elif isinstance(event, Ended) and event.failure is not None:
            if event.key > KEY:
                self.failed += 1
            elif event.key == KEY:
                self.seconds = math.inf
        self._forward(event)

    def ended(self, step: StepRecord) -> None:
        """A step has ended."""
        row = step.rows[0]
        if row.key == KEY and row.tokens == 1 and not row.prompt:
            self._steps.append(step.ended - step.began)

    def begin(self, context: int) -> Request:
        """The request of a new bench, which goes before all jobs. `context`: tokens that a row holds."""
        self._steps, self.seconds = [], None
        prompt = min(PROMPT, context // 2)
        answer = min(ANSWER, context - prompt)
        tokens = tuple(range(3, 3 + prompt))
        return Request(KEY, tokens, answer, ignore_eos=True, store=False, alone=True)
