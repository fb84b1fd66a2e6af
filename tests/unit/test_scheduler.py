"""Rows together: which step comes next, and that nobody's tokens depend on who else is in the batch."""

from __future__ import annotations

import random
import time
from dataclasses import replace
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

from edged.engine.detokenizer import TextStream, WindowDetokenizer
from edged.engine.events import EngineEvent, Finished, Started
from edged.engine.sampler import Sampling
from edged.engine.scheduler import ChunkBudget, StepPlan, schedule
from edged.engine.sequence import PRIORITY_SECONDS, Request, Sequence
from edged.engine.slots import swaps

SWITCH = 256


def row(tokens: int, computed: int = 0, **more: Any) -> Sequence:
    priority = more.pop("priority", 5)
    return Sequence(
        request=Request(key=0, prompt=tuple(range(tokens)), max_tokens=9, priority=priority),
        text=TextStream(WindowDetokenizer(lambda _ids: "")),
        computed=computed,
        **more,
    )


class TestSchedule:
    def test_without_rows_there_is_no_step(self) -> None:
        assert schedule([], 64, None, False) is None

    def test_a_prompt_is_read_in_chunks(self) -> None:
        assert schedule([row(100)], 64, None, False) == StepPlan(0, 1, 64, 64)
        assert schedule([row(100, 64)], 64, None, False) == StepPlan(0, 1, 36, 100)

    @pytest.mark.parametrize("chunk", [3, 16, 64])
    def test_no_prompt_of_several_tokens_ends_with_a_chunk_of_one(self, chunk: int) -> None:
        """A step of one token differs in its last bits from the same token read along with others."""
        for tokens in range(2, 200):
            counts, computed = [], 0
            while computed < tokens:
                step = schedule([row(tokens, computed)], chunk, None, False)
                assert step is not None
                counts.append(step.count)
                computed += step.count
            assert 1 < min(counts) <= max(counts) <= chunk

    def test_decoding_rows_share_a_step_as_wide_as_the_longest(self) -> None:
        assert schedule([row(9, 8), row(30, 29)], 64, None, False) == StepPlan(0, 2, 1, 30)

    def test_decoding_rows_and_prompts_take_turns(self) -> None:
        rows = [row(9, 8), row(100)]
        first = schedule(rows, 8, None, False)
        assert first == StepPlan(1, 1, 8, 8)
        assert schedule(rows, 8, None, first.chunk) == StepPlan(0, 1, 1, 9)

    def test_a_prompt_is_split_alike_in_any_company(self) -> None:
        """A row in prefill between two decoding ones does not go along with them: it would be read in other chunks."""
        rows = [row(9, 8), row(100), row(9, 8, last_step=1)]
        assert schedule(rows, 8, None, True) == StepPlan(0, 1, 1, 9)
        rows[0].last_step = 2
        assert schedule(rows, 8, None, 2) == StepPlan(2, 1, 1, 9)

    def test_the_more_urgent_prompt_is_read_first_then_the_earlier(self) -> None:
        assert schedule([row(50, started=1), row(50, started=2, priority=9)], 8, None, False).first == 1  # type: ignore[union-attr]
        assert schedule([row(50, started=2), row(50, started=1)], 8, None, False).first == 1  # type: ignore[union-attr]

    def test_rows_on_the_two_sides_of_a_switch_never_share_a_step(self) -> None:
        rows = [row(9, 8), row(300, 299, long_rope=True), row(9, 8)]
        assert schedule(rows, 64, SWITCH, False) == StepPlan(0, 1, 1, 9)

    def test_the_side_that_waited_longest_goes_first_however_many_tokens_it_has(self) -> None:
        rows = [row(9, 8, last_step=7), row(300, 299, long_rope=True, last_step=3)]
        assert schedule(rows, 64, SWITCH, False) == StepPlan(1, 1, 1, 300)

    def test_a_row_that_crosses_the_switch_is_read_anew(self) -> None:
        rows = [row(SWITCH + 1, SWITCH)]
        rows[0].settle_rope(SWITCH)
        assert schedule(rows, 1000, SWITCH, False) == StepPlan(0, 1, SWITCH + 1, SWITCH + 1)

    def test_the_first_chunks_of_a_long_prompt_are_as_wide_as_the_long_table_wants(self) -> None:
        assert schedule([row(300, long_rope=True)], 64, SWITCH, False) == StepPlan(0, 1, 64, SWITCH + 1)

    def test_a_lone_row_takes_the_slot_after_it_along_where_one_row_rounds_otherwise(self) -> None:
        def companion(*rows: Sequence) -> StepPlan | None:
            return schedule(list(rows), 64, SWITCH, 1, pad_lone_row=True)

        assert companion(row(9, 8)) == StepPlan(0, 1, 1, 9, companion=0)
        assert companion(row(9, 8), row(100, 64)) == StepPlan(0, 1, 1, 65, companion=64)
        assert companion(row(9, 8), row(9, 8)) == StepPlan(0, 2, 1, 9)
        long = row(300, 299, long_rope=True)
        assert companion(long, row(9, 8, last_step=1)) == StepPlan(0, 1, 1, 300, companion=8)

    def test_a_companion_never_moves_a_lone_row_over_the_switch(self) -> None:
        """Rows beyond the switch lie before the others, in prefill too: the slot after is on the same side or free."""
        rows = [row(9, 8), row(300, 299, long_rope=True, last_step=1), row(400, 320, long_rope=True)]
        for one, other in swaps(rows):
            rows[one], rows[other] = rows[other], rows[one]
        assert [len(r.tokens) for r in rows] == [300, 400, 9]
        assert schedule(rows, 64, SWITCH, 1, pad_lone_row=True) == StepPlan(2, 1, 1, 9, companion=0)

    def test_rows_that_may_not_be_ragged_step_alone(self) -> None:
        assert schedule([row(9, 8, ragged=False), row(30, 29, ragged=False)], 64, None) == StepPlan(0, 1, 1, 9)


