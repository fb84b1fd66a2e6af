"""Speculation: drafts decide how many steps an answer takes, and never what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, RUNTIME, Rig, ids, random_prompt, request, running, serving
from structlog.testing import capture_logs

from edged.engine.attention_probe import AttentionProbe, DecodeProbe
from edged.engine.constraint import Constraint
from edged.engine.draft_probe import single_tokens_agree
from edged.engine.drafts import MOST_TOKENS, Drafts, NGramDrafts
from edged.engine.events import Finished
from edged.engine.grammar import GrammarSource
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.sampler import Sampling
from edged.engine.sequence import Request, Sequence
from edged.engine.session import ModelSession
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

needs_int8 = pytest.mark.skipif(RUNTIME < (1, 27), reason="no int8 cache")
ROWS = 4
PROMPTS = [random_prompt(seed, tokens) for seed, tokens in enumerate((3, 40, 90, 133))]


def load(name: str, bits_file: Path | None = None, **model: Any) -> LoadedModel:
    """A package with an int8 cache and speculation, unless `model` says otherwise."""
    wanted = {"threads": 1, "rows": ROWS, "kv_cache": "int8", "speculation": "on", "prefill_chunk": 64, **model}
    settings = Settings(model=wanted, cache={"ram_bytes": 0})
    return load_model(settings, detect(), available, MODELS / name, bits_file=bits_file)


class Told:
    """Drafts of what is known to come, which `change` may spoil; the answers by their prompts."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], change: Callable[[list[int]], list[int]]) -> None:
        self._answers = answers
        self._change = change
        self.notes: list[tuple[int, int]] = []

    def __call__(self, _request: Request) -> Drafts:
        return self

    def propose(self, tokens: list[int], most: int, _constraint: Constraint | None = None) -> list[int]:
        prompt = next(one for one in self._answers if tuple(tokens[: len(one)]) == one)
        after = len(tokens) - len(prompt)
        return self._change(self._answers[prompt][after : after + most])

    def note(self, drafted: int, taken: int) -> None:
        self.notes.append((drafted, taken))


def right(draft: list[int]) -> list[int]:
    return draft


def wrong(draft: list[int]) -> list[int]:
    return [token + 1 if token < 990 else 7 for token in draft]


def right_at_first(draft: list[int]) -> list[int]:
    return draft[:3] + wrong(draft[3:])


def none(_draft: list[int]) -> list[int]:
    return []


WAYS = (right, wrong, right_at_first, none)


def jobs_of(**more: Any) -> list[Request]:
    return [request(key, prompt, 40, **more) for key, prompt in enumerate(PROMPTS)]


def steps_of(rig: Rig, key: int) -> list[int]:
    """Tokens of each step that computed the answer of one job."""
    return [row.tokens for one in rig.steps.records for row in one.rows if row.key == key and not row.prompt]


@pytest.fixture(scope="module", params=["phi3", pytest.param("gemma2", marks=pytest.mark.slow)])
def off(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    one = load(request.param, speculation="off")
    yield one
    one.close()


@pytest.fixture(scope="module")
def on(off: LoadedModel) -> Iterator[LoadedModel]:
    one = load(off.package.name)
    assert one.speculation_reason is None
    assert one.drafts is not None
    yield one
    one.close()


def told(one: LoadedModel, jobs: list[Request], answers: dict[int, list[int]], change: Any) -> LoadedModel:
    """A model that is drafted for by somebody who knows the answers."""
    return replace(one, drafts=Told({job.prompt: answers[job.key] for job in jobs}, change))


@needs_int8
class TestSameIds:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=3, repetition_penalty=1.3)])
    def test_alone_in_company_and_whatever_is_drafted(
        self, sampling: Sampling, off: LoadedModel, on: LoadedModel
    ) -> None:
        jobs = jobs_of(sampling=sampling)
        with running(off) as rig:
            wanted = {job.key: ids(rig.run(job)[job.key]) for job in jobs}
        assert all(end.speculated is None for end in rig.events if isinstance(end, Finished))
        for change in WAYS:
            with running(told(on, jobs, wanted, change)) as rig:
                for job in jobs:
                    end = rig.run(job)[job.key]
                    assert ids(end) == wanted[job.key], change.__name__
                    assert isinstance(end, Finished)
                    counts = {right: 36, wrong: 0, right_at_first: 29, none: 0}
                    assert end.speculated == counts[change]
                together = rig.run(*[replace(job, key=job.key + 100) for job in jobs])
                assert {key: ids(together[key + 100]) for key in wanted} == wanted

    def test_an_answer_with_right_drafts_takes_few_steps(self, off: LoadedModel, on: LoadedModel) -> None:
        job = request(1, PROMPTS[1], 40)
        with running(off) as rig:
            answers = {1: ids(rig.run(job)[1])}
            assert steps_of(rig, 1) == [1] * 39
        with running(told(on, [job], answers, right)) as rig:
            assert ids(rig.run(job)[1]) == answers[1]
            # The first token comes with the prompt, the others with as many steps as 39 needs; none beyond max_tokens.
            assert steps_of(rig, 1) == [MOST_TOKENS, MOST_TOKENS, 7]
        assert rig.engine.status.accepted_drafts == 15 + 15 + 6
        assert rig.engine.status.rejected_drafts == 0

    def test_rows_that_wait_together_are_not_drafted_for(self, off: LoadedModel, on: LoadedModel) -> None:
        jobs = jobs_of()
        with running(off) as rig:
            answers = {job.key: ids(rig.run(job)[job.key]) for job in jobs}
        with running(told(on, jobs, answers, right)) as rig:
            rig.run(*jobs)
            assert all(len(one.rows) == 1 for one in rig.steps.records if any(row.tokens > 1 for row in one.rows))
            assert any(len(one.rows) > 1 for one in rig.steps.records)

    def test_what_repeats_is_found_without_being_told(self, off: LoadedModel, on: LoadedModel) -> None:
        """A prompt that holds its own answer, twice."""
        with running(off) as rig:
            answer = ids(rig.run(request(0, PROMPTS[0], 60))[0])
            prompt = (*PROMPTS[0], *answer, *PROMPTS[0], *answer[:4])
            wanted = ids(rig.run(request(1, prompt, 40))[1])
        with running(on) as rig:
            end = rig.run(request(1, prompt, 40))[1]
        assert ids(end) == wanted
        assert len(steps_of(rig, 1)) + end.speculated >= 39  # type: ignore[union-attr]  (ids() has checked it)


