"""One request from submit to its end, and what the engine does when nothing, or something wrong, comes."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import (
    MODELS,
    NAMES,
    copy_package,
    ids,
    load,
    random_prompt,
    recorded_reference,
    reference,
    request,
    running,
    serving,
)
from family_rig import check_near_tie
from patience import PATIENCE, eventually

from edged.engine import lifecycle
from edged.engine.engine import MOST_REST
from edged.engine.events import Ended, EngineEvent, Finished, ModelChanged, Piece, Started
from edged.engine.package import PackageError, signature
from edged.engine.sampler import Sampler, Sampling
from edged.engine.sequence import Request
from edged.engine.steps import EngineLimit

PROMPT = tuple(reference("phi3")[0]["prompt_ids"])
ANSWER = list(reference("phi3")[0]["output_ids"])


def finished(end: Finished | Ended) -> Finished:
    assert isinstance(end, Finished), end
    return end


class TestGreedy:
    @pytest.mark.parametrize("chunk", [2, 7, 64, 256])
    @pytest.mark.parametrize("name", NAMES)
    def test_ids_do_not_depend_on_the_chunks(self, name: str, chunk: int) -> None:
        with running(serving(name, chunk=chunk)) as rig:
            for answer in reference(name):
                assert ids(rig.run(request(0, answer["prompt_ids"]))[0]) == answer["output_ids"]

    @pytest.mark.parametrize("name", NAMES)
    def test_ids_are_those_of_onnxruntime_genai(self, name: str) -> None:
        """On processors with other kernels than the recording one, an answer may leave at a near tie."""
        for recorded, own in zip(recorded_reference(name), reference(name), strict=True):
            if own["output_ids"] != recorded["output_ids"]:
                check_near_tie(name, own["prompt_ids"], recorded["output_ids"], own["output_ids"])

    def test_usage_and_times_are_told(self) -> None:
        before = time.monotonic()
        with running(serving("phi3")) as rig:
            end = finished(rig.run(request(0, PROMPT))[0])
        assert (end.prompt_tokens, end.cached_tokens, len(end.tokens)) == (len(PROMPT), 0, 32)
        assert before < end.started < end.first_token < end.ended

    def test_each_step_is_told_with_its_rows_and_tokens(self) -> None:
        """All of them together are the tokens that were computed: the prompts', and all made but the last ones."""
        before = time.monotonic()
        with running(serving("phi3", rows=2, chunk=4)) as rig:
            rig.run(*[request(key, PROMPT, 5 + key) for key in range(3)])
        steps = rig.steps.records
        assert rig.steps.begun == [step.began for step in steps]
        assert all(a.ended <= b.began for a, b in itertools.pairwise(steps))
        assert before < steps[0].began < steps[-1].ended < time.monotonic()
        for key in range(3):
            rows = [row for step in steps for row in step.rows if row.key == key]
            assert sum(row.tokens for row in rows if row.prompt) == len(PROMPT)
            assert [row.tokens for row in rows if not row.prompt] == [1] * (4 + key)
        assert max(len(step.rows) for step in steps) == 2

    def test_tokens_read_and_made_are_counted_while_an_answer_is_made(self) -> None:
        counts: list[tuple[int, int]] = []
        with running(serving("phi3", chunk=4)) as rig:
            status = lambda: (rig.engine.status.prompt_tokens, rig.engine.status.generated_tokens)  # noqa: E731
            rig.hook = lambda event: counts.append(status()) if isinstance(event, Piece) else None
            rig.run(request(0, PROMPT, 5, stream=True), request(1, PROMPT, 3))
            eventually(lambda: status() == (2 * len(PROMPT), 5 + 3), lambda: f"{status()}")
            rig.run(request(2, PROMPT, 1))
            eventually(lambda: status() == (3 * len(PROMPT), 5 + 3 + 1), lambda: f"{status()}")
        assert any(0 < made < 5 + 3 for _, made in counts)

    def test_a_context_shorter_than_the_sliding_window_changes_nothing(self) -> None:
        with running(load(MODELS / "gemma2", context=64)) as rig:
            for answer in reference("gemma2"):
                if len(answer["prompt_ids"]) <= 32:
                    assert ids(rig.run(request(0, answer["prompt_ids"]))[0]) == answer["output_ids"]

    def test_a_prompt_and_answer_that_fill_the_context_to_the_last_token(self) -> None:
        with running(serving("phi3")) as rig:
            assert len(ids(rig.run(request(0, random_prompt(1, 500), 12))[0])) == 12


