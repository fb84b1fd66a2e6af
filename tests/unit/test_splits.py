"""Prompts are split where it changes no bit: the rule that attention asks for here is found, and kept."""

from __future__ import annotations

import ctypes
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, Rig, ids, load, random_prompt, request, running, wait_until_written
from family_rig import FAMILIES, bare_session
from hypothesis import given, settings
from hypothesis import strategies as st
from random_package import Shape, write_random_package
from structlog.testing import capture_logs

from edged.engine.events import Finished
from edged.engine.kv_cache import KVCache
from edged.engine.package import open_package
from edged.engine.prefix_cache import BLOCK_TOKENS, usable_blocks
from edged.engine.sequence import Sequence
from edged.engine.session import LOGITS_BYTES, ModelSession, chunk_limit
from edged.engine.split_probe import find_split_rule
from edged.engine.splits import LEAST_CHUNK, SplitRule
from edged.machine.board import detect
from edged.report.documents import info_document
from edged.settings import Settings
from edged.status import ModelFacts, ModelStatus, Status

CPU = ["CPUExecutionProvider"]
WIDE = "gemma2-wide"
"""Heads of 256: up to 64 keys are multiplied in another order than more, so a prompt may not be split there."""
GEMMA_3 = Shape(hidden=640, heads=4, kv_heads=1, head_size=256, layers=4)
"""As Gemma 3 270M, whose attention has no softcap and so is onnxruntime's flash attention."""
PROMPT = 430


@pytest.fixture(scope="module")
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with wide heads: a fixture, or one of random weights."""
    if request.param == WIDE:
        return MODELS / WIDE
    return write_random_package(tmp_path_factory.mktemp("random") / request.param, GEMMA_3)


with_wide_heads = pytest.mark.parametrize("wide", [WIDE, pytest.param("gemma3", marks=pytest.mark.slow)], indirect=True)


def chunks(rule: SplitRule, tokens: int, most: Iterator[int]) -> list[int]:
    found: list[int] = []
    while (computed := sum(found)) < tokens:
        found.append(rule.chunk(computed, tokens - computed, next(most)))
    return found


class TestRule:
    @given(
        st.sampled_from(
            [(1, 0), (1, 4), (1, 32), (1, 85), (1, 128), (1, 170), (32, 0), (128, 0), (128, 256), (170, 0)]
        ),
        st.integers(2, 700),
        st.lists(st.integers(1, 300), min_size=1, max_size=9),
    )
    @settings(deadline=None)
    def test_every_chunk_keeps_to_it(self, limits: tuple[int, int], tokens: int, sizes: list[int]) -> None:
        rule = SplitRule(*limits)
        most = (size for _ in range(tokens) for size in sizes)
        found = chunks(rule, tokens, most)
        assert min(found) >= LEAST_CHUNK
        assert not any(sum(found[:number]) % rule.grain for number in range(1, len(found)))
        assert not (rule.lone and any(count % rule.lone == 1 for count in found))

    @pytest.mark.parametrize("most", [1, 2, 3, 8])
    def test_without_limits_chunks_are_as_long_as_they_may_be(self, most: int) -> None:
        for tokens in range(2, 40):
            found = chunks(SplitRule(), tokens, iter([most] * tokens))
            assert max(found) <= max(most, LEAST_CHUNK + 1)
            assert set(found[:-2]) <= {max(most, LEAST_CHUNK)}

    def test_where_no_chunk_is_short_enough_the_shortest_is_taken(self) -> None:
        assert SplitRule(128).chunk(0, 500, 20) == 128
        assert SplitRule(128).chunk(128, 129, 20) == 129
        assert SplitRule(1, 128).chunk(0, 129, 1024) == 127
        assert SplitRule(128, 0).least == 128


class TestProbe:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", FAMILIES)
    def test_prompts_split_by_the_rule_have_the_bits_of_one_piece(self, name: str) -> None:
        check_rule(bare_session(name), random.Random(name))

    @with_wide_heads
    def test_so_have_those_of_wide_heads_and_no_others(self, wide: Path) -> None:
        """Without the rule, some split of the wide heads changes the bits on any processor."""
        session = bare_session(wide)
        check_rule(session, random.Random(wide.name))
        with pytest.raises(AssertionError):
            check_rule(session, random.Random(wide.name), SplitRule())

    def test_wide_heads_are_not_split_just_anywhere(self) -> None:
        session = bare_session(WIDE)
        rule = find_split_rule(session.package, CPU, 1)
        prompt = random_prompt(1, 100)
        assert bits(session, prompt, [40, 60]) != bits(session, prompt, [100])
        assert rule.grain > 64

    def test_a_token_alone_in_its_block_of_queries_is_avoided(self) -> None:
        """Where attention has such blocks: a prompt one token longer than a block has other bits in one piece."""
        session = bare_session("phi3")
        lone = find_split_rule(session.package, CPU, 1).lone
        if not lone:
            pytest.skip("attention has no blocks of queries here")
        prompts = [random_prompt(seed, lone + 1) for seed in range(20)]
        if all(bits(session, prompt, [lone + 1]) == bits(session, prompt, [lone - 1, 2]) for prompt in prompts):
            pytest.skip("what attention rounds otherwise reaches no bit of this model here")  # an Intel Xeon with VNNI

    def test_a_quantized_cache_and_other_attention_set_no_limits(self) -> None:
        package = open_package(MODELS / "phi3")
        package.graph.attentions.clear()
        assert find_split_rule(package, CPU, 1) == SplitRule()

    def test_where_no_split_gives_the_same_bits_that_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An attention whose bits depend on every chunk's first token."""
        monkeypatch.setattr("edged.engine.attention_probe.ort.InferenceSession", Restless)
        rule = find_split_rule(open_package(MODELS / WIDE), CPU, 1)
        assert not rule.holds
        monkeypatch.undo()
        one = replace(load(MODELS / WIDE), splits=rule)
        assert not one.same_ids_in_any_company
        one.close()

    def test_an_operator_that_does_not_run_is_told_and_nothing_is_promised(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Restless, "run_with_iobinding", fail)
        monkeypatch.setattr("edged.engine.attention_probe.ort.InferenceSession", Restless)
        with capture_logs() as logs:
            assert not find_split_rule(open_package(MODELS / WIDE), CPU, 1).holds
        assert [(line["event"], line["reason"]) for line in logs] == [("splits_not_probed", "no such kernel")]

    def test_a_gpu_serves_one_row_and_is_not_probed(self) -> None:
        assert find_split_rule(open_package(MODELS / WIDE), ["CUDAExecutionProvider"], 1) == SplitRule()

    def test_a_window_longer_than_any_prompt_takes_no_memory(self) -> None:
        package = open_package(MODELS / WIDE)
        attentions = [{**numbers, "local_window_size": 1 << 18} for numbers in package.graph.attentions]
        longer = replace(package, sliding_window=1 << 18, graph=replace(package.graph, attentions=attentions))
        tracemalloc.start()
        try:
            assert find_split_rule(longer, CPU, 1) == find_split_rule(package, CPU, 1)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 64 << 20


