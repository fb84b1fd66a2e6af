"""Chooses the next token from logits: greedy, or drawn with temperature, top-k and top-p from a seeded generator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class NotFiniteError(ArithmeticError):
    """The model gave NaN or infinity where a number was due."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    repetition_penalty: float = 1.0


class Sampler:
    """Draws the tokens of one sequence."""

    def __init__(self, sampling: Sampling) -> None:
        """Raises ValueError for a negative seed."""
        self._sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)

    def sample(self, logits: NDArray[np.floating], seen: Iterable[int]) -> int:
        """The next token; see sample(). Raises NotFiniteError."""
        return sample(logits, self._sampling, self._generator, seen)


def sample(
    logits: NDArray[np.floating], sampling: Sampling, generator: np.random.Generator, seen: Iterable[int] = ()
) -> int:
    """The next token for one row.

    `logits`: [vocabulary], float32 or float16. `seen`: the row's tokens so far, for the repetition penalty (Keskar et
    al. 2019, arXiv:1909.05858, section 4.1). Draws one number from `generator` per token and only when sampling, so a
    seed gives the same tokens in any batch. Raises NotFiniteError.
    """
    if sampling.repetition_penalty != 1.0:
        logits = _penalised(logits, sampling.repetition_penalty, seen)
    best = int(np.argmax(logits))  # the first NaN, where there is one
    if not np.isfinite(logits[best]):
        raise NotFiniteError(f"the model gave {logits[best]} as its best logit")
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return best
    return _draw(logits, sampling, generator.random())


def _penalised(logits: NDArray[np.floating], penalty: float, seen: Iterable[int]) -> NDArray[np.floating]:
    logits = logits.astype(np.float32)
    tokens = np.fromiter(set(seen), np.int64)
    values = logits[tokens]
    logits[tokens] = np.where(values < 0, values * penalty, values / penalty)
    return logits


def _draw(logits: NDArray[np.floating], sampling: Sampling, uniform: float) -> int:
    """One token by `uniform`, a number in [0, 1). Ties go by token id, so that no partition's order shows."""
    tokens: NDArray[np.intp] | None = None  # None: all, by id
    if 0 < sampling.top_k < len(logits):
        tokens = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
        tokens = tokens[np.argsort(-logits[tokens], kind="stable")][: sampling.top_k]
        logits = logits[tokens]
    with np.errstate(over="ignore"):  # a tiny temperature: everything but the best goes to nothing
        weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    if sampling.top_p < 1.0:
        # The smallest set whose probability reaches top_p (Holtzman et al. 2019, arXiv:1904.09751).
        least = weights.sum() * sampling.top_p
        if tokens is None:
            # What is below this share cannot be in the set, and sorting 100,000 numbers takes longer than a small step.
            tokens = np.flatnonzero(weights >= (weights.sum() - least) / len(weights))
            tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
            weights = weights[tokens]
        kept = int(np.searchsorted(np.cumsum(weights), least)) + 1
        tokens, weights = tokens[:kept], weights[:kept]
    cumulative = np.cumsum(weights)
    place = min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(weights) - 1)
    return place if tokens is None else int(tokens[place])
