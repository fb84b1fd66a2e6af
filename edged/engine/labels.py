"""The choice among labels: how probable the model finds each of them as its whole answer.

A label's probability is that of its tokens and of an end after them. Labels that begin with the same tokens share them:
the tokens of all labels are a tree, and each of its nodes is computed once, in a row that goes back to where they part.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edged.engine.sampler import NotFiniteError

Path: TypeAlias = tuple[int, ...]

MAX_NODES = 2048
"""Different beginnings that the labels of one answer may have: each takes a step."""


@dataclass(frozen=True)
class Labels:
    """Labels with the tokens that say them, all different. `eos`: tokens that end an answer."""

    texts: tuple[str, ...]
    tokens: tuple[Path, ...]
    eos: tuple[int, ...]

    @property
    def nodes(self) -> list[Path]:
        """The beginnings of all labels, each once and after those that it begins with. The first is empty."""
        return sorted({tokens[:count] for tokens in self.tokens for count in range(len(tokens) + 1)})


class Scores:
    """The probabilities of one answer's labels, as far as they are known."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._nodes = labels.nodes
        self._visited = 0
        self._children: dict[Path, list[int]] = {}
        for node in self._nodes[1:]:
            self._children.setdefault(node[:-1], []).append(node[-1])
        self._logarithms: dict[Path, float] = {(): 0.0}
        """Of the probability of each node, given the prompt."""
        self._ends: dict[Path, float] = {}
        """Of the probability that the answer ends with this node, given the node."""

    def ends_beside(self, most: int) -> list[Path]:
        """Up to `most` other nodes that no label goes on from, and of which all but the last token is computed."""
        due, later = self._nodes[self._visited], itertools.islice(self._nodes, self._visited + 1, None)
        begun = (one for one in later if len(one) <= len(due) and one[:-1] == due[: len(one) - 1])
        ends = (one for one in begun if one not in self._ends and one not in self._children)
        return list(itertools.islice(ends, most))

    def note(self, logits: NDArray[np.floating]) -> Path | None:
        """Take the logits after the node that is due, [vocabulary]; returns the next node, None after the last one.

        The nodes before the next one's last token are always computed. Raises NotFiniteError.
        """
        self.note_of(self._nodes[self._visited], logits)
        while self._visited < len(self._nodes) and self._nodes[self._visited] in self._ends:
            self._visited += 1
        return self._nodes[self._visited] if self._visited < len(self._nodes) else None

    def note_of(self, node: Path, logits: NDArray[np.floating]) -> None:
        """Take the logits after a node whose own probability is known. Raises NotFiniteError."""
        wide = logits.astype(np.float64)
        highest = float(wide.max())
        if not math.isfinite(highest):
            raise NotFiniteError(f"the model gave {highest} as its best logit")
        total = highest + math.log(np.exp(wide - highest).sum())
        for token in self._children.get(node, ()):
            child = (*node, token)
            self._logarithms[child] = self._logarithms[node] + float(wide[token]) - total
        self._ends[node] = float(np.logaddexp.reduce(wide[list(self.labels.eos)])) - total

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each label, given that the answer is one of them."""
        logarithms = np.array([self._logarithms[tokens] + self._ends[tokens] for tokens in self.labels.tokens])
        weights = np.exp(logarithms - logarithms.max())
        return tuple(float(weight) for weight in weights / weights.sum())

    def choose(self, temperature: float, uniform: float) -> int:
        """The number of a label: the most probable one, or drawn by `uniform`, a number in [0, 1)."""
        shares = np.array(self.probabilities)
        if temperature == 0.0:
            return int(shares.argmax())
        with np.errstate(divide="ignore"):
            logarithms = np.log(shares) / max(temperature, 1e-20)
        weights = np.exp(logarithms - logarithms.max())
        sums = np.cumsum(weights)
        return int(np.searchsorted(sums, uniform * sums[-1], side="right"))
