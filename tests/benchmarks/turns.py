"""Two sides decode in turn, in one process: blocks of steps, so that a busy moment of the machine meets both."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from edged.engine.bench import Bench, StepTime, decode_seconds

BLOCK, BLOCKS = 8, 6


@dataclass(frozen=True)
class Turns:
    """Median seconds of a step: edged's whole, what of it is in the session, and the other side's."""

    edged: float
    session: float
    other: float

    @property
    def ratio(self) -> float:
        """Speed of edged by the other's."""
        return self.other / self.edged


def take_turns(bench: Bench, rows: int, prompt: int, other: Callable[[int], float]) -> Turns:
    """`rows` jobs with prompts of `prompt` tokens decode in the engine, and `other(past)` takes a step beside them.

    It is called on the engine's own thread and returns the seconds it took. The first step of each block is left out:
    the other side's threads have yet to come to rest.
    """
    others: list[float] = []
    mine: list[StepTime] = []

    def hook(step: StepTime) -> None:
        if step.rows == rows and step.count == 1 and step.past >= prompt:
            mine.append(step)
            if len(mine) % BLOCK == 0:
                others.extend([other(step.past - BLOCK + 1 + n) for n in range(BLOCK)][1:])

    bench.stopwatch.hook = hook
    steps = bench.decode([bench.prompt(prompt) for _ in range(rows)], BLOCK * BLOCKS)
    bench.stopwatch.hook = lambda _step: None
    assert mine, "the rows never ran all together"
    whole = [seconds for n, seconds in enumerate(decode_seconds(steps, rows, prompt)) if n % BLOCK]
    session = [step.ended - step.began for n, step in enumerate(mine) if n % BLOCK]
    if not (whole and session and others):
        sys.exit(f"{rows} rows never decoded all together: this machine reads prompts too slowly beside them just now")
    return Turns(statistics.median(whole), statistics.median(session), statistics.median(others))