@pytest.fixture(scope="module")
def wanted(off: LoadedModel) -> Finished:
    """The answer to PROMPTS[1]."""
    with running(off) as rig:
        end = rig.run(request(0, PROMPTS[1], 40))[0]
    assert isinstance(end, Finished)
    return end


@needs_int8
class TestEnds:
    """An answer that ends within a draft ends where it ends without one."""

    def same(self, off: LoadedModel, on: LoadedModel, wanted: Finished, job: Request) -> Finished:
        with running(off) as rig:
            plain = rig.run(job)[0]
        with running(told(on, [job], {0: list(wanted.tokens)}, right)) as rig:
            end = rig.run(job)[0]
            # The row is free, and what comes after it is as before.
            assert ids(rig.run(replace(job, key=0))[0]) == ids(plain)
        assert isinstance(plain, Finished)
        assert isinstance(end, Finished)
        assert (end.tokens, end.text, end.reason) == (plain.tokens, plain.text, plain.reason)
        assert len(end.token_times) == len(end.tokens)
        assert "".join(rig.pieces(0)[: len(rig.pieces(0)) // 2]) == end.text or not job.stream
        return end

    def test_a_stop_string(self, off: LoadedModel, on: LoadedModel, wanted: Finished) -> None:
        stop = wanted.text[len(wanted.text) // 2 :][:3]
        end = self.same(off, on, wanted, request(0, PROMPTS[1], 40, stop=(stop,), stream=True))
        assert end.reason == "stop"
        assert stop not in end.text
        assert len(end.tokens) < 40

    def test_a_stop_token(self, off: LoadedModel, on: LoadedModel, wanted: Finished) -> None:
        stop = wanted.tokens[9]
        end = self.same(off, on, wanted, request(0, PROMPTS[1], 40, stop_tokens=frozenset({stop})))
        assert end.tokens == wanted.tokens[: wanted.tokens.index(stop) + 1]
        assert end.speculated == min(len(end.tokens) - 1, len(end.tokens) - 1 - (len(end.tokens) - 1) // 16)

    @pytest.mark.parametrize("most", [1, 2, 3, 17, 18, 19])
    def test_max_tokens(self, most: int, off: LoadedModel, on: LoadedModel, wanted: Finished) -> None:
        end = self.same(off, on, wanted, request(0, PROMPTS[1], most))
        assert end.tokens == wanted.tokens[:most]
        assert end.reason == "length"

    def test_the_end_of_the_context(self, off: LoadedModel, on: LoadedModel) -> None:
        job = request(0, random_prompt(9, on.context - 20), 20)
        with running(off) as rig:
            answer = ids(rig.run(job)[0])
        for change in (right, wrong):
            with running(told(on, [job], {0: answer}, change)) as rig:
                assert ids(rig.run(job)[0]) == answer


@needs_int8
def test_beyond_the_longrope_switch_the_ids_are_the_same() -> None:
    """No draft crosses the switch, where the row is computed anew."""
    one = load("phi3-longrope", speculation="off")
    switch = one.package.rope_switch
    assert switch is not None
    job = request(0, random_prompt(5, switch - 12), 30)
    with running(one) as rig:
        answer = ids(rig.run(job)[0])
    one.close()
    spec = load("phi3-longrope")
    for change in (right, right_at_first):
        with running(told(spec, [job], {0: answer}, change)) as rig:
            assert ids(rig.run(job)[0]) == answer
    spec.close()


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=4)])
def test_sampled_answers_keep_their_distribution(sampling: Sampling) -> None:
    """Chi-square of three tokens of a Markov chain over 5 tokens, with drafts that are right by chance."""
    vocabulary, tries = 5, 1500
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 1.5, (vocabulary, vocabulary)).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) / sampling.temperature)
    if sampling.top_k:
        weights[weights < np.sort(weights, axis=1)[:, -sampling.top_k, None]] = 0
    moves = weights / weights.sum(axis=1, keepdims=True)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(tries):
        row = Sequence(request(0, [2], 3, sampling=replace(sampling, seed=seed)), serving("phi3").tokenizer.stream(()))
        while row.finish_reason is None:
            drafts = tuple(chance.choice(vocabulary, 3, p=moves[row.tokens[-1]]).tolist())
            row.computed += 1
            row.verify(logits[[row.tokens[-1], *drafts]], drafts)
        found[tuple(row.generated)] += 1
    expected = {}
    for answer in product(range(vocabulary), repeat=3):
        path = (2, *answer)
        expected[answer] = tries * float(np.prod([moves[one, other] for one, other in pairwise(path)]))
    assert all(expected[answer] for answer in found)
    often = [answer for answer, count in expected.items() if count >= 5]
    rest = sum(count for answer, count in expected.items() if count < 5)
    chi_square = sum((found[answer] - expected[answer]) ** 2 / expected[answer] for answer in often)
    chi_square += (tries - sum(found[answer] for answer in often) - rest) ** 2 / rest
    freedom = len(often)
    assert freedom > 25
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@needs_int8
@pytest.mark.parametrize("change", [right, right_at_first, wrong])
def test_answers_keep_to_their_grammar(change: Any, on: LoadedModel) -> None:
    def job(key: int) -> Request:
        grammar = on.grammars.compile(GrammarSource("regex", "[0-9]{3}-[a-c]{20}(-[α-ω]{2})?"), continued=True)
        return request(key, PROMPTS[0], 60, ignore_eos=False, continued=True, grammar=grammar)

    with running(replace(on, drafts=None)) as rig:
        plain = rig.run(job(0))[0]
    assert isinstance(plain, Finished)
    assert plain.reason == "stop"
    with running(told(on, [job(0)], {0: list(plain.tokens)}, change)) as rig:
        end = rig.run(job(0))[0]
    assert isinstance(end, Finished)
    assert (end.tokens, end.text, end.reason) == (plain.tokens, plain.text, plain.reason)
    assert bool(end.speculated) == (change is not wrong)