def check_rule(session: ModelSession, chance: random.Random, rule: SplitRule | None = None) -> None:
    """Prompts read in any chunks under `rule`, that of the probe unless given, have the same bits: cache and logits."""
    rule = rule or find_split_rule(session.package, CPU, 1)
    assert rule.holds
    for tokens in (33, 65, 97, 129, 171, 257, 300, PROMPT):
        prompt = random_prompt(tokens, tokens)
        whole = bits(session, prompt, chunks(rule, tokens, iter([tokens] * tokens)))
        for _ in range(3):
            most = chance.choice([2, 5, 16, 32, 64, 128, 200])
            split = chunks(rule, tokens, (chance.randint(2, most) for _ in range(tokens)))
            assert bits(session, prompt, split) == whole, (rule, tokens, split)


def fail(*_: Any) -> None:
    raise RuntimeError("no such kernel")


class Restless:
    """A session that gives random numbers."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._random = np.random.default_rng(0)

    def io_binding(self) -> Restless:
        return self

    def bind_cpu_input(self, name: str, array: Any) -> None:
        if name == "query":
            self._shape = array.shape

    def bind_input(self, *_: Any) -> None: ...

    def bind_output(self, name: str, _device: str, _number: int, dtype: Any, shape: Any, address: int) -> None:
        if name == "out":
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            ctypes.memmove(address, self._random.bytes(size), size)

    def run_with_iobinding(self, _binding: Any) -> None: ...


def bits(session: ModelSession, prompt: tuple[int, ...], counts: list[int]) -> bytes:
    """The row's keys and values, and the last logits, of a prompt that is read in these chunks."""
    cache = KVCache(session.package, 1, len(prompt) + 1)
    session.use(cache)
    tokens, past = np.array([prompt], np.int64), 0
    switch = session.package.rope_switch
    least = 0 if switch is None or len(prompt) <= switch else switch + 1
    for count in counts:
        logits = session.step(0, tokens[:, past : past + count], [past], max(past + count, least))
        past += count
    return cache.read(0, 0, len(prompt)).tobytes() + logits.tobytes()


