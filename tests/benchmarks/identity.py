"""Whether a job's token ids are the same alone and among others that come and go, on the full-size package."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from figures import Figure

from edged.engine.bench import Bench
from edged.engine.events import Finished
from edged.engine.sampler import Sampling

JOBS = 16
PROMPT, ANSWER = (8, 72), (6, 32)
"""Fewest and most tokens of a job."""


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    tokens: int
    sampling: Sampling


def identity(bench: Bench, rows: int) -> Figure:
    """All jobs alone, one after another, and all at once in another order: more than rows, so they come and go."""
    chance = random.Random(5)
    jobs = [
        Asked(
            bench.prompt(chance.randint(*PROMPT)),
            chance.randint(*ANSWER),
            Sampling(temperature=1.0, top_p=0.9, seed=number) if number % 2 else Sampling(),
        )
        for number in range(JOBS)
    ]
    alone = [answers(bench, [job])[0] for job in jobs]
    order = chance.sample(range(JOBS), JOBS)
    among = dict(zip(order, answers(bench, [jobs[number] for number in order]), strict=True))
    same = sum(among[number] == ids for number, ids in enumerate(alone))
    text = f"{same} of {JOBS} ({sum(map(len, alone))} tokens, half of the jobs sampled with a seed)"
    return Figure(f"token ids alone = among {rows} rows that come and go", text, "all", same == JOBS)


def answers(bench: Bench, jobs: Sequence[Asked]) -> list[tuple[int, ...]]:
    """The ids of jobs that are sent at once."""
    keys = [bench.submit(job.prompt, job.tokens, job.sampling) for job in jobs]
    by_key = {end.key: end.tokens for end in bench.ends(keys) if isinstance(end, Finished)}
    return [by_key[key] for key in keys]