class TestLookUp:
    def test_the_latest_match_of_three_tokens_goes_before_one_of_two(self) -> None:
        tokens = [1, 2, 3, 40, 41, 42, 9, 2, 3, 50, 51, 1, 2, 3]
        assert NGramDrafts().propose(tokens, 3) == [40, 41, 42]
        assert NGramDrafts().propose([8, *tokens[1:-3], 7, 2, 3], 3) == [50, 51, 7]

    def test_two_tokens_are_enough_and_one_is_not(self) -> None:
        assert NGramDrafts().propose([5, 6, 7, 8, 5, 6], 2) == [7, 8]
        assert NGramDrafts().propose([5, 6, 7, 8, 9, 6], 2) == []
        assert NGramDrafts().propose([5, 6], 2) == []
        assert NGramDrafts().propose([5], 2) == []

    def test_a_repetition_goes_on(self) -> None:
        assert NGramDrafts().propose([1, 5, 6, 5, 6], 4) == [5, 6, 5, 6]
        assert NGramDrafts().propose([4, 4, 4, 4], 4) == [4, 4, 4, 4]

    def test_tokens_may_be_many_and_grow(self) -> None:
        drafts, tokens = NGramDrafts(), list(range(1000))
        for token in range(300, 400):
            tokens.append(token)
            found = drafts.propose(tokens, 4)
        assert found == [400, 401, 402, 403]


