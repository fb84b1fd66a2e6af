"""Each family of models on a few of its prompts; `make families` runs all of them."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, has_the_oracles_kernels, ids, load, random_prompt, request, running
from family_rig import FAMILIES, MODES, alone, bare_session, check, oracle

QUICK = ("phi3", "llama3", "qwen3")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUICK)
def test_ids_are_the_oracles(name: str, mode: str) -> None:
    check(name, mode, oracle(name)[9::13])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [family for family in FAMILIES if family.values[0] not in QUICK])
def test_ids_of_the_other_families_are_the_oracles(name: str, mode: str) -> None:
    check(name, mode, oracle(name)[9::13])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_oracle_tells_its_packages_apart(name: str) -> None:
    """Answers that say little would show little: they use many tokens, and none repeats another's."""
    answers = oracle(name)
    assert len({one.output for one in answers}) == len(answers)
    assert len({token for one in answers for token in one.output}) > 300


@pytest.mark.skipif(not has_the_oracles_kernels(), reason="bits are compared where kernels are known")
@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_of_two_tokens_and_more_give_the_bits_of_a_prompt_read_at_once(name: str) -> None:
    tokens = np.array([random_prompt(5, 100)], np.int64)
    session = bare_session(name)

    def last_logits(chunk: int) -> Any:
        for start in range(0, 100, chunk):
            end = min(start + chunk, 100)
            logits = session.step(0, tokens[:, start:end], [start], end)
        return logits.copy()

    whole = last_logits(100)
    for chunk in (2, 7, 16, 64):
        assert np.array_equal(last_logits(chunk), whole), chunk


class TestOneRowAtATime:
    """Phi-3 Small: in a batch of unequal rows SparseAttention gives the shorter ones wrong values, silently."""

    @pytest.mark.slow
    def test_no_step_has_two_rows_and_each_job_gives_what_it_gives_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = oracle("phi3-small")[10:34:4]
        sizes: list[int] = []
        with closing(load(MODELS / "phi3-small", rows=4, prefill_chunk=16)) as serving, running(serving) as rig:
            step = serving.session.step

            def counted(first: int, tokens: Any, past: Any, width: int) -> Any:
                sizes.append(len(past))
                return step(first, tokens, past, width)

            monkeypatch.setattr(serving.session, "step", counted)
            ends = rig.run(*[request(key, one.prompt, len(one.output)) for key, one in enumerate(answers)])
        assert max(len(keys) for keys in rig.running) == 4
        assert set(sizes) == {1}
        assert [ids(ends[key]) for key in range(len(answers))] == alone(1024)("phi3-small", answers)
