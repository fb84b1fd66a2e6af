"""The choice of a token: greedy, or drawn with the probabilities that were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.engine.sampler import NotFiniteError, Sampler, Sampling, sample

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 2.5, -1.0, 1.5], np.float32)


def draws(count: int, logits: NDArray[Any] = LOGITS, **sampling: Any) -> NDArray[np.int64]:
    """How often each token is drawn."""
    generator = np.random.default_rng(5)
    wanted = Sampling(**{"temperature": 1.0, **sampling})
    return np.bincount([sample(logits.copy(), wanted, generator) for _ in range(count)], minlength=len(logits))


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
        assert Sampler(Sampling()).sample(LOGITS.copy()) == 1
        assert Sampler(Sampling()).sample(np.array([0, 7, 7], np.float16)) == 1

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
    def test_only_the_best_is_left(self, sampling: dict[str, Any]) -> None:
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
            sample(LOGITS.copy(), sampling, generator)
            other.random()
            assert generator.random() == other.random()

    @given(
        st.lists(st.integers(-60, 60), min_size=2, max_size=50),
        st.floats(0.05, 5),
        st.integers(0, 60),
        st.floats(0, 1),
        st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]),
        st.integers(0, 2**31),
    )
    def test_the_choice_is_what_sorting_everything_would_give(
        self, halves: list[int], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
    ) -> None:
        """The shortcuts (in place, float32, blocks, a bound for the nucleus) change nothing."""
        logits = (np.array(halves) / 2).astype(np.float32)
        sampling = Sampling(temperature, top_p, top_k, seed, min_p=min_p)
        chosen = sample(logits.copy(), sampling, np.random.default_rng(seed))
        assert_right_choice(chosen, logits, sampling)

    @pytest.mark.parametrize("size", [5_003, 40_000])
    @pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
    def test_the_choice_is_right_in_large_vocabularies_flat_or_peaked(self, size: int, spread: float) -> None:
        chance = np.random.default_rng(size)
        for seed in range(2):
            logits = chance.normal(0, spread, size).astype(np.float32)
            for more in ({}, {"top_k": 50}, {"top_k": 900}, {"top_p": 0.5}, {"top_p": 0.99}, {"min_p": 0.2}):
                for sampling in (Sampling(1.0, seed=seed, **more), Sampling(0.7, 0.9, 60, seed, min_p=0.05)):
                    chosen = sample(logits.copy(), sampling, np.random.default_rng(seed))
                    assert_right_choice(chosen, logits, sampling)


def assert_right_choice(chosen: int, logits: NDArray[np.float32], sampling: Sampling) -> None:
    """By the definitions: everything sorted and in float64. Where two borders are within rounding, either may do."""
    order = np.lexsort((np.arange(len(logits)), -logits))[: sampling.top_k or None]
    weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    allowed = []
    for slack in (-1e-6, 1e-6):
        kept, cumulative = order, np.cumsum(weights[order])
        if sampling.top_p < 1.0:
            kept = order[: int((cumulative < cumulative[-1] * (sampling.top_p + slack)).sum()) + 1]
        kept = np.sort(kept[weights[kept] >= sampling.min_p * (1 + slack)])
        shares = np.cumsum(weights[kept])
        if chosen in kept:
            place = int(np.searchsorted(kept, chosen))
            uniform = np.random.default_rng(sampling.seed).random() * shares[-1]
            margin = 1e-5 * shares[-1]
            allowed.append((shares[place - 1] if place else 0.0) - margin <= uniform <= shares[place] + margin)
    assert sampling.top_k == 1 or any(allowed)


def reference(logits: NDArray[np.float32], sampling: Sampling, prompt: list[int], answer: list[int]) -> NDArray[Any]:
    """Logits after bias and penalties, token by token, as the documents of OpenAI, vLLM and transformers have it."""
    changed = logits.astype(np.float64)
    for token, bias in sampling.logit_bias:
        changed[token] = changed[token] + bias
    for token in range(len(logits)):
        if token in prompt or token in answer:
            if changed[token] < 0:
                changed[token] = changed[token] * sampling.repetition_penalty
            else:
                changed[token] = changed[token] / sampling.repetition_penalty
        count = answer.count(token)
        changed[token] = (
            changed[token] - count * sampling.frequency_penalty - float(count > 0) * sampling.presence_penalty
        )
    return changed


class TestPenaltiesAndBias:
    """Against a reference on random logits."""

    CASES = (
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 0.8},
        {"frequency_penalty": -0.4},
        {"logit_bias": ((3, 100.0), (9, -100.0), (0, 0.5))},
        {
            "repetition_penalty": 1.2,
            "presence_penalty": 0.6,
            "frequency_penalty": 0.4,
            "logit_bias": ((1, 2.5), (50, -3.0), (7, 4.0)),
        },
    )

    @pytest.mark.parametrize("wanted", CASES)
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_greedy_answers_are_those_of_the_reference(self, wanted: dict[str, Any], dtype: type) -> None:
        for seed in range(4):
            chance = np.random.default_rng(seed)
            prompt = chance.integers(0, 60, 25).tolist()
            sampling, answer = Sampling(**wanted), list[int]()
            sampler = Sampler(sampling, prompt)
            for _ in range(80):
                logits: NDArray[Any] = (chance.normal(-2, 1, 60) + np.linspace(-1, 1, 60)).astype(dtype)
                expected = reference(logits.astype(np.float32), sampling, prompt, answer)
                token = sampler.sample(logits)
                assert expected[token] >= expected.max() - 1e-4
                answer.append(token)
            assert len(set(answer)) > 1 or "logit_bias" in wanted or wanted.get("presence_penalty", 0) < 0

    @pytest.mark.parametrize("wanted", CASES)
    def test_draws_follow_the_changed_logits(self, wanted: dict[str, Any]) -> None:
        logits = np.random.default_rng(1).normal(-1, 1, 60).astype(np.float32)
        prompt, answer = [1, 7, 7, 20], [3, 3, 7, 41]
        sampling = Sampling(temperature=1.0, top_k=8, **wanted)
        weights = np.exp(reference(logits, sampling, prompt, answer))
        weights[np.argsort(weights)[:-8]] = 0
        counts = np.zeros(60, np.int64)
        for seed in range(800):
            sampler = Sampler(Sampling(**{**vars(sampling), "seed": seed}), prompt)
            for token in answer:
                forced = np.full(60, -1e4, np.float32)
                forced[token] = 1e4
                assert sampler.sample(forced) == token
            counts[sampler.sample(logits.copy())] += 1
        assert_distributed(counts, weights / weights.sum())

    def test_a_prompt_counts_for_the_repetition_penalty_alone(self) -> None:
        for wanted in (Sampling(presence_penalty=2.0), Sampling(frequency_penalty=2.0)):
            assert Sampler(wanted, [1, 1, 1]).sample(LOGITS.copy()) == 1
        assert Sampler(Sampling(repetition_penalty=2.0), [1]).sample(LOGITS.copy()) == 3

    def test_neutral_values_change_nothing(self) -> None:
        logits = LOGITS.copy()
        assert Sampler(Sampling(logit_bias=((2, 0.0),)), [1]).sample(logits) == 1
        assert (logits == LOGITS).all()

    def test_not_finite_logits_are_found_behind_penalties_and_bias(self) -> None:
        for bad in (np.nan, np.inf):
            logits = LOGITS.copy()
            logits[2] = bad
            with pytest.raises(NotFiniteError):
                Sampler(Sampling(repetition_penalty=1.5, presence_penalty=1, logit_bias=((2, -100),)), [2]).sample(
                    logits
                )

    def test_a_long_answer_has_room(self) -> None:
        sampler = Sampler(Sampling(presence_penalty=2.0))
        logits = np.linspace(0, 1.5, 500).astype(np.float32)
        assert len({sampler.sample(logits.copy()) for _ in range(500)}) == 500


class TestMinP:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("min_p", [0.02, 0.1, 0.5, 1.0])
    def test_tokens_below_a_share_of_the_bests_probability_are_out(self, temperature: float, min_p: float) -> None:
        probabilities = softmax(LOGITS, temperature)
        expected = np.where(probabilities < min_p * probabilities.max(), 0, probabilities)
        counts = draws(6000, temperature=temperature, min_p=min_p)
        assert_distributed(counts, expected / expected.sum())

    def test_min_p_comes_after_top_k_and_top_p(self) -> None:
        """As in transformers: top-p counts the tokens that min-p will drop."""
        probabilities = softmax(LOGITS)
        expected = np.where(np.isin(np.arange(8), [1, 3, 5]), probabilities, 0)
        assert_distributed(draws(6000, top_p=0.7, min_p=0.3), expected / expected.sum())
        assert set(np.flatnonzero(draws(3000, top_k=2, min_p=0.1))) == {1, 3}
