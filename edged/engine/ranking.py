"""Ranking: how probable the model finds yes, against no, as the answer about each of several documents.

What the documents' prompts begin with is computed once; then one row reads a document after the other behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.engine.sampler import NotFiniteError


@dataclass(frozen=True)
class Ranking:
    """Documents, each as the tokens that follow the request's prompt, two at least, up to where the answer begins.

    `yes` and `no`: tokens that begin these answers. `shared`: how many of the prompt's tokens are computed once, no
    more than may be followed by another chunk (SplitRule).
    """

    documents: tuple[tuple[int, ...], ...]
    yes: tuple[int, ...]
    no: tuple[int, ...]
    shared: int

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))


class Ranks:
    """The scores of one request's documents, as far as they are known."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.scores: list[float] = []
        """Of each document, in their order: the probability of yes, given that the answer is yes or no."""

    @property
    def due(self) -> tuple[int, ...]:
        """The document that is read now."""
        return self.ranking.documents[len(self.scores)]

    def note(self, logits: NDArray[np.floating]) -> bool:
        """Take the logits after the document that is due, [vocabulary]; whether that was the last one.

        Raises NotFiniteError.
        """
        yes, no = (
            float(np.logaddexp.reduce(logits[list(tokens)].astype(np.float64)))
            for tokens in (self.ranking.yes, self.ranking.no)
        )
        if not math.isfinite(yes - no):
            raise NotFiniteError(f"the model gave {yes} for yes and {no} for no")
        self.scores.append(float(1 / (1 + np.exp(no - yes))))
        return len(self.scores) == len(self.ranking.documents)
