"""What the choice of a token costs, for each option of a job: `make bench-sampling [MODEL=FOLDER]` prints the table.

After each decoding step of the package, for one row, an option chooses a token from logits as a trained model gives
them; a package with random weights gives flat ones. The options take turns, so that all meet the same busy moments, and
caches that a step has filled. Lower quartiles are shown: other work on the machine only adds.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil

from edged import logs
from edged.engine.bench import JOINING_STALL, Bench, StepTime
from edged.engine.loaded_model import load_model
from edged.engine.sampler import Sampler, Sampling
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

PROMPT, ANSWER, TURNS = 2000, 500, 20
STEP_PROMPT = 128
GOAL = 0.02
BIAS = tuple((token * 7, 1.0) for token in range(300))
FLAT = "temperature 5, top_p 0.95"
"""Nearly all tokens are in the nucleus: the worst case, which has no goal."""
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "logit_bias of 300 tokens": {"logit_bias": BIAS},
    "temperature": {"temperature": 0.8},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top_k 40": {"temperature": 0.8, "top_k": 40},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 64, top_p 0.95": {"temperature": 0.8, "top_k": 64, "top_p": 0.95},
    "everything": {
        "temperature": 0.8,
        "top_k": 64,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": BIAS,
    },
    "temperature 5": {"temperature": 5.0},
    FLAT: {"temperature": 5.0, "top_p": 0.95},
}


def main() -> None:
    logs.configure("error", "auto")
    if len(sys.argv) != 2 or not Path(sys.argv[1], "genai_config.json").is_file():
        sys.exit("give the folder of a model package: make bench-sampling MODEL=FOLDER")
    steps = TURNS * len(OPTIONS)
    settings = Settings(model={"rows": 1, "context": STEP_PROMPT + 2 * steps}, cache={"ram_bytes": 0})
    loaded = load_model(settings, detect(), available, Path(sys.argv[1]))
    choices = Choices(loaded.package.vocabulary)
    with Bench(replace(loaded, max_stall=JOINING_STALL)) as bench:
        bench.stopwatch.hook = choices.after
        bench.decode([bench.prompt(STEP_PROMPT)], steps)
    print(
        f"edged sampling — {psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, onnxruntime {onnxruntime.__version__}, {loaded.package.name}"
    )
    sys.exit(not choices.show())


class Choices:
    """A sampler for each option, and the times of what they do after each step."""

    def __init__(self, vocabulary: int) -> None:
        chance = np.random.default_rng(0)
        self._logits = logits_like_a_models(vocabulary, chance)
        self._work = np.empty_like(self._logits)
        prompt = chance.integers(0, vocabulary, PROMPT).tolist()
        self._samplers = {name: Sampler(Sampling(**wanted), prompt) for name, wanted in OPTIONS.items()}
        for sampler in self._samplers.values():
            for token in chance.integers(0, vocabulary, ANSWER):
                forced = np.full(vocabulary, -100, np.float32)
                forced[token] = 1000
                sampler.sample(forced)
        self._steps: list[float] = []
        self._taken: dict[str, list[float]] = {name: [] for name in OPTIONS}

    def after(self, step: StepTime) -> None:
        """Let the next option choose, after a step of one token."""
        if step.rows != 1 or step.count != 1:
            return
        name = list(OPTIONS)[len(self._steps) % len(OPTIONS)]
        self._steps.append(step.ended - step.began)
        np.copyto(self._work, self._logits)
        began = time.perf_counter()
        self._samplers[name].sample(self._work)
        self._taken[name].append(time.perf_counter() - began)

    def show(self) -> bool:
        """Print the table; whether each option costs at most GOAL of a step."""
        step = lower_quartile(self._steps)
        print(
            f"  a step of one row: {step * 1000:.2f} ms, {len(self._steps)} of them; {len(self._logits):,} tokens; "
            f"before it a prompt of {PROMPT} and an answer of {ANSWER} tokens, for the penalties"
        )
        print(f"  {'':<28} {'µs':>6} {'beyond greedy':>14} {'of a step':>10}  goal: ≤ {GOAL:.0%}")
        greedy, missed = lower_quartile(self._taken["greedy"]), 0
        for name, taken in self._taken.items():
            cost = lower_quartile(taken)
            held = cost <= GOAL * step
            missed += not held and name != FLAT
            verdict = "met" if held else f"MISSED, {cost / (GOAL * step):.1f} times as much"
            verdict += " (no goal)" if name == FLAT else ""
            print(f"  {name:<28} {cost * 1e6:>6.0f} {(cost - greedy) * 1e6:>14.0f} {cost / step:>10.2%}  {verdict}")
        return not missed


def lower_quartile(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=4)[0]


def logits_like_a_models(size: int, chance: np.random.Generator) -> Any:
    """Most tokens far below a head of a few hundred, as after a prompt of some length."""
    logits = chance.normal(0, 2.5, size).astype(np.float32)
    head = chance.choice(size, 300, replace=False)
    logits[head] += 8 + chance.exponential(3, 300).astype(np.float32)
    return logits


if __name__ == "__main__":
    main()