class TestNeighbours:
    def test_decoding_rows_come_first_and_the_two_sides_apart(self) -> None:
        rows = [row(100), row(9, 8), row(300, 299, long_rope=True), row(9, 8), row(50)]
        for one, other in swaps(rows):
            rows[one], rows[other] = rows[other], rows[one]
        assert [(r.behind, r.long_rope) for r in rows] == [
            (False, True),
            (False, False),
            (False, False),
            (True, False),
            (True, False),
        ]

    def test_rows_in_order_are_left_alone(self) -> None:
        assert swaps([row(300, 299, long_rope=True), row(9, 8), row(9, 8), row(50)]) == []

    def test_decoding_rows_share_each_step_though_a_prompt_was_among_them(self) -> None:
        """Slot 0 ends while slot 3 still reads its prompt: it must not come to lie between the others."""
        one = serving("phi3", rows=4, chunk=16)
        shared = []
        step = one.session.step
        with running(one) as rig, pytest.MonkeyPatch.context() as patched:
            patched.setattr(one.session, "step", lambda f, t, p, w: (shared.append(t.shape), step(f, t, p, w))[1])
            jobs = [request(0, random_prompt(0, 9), 3), *[request(k, random_prompt(k, 9), 40) for k in (1, 2)]]
            rig.run(*jobs, request(3, random_prompt(3, 400), 1))
        decoding = [shape[0] for shape in shared if shape[1] == 1]
        assert decoding.count(1) <= 3
        assert decoding.count(2) >= 25