@pytest.fixture
def first_logits(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """The logits that each request's first token was chosen by."""
    seen: dict[int, bytes] = {}
    advance = Sequence.advance

    def noted(row: Sequence, logits: Any) -> list[int]:
        if not row.pending:
            seen.setdefault(row.request.key, logits.tobytes())
        return advance(row, logits)

    monkeypatch.setattr(Sequence, "advance", noted)
    return seen


class TestEngine:
    """On packages with wide heads, whose prompts may not be split just anywhere."""

    def prompts(self) -> list[tuple[int, ...]]:
        return [random_prompt(seed, tokens) for seed, tokens in enumerate((20, 66, 100, 129, 150, 257, 300, PROMPT))]

    @pytest.mark.slow
    @with_wide_heads
    def test_ids_and_first_logits_are_the_same_alone_in_company_in_chunks_and_after_a_known_prefix(
        self, wide: Path, first_logits: dict[int, bytes], tmp_path: Path
    ) -> None:
        jobs = [request(key, prompt, 40, pin=True) for key, prompt in enumerate(self.prompts())]
        with running(load(wide, rows=1, prefill_chunk=1024)) as rig:
            expected = [ids(rig.run(job)[job.key]) for job in jobs]
        assert len({tuple(found) for found in expected}) == len(jobs)
        alone = dict(first_logits)

        def check(rig: Rig, known: bool) -> None:
            first_logits.clear()
            ends = rig.run(*random.Random(1).sample(jobs, len(jobs)))
            assert [ids(ends[job.key]) for job in jobs] == expected
            assert first_logits == alone
            block = rig.loaded.prefixes.block_tokens
            assert block == rig.loaded.splits.multiple(BLOCK_TOKENS)
            for job in jobs:
                cached = usable_blocks(len(job.prompt), block) * block if known else 0
                assert ends[job.key].cached_tokens == cached  # type: ignore[union-attr]  (ids() has checked it)

        with running(load(wide, 64 << 20, tmp_path, rows=4, prefill_chunk=16)) as rig:
            check(rig, known=False)
            check(rig, known=True)
            wait_until_written(rig)
        with running(load(wide, 64 << 20, tmp_path, rows=4)) as rig:
            check(rig, known=True)

    def test_blocks_of_another_rule_are_not_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As those of a version that split prompts at any multiple of 32 tokens."""
        prompt = random_prompt(1, 300)
        with monkeypatch.context() as patched:
            patched.setattr("edged.engine.kept_bits.find_split_rule", lambda *_: SplitRule())
            with running(load(MODELS / WIDE, 64 << 20, tmp_path)) as rig:
                rig.run(request(0, prompt, 1, pin=True))
                wait_until_written(rig)
        assert list(tmp_path.glob("*.kv"))
        with running(load(MODELS / WIDE, 64 << 20, tmp_path)) as rig:
            end = rig.run(request(0, prompt, 1))[0]
        assert isinstance(end, Finished)
        assert end.cached_tokens == 0

    def test_that_even_the_shortest_chunks_are_too_long_for_max_stall_is_known(self) -> None:
        model = load(MODELS / WIDE)
        with running(replace(model, max_stall=1e-6)) as rig:
            rig.run(*[request(key, random_prompt(key, PROMPT), 1) for key in range(2)])
            assert not rig.engine.status.max_stall_kept
        with running(replace(model, max_stall=600.0)) as rig:
            rig.run(request(0, random_prompt(0, PROMPT), 1))
            assert rig.engine.status.max_stall_kept

    def test_info_says_where_prompts_are_split_and_whether_max_stall_is_kept(self) -> None:
        facts = replace(
            ModelFacts(*[None] * len(fields(ModelFacts))),  # type: ignore[arg-type]  (the others play no part)
            split_tokens=128,
            load_seconds=0.0,
        )
        status = Status(model=ModelStatus("serving", WIDE, facts=facts), max_stall_kept=False)
        model = info_document("board", Settings(), detect(), status)["model"]
        assert (model["split_tokens"], model["max_stall_kept"]) == (128, False)


def test_memory_for_logits_is_planned_for_the_shortest_chunk() -> None:
    """A vocabulary of 262,144 tokens: 64 MiB hold the logits of 64."""
    assert chunk_limit(262_144, 1024, SplitRule().least + 1) == LOGITS_BYTES // (4 * 262_144) == 64
    assert chunk_limit(262_144, 1024, SplitRule(128).least + 1) == 129
    assert chunk_limit(1000, 64, SplitRule(128).least + 1) == 129
