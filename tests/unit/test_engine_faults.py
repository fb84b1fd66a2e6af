"""The engine after a fault: its thread goes on or says that it ended, memory is freed, no tokens of another model."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from engine_rig import (
    MODELS,
    Rig,
    ids,
    load,
    random_prompt,
    reference,
    request,
    running,
    serving,
    wait_until_written,
)
from patience import PATIENCE, eventually

from edged.engine import lifecycle
from edged.engine.detokenizer import TextStream, WindowDetokenizer
from edged.engine.events import Ended, EngineEvent, Finished, ModelChanged, Piece, Started
from edged.engine.kv_cache import KVCache
from edged.engine.loaded_model import LoadedModel
from edged.engine.package_memory import TooLargeError
from edged.engine.sampler import Sampling
from edged.engine.scheduler import ChunkBudget, StepPlan
from edged.engine.sequence import Sequence
from edged.engine.slots import Slots
from edged.engine.splits import LEAST_CHUNK


def break_after(one: LoadedModel, steps: int) -> None:
    """Let each step after the first `steps` fail, as when a device is lost."""
    step, calls = one.session.step, []

    def lost(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > steps:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        return step(*arguments)

    one.session.step = lost  # type: ignore[method-assign]


class TestThread:
    def test_a_request_that_cannot_be_set_up_fails_alone(self) -> None:
        answer = reference("phi3")[0]
        with running(serving("phi3")) as rig:
            end = rig.run(request(0, (5, 6), sampling=Sampling(temperature=1.0, seed=-1)))[0]
            assert isinstance(end, Ended)
            assert "the engine refuses the request" in str(end.failure)
            assert ids(rig.run(request(1, answer["prompt_ids"]))[1]) == answer["output_ids"]

    def test_a_block_from_disk_that_finds_no_memory_costs_its_row_the_prefix_only(self, tmp_path: Path) -> None:
        prompt = random_prompt(5, 150)
        with running(load(MODELS / "phi3", 64 << 20, tmp_path)) as rig:
            expected = ids(rig.run(request(0, prompt, 5, pin=True))[0])
            wait_until_written(rig, 4)
        one = load(MODELS / "phi3", 64 << 20, tmp_path)

        def no_memory(*_: Any) -> None:
            raise MemoryError("no memory for a block")

        one.cache.write = no_memory  # type: ignore[method-assign]
        with running(one) as rig:
            end = rig.run(request(1, prompt, 5))[1]
            assert ids(end) == expected
            assert isinstance(end, Finished)
            assert end.cached_tokens == 0

    def test_a_thread_that_ends_says_why(self) -> None:
        def fail(event: EngineEvent) -> None:
            if event == Started(0):
                raise SystemExit("gone")

        with running(serving("phi3")) as rig:
            rig.hook = fail
            rig.engine.submit(request(0, (5, 6)))
            eventually(lambda: rig.engine.ended, "the thread ends")
            assert rig.engine.status.failed == "gone"

    def test_a_thread_that_was_stopped_did_not_fail(self) -> None:
        with running(serving("phi3")) as rig:
            rig.run(request(0, (5, 6), 2))
        assert rig.engine.ended
        assert rig.engine.status.failed is None


class TestStatus:
    def test_it_tells_of_the_step_and_the_rows(self) -> None:
        seen = []
        with running(serving("phi3", rows=4)) as rig:
            rig.hook = lambda event: seen.append(rig.engine.status) if isinstance(event, Piece) else None
            rig.run(*[request(key, (5, 6, 7), 20, stream=True) for key in range(3)])
            rig.run(request(9, (5, 6), 1))
        assert max(status.batch_rows for status in seen) == 3
        assert max(status.rows for status in seen) == 3
        assert all(status.busy_since is None for status in seen)  # between steps

    def test_it_knows_the_blocks_on_disk_by_the_time_the_model_serves(self, tmp_path: Path) -> None:
        with running(load(MODELS / "phi3", 64 << 20, tmp_path)) as rig:
            rig.run(request(0, random_prompt(5, 150), 1, pin=True))
            wait_until_written(rig, 4)
        seen = []
        rig = Rig(lambda: load(MODELS / "phi3", 64 << 20, tmp_path))
        rig.hook = lambda event: seen.append((event, rig.engine.status.prefixes.disk_bytes))
        rig.engine.start()
        try:
            rig.wait_for_state("serving")
        finally:
            rig.engine.stop(timeout=30)
        assert [size > 0 for event, size in seen] == [False, True]

    def test_a_step_and_a_load_tell_since_when_they_run(self) -> None:
        one = load(MODELS / "phi3")
        rig: Rig
        seen = []
        step = one.session.step
        one.session.step = lambda *a: (seen.append(rig.engine.status.busy_since), step(*a))[1]  # type: ignore[method-assign]

        def bring() -> LoadedModel:
            seen.append(rig.engine.status.loading_since)
            return one

        before = time.monotonic()
        rig = Rig(bring)
        rig.engine.start()
        try:
            rig.run(request(0, (5, 6), 2))
        finally:
            rig.engine.stop(timeout=PATIENCE)
        assert len(seen) == 3
        assert all(before <= at <= time.monotonic() for at in seen if at is not None)
        assert None not in seen
        assert (rig.engine.status.busy_since, rig.engine.status.loading_since) == (None, None)


def sessions() -> int:
    """Sessions of onnxruntime that are alive in this process."""
    gc.collect()
    return sum(isinstance(one, onnxruntime.InferenceSession) for one in gc.get_objects())


class TestLostSession:
    @pytest.mark.slow
    def test_its_memory_is_free_before_the_next_one_is_loaded(self) -> None:
        """Others hold the lost model still: whoever shows what is served, or prepares a prompt."""
        before = sessions()
        kept: list[LoadedModel] = []
        alive: list[int] = []

        def bring() -> LoadedModel:
            alive.append(sessions() - before)
            kept.append(load(MODELS / "phi3", rows=3))
            if len(kept) == 1:
                break_after(kept[0], 5)
            return kept[-1]

        with running(bring) as rig:
            rig.run(*[request(key, (5, 6, 7), 9) for key in range(3)])
        assert alive == [0, 0]

    @pytest.mark.parametrize("fewer", [False, True], ids=["another package", "a smaller context"])
    def test_rows_and_requests_of_another_model_come_back_to_be_prepared_again(self, fewer: bool) -> None:
        first = load(MODELS / "phi3", rows=2)
        second = load(MODELS / "phi3", context=40) if fewer else load(MODELS / "qwen3", rows=2)
        break_after(first, 12)
        models = [first, second]
        signature = None if fewer else first.signature
        with running(lambda: models.pop(0)) as rig:
            ends = rig.run(*[request(key, (5, 6, 7), 60, signature=signature) for key in range(2)])
            rig.engine.submit(request(2, (5, 6, 7), 10, signature=first.signature))
            late = rig.ends(1)[2]
            other = rig.run(request(3, (5, 6, 7), 5))[3]
        failed = [end for end in ends.values() if isinstance(end, Ended) and end.failure is not None]
        taken_back = [end for end in ends.values() if isinstance(end, Ended) and end.failure is None]
        assert (len(failed), len(taken_back)) == (1, 1)  # the one whose step showed the loss, and the other
        assert taken_back[0].tokens > 0
        assert isinstance(late, Finished) if fewer else late == Ended(2)
        assert isinstance(other, Finished)

    def test_requests_that_wait_while_another_model_is_loaded_come_back(self) -> None:
        first = load(MODELS / "phi3")
        break_after(first, 12)
        models = [first, load(MODELS / "qwen3")]
        with running(lambda: models.pop(0)) as rig:
            ends = rig.run(*[request(key, (5, 6, 7), 60, signature=first.signature) for key in range(3)])
        assert [end.failure is None for end in ends.values() if isinstance(end, Ended)].count(True) == 2

    def test_a_second_check_before_the_rows_have_a_place_again_loses_none(self) -> None:
        loads: list[int] = []
        rig: Rig

        def bring() -> LoadedModel:
            loads.append(1)
            if len(loads) == 2:  # the rows are parked now
                rig.engine.check_again()
            return load(MODELS / "phi3", rows=2)

        def check(event: EngineEvent) -> None:
            if event == Started(1):
                rig.engine.check_again()

        answers = reference("phi3")[:2]
        with running(bring) as rig:
            rig.hook = check
            ends = rig.run(*[request(key, answer["prompt_ids"]) for key, answer in enumerate(answers)])
            assert [rig.of(key).count(Started(key)) for key in range(2)] == [1, 1]
        assert [ids(ends[key]) for key in range(2)] == [answer["output_ids"] for answer in answers]
        assert len(loads) == 3
        assert rig.running[-1] == ()

    def test_rows_that_find_no_place_with_the_next_session_outlast_the_loss_of_that_one_too(self) -> None:
        models = [load(MODELS / "phi3", rows=rows) for rows in (3, 1, 1)]
        break_after(models[0], 12)
        break_after(models[1], 5)
        with running(lambda: models.pop(0)) as rig:
            ends = rig.run(*[request(key, (5, 6, 7), 60) for key in range(3)])
        assert [isinstance(end, Finished) for end in ends.values()].count(True) == 1  # each loss costs one
        assert [isinstance(end, Ended) and end.failure is not None for end in ends.values()].count(True) == 2


class TestRetry:
    def test_a_refusal_for_memory_is_tried_again_though_no_file_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(lifecycle, "MEMORY_RETRY_SECONDS", 0.05)
        tries: list[int] = []

        def bring() -> LoadedModel:
            tries.append(1)
            if len(tries) == 1:
                raise TooLargeError("the model needs 9 GiB and 1 GiB are usable")
            if len(tries) == 2:
                raise MemoryError("cannot map 9 bytes")
            return serving("phi3")

        with running(bring, lambda: "same") as rig:
            rig.wait_for_state("serving")
            rig.run(request(0, (5, 6), 2))
        states = [event.state for event in rig.events if isinstance(event, ModelChanged)]
        assert states == ["loading", "unavailable", "serving"]  # a second refusal is no news


class TestMoves:
    def test_time_that_rows_were_moved_is_taken_from_the_next_chunk(self) -> None:
        budget = ChunkBudget(1.0)
        budget.note(StepPlan(0, 1, 100, 100), 0.1)
        assert budget.chunk(512, 1) == 512
        budget.note_moves(0.3)
        assert budget.chunk(512, 1) in (449, 450)
        budget.note_moves(9.0)
        assert budget.chunk(512, 1) == LEAST_CHUNK
        assert budget.chunk(512, 0) == 512  # nobody waits
        budget.note(StepPlan(0, 1, 1, 101), 0.0)
        assert budget.chunk(512, 1) == 512

    def test_slots_measure_moves(self) -> None:
        package = serving("phi3").package
        slots = Slots(KVCache(package, 4, 512), 4)
        rows = [
            Sequence(request(key, (5, 6, 7)), TextStream(WindowDetokenizer(lambda _ids: "")), computed=2)
            for key in range(3)
        ]
        for row in rows:
            slots.place(row)
        assert slots.take_move_seconds() == 0.0
        slots.remove(rows[2])
        assert slots.take_move_seconds() == 0.0  # the last one leaves no gap
        slots.remove(rows[0])
        assert slots.rows == [rows[1]]
        assert slots.take_move_seconds() > 0.0
        assert slots.take_move_seconds() == 0.0

    def test_after_a_slow_move_the_next_chunk_is_short(self) -> None:
        """The row that waits for its token has waited for the move too."""
        one = replace(load(MODELS / "phi3", rows=3, prefill_chunk=16), max_stall=0.4)
        order: list[int] = []
        step, move, swap = one.session.step, one.cache.move, one.cache.swap

        def slow(copy: Any) -> Any:
            def copied(*arguments: Any) -> None:
                order.append(0)
                time.sleep(0.4)
                copy(*arguments)

            return copied

        def noted(first: int, tokens: Any, past: Any, width: int) -> Any:
            order.append(tokens.shape[1])
            return step(first, tokens, past, width)

        one.cache.move, one.cache.swap = slow(move), slow(swap)  # type: ignore[method-assign]
        one.session.step = noted  # type: ignore[method-assign]
        with running(one) as rig:
            rig.run(
                request(0, random_prompt(0, 9), 4),
                request(1, random_prompt(1, 9), 40),
                request(2, random_prompt(2, 400), 1),
            )
        after = [order[at + 1 :] for at, count in enumerate(order) if count == 0]
        following = [next((count for count in rest if count != 0), 1) for rest in after]
        assert following
        assert max(following) <= LEAST_CHUNK


def test_an_int8_cache_is_a_value_of_its_layout() -> None:
    """Blocks go in and out byte for byte with planes of other dtypes."""
    one = serving("phi3")
    layout = one.cache.layout
    dtypes = ("int8", "float16") * (len(layout.planes) // 2)
    planes = tuple(replace(plane, dtype=dtype) for plane, dtype in zip(layout.planes, dtypes, strict=True))
    small = replace(layout, planes=planes)
    cache = KVCache(one.package, 2, 64, layout=small)
    assert cache.bytes == 2 * 64 * small.token_bytes
    block = np.random.default_rng(0).integers(0, 256, small.block_bytes(10), dtype=np.uint8)
    cache.write(1, 7, block)
    assert np.array_equal(cache.read(1, 7, 10), block)
    cache.move(1, 0, 20)
    assert np.array_equal(cache.read(0, 7, 10), block)
