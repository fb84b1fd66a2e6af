"""Rows together: which step comes next, and that nobody's tokens depend on who else is in the batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from engine_rig import (
    MODELS,
    NAMES,
    greedy_by_fresh_prefill,
    ids,
    load,
    random_prompt,
    reference,
    request,
    run_at_random,
    running,
    serving,
)

from edged.engine.engine import Finished, Started
from edged.engine.sampler import Sampling
from edged.engine.scheduler import Request, Row, Step, schedule
from edged.engine.tokenizer import TextStream

SWITCH = 256


def row(tokens: int, cached: int = 0, **more: Any) -> Row:
    priority = more.pop("priority", 5)
    return Row(
        request=Request(key=0, prompt=tuple(range(tokens)), max_tokens=9, priority=priority),
        text=TextStream(lambda _ids: ""),
        generator=np.random.default_rng(0),
        tokens=list(range(tokens)),
        cached=cached,
        **more,
    )


class TestSchedule:
    def test_without_rows_there_is_no_step(self) -> None:
        assert schedule([], 64, None, False) is None

    def test_a_prompt_is_read_in_chunks(self) -> None:
        assert schedule([row(100)], 64, None, False) == Step(0, 1, 64, 64, prefill=True)
        assert schedule([row(100, 64)], 64, None, False) == Step(0, 1, 36, 100, prefill=True)

    @pytest.mark.parametrize("chunk", [3, 16, 64])
    def test_no_prompt_of_several_tokens_ends_with_a_chunk_of_one(self, chunk: int) -> None:
        """A step of one token differs in its last bits from the same token read along with others."""
        for tokens in range(2, 200):
            counts, cached = [], 0
            while cached < tokens:
                step = schedule([row(tokens, cached)], chunk, None, False)
                assert step is not None
                counts.append(step.count)
                cached += step.count
            assert 1 < min(counts) <= max(counts) <= chunk

    def test_decoding_rows_share_a_step_as_wide_as_the_longest(self) -> None:
        assert schedule([row(9, 8), row(30, 29)], 64, None, False) == Step(0, 2, 1, 30, prefill=False)

    def test_decoding_rows_and_prompts_take_turns(self) -> None:
        rows = [row(9, 8), row(100)]
        first = schedule(rows, 8, None, False)
        assert first == Step(1, 1, 8, 8, prefill=True)
        assert schedule(rows, 8, None, first.prefill) == Step(0, 1, 1, 9, prefill=False)

    def test_a_prompt_is_split_alike_in_any_company(self) -> None:
        """A row in prefill between two decoding ones does not go along with them: it would be read in other chunks."""
        rows = [row(9, 8), row(100), row(9, 8, last_step=1)]
        assert schedule(rows, 8, None, True) == Step(0, 1, 1, 9, prefill=False)
        rows[0].last_step = 2
        assert schedule(rows, 8, None, True) == Step(2, 1, 1, 9, prefill=False)

    def test_a_chunk_of_one_token_still_counts_as_prefill(self) -> None:
        step = schedule([row(9, 8), row(100)], 1, None, False)
        assert step is not None
        assert (step.count, step.prefill) == (1, True)

    def test_the_more_urgent_prompt_is_read_first_then_the_earlier(self) -> None:
        assert schedule([row(50, started=1), row(50, started=2, priority=9)], 8, None, False).first == 1  # type: ignore[union-attr]
        assert schedule([row(50, started=2), row(50, started=1)], 8, None, False).first == 1  # type: ignore[union-attr]

    def test_rows_on_the_two_sides_of_a_switch_never_share_a_step(self) -> None:
        rows = [row(9, 8), row(300, 299, long_rope=True), row(9, 8)]
        assert schedule(rows, 64, SWITCH, False) == Step(0, 1, 1, 9, prefill=False)

    def test_the_side_that_waited_longest_goes_first_however_many_tokens_it_has(self) -> None:
        rows = [row(9, 8, last_step=7), row(300, 299, long_rope=True, last_step=3)]
        assert schedule(rows, 64, SWITCH, False) == Step(1, 1, 1, 300, prefill=False)

    def test_a_row_that_crosses_the_switch_is_read_anew(self) -> None:
        rows = [row(SWITCH + 1, SWITCH)]
        assert schedule(rows, 1000, SWITCH, False) == Step(0, 1, SWITCH + 1, SWITCH + 1, prefill=True)

    def test_the_first_chunks_of_a_long_prompt_are_as_wide_as_the_long_table_wants(self) -> None:
        assert schedule([row(300)], 64, SWITCH, False) == Step(0, 1, 64, SWITCH + 1, prefill=True)

    def test_rows_that_may_not_be_ragged_step_alone(self) -> None:
        assert schedule([row(9, 8), row(30, 29)], 64, None, False, ragged=False) == Step(0, 1, 1, 9, prefill=False)


class TestLongRope:
    @pytest.mark.parametrize("chunk", [7, 64, 256, 1024])
    @pytest.mark.parametrize("length", [SWITCH - 24, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 60])
    def test_ids_are_those_of_a_fresh_prefill_at_every_token(self, length: int, chunk: int) -> None:
        prompt = random_prompt(length, length)
        with running(serving("phi3-longrope", chunk=chunk)) as rig:
            assert ids(rig.run(request(0, prompt, 32))[0]) == greedy_by_fresh_prefill("phi3-longrope", prompt, 32)

    def test_the_two_tables_give_different_ids(self) -> None:
        """Else the tests above would show nothing: a prefill that is one column wider takes the other table."""
        one = serving("phi3-longrope")
        tokens = np.array([random_prompt(1, 200)], np.int64)
        short = one.session.step(0, tokens, [0], 200).copy()
        assert not np.allclose(short, one.session.step(0, tokens, [0], SWITCH + 1), atol=1e-3)

    def test_rows_on_both_sides_in_flight_give_what_each_gives_alone(self) -> None:
        lengths = (5, 300, SWITCH - 10, 40, SWITCH + 2, SWITCH - 3)
        jobs = [request(key, random_prompt(key, length), 24) for key, length in enumerate(lengths)]
        with running(serving("phi3-longrope", rows=4, chunk=64)) as rig:
            ends = rig.run(*jobs)
        for job in jobs:
            assert ids(ends[job.key]) == greedy_by_fresh_prefill("phi3-longrope", job.prompt, 24)


def some_jobs(name: str, chance: random.Random, count: int, sampling: bool) -> list[Request]:
    lengths = [1, 2, 9, 30, 75] + ([SWITCH - 12, SWITCH - 2, SWITCH + 20] if name == "phi3-longrope" else [])
    return [
        request(
            key,
            random_prompt(chance.randrange(10**6), chance.choice(lengths)),
            chance.randint(1, 24),
            priority=chance.randrange(10),
            stream=True,
            sampling=Sampling(temperature=0.9, top_p=0.95, top_k=chance.choice([0, 40]), seed=key)
            if sampling
            else Sampling(),
        )
        for key in range(count)
    ]


class TestBatch:
    @pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "seeded"])
    @pytest.mark.parametrize("name", NAMES)
    def test_ids_are_the_same_alone_and_among_others_that_come_and_go(self, name: str, sampling: bool) -> None:
        chance = random.Random(f"{name}{sampling}")
        jobs = some_jobs(name, chance, 24, sampling)
        with running(serving(name, chunk=16)) as rig:
            alone = {job.key: ids(rig.run(job)[job.key]) for job in jobs}
        cancelled = {4, 9, 17}
        with running(serving(name, rows=5, chunk=16)) as rig:
            ends = run_at_random(rig, jobs, chance, cancelled)
        for job in jobs:
            if isinstance(ends[job.key], Finished):
                assert ids(ends[job.key]) == alone[job.key], job.key
            else:
                assert job.key in cancelled
                assert ends[job.key].failure is None
        assert max(len(keys) for keys in rig.running) == 5
        assert rig.running[-1] == ()

    def test_the_last_row_moves_into_the_gap_with_all_its_cache(self) -> None:
        """Rows 0 and 1 end in the very step that the last row takes part in, before it or after it in slot order."""
        prompts = [r["prompt_ids"] for r in reference("phi3")]
        expected = [r["output_ids"] for r in reference("phi3")]
        with running(serving("phi3", rows=4)) as rig:
            ends = rig.run(*[request(key, prompts[key], length) for key, length in enumerate((5, 5, 9, 32))])
        for key, length in enumerate((5, 5, 9, 32)):
            assert ids(ends[key]) == expected[key][:length]

    def test_more_requests_than_rows_wait_and_the_urgent_go_first(self) -> None:
        with running(lambda: load(MODELS / "phi3")) as rig:  # all are waiting when the model is up
            jobs = [request(key, (9, 8, 7), 2, priority=key % 3) for key in range(9)]
            rig.run(*jobs)
        started = [event.key for event in rig.events if isinstance(event, Started)]
        assert started == [2, 5, 8, 1, 4, 7, 0, 3, 6]

    def test_a_running_row_is_not_pushed_out_by_an_urgent_request(self) -> None:
        with running(serving("phi3")) as rig:
            rig.hook = lambda event: rig.engine.submit(request(1, (9,), 2, priority=9)) if event == Started(0) else None
            rig.engine.submit(request(0, (9, 8), 20, priority=0))
            assert list(rig.ends(2)) == [0, 1]

    def test_who_has_rows_is_told_before_the_first_step_and_after_the_last(self) -> None:
        with running(serving("phi3", rows=4)) as rig:
            rig.run(request(7, (9, 8), 3))
        assert rig.running == [(7,), ()]

    def test_a_long_prompt_does_not_stall_a_decoding_row(self) -> None:
        """Between two chunks of the newcomer's prompt the running row gets its token, even with chunks of one token."""
        with running(serving("phi3", rows=4, chunk=1)) as rig:
            rig.hook = lambda event: (
                rig.engine.submit(request(1, random_prompt(3, 400), 1)) if event == Started(0) else None
            )
            rig.engine.submit(request(0, (9, 8), 40))
            assert next(iter(rig.ends(1))) == 0
