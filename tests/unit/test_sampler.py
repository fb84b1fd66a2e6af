"""The choice of a token: greedy, or drawn with the probabilities that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edged.engine.sampler import Draws, NotFiniteError, Sampler, Sampling, sample

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 2.5, -1.0, 1.5], np.float32)


def draws(count: int, logits: NDArray[Any] = LOGITS, **sampling: Any) -> NDArray[np.int64]:
    """How often each token is drawn."""
    draws = Draws(5)
    wanted = Sampling(**{"temperature": 1.0, **sampling})
    return np.bincount([sample(logits.copy(), wanted, draws) for _ in range(count)], minlength=len(logits))


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

    def test_nothing_is_drawn(self) -> None:
        draws = Draws(3)
        sample(LOGITS, Sampling(), draws)
        assert draws.one() == Draws(3).one()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("place", [0, 5, 7])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_nan_or_infinity_anywhere_is_an_error(self, bad: float, place: int, temperature: float) -> None:
        logits = LOGITS.copy()
        logits[place] = bad
        with pytest.raises(NotFiniteError, match="as its best logit"):
            sample(logits, Sampling(temperature=temperature), Draws(0))

    def test_logits_that_are_all_minus_infinity_are_an_error(self) -> None:
        with pytest.raises(NotFiniteError):
            sample(np.full(4, -np.inf, np.float32), Sampling(), Draws(0))


class TestDrawing:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
    def test_tokens_come_as_often_as_softmax_says(self, temperature: float) -> None:
        assert_distributed(draws(2_000, temperature=temperature), softmax(LOGITS, temperature))

    @pytest.mark.parametrize("top_k", [2, 3, 7])
    def test_top_k_leaves_the_k_best_in_their_proportions(self, top_k: int) -> None:
        order = np.lexsort((np.arange(len(LOGITS)), -LOGITS))
        expected = np.zeros(len(LOGITS))
        expected[order[:top_k]] = softmax(LOGITS[order[:top_k]])
        assert_distributed(draws(1_500, top_k=top_k), expected)

    @pytest.mark.parametrize(("top_p", "kept"), [(0.37, [1]), (0.6, [1, 3]), (0.8, [1, 3, 5]), (0.9, [1, 3, 5, 7])])
    def test_top_p_leaves_the_smallest_set_that_reaches_it(self, top_p: float, kept: list[int]) -> None:
        expected = np.zeros(len(LOGITS))
        expected[kept] = softmax(LOGITS[kept])
        assert_distributed(draws(1_500, top_p=top_p), expected)

    def test_top_p_counts_within_top_k(self) -> None:
        assert set(np.flatnonzero(draws(1000, top_k=3, top_p=0.6))) == {1, 3}

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

    def test_the_best_are_found_wherever_they_are(self) -> None:
        logits, best = np.zeros(40_000, np.float32), [5, 700, 12_345, 20_000, 39_999]
        logits[best] = [5.0, 4.9, 5.1, 5.0, 4.8]
        for wanted in ({"top_k": 5}, {"min_p": 0.5}, {"top_p": 0.0165}):
            assert set(np.flatnonzero(draws(100, logits, **wanted))) == set(best)

    def test_what_the_unlikely_tokens_weigh_together_counts_for_top_p(self) -> None:
        """The second best has 0.5 % and is in the nucleus only by the 1 % that 40,000 others have together."""
        logits = np.full(40_000, np.log(2.4e-7), np.float32)
        logits[:2] = 0, np.log(0.005)
        assert set(np.flatnonzero(draws(2000, logits, top_p=0.99))) == {0, 1}
        assert set(np.flatnonzero(draws(2000, logits, top_p=0.98))) == {0}

    def test_a_seed_gives_the_same_tokens_beside_any_other_rows(self) -> None:
        def rows(*seeds: int) -> list[list[int]]:
            samplers = [Sampler(Sampling(1.2, 0.9, seed=seed)) for seed in seeds]
            return [[sampler.sample(LOGITS.copy()) for sampler in samplers] for _ in range(50)]

        assert [row[0] for row in rows(7)] == [row[2] for row in rows(1, 2, 7, 3)]
        assert len({tuple(row) for row in zip(*rows(1, 2, 3, 7), strict=True)}) == 4

    @given(
        st.lists(st.integers(-60, 60), min_size=2, max_size=50),
        st.integers(2, 300),
        st.floats(0.05, 5),
        st.integers(0, 100),
        st.floats(0, 1),
        st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]),
        st.integers(0, 2**31),
    )
    def test_the_choice_is_what_sorting_everything_would_give(
        self, halves: list[int], size: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
    ) -> None:
        """The shortcuts (float32, bounds instead of sums, no sort) change nothing."""
        logits = np.resize((np.array(halves) / 2).astype(np.float32), size)
        sampling = Sampling(temperature, top_p, top_k, seed, min_p=min_p)
        chosen = sample(logits, sampling, Draws(seed))
        assert reference_choice(logits, sampling) in (chosen, None)

    @pytest.mark.parametrize("size", [5_003, 40_000])
    @pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
    def test_the_choice_is_right_in_large_vocabularies_flat_or_peaked(self, size: int, spread: float) -> None:
        chance, sure = np.random.default_rng(size), 0
        for seed in range(4):
            logits = chance.normal(0, spread, size).astype(np.float32)
            more: list[dict[str, Any]] = [{}, {"top_k": 50}, {"top_k": 900}, {"min_p": 0.2}, {"top_p": 0.001}]
            more += [{"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.99}, {"top_p": 0.9, "top_k": 60, "min_p": 0.05}]
            for one in more:
                sampling = Sampling(0.7, seed=seed, **one)
                expected = reference_choice(logits, sampling)
                sure += expected is not None
                assert expected in (sample(logits, sampling, Draws(seed)), None)
        assert sure > 20

    @pytest.mark.parametrize("wanted", [{}, {"top_p": 0.9}, {"top_p": 0.3, "min_p": 0.01}, {"top_k": 70}])
    def test_tokens_of_a_larger_vocabulary_come_as_often_as_softmax_says(self, wanted: dict[str, Any]) -> None:
        """163 tokens: blocks, and tokens that are left over. Eight groups of them are counted, each from all places."""
        logits = np.random.default_rng(2).normal(0, 1.5, 163).astype(np.float32)
        order = np.argsort(-logits)
        kept = softmax(logits)
        kept[order[wanted.get("top_k", 163) :]] = 0
        kept[order[int((np.cumsum(kept[order]) < wanted.get("top_p", 1.0) * kept.sum()).sum()) + 1 :]] = 0
        kept[kept < wanted.get("min_p", 0.0) * kept.max()] = 0
        counts = draws(2_000, logits, **wanted)
        assert not counts[kept == 0].any()
        groups = np.arange(163) * 8 // 163
        expected = np.bincount(groups, weights=kept / kept.sum())
        assert_distributed(np.bincount(groups, weights=counts), expected)
        ranks = np.empty(163, np.int64)
        ranks[order] = np.minimum(np.arange(163), 7)  # the seven best, and all others
        expected = np.bincount(ranks, weights=kept / kept.sum())
        assert_distributed(np.bincount(ranks, weights=counts), expected)


def reference_choice(logits: NDArray[np.float32], sampling: Sampling) -> int | None:
    """The token by the definitions, with everything sorted and in float64, for the numbers that the seed gives.

    None where one of them is so near a border that rounding decides.
    """
    order = np.lexsort((np.arange(len(logits)), -logits))[: sampling.top_k or None]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / sampling.temperature)
    sums = np.cumsum(weights)
    before, border = np.concatenate([[0.0], sums[:-1]]), sampling.top_p * sums[-1]
    left = (weights >= sampling.min_p) & ((before < border) | (before == 0) | (sampling.top_p >= 1))
    if sampling.top_k == 1:
        return int(order[0])
    if sampling.top_p < 1 and abs(before[1:] - border).min() < 1e-6 * sums[-1]:
        return None
    if sampling.min_p and (abs(weights[weights < 1] / sampling.min_p - 1) < 1e-3).any():
        return None
    numbers = tries(sampling.seed)
    if len(order) < len(logits):
        goal = next(numbers)[0] * sums[left][-1]
        near = abs(sums - goal).min() < 1e-6 * sums[-1]
        return None if near else int(order[np.searchsorted(sums, goal, side="right")])
    by_id = np.argsort(order)
    end = len(order)
    while (drawn := reference_draw(weights[by_id], by_id, numbers, sampling.min_p, end)) is not None:
        if left[by_id[drawn]]:
            return drawn
        end = by_id[drawn]
    return None


def tries(seed: int) -> Iterator[NDArray[np.float64]]:
    """Three numbers for each try."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.random((3, 1024)).T


