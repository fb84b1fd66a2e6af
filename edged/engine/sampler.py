"""Chooses the next token from logits: greedy, or drawn with temperature, top-k, top-p and min-p by a seeded generator.

At a vocabulary of 262,144 tokens a sort, or the exponential of each logit, takes a tenth of a step of a small model. So
one pass finds the highest logit of each block of tokens, and tokens are drawn by rejection (von Neumann 1951), which
needs the weights of those alone that are drawn.
"""

from __future__ import annotations

import functools
import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import neg

import numpy as np
from numpy.typing import NDArray

_BLOCK = 128
"""Tokens of which only the highest is looked at first."""
_TRIES = 1024
"""Tries for which numbers are made at once."""
_AT_ONCE = 128
"""Tries that are made at once."""
_UNSEEN = 0.01
"""About the most that the tokens which are not looked at may weigh, of all, where top-p is to be decided."""
_CHUNK = 1 << 14
"""Logits that are computed with at once: more would be fresh memory each time, which costs as much."""
_LEAST_TEMPERATURE = 1e-20
"""A lower one would be 0 in float32. All but the best is gone long before."""


class NotFiniteError(ArithmeticError):
    """The model gave NaN or infinity where a number was due."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 leave all tokens in. Penalties of 0, a repetition
    penalty of 1 and no bias leave the logits as they are. `logit_bias`: token ids, each once, with what is added.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int] = ()) -> None:
        """`prompt`: token ids, for the repetition penalty. Raises ValueError for a negative seed."""
        self._sampling = sampling
        self._processor = LogitsProcessor(sampling, prompt)
        self._draws = Draws(sampling.seed)

    def sample(self, logits: NDArray[np.floating], denied: NDArray[np.bool_] | None = None) -> int:
        """The next token; from then on it counts as one of the answer.

        `logits`: [vocabulary], float32 or float16; they may be changed. `denied`: tokens that are not to be chosen,
        whatever bias and penalties say. Raises NotFiniteError.
        """
        wide = logits.astype(np.float32, copy=False)
        self._processor.apply(wide)
        if denied is not None:
            np.copyto(wide, -np.inf, where=denied)
        token = sample(wide, self._sampling, self._draws)
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """Count a token that was not chosen here as one of the answer. It takes no random number."""
        self._processor.note(token)

    def uniform(self) -> float:
        """A number in [0, 1), by the seed."""
        return self._draws.one()


class LogitsProcessor:
    """The bias and the penalties of one sequence: it counts the sequence's tokens and changes their logits."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int] = ()) -> None:
        """`prompt`: token ids. They count for the repetition penalty alone."""
        self._sampling = sampling
        self._biased = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._subtracts = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        self._penalises = self._subtracts or sampling.repetition_penalty != 1.0
        seen = prompt if sampling.repetition_penalty != 1.0 else ()
        self._tokens = np.array(sorted(set(seen)), np.int64)
        """Distinct tokens, as many as `_places` has; the rest is room for more."""
        self._subtracted = np.zeros(len(self._tokens), np.float32)
        """What the frequency penalty and the presence penalty take from each."""
        self._places = {token: place for place, token in enumerate(self._tokens.tolist())}
        self._counts: dict[int, int] = {}
        """How often the answer has each, where that matters."""

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change `logits`, [vocabulary], in place: the bias first, then the penalties, as vLLM does.

        The repetition penalty divides the logits of tokens of prompt and answer, or multiplies negative ones (Keskar et
        al. 2019, arXiv:1909.05858, section 4.1; transformers' RepetitionPenaltyLogitsProcessor). For tokens of the
        answer, the frequency penalty is subtracted as often as the token is there, the presence penalty once (OpenAI).
        """
        if len(self._biased):
            logits[self._biased] += self._bias
        count = len(self._places)
        if not count:
            return
        sampling, tokens, subtracted = self._sampling, self._tokens[:count], self._subtracted[:count]
        values = logits[tokens]
        if sampling.repetition_penalty != 1.0:
            penalty = np.float32(sampling.repetition_penalty)
            # Of a positive logit the quotient, of a negative one the product: the lesser one, if it is a penalty.
            chosen = np.minimum if penalty > 1 else np.maximum
            values = chosen(values * penalty, values / penalty)
        if self._subtracts:
            values -= subtracted
        logits[tokens] = values

    def note(self, token: int) -> None:
        """Count one token of the answer."""
        if not self._penalises:
            return
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros(place + 64, np.int64)])
            self._subtracted = np.concatenate([self._subtracted, np.zeros(place + 64, np.float32)])
        self._tokens[place] = token
        if self._subtracts:
            count = self._counts[token] = self._counts.get(token, 0) + 1
            self._subtracted[place] = self._sampling.frequency_penalty * count + self._sampling.presence_penalty


class Draws:
    """The random numbers of one sequence, made for many tries at once: a call for one try costs nearly as much."""

    def __init__(self, seed: int) -> None:
        """Raises ValueError for a negative seed."""
        self._generator = np.random.default_rng(seed)
        self._tries: tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]] | None = None
        self._taken = _TRIES

    def tries(self) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]]:
        """For each try to come, one at least: a number in [0, 1), a row of a block, and another number in [0, 1)."""
        if self._tries is None or self._taken == _TRIES:
            first, row, last = self._generator.random((3, _TRIES))
            self._tries, self._taken = (first, (row * _BLOCK).astype(np.intp), last), 0
        first, rows, last = self._tries
        tries = slice(self._taken, self._taken + _AT_ONCE)
        return first[tries], rows[tries], last[tries]

    def take(self, tries: int) -> None:
        """The first so many tries are done."""
        self._taken += tries

    def one(self) -> float:
        """One number in [0, 1), for which a whole try is taken."""
        number = float(self.tries()[0][0])
        self.take(1)
        return number


def sample(logits: NDArray[np.float32], sampling: Sampling, draws: Draws) -> int:
    """The next token for one row, by logits after bias and penalties.

    `logits`: [vocabulary]. First comes the temperature, then top-k, top-p and min-p, each on what the one before
    leaves, as in transformers. How many numbers of `draws` it takes depends on this row alone, so a seed gives the same
    tokens in any batch. Raises NotFiniteError.
    """
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        best = int(np.argmax(logits))  # the first NaN, where there is one
        _check(logits[best])
        return best
    blocks = _Blocks(logits, sampling.temperature)
    if 0 < sampling.top_k < len(logits):
        return _draw_sorted(*blocks.top(sampling.top_k), sampling, draws)
    return _draw(blocks, sampling, draws)


def _check(highest: np.float32) -> None:
    if not math.isfinite(highest):
        raise NotFiniteError(f"the model gave {highest} as its best logit")


def _draw_sorted(tokens: NDArray[np.intp], weights: list[float], sampling: Sampling, draws: Draws) -> int:
    """One of the tokens that top-p and min-p leave of these, of which the likeliest comes first and weighs 1."""
    sums, count = list(accumulate(weights)), len(weights)
    if sampling.top_p < 1.0:
        count = bisect_left(sums, sampling.top_p * sums[-1]) + 1
    if sampling.min_p > 0.0:
        count = min(count, bisect_right(weights, -sampling.min_p, key=neg))
    return int(tokens[bisect_right(sums, draws.one() * sums[count - 1])])


def _draw(blocks: _Blocks, sampling: Sampling, draws: Draws) -> int:
    """One of the tokens that top-p and min-p leave of all.

    These are the likeliest. So where a token is drawn that is none of them, the next is drawn from those before it.
    """
    end = (blocks.logit(sampling.min_p), len(blocks.logits)) if sampling.min_p > 0.0 else None
    share = max(sampling.top_p, sys.float_info.min)  # one token at least
    while True:
        token = blocks.draw(draws, end)
        if sampling.top_p >= 1.0 or blocks.in_nucleus(token, share):
            return token
        end = blocks.logits[token], token


class _Blocks:
    """Logits in blocks of `_BLOCK` tokens and the highest of each block, so that few others need be looked at.

    A block has tokens at equal distances, so that one quick pass finds all maxima. The tokens that are left over are
    blocks of one. A token weighs exp((logit - highest) / temperature). Among equals the first is before the others.

    There are few operations: after a step, when the processor's caches hold weights, each costs ten microseconds.
    """

    def __init__(self, logits: NDArray[np.float32], temperature: float) -> None:
        """Raises NotFiniteError."""
        self.logits = logits
        self._temperature = max(temperature, _LEAST_TEMPERATURE)
        self._slope = np.float32(1 / self._temperature)
        self._whole = len(logits) // _BLOCK
        covered = self._whole * _BLOCK
        self._table = logits[:covered].reshape(_BLOCK, self._whole)
        peaks = self._table.max(axis=0)
        self._peaks = peaks if covered == len(logits) else np.concatenate([peaks, logits[covered:]])
        self._highest = self._peaks[self._peaks.argmax()]  # NaN, where there is one
        _check(self._highest)

    def logit(self, weight: float) -> np.float32:
        """The logit of a token of this weight, which is not 0."""
        logit: np.float32 = np.float32(float(self._highest) + self._temperature * math.log(weight))
        return logit

    def draw(self, draws: Draws, end: tuple[np.float32, int] | None) -> int:
        """One of the tokens before `end`: their logits are above the first number, or equal and they below the second.

        By rejection: a block is drawn by its bound, and one of its tokens, which is taken with the probability of its
        weight / that of the block's best, so one in `_BLOCK` at least.
        """
        bounds = self._bounds if end is None else self._bounds * (self._peaks >= end[0])
        sums = bounds.astype(np.float64).cumsum()
        while True:
            drawn, rows, kept = draws.tries()
            blocks = sums.searchsorted(drawn * sums[-1], side="right")
            tokens = rows * self._whole
            if len(self._peaks) > self._whole:
                tokens[blocks >= self._whole] = (_BLOCK - 1) * self._whole
            tokens += blocks
            logits = self.logits[tokens]
            taken = kept < self._weigh(logits, self._peaks[blocks])
            if end is not None:
                taken &= (logits > end[0]) | ((logits == end[0]) & (tokens < end[1]))
            first = int(taken.argmax())
            if taken[first]:
                draws.take(first + 1)
                return int(tokens[first])
            draws.take(len(taken))

    def in_nucleus(self, token: int, share: float) -> bool:
        """Whether the tokens before `token` weigh less than `share` of all (Holtzman et al. 2019, arXiv:1904.09751).

        Mostly the likeliest tell that: what the others weigh has a bound.
        """
        value, bounds = self.logits[token], self._bounds
        light = _UNSEEN * float(bounds.sum()) / len(self.logits)
        tokens = self.at_least(min(self.logit(light), value))
        if 8 * len(tokens) < len(self.logits):
            before, seen = self._before(self.logits[tokens], value, int(tokens.searchsorted(token)))
            if before < share * seen:
                return True
            if before >= share * (seen + _BLOCK * float(np.minimum(bounds, light).sum())):
                return False
        starts = range(0, len(self.logits), _CHUNK)
        parts = [self._before(self.logits[start : start + _CHUNK], value, max(token - start, 0)) for start in starts]
        return sum(before for before, _ in parts) < share * sum(part for _, part in parts)

    def at_least(self, logit: np.float32) -> NDArray[np.intp]:
        """The tokens whose logits are this high, by id."""
        blocks = (self._peaks >= logit).nonzero()[0]
        whole = blocks[: blocks.searchsorted(self._whole)]
        if 4 * len(whole) > self._whole:
            return np.flatnonzero(self.logits >= logit)
        rows, places = (self._table.take(whole, axis=1) >= logit).nonzero()
        tokens: NDArray[np.intp] = rows * self._whole + whole[places]
        rest = blocks[len(whole) :]
        return np.concatenate([tokens, rest + (_BLOCK - 1) * self._whole]) if len(rest) else tokens

    def top(self, count: int) -> tuple[NDArray[np.intp], list[float]]:
        """The `count` likeliest tokens and their weights, the likeliest first; among equals the first by id."""
        if count <= len(self._peaks):  # so many tokens at least are as high as this
            parted = self._peaks.copy()
            parted.partition(-count)
            tokens = self.at_least(parted[-count])
        else:
            tokens = np.arange(len(self.logits))
        falling = -self.logits[tokens]
        order = falling.argsort(kind="stable")[:count]
        return tokens[order], self._weigh(-falling[order], self._highest).tolist()

    @functools.cached_property
    def _bounds(self) -> NDArray[np.float32]:
        """The most that each block can weigh, by `_BLOCK`."""
        bounds = self._weigh(self._peaks, self._highest)
        if len(bounds) > self._whole:
            bounds[self._whole :] /= _BLOCK
        return bounds

    def _before(self, logits: NDArray[np.float32], value: np.float32, place: int) -> tuple[float, float]:
        """The weight of those of `logits` that are before `value`, which is at `place` or comes there; of all."""
        weights = self._weigh(logits, self._highest)
        before = logits > value
        before[:place] |= logits[:place] == value
        return float(np.dot(weights, before)), float(weights.sum())

    def _weigh(self, logits: NDArray[np.float32], best: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
        """The weights of logits, those of `best` being 1."""
        weights = logits - best
        weights *= self._slope
        np.exp(weights, out=weights)
        return weights
