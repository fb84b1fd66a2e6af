"""The model's own probability of each token of an answer, and of the likeliest in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = -9999.0
"""Stands for less, as at OpenAI: JSON has no infinity."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class PlaceLogprobs:
    """The token at a place of the answer, and the likeliest ones there, the best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


class Logprobs:
    """Collects them for one answer."""

    def __init__(self, top: int, token_bytes: Callable[[int], bytes]) -> None:
        """`top`: how many of the likeliest tokens. `token_bytes` gives the text of a token."""
        self._top = top
        self._bytes = token_bytes
        self.places: list[PlaceLogprobs] = []

    def note(self, logits: NDArray[np.float64], token: int) -> None:
        """Take the logits as the model gave them, [vocabulary], and the token that was chosen."""
        highest = logits.max()
        logarithms = logits - (highest + np.log(np.exp(logits - highest).sum()))
        likeliest = np.argpartition(-logarithms, self._top - 1)[: self._top] if self._top else ()
        best = sorted(map(int, likeliest), key=lambda one: (-logarithms[one], one))
        chosen, *top = (TokenLogprob(self._bytes(one), max(LEAST, float(logarithms[one]))) for one in (token, *best))
        self.places.append(PlaceLogprobs(chosen, tuple(top)))