def reference_draw(
    weights: NDArray[np.float64],
    ranks: NDArray[np.intp],
    numbers: Iterator[NDArray[np.float64]],
    least: float,
    end: int,
) -> int | None:
    """A token by rejection: a block by its size and its best weight, one of its tokens, kept by its share of the best.

    `ranks` of the tokens, by id; `end`: the first that may not be drawn.
    """
    if end < len(ranks):
        least = weights[ranks == end][0]
    whole = len(weights) // 128
    blocks = [np.arange(block, 128 * whole, whole) for block in range(whole)]
    blocks += [np.array([single]) for single in range(128 * whole, len(weights))]
    best = [weights[block].max() for block in blocks]
    sums = np.cumsum([len(block) * most * (most >= least) for block, most in zip(blocks, best, strict=True)])
    for drawn, within, kept in numbers:
        chosen = int(np.searchsorted(sums, drawn * sums[-1], side="right"))
        token = int(blocks[chosen][int(within * len(blocks[chosen]))])
        ratio = weights[token] / best[chosen]
        if abs(sums - drawn * sums[-1]).min() < 1e-6 * sums[-1] or (abs(kept - ratio) < 1e-5 and ratio < 1):
            return None
        if kept < ratio and ranks[token] < end and weights[token] >= least:
            return token
    return None


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

    @pytest.mark.slow
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
        counts = draws(1000, temperature=temperature, min_p=min_p)
        assert_distributed(counts, expected / expected.sum())

    def test_min_p_comes_after_top_k_and_top_p(self) -> None:
        """As in transformers: top-p counts the tokens that min-p will drop."""
        probabilities = softmax(LOGITS)
        expected = np.where(np.isin(np.arange(8), [1, 3, 5]), probabilities, 0)
        assert_distributed(draws(2000, top_p=0.7, min_p=0.3), expected / expected.sum())
        assert set(np.flatnonzero(draws(1000, top_k=2, min_p=0.1))) == {1, 3}
