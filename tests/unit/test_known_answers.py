"""Known answers: a right package is served, and one that answers otherwise is not, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from engine_rig import MODELS, copy_package, ids, load, reference, request, running, serving
from random_package import Shape, write_random_package
from structlog.testing import capture_logs

from edged.engine import lifecycle, manifest
from edged.engine.events import Ended, ModelChanged
from edged.engine.known_answers import (
    BUDGET,
    FILE,
    NEAR_TIE,
    KnownAnswers,
    Question,
    read_known_answers,
    suspect_runtime,
)
from edged.engine.package import Package, PackageError, open_package, signature
from edged.machine.board import detect
from edged.machine.memory import available
from edged.models import record as recording
from edged.models.store import DEMO_FOLDER
from edged.settings import Settings

RELEASE = tuple(int(part) for part in ort.__version__.split(".")[:2])
RECORDED = sorted(path.parent.name for path in MODELS.glob(f"*/{FILE}"))
WINDOW_ANSWERS = MODELS.parent / "known_answers" / "phi3-window-4.json"


def refusal(package: Path, **model: Any) -> str:
    with pytest.raises(PackageError) as caught:
        load(package, **model).close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def known_answers(package: Path) -> KnownAnswers:
    known = read_known_answers(open_package(package))
    assert known is not None
    return known


def rewrite(package: Path, change: Callable[[dict[str, Any]], Any], name: str = FILE) -> None:
    document = json.loads((package / name).read_text(encoding="utf-8"))
    change(document)
    (package / name).write_text(json.dumps(document), encoding="utf-8")


def settings() -> Settings:
    return Settings(model={"threads": 1})


def record(package: Path) -> KnownAnswers:
    return recording.record_known_answers(settings(), detect(), available, package)


class TestRight:
    @pytest.mark.parametrize("name", RECORDED)
    @pytest.mark.parametrize("chunk", [5, 256])
    def test_a_right_package_is_served_as_verified(self, name: str, chunk: int) -> None:
        if name == "gemma2" and RELEASE < (1, 30):
            pytest.skip("its graph does not load before onnxruntime 1.30")
        verified = serving(name, chunk=chunk).verified
        known = known_answers(MODELS / name)
        assert verified is not None
        assert verified.compared == sum(m >= NEAR_TIE for q in known.questions for m in q.margins) >= 8
        assert verified.tokens == known.tokens <= BUDGET

    def test_the_demo_model_is_verified_and_sure_of_its_answers(self) -> None:
        one = load(DEMO_FOLDER)
        one.close()
        assert one.verified is not None
        assert one.verified.compared >= 10
        assert known_answers(DEMO_FOLDER).recorded_with.onnxruntime_genai is not None

    def test_a_context_shorter_than_the_questions_does_not_matter(self) -> None:
        one = load(MODELS / "phi3", context=16)
        assert one.context == 16
        assert one.verified is not None
        assert one.verified.compared == serving("phi3").verified.compared  # type: ignore[union-attr]
        prompt = reference("phi3")[0]["prompt_ids"][:6]
        with running(one) as rig, running(serving("phi3")) as other:
            assert ids(rig.run(request(0, prompt, 10))[0]) == ids(other.run(request(0, prompt, 10))[0])
            assert isinstance(rig.run(request(1, prompt, 11))[1], Ended)

    def test_what_it_cost_is_logged(self) -> None:
        with capture_logs() as logs:
            load(MODELS / "phi3").close()
        (event,) = [entry for entry in logs if entry["event"] == "model_verified"]
        assert (event["model"], event["tokens"], event["compared"]) == ("phi3", 32, 8)
        assert event["seconds"] > 0
        assert not [entry for entry in logs if entry["event"] == "model_not_verified"]

    def test_a_package_without_known_answers_is_served_and_told_how_to_get_them(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        (package / FILE).unlink()
        with capture_logs() as logs:
            one = load(package)
        assert one.verified is None
        (event,) = [entry for entry in logs if entry["event"] == "model_not_verified"]
        assert (event["log_level"], event["model"]) == ("warning", "phi3")
        assert f"edged model verify --record --model {package}" in event["hint"]
        with running(one) as rig:
            answer = reference("phi3")[0]
            assert ids(rig.run(request(0, answer["prompt_ids"]))[0]) == answer["output_ids"]


def flip_block(package: Path, seed: int) -> None:
    """Turn every bit of one block of 32 weights, chosen by `seed` among all int4 weights."""
    rng = np.random.default_rng(seed)
    tensors = [t for t in open_package(package).graph.external if t.name.endswith("_Q4")]
    tensor = tensors[rng.integers(len(tensors))]
    assert tensor.length is not None
    spoil(package, tensor.offset + 16 * int(rng.integers(tensor.length // 16)), 16)


def flip_range(package: Path, size: int, seed: int) -> None:
    """Put random bytes in place of `size` neighbouring ones, as a bad sector would."""
    data = package / "model.onnx.data"
    at = size * int(np.random.default_rng(seed).integers(data.stat().st_size // size))
    spoil(package, at, size, np.random.default_rng(seed).bytes(size))


def spoil(package: Path, at: int, size: int, new: bytes | None = None) -> None:
    data = bytearray((package / "model.onnx.data").read_bytes())
    data[at : at + size] = new or bytes(byte ^ 0xFF for byte in data[at : at + size])
    (package / "model.onnx.data").write_bytes(data)


class TestDamagedWeights:
    @pytest.mark.parametrize("seed", [35, 49, 57])
    def test_one_block_of_32_weights(self, tmp_path: Path, seed: int) -> None:
        package = copy_package("phi3", tmp_path)
        flip_block(package, seed)
        message = refusal(package)
        assert message.startswith("the model answers otherwise than its known answers say: ")
        assert " of 8 tokens differ; expected [" in message
        assert "; likely cause: damaged weights" in message
        assert "copy the package again" in message

    def test_what_was_expected_and_what_came_are_told_in_ids_and_text(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        flip_block(package, 35)
        (question,) = known_answers(package).questions
        expected, came = refusal(package).split("; expected ")[1].split("; likely")[0].split(", came ")
        first = [int(token) for token in expected[1:].split("]")[0].split()]
        other = [int(token) for token in came[1:].split("]")[0].split()]
        assert first == question.answer[(at := question.answer.index(first[0])) : at + 6]
        assert first[0] != other[0]
        for tokens, shown in ((first, expected), (other, came)):
            assert shown.split("] ", 1)[1] == repr(serving("phi3").tokenizer.decode(tokens)[:48])

    @pytest.mark.slow
    @pytest.mark.parametrize(("size", "found"), [(256, 2), (4096, 4), (16384, 7), (65536, 8)])
    def test_the_larger_the_damage_the_surer_it_is_found(self, tmp_path: Path, size: int, found: int) -> None:
        package = copy_package("phi3", tmp_path)
        whole = (package / "model.onnx.data").read_bytes()
        refused = 0
        for seed in range(8):
            (package / "model.onnx.data").write_bytes(whole)
            flip_range(package, size, seed)
            try:
                load(package).close()
            except PackageError:
                refused += 1
        assert refused >= found

    @pytest.mark.parametrize("known", [True, False])
    def test_nan_is_found_with_known_answers_and_without(self, tmp_path: Path, known: bool) -> None:
        package = copy_package("phi3", tmp_path)
        if not known:
            (package / FILE).unlink()
        for tensor in open_package(package).graph.external:
            if tensor.name.endswith("weight_scales"):
                assert tensor.length is not None
                nan = np.full(tensor.length // 4, np.nan, np.float32).tobytes()
                spoil(package, tensor.offset, tensor.length, nan)
        assert refusal(package).startswith("the model gives NaN or infinity where numbers are due")

    def test_a_float16_graph_whose_sums_overflow_is_told_as_that(self, tmp_path: Path) -> None:
        """At 32 tokens, as at some tokens none does. The fault of onnxruntime's issue 32600, for Gemma on aarch64."""
        fits = Shape(hidden=128, heads=2, kv_heads=1, head_size=64, layers=2, dtype="float16")
        overflows = replace(fits, residual=15_000)
        told = refusal(write_random_package(tmp_path / "overflows", overflows))
        assert told.startswith("the model gives NaN or infinity where numbers are due: it computes in float16, which")
        assert "build the package for the CPU" in told
        for number, shape in enumerate((fits, replace(overflows, dtype="float32"))):
            load(write_random_package(tmp_path / str(number), shape)).close()

    def test_the_cause_names_both_runtimes_where_they_are_not_the_same(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        flip_block(package, 35)
        rewrite(package, lambda known: known["recorded_with"].update(onnxruntime="1.99.0"))
        assert f"or onnxruntime {ort.__version__} computes this graph wrongly" in refusal(package)
        assert "recorded with 1.99.0" in refusal(package)

    def test_a_near_tie_is_not_compared(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        question = known_answers(package).questions[0]
        at = max(place for place, margin in enumerate(question.margins) if margin < NEAR_TIE)
        answer = [*question.answer[:at], 77]
        text = serving("phi3").tokenizer.decode(answer)
        rewrite(package, first_question(answer=answer, margins=question.margins[: at + 1], text=text))
        assert load(package).verified is not None
        rewrite(package, first_question(margins=[*question.margins[:at], NEAR_TIE]))
        assert "expected [77] " in refusal(package)


class TestForeignTokenizer:
    def test_ids_that_are_permuted(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)

        def permute(document: dict[str, Any]) -> None:
            vocabulary = document["model"]["vocab"]
            words = sorted(vocabulary, key=vocabulary.__getitem__)[300:]
            for word, other in zip(words, [*words[1:], words[0]], strict=True):
                vocabulary[word] = document["model"]["vocab"][other] if other != words[0] else 300

        rewrite(package, permute, "tokenizer.json")
        message = refusal(package)
        assert message.startswith("the tokenizer is not the one that the known answers were recorded with: of 'Valve 3")
        assert message.endswith("tokenizer.json is of another package or damaged: copy the package again")

    def test_merges_in_another_order(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        rewrite(package, lambda document: document["model"]["merges"].reverse(), "tokenizer.json")
        assert "it makes token " in refusal(package)

    def test_words_that_only_the_answer_has(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        known = known_answers(package)
        answer, sample = set(known.questions[0].answer), set(known.tokenizer.ids)
        only = min(answer - sample), max(set(range(300, 1000)) - answer - sample)

        def swap(document: dict[str, Any]) -> None:
            vocabulary = document["model"]["vocab"]
            a, b = (next(word for word, token in vocabulary.items() if token == one) for one in only)
            vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

        rewrite(package, swap, "tokenizer.json")
        message = refusal(package)
        assert "it spells [" in message
        assert message.endswith("tokenizer.json is of another package or damaged: copy the package again")

    def test_it_is_found_before_the_weights_are_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = copy_package("phi3", tmp_path)
        rewrite(package, lambda document: document["model"]["merges"].reverse(), "tokenizer.json")
        monkeypatch.setattr("edged.engine.opening.ModelSession", lambda *_: pytest.fail("loaded"))
        assert "tokenizer" in refusal(package)


def window_of_4(package: Path) -> None:
    """Let phi3's attention see 4 tokens, which onnxruntime 1.23 takes for 5."""
    graph = (package / "model.onnx").read_bytes()
    unlimited = b"local_window_size\x18" + b"\xff" * 9 + b"\x01"  # -1, a varint of ten bytes
    limited = b"local_window_size\x18\x84" + b"\x80" * 8 + b"\x00"
    assert graph.count(unlimited) == 2
    (package / "model.onnx").write_bytes(graph.replace(unlimited, limited))
    shutil.copyfile(WINDOW_ANSWERS, package / FILE)


class TestRuntime:
    """Run by `make test-runtimes` under older onnxruntimes."""

    def test_a_runtime_that_computes_the_graph_otherwise_is_not_served(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        window_of_4(package)
        if RELEASE >= (1, 24):
            assert load(package).verified is not None
        else:
            message = refusal(package)
            assert f"or onnxruntime {ort.__version__} computes this graph wrongly" in message
            assert f"recorded with {known_answers(package).recorded_with.onnxruntime}" in message

    @pytest.mark.parametrize(
        ("name", "version", "wrong"),
        [
            ("gemma2", "1.28.0", True),
            ("gemma2", "1.23.2", True),
            ("gemma2", "1.30.0", False),
            ("gemma2", "2.0.1", False),
            ("phi3", "1.28.0", False),
        ],
    )
    def test_a_tied_4_bit_embedding_is_not_trusted_before_1_30(self, name: str, version: str, wrong: bool) -> None:
        reason = suspect_runtime(open_package(MODELS / name), version)
        assert (reason is not None) == wrong
        assert reason is None or "1.30 or newer" in reason


class TestEngine:
    def test_it_is_unavailable_with_the_reason_and_serves_once_mended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.02)
        package = copy_package("phi3", tmp_path)
        flip_block(package, 35)
        answer = reference("phi3")[0]
        with running(lambda: load(package), lambda: signature(package)) as rig:
            reason = rig.wait_for_state("unavailable").reason
            assert reason.startswith("the model answers otherwise than its known answers say")
            rig.engine.submit(request(0, answer["prompt_ids"]))
            whole = Path(shutil.copyfile(MODELS / "phi3" / "model.onnx.data", tmp_path / "whole"))
            whole.replace(package / "model.onnx.data")
            assert rig.wait_for_state("serving").loaded is not None
            assert ids(rig.ends(1)[0]) == answer["output_ids"]
        states = [event.state for event in rig.events if isinstance(event, ModelChanged)]
        assert states == ["loading", "unavailable", "loading", "serving"]


def first_question(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda known: known["questions"][0].update(fields)


class TestFile:
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda known: known.update(format=2), "format must be 1"),
            (lambda known: known.update(more=1), "more extra inputs are not permitted"),
            (lambda known: known.pop("questions"), "questions field required"),
            (lambda known: known.update(questions=[]), "questions list should have at least 1 item"),
            (first_question(answer=["9"]), "questions.0.answer.0 must be a valid integer"),
            (first_question(prompt=[-1]), "questions.0.prompt.0 must be greater than or equal to 0"),
            (first_question(prompt=[1000]), "token 1000 is not in the model's vocabulary of 1000"),
            (first_question(prompt=[9] * 30), "questions and answers have 50 tokens, up to 32 are taken"),
            (first_question(margins=[1.0]), "margins must be as many as the answer's tokens"),
            (first_question(margins=[float("nan")] * 20), "questions.0.margins.0 must be a finite number"),
            (first_question(margins=[0.1] * 20), "every margin is a near-tie"),
            (first_question(text="x" * 5000), "questions.0.text string should have at most 4096 characters"),
            (first_question(text="\ud800"), "questions.0.text must be a valid string"),
            (lambda known: known["recorded_with"].update(edged="a\nb"), "recorded_with.edged string should match"),
        ],
    )
    def test_a_broken_one_is_told_in_one_line(self, tmp_path: Path, change: Any, told: str) -> None:
        package = copy_package("phi3", tmp_path)
        rewrite(package, change)
        message = refusal(package)
        assert message.startswith(f"{FILE}: {told}")
        assert message.endswith("copy the package again, or record anew (edged model verify --record)")

    @pytest.mark.parametrize(
        ("content", "told"),
        [(b"{", "is not readable JSON"), (b"[]", "is not a JSON object"), (b" " * 70_000, "is larger than 64 KiB")],
    )
    def test_one_that_is_none_at_all(self, tmp_path: Path, content: bytes, told: str) -> None:
        package = copy_package("phi3", tmp_path)
        (package / FILE).write_bytes(content)
        assert f"{FILE} {told}" in refusal(package)

    def test_a_link_that_leaves_the_package(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        (package / FILE).unlink()
        (package / FILE).symlink_to(MODELS / "phi3" / FILE)
        assert "leaves the package folder" in refusal(package)

    def test_a_link_to_nowhere_is_no_absence(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        (package / FILE).unlink()
        (package / FILE).symlink_to("gone")
        assert f"{FILE} is missing" in refusal(package)


class TestRecord:
    @pytest.mark.parametrize("name", ["phi3-longrope", "llama-position-ids"])
    def test_what_is_recorded_passes_and_is_checked_against_genai_where_installed(
        self, tmp_path: Path, name: str
    ) -> None:
        package = copy_package(name, tmp_path)
        (package / FILE).unlink()
        known = record(package)
        assert known == known_answers(package)
        one = load(package)
        assert one.verified is not None
        with running(one) as rig:
            for question in known.questions:
                assert ids(rig.run(request(0, question.prompt, len(question.answer)))[0]) == question.answer
        made = {path.name for path in package.iterdir()} - {path.name for path in (MODELS / name).iterdir()}
        assert made == {manifest.FILE}
        try:
            import onnxruntime_genai  # noqa: F401
        except ImportError:
            assert known.recorded_with.onnxruntime_genai is None
        else:
            assert known.recorded_with.onnxruntime_genai is not None

    def test_a_wrong_answer_is_refused_by_genai(self) -> None:
        pytest.importorskip("onnxruntime_genai")
        package = open_package(MODELS / "phi3")
        question = known_answers(MODELS / "phi3").questions[0]
        assert recording.check_with_genai(package, [question]) == [len(question.answer)]
        at = question.sure[0]
        answer = [token if place != at else token + 1 for place, token in enumerate(question.answer)]
        with pytest.raises(PackageError, match=f"onnxruntime-genai answers otherwise: token {at + 1} is "):
            recording.check_with_genai(package, [question.model_copy(update={"answer": answer})])
        unsure = question.model_copy(update={"answer": answer, "margins": [0.1] * len(answer)})
        assert recording.check_with_genai(package, [unsure]) == [at]

    def test_an_answer_of_many_different_tokens_is_preferred_to_one_that_repeats_itself(self) -> None:
        """As SmolLM2 answers 'Hello!' without its template: every second token is the same one."""
        repeating = Question(prompt=[5, 6], answer=[7, 8] * 15, margins=[1.0] * 30, text="")
        counting = Question(prompt=[5, 6, 7, 8], answer=list(range(10, 34)), margins=[0.5, 0.1] * 12, text="")
        questions = recording.select_questions([repeating, counting], [BUDGET, BUDGET], str)
        assert [question.prompt for question in questions] == [counting.prompt]

    def test_answers_that_tell_nothing_are_not_recorded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recording, "FEWEST_SURE", 40)
        package = copy_package("phi3", tmp_path)
        before = (package / FILE).read_bytes()
        with pytest.raises(
            PackageError, match="fewer than 40: they would not tell right from wrong, nothing is recorded"
        ):
            record(package)
        assert (package / FILE).read_bytes() == before

    def test_a_runtime_that_is_not_trusted_records_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def distrust(package: Package) -> str:
            return f"not with {package.name}"

        monkeypatch.setattr(recording, "suspect_runtime", distrust)
        with pytest.raises(PackageError, match="nothing is recorded: not with phi3"):
            record(copy_package("phi3", tmp_path))

    def test_a_folder_that_cannot_be_written_is_told_in_one_line(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        (package / f".{FILE}.new").mkdir()
        with pytest.raises(PackageError, match=f"{FILE} cannot be written: is a directory"):
            record(package)

    def test_a_package_without_a_chat_template_is_asked_in_plain_text(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        (package / "chat_template.jinja").unlink()
        rewrite(package, lambda config: config.pop("chat_template", None), "tokenizer_config.json")
        known = record(package)
        plain = [serving("phi3").tokenizer.encode_text(text) for text in recording.QUESTIONS]
        assert all(question.prompt in plain for question in known.questions)
