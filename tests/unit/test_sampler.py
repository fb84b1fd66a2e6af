"""The choice of a token: greedy, or drawn with the probabilities that were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.engine.sampler import NotFiniteError, Sampling, sample

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 2.5, -1.0, 1.5], np.float32)


def draws(count: int, logits: NDArray[Any] = LOGITS, **sampling: Any) -> NDArray[np.int64]:
    """How often each token is drawn."""
    generator = np.random.default_rng(5)
    wanted = Sampling(**{"temperature": 1.0, **sampling})
    return np.bincount([sample(logits, wanted, generator) for _ in range(count)], minlength=len(logits))


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return np.asarray(weights / weights.sum())


def assert_distributed(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> None:
    """Chi-square: below its 99.9 % quantile for up to 7 degrees of freedom (24.3); the draws are seeded."""
    assert not counts[expected == 0].any()
    seen = expected > 0
    due = expected[seen] * counts.sum()
    assert float(((counts[seen] - due) ** 2 / due).sum()) < 24.3


class TestGreedy:
    def test_the_best_is_taken_the_first_among_equals(self) -> None:
        assert sample(LOGITS, Sampling(), np.random.default_rng(0)) == 1
        assert sample(np.array([0, 7, 7], np.float16), Sampling(), np.random.default_rng(0)) == 1

    def test_nothing_is_drawn_from_the_generator(self) -> None:
        generator = np.random.default_rng(3)
        sample(LOGITS, Sampling(), generator)
        assert generator.random() == np.random.default_rng(3).random()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("place", [0, 5, 7])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_nan_or_infinity_anywhere_is_an_error(self, bad: float, place: int, temperature: float) -> None:
        logits = LOGITS.copy()
        logits[place] = bad
        with pytest.raises(NotFiniteError, match="as its best logit"):
            sample(logits, Sampling(temperature=temperature), np.random.default_rng(0))

    def test_logits_that_are_all_minus_infinity_are_an_error(self) -> None:
        with pytest.raises(NotFiniteError):
            sample(np.full(4, -np.inf, np.float32), Sampling(), np.random.default_rng(0))


class TestDrawing:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
    def test_tokens_come_as_often_as_softmax_says(self, temperature: float) -> None:
        assert_distributed(draws(20_000, temperature=temperature), softmax(LOGITS, temperature))

    @pytest.mark.parametrize("top_k", [2, 3, 7])
    def test_top_k_leaves_the_k_best_in_their_proportions(self, top_k: int) -> None:
        order = np.lexsort((np.arange(len(LOGITS)), -LOGITS))
        expected = np.zeros(len(LOGITS))
        expected[order[:top_k]] = softmax(LOGITS[order[:top_k]])
        assert_distributed(draws(10_000, top_k=top_k), expected)

    @pytest.mark.parametrize(("top_p", "kept"), [(0.37, [1]), (0.6, [1, 3]), (0.8, [1, 3, 5]), (0.9, [1, 3, 5, 7])])
    def test_top_p_leaves_the_smallest_set_that_reaches_it(self, top_p: float, kept: list[int]) -> None:
        expected = np.zeros(len(LOGITS))
        expected[kept] = softmax(LOGITS[kept])
        assert_distributed(draws(10_000, top_p=top_p), expected)

    def test_top_p_counts_within_top_k(self) -> None:
        assert set(np.flatnonzero(draws(3000, top_k=3, top_p=0.6))) == {1, 3}

    @pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-300}, {"top_p": 1e-12}])
    def test_only_the_best_is_left(self, sampling: dict[str, float]) -> None:
        assert set(np.flatnonzero(draws(200, **sampling))) == {1}

    def test_top_k_beyond_the_vocabulary_leaves_all(self) -> None:
        assert (draws(500, top_k=99) == draws(500)).all()

    def test_ties_at_the_edge_of_top_k_go_by_token_id(self) -> None:
        assert set(np.flatnonzero(draws(2000, np.zeros(100, np.float32), top_k=3))) == {0, 1, 2}

    def test_tokens_of_minus_infinity_never_come(self) -> None:
        logits = np.array([0, -np.inf, 1, -np.inf], np.float32)
        assert_distributed(draws(4000, logits), np.array([*softmax(np.array([0.0, 1.0]))])[[0, 0, 1, 1]] * [1, 0, 1, 0])

    def test_one_number_is_drawn_for_each_token_whatever_is_asked(self) -> None:
        """So that a job's tokens do not depend on what else is computed."""
        for sampling in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.5), Sampling(0.7, 0.9, 4)):
            generator, other = np.random.default_rng(1), np.random.default_rng(1)
            sample(LOGITS, sampling, generator)
            other.random()
            assert generator.random() == other.random()

    @given(
        st.lists(st.integers(-60, 60), min_size=2, max_size=50),
        st.floats(0.05, 5),
        st.integers(0, 60),
        st.floats(0, 1),
        st.integers(0, 2**31),
    )
    def test_the_choice_is_what_sorting_everything_would_give(
        self, halves: list[int], temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        """The shortcuts (partition, a bound for the nucleus) change nothing."""
        logits = np.array(halves, np.float32) / 2
        chosen = sample(logits, Sampling(temperature, top_p, top_k, seed), np.random.default_rng(seed))
        order = np.lexsort((np.arange(len(logits)), -logits))[: top_k or None]
        cumulative = np.cumsum(np.exp((logits[order].astype(np.float64) - logits.max()) / temperature))
        if top_p < 1.0:
            order = order[: int((cumulative < cumulative[-1] * top_p * (1 - 1e-12)).sum()) + 1]
        if not (0 < top_k < len(logits) or top_p < 1.0):
            order = np.sort(order)  # nothing was left out, so nothing had to be sorted
        assert chosen in order
        if top_k != 1:
            shares = np.cumsum(np.exp((logits[order].astype(np.float64) - logits.max()) / temperature))
            place = list(order).index(chosen)
            uniform = np.random.default_rng(seed).random() * shares[-1]
            assert (shares[place - 1] if place else 0.0) - 1e-9 <= uniform <= shares[place] + 1e-9


class TestRepetitionPenalty:
    def test_what_was_seen_becomes_less_likely_whatever_its_sign(self) -> None:
        logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
        penalty = Sampling(repetition_penalty=1.5)
        assert sample(logits, penalty, np.random.default_rng(0), [0, 0, 0]) == 1
        assert sample(logits[2:], penalty, np.random.default_rng(0), [0]) == 1

    def test_the_models_own_logits_stay_as_they_are(self) -> None:
        logits = LOGITS.copy()
        sample(logits, Sampling(repetition_penalty=2.0), np.random.default_rng(0), [1, 3])
        assert (logits == LOGITS).all()

    def test_one_changes_nothing(self) -> None:
        assert sample(LOGITS, Sampling(repetition_penalty=1.0), np.random.default_rng(0), [1]) == 1