class TestEnds:
    @pytest.mark.parametrize("count", [1, 2, 31])
    def test_max_tokens_ends_with_length(self, count: int) -> None:
        with running(serving("phi3")) as rig:
            end = finished(rig.run(request(0, PROMPT, count))[0])
        assert (list(end.tokens), end.reason) == (ANSWER[:count], "length")

    @pytest.mark.parametrize("eos", [ANSWER[4], [2, ANSWER[9], ANSWER[4]]], ids=["a number", "a list"])
    def test_any_eos_ends_with_stop_and_leaves_no_text(self, tmp_path: Path, eos: Any) -> None:
        with running(load(copy_package("phi3", tmp_path, eos_token_id=eos))) as rig:
            end = finished(rig.run(request(0, PROMPT, ignore_eos=False))[0])
        assert (list(end.tokens), end.reason) == (ANSWER[:5], "stop")
        assert end.text == serving("phi3").tokenizer.decode(ANSWER[:4])

    def test_ignore_eos_goes_on_to_max_tokens(self, tmp_path: Path) -> None:
        with running(load(copy_package("phi3", tmp_path, eos_token_id=ANSWER[4]))) as rig:
            end = finished(rig.run(request(0, PROMPT))[0])
        assert (list(end.tokens), end.reason) == (ANSWER, "length")

    @pytest.mark.parametrize("ignore_eos", [True, False])
    def test_a_stop_token_ends_with_stop_and_leaves_no_text(self, ignore_eos: bool) -> None:
        stop = frozenset({ANSWER[4], 999})
        with running(serving("phi3")) as rig:
            end = finished(rig.run(request(0, PROMPT, stop_tokens=stop, ignore_eos=ignore_eos))[0])
        assert (list(end.tokens), end.reason) == (ANSWER[:5], "stop")
        assert end.text == serving("phi3").tokenizer.decode(ANSWER[:4])

    def test_a_stop_string_that_is_a_special_tokens_text_ends_at_that_token(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        content = json.loads((package / "tokenizer.json").read_text())
        text = next(text for text, token in content["model"]["vocab"].items() if token == ANSWER[4])
        entry = {"id": ANSWER[4], "content": text, "special": True}
        entry |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append(entry)
        (package / "tokenizer.json").write_text(json.dumps(content))
        (package / "known_answers.json").unlink()
        with closing(load(package)) as one, running(one) as rig:
            assert text not in one.tokenizer.decode(ANSWER)
            end = finished(rig.run(request(0, PROMPT, stop=(text,)))[0])
        assert (list(end.tokens), end.reason) == (ANSWER[:5], "stop")

    def test_an_eos_as_the_last_token_allowed_is_a_stop(self, tmp_path: Path) -> None:
        with running(load(copy_package("phi3", tmp_path, eos_token_id=ANSWER[4]))) as rig:
            assert finished(rig.run(request(0, PROMPT, 5, ignore_eos=False))[0]).reason == "stop"

    @pytest.mark.parametrize("name", ["phi3", "qwen3", "gemma2"])
    @pytest.mark.parametrize("number", range(5))
    def test_stop_strings_that_span_tokens_end_the_answer_before_them(self, name: str, number: int) -> None:
        answer = reference(name)[number]
        one = serving(name)
        text = one.tokenizer.decode(answer["output_ids"])
        at = len(one.tokenizer.decode(answer["output_ids"][:14])) - 2
        stop = text[at : at + 4]  # two characters on each side of the border between tokens 14 and 15
        with running(one) as rig:
            end = finished(rig.run(request(0, answer["prompt_ids"], stop=("never there", stop), stream=True))[0])
        assert end.reason == "stop"
        assert end.text == text[: text.index(stop)]
        assert "".join(rig.pieces(0)) == end.text
        assert list(end.tokens) == answer["output_ids"][: len(end.tokens)]
        assert stop in one.tokenizer.decode(end.tokens)
        assert stop not in one.tokenizer.decode(end.tokens[:-1])

    def test_what_was_held_for_a_stop_string_comes_at_the_end(self) -> None:
        text = serving("phi3").tokenizer.decode(ANSWER)
        with running(serving("phi3")) as rig:
            end = finished(rig.run(request(0, PROMPT, stop=(text[-3:] + "more",), stream=True))[0])
        assert (end.text, end.reason, "".join(rig.pieces(0))) == (text, "length", text)


class TestStream:
    @pytest.mark.parametrize("name", NAMES)
    def test_pieces_join_to_the_text_of_all_tokens(self, name: str) -> None:
        with running(serving(name)) as rig:
            for key, answer in enumerate(reference(name)):
                end = finished(rig.run(request(key, answer["prompt_ids"], stream=True))[key])
                assert "".join(rig.pieces(key)) == end.text == serving(name).tokenizer.decode(answer["output_ids"])
                assert all(rig.pieces(key))

    def test_started_comes_before_the_pieces_and_one_end_after_them(self) -> None:
        with running(serving("phi3", rows=4)) as rig:
            rig.run(*[request(key, PROMPT[key:], 9, stream=True) for key in range(7)])
        for key in range(7):
            kinds = [type(event) for event in rig.of(key)]
            assert kinds == [Started, *[Piece] * (len(kinds) - 2), Finished]

    def test_a_request_that_does_not_stream_gets_no_pieces(self) -> None:
        with running(serving("phi3")) as rig:
            assert finished(rig.run(request(0, PROMPT))[0]).text
        assert rig.pieces(0) == []


class TestSampling:
    def seeded(self, seed: int, **more: Any) -> list[int]:
        sampling = Sampling(**{"temperature": 1.0, "seed": seed, **more})
        with running(serving("phi3")) as rig:
            return ids(rig.run(request(0, PROMPT, sampling=sampling))[0])

    def test_the_same_seed_gives_the_same_ids_and_another_others(self) -> None:
        assert self.seeded(1) == self.seeded(1)
        assert len({tuple(self.seeded(seed)) for seed in range(5)}) == 5

    def test_one_choice_is_greedy(self) -> None:
        assert self.seeded(1, top_k=1) == ANSWER
        assert self.seeded(1, top_p=1e-9) == ANSWER
        assert self.seeded(1, temperature=1e-6) == ANSWER

    def test_a_repetition_penalty_keeps_tokens_from_coming_again(self) -> None:
        with running(serving("phi3")) as rig:
            end = rig.run(request(0, PROMPT, 200, sampling=Sampling(repetition_penalty=50.0)))[0]
        made = ids(end)
        assert len(set(made)) == len(made)
        assert not set(made) & set(PROMPT)


class TestCancel:
    def test_between_steps(self) -> None:
        with running(serving("phi3")) as rig:
            rig.hook = lambda event: rig.engine.cancel(0) if isinstance(event, Piece) else None
            end = rig.run(request(0, PROMPT, 400, stream=True))[0]
        assert isinstance(end, Ended)
        assert end.failure is None
        assert 1 <= end.tokens < 30

    def test_in_the_middle_of_a_chunked_prompt(self) -> None:
        with running(serving("phi3", chunk=2)) as rig:
            rig.hook = lambda event: rig.engine.cancel(0) if event == Started(0) else None
            assert rig.run(request(0, random_prompt(1, 480)))[0] == Ended(0)
            assert ids(rig.run(request(1, PROMPT))[1]) == ANSWER

    def test_while_waiting(self) -> None:
        with running(serving("phi3")) as rig:
            rig.hook = lambda event: rig.engine.cancel(1) if event == Started(0) else None
            rig.engine.submit(request(0, PROMPT))
            rig.engine.submit(request(1, PROMPT))
            ends = rig.ends(2)
        assert ends[1] == Ended(1)
        assert Started(1) not in rig.events
        assert ids(ends[0]) == ANSWER

    def test_of_what_is_not_there_changes_nothing(self) -> None:
        with running(serving("phi3")) as rig:
            rig.engine.cancel(99)
            assert ids(rig.run(request(0, PROMPT))[0]) == ANSWER


class TestLimit:
    """The board holds the engine back."""

    def test_it_pauses_between_steps_for_its_share_of_the_time(self) -> None:
        with running(serving("phi3")) as rig:
            rig.run(request(0, PROMPT))
            rig.engine.limit = EngineLimit(duty=0.2)
            end = rig.run(request(1, PROMPT))[1]
            steps = [step for step in rig.steps.records if step.rows[0].key == 1]
        for step, following in itertools.pairwise(steps):
            assert following.began - step.ended >= 3.9 * (step.ended - step.began)
        assert ids(end) == ANSWER

    def test_a_cancel_does_not_wait_for_the_end_of_a_pause(self) -> None:
        with running(serving("phi3")) as rig:
            rig.engine.limit = EngineLimit(duty=1e-6)  # ten seconds
            rig.engine.submit(request(0, PROMPT, stream=True))
            rig.wait_for(lambda event: isinstance(event, Piece))
            asked = time.monotonic()
            rig.engine.cancel(0)
            rig.ends(1)
            assert time.monotonic() - asked < MOST_REST / 2

    def test_fewer_rows_are_given_where_memory_is_short(self) -> None:
        with running(serving("phi3", rows=4)) as rig:
            rig.engine.limit = EngineLimit(rows=2)
            ends = rig.run(*[request(key, PROMPT) for key in range(6)])
            assert max(len(step.rows) for step in rig.steps.records) == 2
            rig.engine.limit = EngineLimit()
            rig.run(*[request(key, PROMPT) for key in range(6, 12)])
        assert all(ids(ends[key]) == ANSWER for key in range(6))
        assert max(len(step.rows) for step in rig.steps.records) == 4


class TestFaults:
    def test_rows_that_shared_a_failing_step_run_again_and_only_the_culprit_ends(self) -> None:
        """onnxruntime itself refuses a token that the embedding does not have; nothing stands in for it."""
        one = serving("phi3", rows=4)

        def poison(event: EngineEvent) -> None:
            if isinstance(event, Piece) and event.key == 2 and len(rig.pieces(2)) == 3:
                next(row for row in rig.engine.rows if row.request.key == 2).tokens[-1] = 10**6

        with running(one) as rig:
            rig.hook = poison
            ends = rig.run(*[request(key, PROMPT, stream=True) for key in range(6)])
        assert isinstance(ends[2], Ended)
        assert "the model failed at a step" in str(ends[2].failure)
        assert "out of data bounds" in str(ends[2].failure)
        assert all(ids(ends[key]) == ANSWER for key in (0, 1, 3, 4, 5))
        assert max(len(keys) for keys in rig.running) == 4
        told = [row.key for step in rig.steps.records for row in step.rows if not row.prompt]
        assert told.count(2) == 4  # the failing step of all, and the one that it failed in alone, took time too

    def test_a_session_that_is_lost_is_rebuilt_and_the_rows_go_on_where_they_were(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = load(MODELS / "phi3", rows=3)
        step, calls = broken.session.step, []

        def lost(*args: Any) -> Any:
            calls.append(args)
            if len(calls) > 10:
                raise RuntimeError("CUDA failure 700:\nan illegal memory access was encountered")
            return step(*args)

        monkeypatch.setattr(broken.session, "step", lost)
        sessions = [broken, load(MODELS / "phi3", rows=3)]
        with running(lambda: sessions.pop(0)) as rig:
            ends = rig.run(*[request(key, PROMPT, stream=True) for key in range(5)])
        failed = [key for key, end in ends.items() if isinstance(end, Ended)]
        assert len(failed) == 1  # the one whose step showed it
        assert "an illegal memory access" in str(ends[failed[0]].failure)  # type: ignore[union-attr]
        for key in set(ends) - set(failed):
            assert ids(ends[key]) == ANSWER
            assert "".join(rig.pieces(key)) == ends[key].text  # type: ignore[union-attr]
        states = [event.state for event in rig.events if isinstance(event, ModelChanged)]
        assert states == ["loading", "serving"] * 2

    def test_a_row_can_be_cancelled_while_the_session_is_rebuilt(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.02)
        package = copy_package("phi3", tmp_path)
        first = load(package, rows=3)

        def lost(*_: Any) -> Any:
            raise RuntimeError("gone")

        def bring() -> Any:
            return sessions.pop() if sessions else load(package, rows=3)

        sessions = [first]
        with running(bring, lambda: signature(package)) as rig:

            def break_down(event: EngineEvent) -> None:
                if isinstance(event, Piece) and event.key == 2 and first.session.step is not lost:
                    monkeypatch.setattr(first.session, "step", lost)
                    (package / "tokenizer.json").rename(package / "away")

            rig.hook = break_down
            for key in range(3):
                rig.engine.submit(request(key, PROMPT, stream=True))
            assert "tokenizer.json" in rig.wait_for_state("unavailable").reason
            left = {0, 1, 2} - {event.key for event in rig.events if isinstance(event, (Ended, Finished))}
            gone, kept = sorted(left)
            rig.engine.cancel(gone)
            assert rig.wait_for(lambda event: isinstance(event, Ended) and event.key == gone)
            (package / "away").rename(package / "tokenizer.json")
            assert ids(rig.ends(1)[kept]) == ANSWER
        assert rig.running[-1] == ()

    def test_nan_from_the_model_ends_the_row_that_got_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = serving("phi3", rows=4)
        step = one.session.step

        def spoil_the_first_row(first: int, tokens: Any, past: Any, width: int) -> Any:
            logits = step(first, tokens, past, width)
            if len(tokens) == 2:
                logits[0] = np.nan
            return logits

        monkeypatch.setattr(one.session, "step", spoil_the_first_row)
        with running(one) as rig:
            ends = rig.run(request(0, PROMPT), request(1, PROMPT))
        assert isinstance(ends[0], Ended)
        assert ends[0].failure == "the model gave nan as its best logit at token 2"
        assert ids(ends[1]) == ANSWER

    @pytest.mark.slow
    def test_a_fault_of_the_engine_itself_ends_what_runs_and_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = serving("phi3")
        with running(one) as rig:
            with monkeypatch.context() as patched:
                patched.setattr(Sampler, "sample", lambda *_: 1 // 0)
                end = rig.run(request(0, PROMPT))[0]
            assert isinstance(end, Ended)
            assert str(end.failure).startswith("the engine failed: integer division")
            assert ids(rig.run(request(1, PROMPT))[1]) == ANSWER

    @pytest.mark.parametrize(
        ("prompt", "count"), [((), 5), ((9,) * 512, 1), ((9,), 512)], ids=["empty", "long", "many"]
    )
    def test_what_does_not_fit_the_cache_is_refused(self, prompt: tuple[int, ...], count: int) -> None:
        with running(serving("phi3")) as rig:
            end = rig.run(Request(key=0, prompt=prompt, max_tokens=count))[0]
            assert isinstance(end, Ended)
            assert "1 to 512 tokens" in str(end.failure)
            assert ids(rig.run(request(1, PROMPT))[1]) == ANSWER


class TestModel:
    def test_it_is_loading_and_then_serving(self) -> None:
        with running(serving("phi3")) as rig:
            assert rig.wait_for_state("serving").loaded is serving("phi3")
        assert [event.state for event in rig.events if isinstance(event, ModelChanged)] == ["loading", "serving"]

    def test_a_broken_package_is_served_once_it_is_mended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.02)
        package = copy_package("phi3", tmp_path)
        data = package / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:1000])
        with running(lambda: load(package), lambda: signature(package)) as rig:
            assert rig.wait_for_state("unavailable").reason.startswith("model.onnx.data is cut")
            rig.engine.submit(request(0, PROMPT))
            rig.engine.submit(request(1, PROMPT))
            rig.engine.cancel(1)
            assert rig.ends(1) == {1: Ended(1)}  # served or not, a cancel is answered
            shutil.copyfile(MODELS / "phi3" / "model.onnx.data", data)
            rig.wait_for_state("serving")
            assert ids(rig.ends(1)[0]) == ANSWER

    def test_a_package_that_is_not_changed_is_not_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.01)
        tries = []

        def fail() -> Any:
            tries.append(1)
            raise PackageError("no")

        with running(fail, lambda: "same") as rig:
            rig.wait_for_state("unavailable")
            time.sleep(0.1)
        assert len(tries) == 1

    def test_an_error_nobody_thought_of_is_told_on_one_line(self) -> None:
        def fail() -> Any:
            raise LookupError("so\nmuch")

        with running(fail) as rig:
            assert rig.wait_for_state("unavailable").reason == "loading failed unexpectedly: so much"