class TestPace:
    def test_alone_a_prompt_is_read_in_the_largest_chunks_once_it_is_known_that_they_do_not_take_minutes(self) -> None:
        pace = ChunkBudget(1.0)
        assert pace.chunk(256, 0) == 64
        pace.note(StepPlan(0, 1, 64, 64), 64 * 0.01)
        assert pace.chunk(256, 0) == 256
        pace.note(StepPlan(0, 1, 256, 320), 256 * 1.5)
        assert pace.chunk(256, 0) == 20  # 30 seconds

    def test_a_chunk_fits_between_two_tokens_of_the_others(self) -> None:
        pace = ChunkBudget(1.0)
        assert pace.chunk(256, 1) == 16
        for _ in range(50):
            pace.note(StepPlan(0, 1, 30, 30), 1.0)  # 30 tokens a second, as Phi-3 mini on two cores
            pace.note(StepPlan(0, 8, 1, 30), 0.3)
        chunk = pace.chunk(256, 1)
        assert 10 <= chunk <= 20
        assert chunk / 30 + 0.3 < 1.0
        assert pace.chunk(256, 2) < chunk
        assert pace.chunk(256, 9) == 2

    def test_slower_steps_count_at_once(self) -> None:
        pace = ChunkBudget(1.0)
        pace.note(StepPlan(0, 1, 100, 100), 1.0)
        fast = pace.chunk(256, 1)
        pace.note(StepPlan(0, 1, 10, 10), 1.0)
        assert pace.chunk(256, 1) <= fast // 9

    def test_running_rows_get_their_tokens_while_long_prompts_are_read(self) -> None:
        """The wait is bounded by the setting: with a tenth of a step's cost as bound, chunks shrink to the least."""
        one = replace(serving("phi3", rows=4, chunk=256), max_stall=0.01)
        counts = []
        step = one.session.step

        def slow(first: int, tokens: Any, past: Any, width: int) -> Any:
            counts.append(tokens.shape[1])
            end = time.perf_counter() + 0.001 * tokens.shape[1]  # a millisecond a token, as a larger model takes
            logits = step(first, tokens, past, width)
            while time.perf_counter() < end:
                pass
            return logits

        with pytest.MonkeyPatch.context() as patched, running(one) as rig:
            patched.setattr(one.session, "step", slow)
            rig.hook = lambda event: (
                rig.engine.submit(request(1, random_prompt(3, 300), 1)) if event == Started(0) else None
            )
            rig.engine.submit(request(0, (9, 8), 200))
            rig.ends(2)
        chunks = [count for count in counts if count > 1]
        assert max(chunks[2:]) <= 8  # three quarters of ten milliseconds


class TestPriority:
    def test_an_urgent_job_goes_first_but_not_before_one_that_has_waited_long(self) -> None:
        waiting = [Request(0, (1,), 1, priority=0, received=0.0)]
        late = 9 * PRIORITY_SECONDS
        urgent = [Request(k, (1,), 1, priority=9, received=r) for k, r in ((1, 5.0), (2, late - 1), (3, late + 1))]
        order = [request.key for request in sorted(waiting + urgent, key=lambda r: r.rank)]
        assert order == [1, 2, 0, 3]

    def test_a_stream_of_urgent_jobs_does_not_starve_another(self) -> None:
        """Each urgent job that ends brings two more, received ever later; the patient one must still come to an end."""
        with running(serving("phi3", rows=1)) as rig:
            sent = [0]

            def flood(event: EngineEvent) -> None:
                if isinstance(event, (Started, Finished)) and event.key != 10**6 and sent[0] < 400:
                    sent[0] += 1
                    more = request(sent[0], (9, 8), 1, priority=9, received=float(sent[0] * 60))
                    rig.engine.submit(more)

            rig.hook = flood
            rig.engine.submit(request(0, (9, 8), 1, priority=9))
            rig.engine.submit(request(10**6, (9, 8), 1, priority=0))
            rig.wait_for(lambda event: isinstance(event, Finished) and event.key == 10**6)
        assert 9 * PRIORITY_SECONDS / 60 - 2 <= sent[0] < 400


class TestLongRope:
    @pytest.mark.slow
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


PENALTIES: Any = {
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.3,
    "logit_bias": ((9, 1.5), (10, -100.0)),
}


def some_jobs(name: str, chance: random.Random, count: int, sampling: bool) -> list[Request]:
    lengths = [1, 2, 9, 30, 75] + ([SWITCH - 12, SWITCH - 2, SWITCH + 20] if name == "phi3-longrope" else [])
    return [
        request(
            key,
            random_prompt(chance.randrange(10**6), chance.choice(lengths)),
            chance.randint(1, 24),
            priority=chance.randrange(10),
            stream=True,
            sampling=Sampling(
                temperature=0.9 if sampling else 0.0,
                top_p=0.95,
                top_k=chance.choice([0, 40]),
                min_p=chance.choice([0.0, 0.01]),
                seed=key,
                **PENALTIES if key % 2 else {},
            ),
        )
        for key in range(count)
    ]


class TestBatch:
    @pytest.mark.slow
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
        """Between two chunks of the newcomer's prompt a running row gets its token, even with chunks of two."""
        with running(serving("phi3", rows=4, chunk=2)) as rig:
            rig.hook = lambda event: (
                rig.engine.submit(request(1, random_prompt(3, 400), 1)) if event == Started(0) else None
            )
            rig.engine.submit(request(0, (9, 8), 40))
            assert next(iter(rig.ends(1))) == 0
