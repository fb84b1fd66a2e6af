"""Chooses the next token from logits: greedy, or drawn with temperature, top-k, top-p and min-p by a seeded generator.

At a vocabulary of 262,144 tokens a full sort, or fresh memory for a few arrays of that length, takes as long as a step
of a small model. So the work is done in place, and only tokens that may be chosen are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64
"""Tokens of which only the highest is looked at first in the search for the top-k."""
_SUM_BLOCK = 512
"""Weights that are added up in float32."""
_FEW, _CHUNK, _BUCKETS = 2048, 1 << 15, 1 << 13
"""Tokens that are sorted as they are; of more of them the weights are counted in buckets first, so many at a time."""
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
        self._generator = np.random.default_rng(sampling.seed)

    def sample(self, logits: NDArray[np.floating]) -> int:
        """The next token; from then on it counts as one of the answer.

        `logits`: [vocabulary], float32 or float16; they may be changed. Raises NotFiniteError.
        """
        wide = logits.astype(np.float32, copy=False)
        self._processor.apply(wide)
        token = sample(wide, self._sampling, self._generator)
        self._processor.note(token)
        return token


class LogitsProcessor:
    """The bias and the penalties of one sequence: it counts the sequence's tokens and changes their logits."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int] = ()) -> None:
        """`prompt`: token ids. They count for the repetition penalty alone."""
        self._sampling = sampling
        self._biased = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._penalises = (
            sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        )
        seen = prompt if sampling.repetition_penalty != 1.0 else ()
        self._tokens = np.array(sorted(set(seen)), np.int64)
        """Distinct tokens, as many as `_places` has; the rest is room for more."""
        self._made = np.zeros(len(self._tokens), np.float32)
        """How often the answer has each."""
        self._places = {token: place for place, token in enumerate(self._tokens.tolist())}

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
        sampling, tokens, made = self._sampling, self._tokens[:count], self._made[:count]
        values = logits[tokens]
        if sampling.repetition_penalty != 1.0:
            penalty = np.float32(sampling.repetition_penalty)
            values = np.where(values < 0, values * penalty, values / penalty)
        if sampling.frequency_penalty != 0.0:
            values -= np.float32(sampling.frequency_penalty) * made
        if sampling.presence_penalty != 0.0:
            values -= np.float32(sampling.presence_penalty) * np.minimum(made, 1)
        logits[tokens] = values

    def note(self, token: int) -> None:
        """Count one token of the answer."""
        if not self._penalises:
            return
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros(place + 64, np.int64)])
            self._made = np.concatenate([self._made, np.zeros(place + 64, np.float32)])
        self._tokens[place] = token
        self._made[place] += 1


def sample(logits: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token for one row, by logits after bias and penalties.

    `logits`: [vocabulary]; they may be changed. First comes the temperature, then top-k, top-p and min-p, each on what
    the one before leaves, as in transformers. Draws one number from `generator` per token and only when sampling, so a
    seed gives the same tokens in any batch. Raises NotFiniteError.
    """
    best = int(np.argmax(logits))  # the first NaN, where there is one
    highest = logits[best]
    if not np.isfinite(highest):
        raise NotFiniteError(f"the model gave {highest} as its best logit")
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return best
    return _draw(logits, float(highest), sampling, generator.random())


def _draw(logits: NDArray[np.float32], highest: float, sampling: Sampling, uniform: float) -> int:
    """One token by `uniform`, a number in [0, 1), which runs through the tokens by id. `logits` are changed."""
    temperature = max(sampling.temperature, _LEAST_TEMPERATURE)
    tokens: NDArray[np.intp] | None = None  # None: all
    if 0 < sampling.top_k < len(logits):
        tokens = _top_k(logits, sampling.top_k)
        logits = logits[tokens]
    elif sampling.min_p > 0.0 and sampling.top_p >= 1.0:  # without the weights of all tokens
        tokens = np.flatnonzero(logits >= highest + temperature * math.log(sampling.min_p))
        logits = logits[tokens]
    weights = logits
    weights -= np.float32(highest)
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature: everything but the best goes to nothing
        weights /= np.float32(temperature)
        np.exp(weights, out=weights)
    if sampling.top_p < 1.0:
        kept = _top_p(weights, sampling.top_p)
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    if sampling.min_p > 0.0:  # the best has the weight 1
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    place = _place(weights, uniform)
    return place if tokens is None else int(tokens[place])


def _top_k(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The `count` tokens with the highest logits, by id; among equals the first."""
    whole = len(logits) - len(logits) % _BLOCK
    highest = np.concatenate([logits[:whole].reshape(_BLOCK, -1).max(axis=0), logits[whole:]])
    if count <= len(highest):  # so many tokens at least are as high as this
        tokens = np.flatnonzero(logits >= np.partition(highest, -count)[-count])
    else:
        tokens = np.arange(len(logits))
    values = logits[tokens]
    edge = np.partition(values, -count)[-count]
    kept = values > edge
    kept[np.flatnonzero(values == edge)[: count - np.count_nonzero(kept)]] = True
    chosen: NDArray[np.intp] = tokens[kept]
    return chosen


def _top_p(weights: NDArray[np.float32], share: float) -> NDArray[np.intp]:
    """The places of the smallest set whose weight reaches `share` of all (Holtzman et al. 2019, arXiv:1904.09751).

    By place; among equals the first.
    """
    total = float(_sums(weights).sum(dtype=np.float64))
    least = total * share
    # All weights below this bound, together, cannot make up what the set may lack.
    candidates = weights >= np.float32((total - least) / len(weights) * (1 - 1e-6))
    few = np.count_nonzero(candidates) <= _FEW
    if not few:  # a flat distribution
        buckets = weights.view(np.uint32) >> 18  # a float's leading bits rise with it
        mass = np.zeros(_BUCKETS)
        for start in range(0, len(weights), _CHUNK):
            part = slice(start, start + _CHUNK)
            mass += np.bincount(buckets[part], weights=weights[part], minlength=_BUCKETS)
        down = np.cumsum(mass[::-1])  # from the bucket of the heaviest
        passed = int(np.searchsorted(down, least))
        edge = _BUCKETS - 1 - passed
        kept, candidates = buckets > edge, buckets == edge
        least -= down[passed - 1] if passed else 0.0
    places = np.flatnonzero(candidates)
    places = places[np.argsort(-weights[places], kind="stable")]
    places = places[: int(np.searchsorted(np.cumsum(weights[places], dtype=np.float64), least)) + 1]
    if few:
        return np.sort(places)
    kept[places] = True
    return np.flatnonzero(kept)


def _place(weights: NDArray[np.float32], uniform: float) -> int:
    """The place where the running sum of the weights passes `uniform` of the whole."""
    sums = np.cumsum(_sums(weights), dtype=np.float64)
    block = _passes(sums, uniform * sums[-1])
    before = sums[block - 1] if block else 0.0
    inside = np.cumsum(weights[block * _SUM_BLOCK : (block + 1) * _SUM_BLOCK], dtype=np.float64)
    return block * _SUM_BLOCK + _passes(inside, uniform * sums[-1] - before)


def _passes(sums: NDArray[np.float64], goal: float) -> int:
    """The first place whose running sum is above `goal`, or the last one that adds to it."""
    return int(np.searchsorted(sums, min(goal, np.nextafter(sums[-1], 0.0)), side="right"))


def _sums(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of blocks of weights."""
    return np.add.reduceat(weights, np.arange(0, len(weights), _SUM_BLOCK))