class TestLength:
    TOKENS = list(range(100)) * 2

    def length(self, drafts: NGramDrafts) -> int:
        return len(drafts.propose(self.TOKENS, 100))

    def test_doubles_where_all_is_taken(self) -> None:
        drafts = NGramDrafts()
        lengths = []
        for _ in range(4):
            lengths.append(self.length(drafts))
            drafts.note(lengths[-1], lengths[-1])
        assert lengths == [4, 8, 15, 15]
        assert MOST_TOKENS == 16

    def test_stays_where_some_is_taken(self) -> None:
        drafts = NGramDrafts()
        drafts.note(4, 1)
        assert self.length(drafts) == 4

    def test_halves_and_pauses_where_nothing_is(self) -> None:
        drafts = NGramDrafts()
        pauses, lengths = [], []
        for _ in range(6):
            drafts.note(4, 0)
            pauses.append(next(n for n in range(100) if (length := self.length(drafts))))
            lengths.append(length)
        assert lengths == [2, 1, 1, 1, 1, 1]
        assert pauses == [2, 4, 8, 16, 16, 16]
        drafts.note(1, 1)
        drafts.note(2, 0)
        assert [self.length(drafts) for _ in range(3)] == [0, 0, 1]


class TestWhereItHolds:
    @needs_int8
    def test_a_published_cache_of_float32_gives_other_bits(self) -> None:
        with capture_logs() as logs:
            one = load("phi3", kv_cache="published")
        one.close()
        assert one.drafts is None
        assert one.speculation_reason == (
            "with a KV cache of float32, single tokens round otherwise here than several at once, "
            'set model.kv_cache = "int8"'
        )
        (event,) = [line for line in logs if line["event"] == "speculation_off"]
        assert event["log_level"] == "warning"
        assert event["reason"] == one.speculation_reason
        with running(one) as rig:
            end = rig.run(request(0, PROMPTS[0], 4))[0]
        assert isinstance(end, Finished)
        assert end.speculated is None

    @needs_int8
    def test_a_pruned_graph_has_no_logits_for_drafts(self) -> None:
        one = load("qwen2-pruned")
        one.close()
        assert one.drafts is None
        assert one.speculation_reason is not None
        assert "prune_lm_head" in one.speculation_reason

    def test_a_graph_without_known_attention(self) -> None:
        one = load("phi3-small", kv_cache="published")
        one.close()
        assert one.drafts is None

    @needs_int8
    def test_it_is_measured_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "bits.json"
        load("phi3", file).close()
        monkeypatch.setattr("edged.engine.kept_bits.single_tokens_agree", lambda *_: pytest.fail("measured again"))
        with capture_logs() as logs:
            again = load("phi3", file)
        again.close()
        assert again.drafts is not None
        assert not [line for line in logs if line["event"].startswith(("kept_bits", "bits_not"))]

    @needs_int8
    def test_a_last_bit_of_single_tokens_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = load("phi3", speculation="off")
        one.close()
        assert single_tokens_agree(one.session, one.bits)
        step = ModelSession.step

        def nudged(*given: Any) -> Any:
            return np.nextafter(step(*given), np.inf, dtype=np.float32)

        monkeypatch.setattr(ModelSession, "step", nudged)
        assert not single_tokens_agree(one.session, one.bits)

    def test_off_measures_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edged.engine.kept_bits.single_tokens_agree", lambda *_: pytest.fail("measured"))
        one = load("phi3", kv_cache="published", speculation="off")
        one.close()
        assert (one.drafts, one.speculation_reason) == (None, None)

    @needs_int8
    @pytest.mark.parametrize("name", ["phi3", "gemma"])
    def test_more_threads_than_the_probes_one_head_do_not_matter(self, name: str) -> None:
        one = load(name, threads=2)
        one.close()
        assert one.package.graph.attentions[0]["num_heads"] >= 2
        assert one.speculation_reason is None

    @needs_int8
    def test_a_last_bit_of_attention_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = load("phi3", speculation="off")
        one.close()
        read = AttentionProbe.read

        def nudged(self: AttentionProbe, start: int, end: int) -> Any:
            read_now = read(self, start, end)
            return np.nextafter(read_now, np.inf, dtype=read_now.dtype) if end == start + 1 else read_now

        monkeypatch.setattr(AttentionProbe, "read", nudged)
        assert not single_tokens_agree(one.session, one.bits)

    @needs_int8
    def test_a_last_bit_of_heads_that_threads_share_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = load("phi3", speculation="off", threads=8)
        one.close()
        assert one.session.threads > one.package.graph.attentions[0]["num_heads"]
        read = DecodeProbe.read

        def nudged(self: DecodeProbe, rows: int, new: int = 1) -> Any:
            attention = read(self, rows, new)
            return np.nextafter(attention, np.inf, dtype=attention.dtype) if new > 1 else attention

        assert single_tokens_agree(one.session, one.bits)
        monkeypatch.setattr(DecodeProbe, "read", nudged)
        assert not single_tokens_agree(one.session, one.bits)
