"""Measures a model by sending requests to the engine and timing each step."""

from __future__ import annotations

import contextlib
import itertools
import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.loaded_model import LoadedModel
from edged.engine.package import Package
from edged.engine.sampler import Sampling
from edged.engine.sequence import Request
from edged.engine.session import ModelSession
from edged.machine.sensors.power import PowerMeter

JOINING = 64
"""Tokens of context beyond prompt and answer, since the first rows decode while the other prompts are read."""
JOINING_STALL = 60.0
"""Seconds for max_stall, so that prompts are read in full chunks and all rows soon decode together."""
_POWER_SECONDS = 0.1


class BenchError(RuntimeError):
    """A request failed; the message is the engine's."""


@dataclass(frozen=True)
class RowsFigures:
    """Figures for `rows` jobs that arrive together. Tokens per second are the sum over rows."""

    rows: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    """None if the rows never decoded all together."""
    first_token_cold_seconds: float
    """Until the last of the rows has its first token, with nothing of the prompts cached."""
    first_token_warm_seconds: float
    """The same for prompts that are cached except for their last token."""
    weights_bytes_per_second: float | None
    """Bytes of weights that decoding reads from memory."""
    joules_per_token: dict[str, float]
    """By rail."""


@dataclass(frozen=True)
class Figures:
    """All figures of a run. Sizes in bytes, times in seconds."""

    load_seconds: float
    resident_bytes: int
    peak_bytes: int
    """The largest resident size of the process (VmHWM)."""
    rows: tuple[RowsFigures, ...]


@dataclass(frozen=True)
class StepTime:
    """One step. Times are CLOCK_MONOTONIC seconds; `past`: tokens that its longest row had cached before."""

    began: float
    ended: float
    resumed: float
    """When the engine received the result: later than `ended` if a hook took time."""
    rows: int
    count: int
    past: int


class Stopwatch:
    """Wraps a session and records each step; then it calls `hook` on the engine's thread."""

    def __init__(self, session: ModelSession) -> None:
        self._session = session
        self.steps: list[StepTime] = []
        self.hook: Callable[[StepTime], None] = lambda _step: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def step(self, first: int, ids: NDArray[np.int64], past: Sequence[int], width: int) -> NDArray[np.floating]:
        """As ModelSession.step."""
        began = time.monotonic()
        logits = self._session.step(first, ids, past, width)
        ended = time.monotonic()
        rows, count = ids.shape
        step = StepTime(began, ended, ended, rows, count, max(past))
        self.hook(step)
        self.steps.append(replace(step, resumed=time.monotonic()))
        return logits


def decode_seconds(steps: Sequence[StepTime], rows: int, prompt: int) -> list[float]:
    """Durations of consecutive decode steps of `rows` rows, including the engine's own work between them."""
    return [
        step.ended - step.began + following.began - step.resumed
        for step, following in itertools.pairwise(steps)
        if all(s.rows == rows and s.count == 1 and s.past >= prompt for s in (step, following))
    ]