class TestIdle:
    def test_the_thread_sleeps_until_a_request_comes(self) -> None:
        def sleeps() -> bool:
            (engine,) = (thread for thread in threading.enumerate() if thread.name == "engine")
            before = self._switches(engine)
            time.sleep(0.5)  # it is the passing of time that is measured
            return self._switches(engine) == before

        with running(serving("phi3")) as rig:
            rig.run(request(0, PROMPT))
            eventually(sleeps, "the thread sleeps")
            assert ids(rig.run(request(1, PROMPT))[1]) == ANSWER

    def test_no_thread_of_the_process_burns_time(self) -> None:
        def idles() -> bool:
            before = time.process_time()
            time.sleep(1.0)  # it is the passing of time that is measured
            return time.process_time() - before < 0.01

        one = load(MODELS / "phi3", threads=2)
        with running(one) as rig:
            rig.run(request(0, PROMPT))
            eventually(idles, "no thread burns time")

    @staticmethod
    def _switches(engine: threading.Thread) -> list[str]:
        status = Path(f"/proc/self/task/{engine.native_id}/status").read_text().splitlines()
        found = [line for line in status if "ctxt_switches" in line]
        assert len(found) == 2
        return found


def test_stop_ends_the_thread_in_the_middle_of_a_request() -> None:
    with running(serving("phi3")) as rig:
        rig.engine.submit(request(0, PROMPT, 450))
        rig.wait_for(lambda event: event == Started(0))
        rig.engine.stop(timeout=PATIENCE)
    assert not any(isinstance(event, (Finished, Ended)) for event in rig.events)
