"""What the engine tells of its steps to whoever accounts for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepRow:
    """The part of one request in a step: `tokens` computed of it, `prompt` where they are its prompt's.

    `past`: its tokens that were computed before.
    """

    key: int
    tokens: int
    prompt: bool
    past: int = 0


@dataclass(frozen=True)
class StepRecord:
    """A step that ran from `began` to `ended` (CLOCK_MONOTONIC seconds), also one that failed."""

    began: float
    ended: float
    rows: tuple[StepRow, ...]


@dataclass(frozen=True)
class EngineLimit:
    """How the engine is held back: it computes for `duty` of the time, and has at most `rows`; None: all."""

    duty: float = 1.0
    rows: int | None = None


class StepObserver:
    """Hears of each step on the engine's thread, which must not wait; this one does nothing with it."""

    def began(self, at: float) -> None:
        """A step begins at this CLOCK_MONOTONIC second."""

    def ended(self, step: StepRecord) -> None:
        """The step that began last has ended."""


class StepObservers(StepObserver):
    """Tells several observers."""

    def __init__(self, *observers: StepObserver) -> None:
        self._observers = observers

    def began(self, at: float) -> None:
        """A step begins."""
        for observer in self._observers:
            observer.began(at)

    def ended(self, step: StepRecord) -> None:
        """It has ended."""
        for observer in self._observers:
            observer.ended(step)