class Bench:
    """An engine with a model to measure. A context manager that stops the engine and frees the model at its exit."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.stopwatch = Stopwatch(loaded.session)
        self._package = loaded.package
        self._context = loaded.context
        timed = replace(loaded, session=cast(ModelSession, self.stopwatch))
        self._events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._engine = Engine(lambda: timed, lambda: "", self._events.put, lambda _keys: None)
        self._random = np.random.default_rng(0)
        self._key = 0

    def __enter__(self) -> Bench:
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop()

    def prompt(self, tokens: int) -> tuple[int, ...]:
        """A new random prompt."""
        return tuple(int(t) for t in self._random.integers(3, self._package.vocabulary, tokens))

    def similar(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The same prompt with another last token."""
        return (*prompt[:-1], (prompt[-1] + 1) % self._package.vocabulary)

    def first_token(self, prompts: Sequence[Sequence[int]]) -> float:
        """Seconds from submitting all prompts at once until the last of them has its first token."""
        began = time.monotonic()
        keys = [self.submit(prompt, 1) for prompt in prompts]
        return max(end.first_token for end in self.ends(keys) if isinstance(end, Finished)) - began

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[StepTime]:
        """The steps of a run of all `prompts`, until `tokens` decode steps of all rows together are done."""
        self.stopwatch.steps.clear()
        longest = max(map(len, prompts))
        keys = range(self._key + 1, self._key + 1 + len(prompts))
        others, done = self.stopwatch.hook, itertools.count(1)

        def enough(step: StepTime) -> None:
            others(step)
            together = step.rows == len(prompts) and step.count == 1 and step.past >= longest
            if together and next(done) > tokens:  # the last step has no successor and is not counted
                self.cancel(keys)

        self.stopwatch.hook = enough
        for prompt in prompts:
            self.submit(prompt, self._context - len(prompt))
        self.ends(keys)
        self.stopwatch.hook = others
        return list(self.stopwatch.steps)

    def submit(self, prompt: Sequence[int], tokens: int, sampling: Sampling | None = None) -> int:
        """Submit a request for `tokens` tokens, greedy by default; returns its key."""
        self._key += 1
        self._engine.submit(Request(self._key, tuple(prompt), tokens, sampling or Sampling(), ignore_eos=True))
        return self._key

    def cancel(self, keys: Sequence[int]) -> None:
        """Cancel requests at the engine's next step."""
        for key in keys:
            self._engine.cancel(key)

    def ends(self, keys: Sequence[int]) -> list[Finished | Ended]:
        """Wait until all requests have ended. Raises BenchError if one failed."""
        ends: list[Finished | Ended] = []
        while len(ends) < len(keys):
            event = self._events.get()
            if isinstance(event, Ended) and event.failure is not None:
                raise BenchError(event.failure)
            if isinstance(event, (Finished, Ended)) and event.key in keys:
                ends.append(event)
        return ends


class PowerLog:
    """Reads the board's power in its own thread during a `with` block."""

    def __init__(self, meter: PowerMeter) -> None:
        self._meter = meter
        self._readings: list[tuple[float, Mapping[str, float]]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, name="power", daemon=True)

    def __enter__(self) -> PowerLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def watts(self, began: float, ended: float) -> dict[str, float]:
        """Mean watts by rail between two CLOCK_MONOTONIC times; empty if the board has no sensors."""
        inside = [rails for at, rails in self._readings if began <= at <= ended] or [r for _, r in self._readings[-1:]]
        names = {name for rails in inside for name in rails}
        return {name: statistics.fmean(rails[name] for rails in inside if name in rails) for name in sorted(names)}

    def _read(self) -> None:
        while True:
            if rails := self._meter.read().rails:
                self._readings.append((time.monotonic(), rails))
            if self._done.wait(_POWER_SECONDS):
                return


def measure(loaded: LoadedModel, meter: PowerMeter, rows: Sequence[int], prompt: int, tokens: int) -> Figures:
    """Measure a model with each number of `rows`, prompts of `prompt` and answers of `tokens` tokens.

    Its context must hold both, plus JOINING tokens for several rows. Frees the model. Raises BenchError.
    """
    with Bench(replace(loaded, max_stall=JOINING_STALL)) as bench:
        bench.first_token([bench.prompt(prompt)])  # the first run of a size allocates its memory
        figures = tuple(_measure_rows(bench, loaded.package, meter, count, prompt, tokens) for count in rows)
        return Figures(loaded.load_seconds, _status_bytes("VmRSS"), _status_bytes("VmHWM"), figures)


def _measure_rows(
    bench: Bench, package: Package, meter: PowerMeter, rows: int, prompt: int, tokens: int
) -> RowsFigures:
    prompts = [bench.prompt(prompt) for _ in range(rows)]
    cold = bench.first_token(prompts)
    warm = bench.first_token([bench.similar(known) for known in prompts])
    with PowerLog(meter) as log:
        steps = bench.decode(prompts, tokens)
    times = decode_seconds(steps, rows, prompt)
    step = statistics.median(times) if times else None
    watts = log.watts(next(s.began for s in steps if s.rows == rows), steps[-1].ended) if step else {}
    return RowsFigures(
        rows=rows,
        prefill_tokens_per_second=rows * prompt / cold,
        decode_tokens_per_second=rows / step if step else None,
        first_token_cold_seconds=cold,
        first_token_warm_seconds=warm,
        weights_bytes_per_second=package.step_bytes / step if step else None,
        joules_per_token={rail: power * step / rows for rail, power in watts.items()} if step else {},
    )


def forget_peak() -> None:
    """Reset VmHWM to the current resident size (proc_pid_clear_refs(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(name: str) -> int:
    """A size of this process in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise BenchError(f"/proc/self/status has no {name}")
