"""An int8 KV cache: a quarter of the memory, the same ids in any company, and as published where it cannot be had."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import (
    MODELS,
    RUNTIME,
    copy_package,
    ids,
    random_prompt,
    request,
    run_at_random,
    running,
    wait_until_written,
)
from family_rig import FAMILIES
from structlog.testing import capture_logs

from edged.checked_json import checksum_of
from edged.engine import calibration
from edged.engine.attention_probe import INT8_SINCE, int8_attention_fault
from edged.engine.events import Ended, Finished
from edged.engine.graph import read_graph
from edged.engine.int8_graph import int8_served
from edged.engine.known_answers import read_known_answers
from edged.engine.kv_cache import KVCache
from edged.engine.kv_layout import KVLayout
from edged.engine.kv_scales import KeptScales, Source
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.opening import int8_fault
from edged.engine.package import Package, PackageError, open_package
from edged.engine.package_memory import TooLargeError
from edged.engine.providers import CPU, CUDA, ProviderChoice
from edged.engine.serving_graph import serving_graph
from edged.engine.session import ModelSession
from edged.engine.tokenizer import Tokenizer
from edged.machine.board import detect
from edged.machine.memory import Available, available
from edged.models.pull import check_package
from edged.settings import Settings

HAS_INT8 = tuple(map(int, INT8_SINCE.split("."))) <= RUNTIME
needs_int8 = pytest.mark.skipif(not HAS_INT8, reason=f"onnxruntime takes an int8 cache from {INT8_SINCE} on")
WITH_ATTENTION = [name for name in FAMILIES if name.values[0] != "phi3-small"]
NAME = "phi3"


def load(
    package: Path,
    state: Path | None = None,
    prefix_bytes: int = 0,
    memory: Callable[[], Available] = available,
    may_add: bool = True,
    **model: Any,
) -> LoadedModel:
    """Bring up a package with an int8 cache, as the daemon does."""
    settings = Settings(model={"threads": 1, "kv_cache": "int8", **model}, cache={"ram_bytes": prefix_bytes})
    scales = KeptScales(state / "kv_scales", may_add) if state is not None else None
    prefixes = state / "prefixes" if state is not None else None
    return load_model(settings, detect(), memory, package, prefix_folder=prefixes, scales=scales)


def events(logs: Any, name: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == name]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@needs_int8
class TestTheGraph:
    @pytest.mark.parametrize("name", WITH_ATTENTION)
    def test_the_cache_alone_changes(self, name: str, tmp_path: Path) -> None:
        package = open_package(MODELS / name)
        ones = {p.past: np.ones((p.heads, p.size), np.float32) for p in KVLayout.of(package).planes}
        before = serving_graph(package)
        assert before.model is not None
        served = int8_served(package, before, ones)
        assert served.model is not None
        (tmp_path / "before.onnx").write_bytes(before.model)
        (tmp_path / "served.onnx").write_bytes(served.model)
        was, now = read_graph(tmp_path / "before.onnx"), read_graph(tmp_path / "served.onnx")
        cached = {name for plane in KVLayout.of(package).planes for name in (plane.past, plane.present)}
        for old, new in ((was.inputs, now.inputs), (was.outputs, now.outputs)):
            assert new == {name: "int8" if name in cached else dtype for name, dtype in old.items()}
        assert now.operators == was.operators
        assert now.external == was.external
        assert len(now.initializers - was.initializers) == len(ones)

    def test_a_scale_is_that_of_its_plane(self) -> None:
        """Keys and values that are quantized by the graph are the published ones within half a step."""
        package = open_package(MODELS / "llama3")
        tokens = np.array([random_prompt(1, 60)], np.int64)
        exact = session_after(package, tokens, None)
        scales = dict(zip(names(package), (peak / 127 for peak in exact.peaks(0, 60)), strict=True))
        quantized = session_after(package, tokens, scales)
        planes = KVLayout.of(package).planes[:2]  # the others depend on attention to the first layer's
        start = 0
        for plane in planes:
            size = plane.heads * plane.size * 60
            wanted = exact.read(0, 0, 60)[4 * start : 4 * (start + size)].view(np.float32)
            came = quantized.read(0, 0, 60)[start : start + size].view(np.int8)
            step = np.repeat(scales[plane.past], 60, axis=0).reshape(plane.heads, 60, plane.size).ravel()
            assert np.abs(came * step - wanted).max() <= 0.51 * step.max()
            start += size


def names(package: Package) -> list[str]:
    return [plane.past for plane in KVLayout.of(package).planes]


def session_after(package: Package, tokens: Any, scales: dict[str, Any] | None) -> KVCache:
    """The cache of a session that has read `tokens`, with an int8 cache if `scales` are given."""
    graph = serving_graph(package)
    session = ModelSession(package, [CPU], 1, graph if scales is None else int8_served(package, graph, scales))
    cache = session.make_cache(1, tokens.shape[1])
    session.use(cache)
    session.step(0, tokens, [0], tokens.shape[1])
    return cache


@needs_int8
class TestServed:
    @pytest.mark.parametrize("name", [*WITH_ATTENTION, "qwen2-pruned", "gemma2-wide"])
    def test_a_quarter_of_the_memory_and_answers_of_its_own(self, name: str) -> None:
        package = open_package(MODELS / name)
        one = load(MODELS / name)
        one.close()
        assert one.kv_reason is None
        assert one.cache.layout.dtype == "int8"
        assert 4 * one.cache.layout.token_bytes == package.kv_bytes_per_token
        assert (one.verified is not None) == (package.folder / "known_answers.json").exists()
        assert one.same_ids_in_any_company
        with running(one) as rig:
            assert len(ids(rig.run(request(0, random_prompt(0, 40), 4))[0])) == 4

    @pytest.mark.parametrize(
        "name",
        [
            "phi3",
            "gemma2",
            *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2-wide", "llama-position-ids", "mistral")),
        ],
    )
    def test_same_ids_alone_in_company_in_chunks_and_from_known_prefixes(self, name: str, state: Path) -> None:
        prompts = [random_prompt(seed, tokens) for seed, tokens in enumerate((2, 33, 97, 129, 200, 300))]
        jobs = [request(key, prompt, 24) for key, prompt in enumerate(prompts)]
        with closing(load(MODELS / name, state, rows=1, prefill_chunk=1024)) as one, running(one) as rig:
            alone = {key: ids(rig.run(job)[key]) for key, job in enumerate(jobs)}
        others = [replace(job, key=job.key + 100) for job in jobs]
        mixed = [replace(job, stream=True) for job in (*jobs, *others)]
        random.Random(1).shuffle(mixed)
        with closing(load(MODELS / name, state, rows=8, prefill_chunk=48)) as one, running(one) as rig:
            ends = run_at_random(rig, mixed, random.Random(2), {job.key for job in others})
            assert all(isinstance(ends[job.key], Ended) for job in others)
            assert {key: ids(ends[key]) for key in alone} == alone
        pinned = [replace(job, pin=True) for job in jobs]
        with closing(load(MODELS / name, state, 64 << 20, rows=3, prefill_chunk=16)) as one, running(one) as rig:
            for _ in range(2):
                ends = rig.run(*pinned)
                assert {key: ids(ends[key]) for key in alone} == alone
            assert any(end.cached_tokens for end in ends.values() if isinstance(end, Finished))
            wait_until_written(rig)
        with closing(load(MODELS / name, state, 64 << 20, rows=3)) as one, running(one) as rig:
            ends = rig.run(*jobs)
        assert {key: ids(ends[key]) for key in alone} == alone
        assert any(end.cached_tokens for end in ends.values() if isinstance(end, Finished))

    def test_keys_that_turn_further_than_the_text_reaches_are_not_cut_off(self) -> None:
        """A scale holds what a pair of channels reaches at any position, for rotated channels alone."""
        package = open_package(MODELS / "phi2")  # half of each head is rotated
        half = package.head_size // 4
        tokens = random_prompt(3, 100)
        session = ModelSession(package, [CPU], 1, serving_graph(package))
        scales = calibration.calibrate(session, tokens, 64)
        exact = dict(zip(names(package), session_after(package, np.array([tokens]), None).peaks(0, 100), strict=True))
        for name, scale in scales.items():
            peak = exact[name]
            if name.endswith("key"):
                reach = np.hypot(peak[:, :half], peak[:, half : 2 * half])
                peak = np.concatenate([reach, reach, peak[:, 2 * half :]], axis=1)
            assert np.allclose(scale, np.maximum(peak, peak.max() / 127) / 127)
        neighbours = replace(package, graph=replace(package.graph, rotations={("cos_cache", True)}))
        session = ModelSession(neighbours, [CPU], 1, serving_graph(package))
        scale = calibration.calibrate(session, tokens, 64)[names(package)[0]]
        peak = exact[names(package)[0]]
        assert np.allclose(scale[:, 0] * 127, np.hypot(peak[:, 0], peak[:, 1]))
        assert np.array_equal(scale[:, 0], scale[:, 1])


@dataclass(frozen=True)
class Made:
    """A file that a load has kept, and what it is for."""

    file: Path
    package: Package
    source: Source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    state = tmp_path_factory.mktemp("state")
    one = load(MODELS / NAME, state)
    text = calibration.calibration_ids(one.tokenizer, None)
    one.close()
    (file,) = (state / "kv_scales").iterdir()
    return Made(file, one.package, Source.of(one.package, read_known_answers(one.package), text))


@needs_int8
class TestKept:
    def test_scales_are_measured_once(self, state: Path) -> None:
        with capture_logs() as logs:
            first = load(MODELS / NAME, state)
        assert events(logs, "kv_scales_kept")
        (file,) = (state / "kv_scales").iterdir()
        written = file.stat().st_mtime_ns
        with capture_logs() as logs:
            second = load(MODELS / NAME, state)
        assert not events(logs, "kv_scales_measured")
        assert not events(logs, "kv_scales_refused")
        assert file.stat().st_mtime_ns == written
        assert first.verified is not None
        assert second.verified is not None
        assert first.verified.compared == second.verified.compared
        for one in (first, second):
            one.close()

    def test_a_command_reads_and_does_not_write(self, state: Path) -> None:
        load(MODELS / NAME, state, may_add=False).close()
        assert not (state / "kv_scales").exists()
        load(MODELS / NAME, state).close()
        with capture_logs() as logs:
            load(MODELS / NAME, state, may_add=False).close()
        assert not events(logs, "kv_scales_measured")

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda d: d["source"].update(edged="0.0.1"), "it was made with another edged"),
            (lambda d: d["source"].update(onnxruntime="1.27.0"), "it was made with another onnxruntime"),
            (lambda d: d["source"].update(fingerprint="0" * 64), "it was made with another fingerprint"),
            (lambda d: d["source"].update(known_answers=""), "it was made with another known answers"),
            (lambda d: d["source"].update(text=""), "it was made with another text"),
            (lambda d: d["source"].pop("text"), "it was made with another edged"),
            (lambda d: d.update(scales=""), "its scales must be 256 numbers above 0"),
            (lambda d: d.update(scales=numbers(d, -1.0)), "its scales must be 256 numbers above 0"),
            (lambda d: d.update(scales=numbers(d, np.nan)), "its scales must be 256 numbers above 0"),
            (lambda d: d.update(scales=7), ""),
            (lambda d: d["known_answers"].pop("questions"), "1 validation error"),
            (lambda d: d.clear(), ""),
        ],
    )
    def test_a_file_that_does_not_hold_what_it_should_is_refused(
        self, spoil: Callable[[dict[str, Any]], None], reason: str, made: Made, state: Path
    ) -> None:
        document = json.loads(made.file.read_text())
        del document["crc32"]
        spoil(document)
        self.refused(json.dumps({**document, "crc32": checksum_of(document)}), reason, made, state)

    def test_a_file_that_was_cut_or_edited_or_is_no_text_is_refused(self, made: Made, state: Path) -> None:
        right = made.file.read_text()
        document = json.loads(right)
        edited = json.dumps({**document, "scales": numbers(document, 1.01)})
        for wrong in (right[:-200], edited, "", "[]", "7", "[" * 100_000):
            self.refused(wrong, "", made, state)
        self.refused(right + " " * (2 << 20), "it is larger than", made, state)

    def refused(self, text: str, reason: str, made: Made, state: Path) -> None:
        state.mkdir(exist_ok=True)
        (state / made.file.name).write_text(text)
        with capture_logs() as logs:
            assert KeptScales(state, may_add=True).find(made.package, made.source) is None
        (event,) = events(logs, "kv_scales_refused")
        assert reason in event["reason"]
        assert "\n" not in event["reason"]

    def test_what_was_made_is_found(self, made: Made) -> None:
        with capture_logs() as logs:
            found = KeptScales(made.file.parent, may_add=False).find(made.package, made.source)
        assert not logs
        assert found is not None
        package_own = read_known_answers(made.package)
        assert found.known is not None
        assert package_own is not None
        for mine, theirs in zip(found.known.questions, package_own.questions, strict=True):
            assert (mine.prompt, mine.answer) == (theirs.prompt, theirs.answer)
            assert mine.margins != theirs.margins

    @pytest.mark.parametrize("cut", [True, False])
    def test_scales_that_are_refused_are_made_anew(self, cut: bool, made: Made, state: Path) -> None:
        """A file that was cut, and one whose scales lead to other answers."""
        right = made.file.read_text()
        document = json.loads(right)
        del document["crc32"]
        document["scales"] = numbers(document, 100.0)
        wrong = json.dumps({**document, "crc32": checksum_of(document)})
        file = state / "kv_scales" / made.file.name
        file.parent.mkdir(parents=True)
        file.write_text(right[:-9] if cut else wrong)
        with capture_logs() as logs:
            one = load(MODELS / NAME, state)
        one.close()
        (event,) = events(logs, "kv_scales_refused")
        assert cut or "the model answers otherwise than its known answers say" in event["reason"]
        assert one.cache.layout.dtype == "int8"
        assert file.read_text() == right

    @pytest.mark.slow
    def test_a_package_that_is_replaced_or_gone_leaves_no_file(self, tmp_path: Path, state: Path) -> None:
        package = copy_package(NAME, tmp_path)
        load(package, state).close()
        (first,) = (state / "kv_scales").iterdir()
        config = package / "genai_config.json"
        config.write_text(config.read_text() + "\n")
        load(package, state).close()
        (second,) = (state / "kv_scales").iterdir()
        assert first != second
        package.rename(tmp_path / "elsewhere")
        load(MODELS / "llama3", state).close()
        (third,) = (state / "kv_scales").iterdir()
        assert third != second

    def test_a_state_folder_that_cannot_be_written(self, state: Path) -> None:
        state.mkdir()
        (state / "kv_scales").write_text("not a folder")
        with capture_logs() as logs:
            one = load(MODELS / NAME, state)
        one.close()
        assert one.cache.layout.dtype == "int8"
        (event,) = events(logs, "kv_scales_not_kept")
        assert event["hint"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "reason"), [("ro", "read-only file system"), ("size=4k", "no space left on device")]
    )
    def test_a_disk_that_is_read_only_or_full(self, options: str, reason: str, state: Path) -> None:
        state.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(state)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        try:
            if options != "ro":
                (state / "filling").write_bytes(bytes(4096))
            with capture_logs() as logs:
                one = load(MODELS / NAME, state)
            one.close()
        finally:
            subprocess.run(["umount", "-l", str(state)], check=True)
        assert one.cache.layout.dtype == "int8"
        assert [event["reason"] for event in events(logs, "kv_scales_not_kept")] == [reason]

    @pytest.mark.slow
    def test_scales_do_not_depend_on_other_settings(self, state: Path) -> None:
        with capture_logs() as logs:
            for model in ({"rows": 1, "context": 16}, {"rows": 4, "prefill_chunk": 16}, {"threads": 2}):
                load(MODELS / NAME, state, **model).close()
        assert len(events(logs, "kv_scales_measured")) == 1

    @pytest.mark.slow
    def test_prefixes_of_another_cache_are_not_used(self, state: Path) -> None:
        """Published, int8, and int8 by another text."""
        text = Path(__file__)
        prompt = random_prompt(1, 100)
        for model in ({"kv_cache": "published"}, {}, {"calibration": text}):
            with closing(load(MODELS / NAME, state, 64 << 20, **model)) as one, running(one) as rig:
                assert one.kv_reason is None
                end = rig.run(request(0, prompt, 1, pin=True))[0]
                assert isinstance(end, Finished)
                assert end.cached_tokens == 0
                wait_until_written(rig)
            with closing(load(MODELS / NAME, state, 64 << 20, **model)) as one, running(one) as rig:
                end = rig.run(request(0, prompt, 1))[0]
                assert isinstance(end, Finished)
                assert end.cached_tokens == 96


def numbers(document: dict[str, Any], factor: float) -> str:
    """The document's scales with the first layer's multiplied."""
    scales = np.frombuffer(base64.b64decode(document["scales"]), "<f4").copy()
    scales[: len(scales) // 2] *= np.float32(factor)
    return base64.b64encode(scales.tobytes()).decode()


def published(package: Path, **more: Any) -> str:
    """The reason why a package is served with its published cache; it is logged, and the package answers."""
    with capture_logs() as logs:
        one = load(package, **more)
    with running(one) as rig:
        assert len(ids(rig.run(request(0, random_prompt(0, 40), 4))[0])) == 4
    one.close()
    assert one.cache.layout.dtype == open_package(package).kv_dtype
    assert one.kv_reason is not None
    assert "\n" not in one.kv_reason
    assert [line["reason"] for line in events(logs, "kv_cache_as_published")] == [one.kv_reason]
    return one.kv_reason


class TestServedAsPublished:
    @needs_int8
    def test_other_attention(self) -> None:
        assert published(MODELS / "phi3-small") == "the graph has SparseAttention, which takes no int8 KV cache"

    @needs_int8
    def test_a_cache_of_float16(self) -> None:
        assert published(MODELS / "llama-cuda").startswith("the package's KV cache is float16")

    def test_a_gpu(self) -> None:
        choice = ProviderChoice((CUDA, CPU), "", fell_back=False)
        assert int8_fault(open_package(MODELS / NAME), choice, 1) == "an int8 KV cache is served on the CPU only"

    def test_a_rotary_embedding_of_unknown_width(self) -> None:
        package = open_package(MODELS / NAME)
        package.graph.widths.clear()
        choice = ProviderChoice((CPU,), "", fell_back=False)
        assert int8_fault(package, choice, 1) == "the graph's rotary embedding is of an unknown kind"

    def test_an_onnxruntime_without_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def unknown(*_: Any) -> bytes:
            raise RuntimeError("Unrecognized attribute: k_quant_type\nfor operator GroupQueryAttention")

        if HAS_INT8:
            monkeypatch.setattr("edged.engine.attention_probe.with_int8_cache", unknown)
        reason = published(MODELS / NAME)
        assert f"cannot compute attention on an int8 cache: install {INT8_SINCE} or newer (" in reason

    @needs_int8
    def test_an_onnxruntime_that_computes_it_wrongly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from edged.engine.int8_graph import with_int8_cache

        def coarse(view: memoryview, scales: dict[str, Any], outputs: set[str]) -> bytes:
            return with_int8_cache(view, {name: 30 * scale for name, scale in scales.items()}, outputs)

        assert int8_attention_fault(open_package(MODELS / NAME), 1) is None
        monkeypatch.setattr("edged.engine.attention_probe.with_int8_cache", coarse)
        assert published(MODELS / NAME).endswith("computes attention on an int8 cache wrongly here")

    @needs_int8
    def test_most_tokens_are_others(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        measured = calibration.calibrate

        def coarse(*args: Any) -> dict[str, Any]:
            return {name: 30 * scale for name, scale in measured(*args).items()}

        monkeypatch.setattr("edged.engine.opening.calibrate", coarse)
        assert published(MODELS / NAME, state=state).endswith("% of the known answers' tokens are others")
        assert not list((state / "kv_scales").glob("*"))

    @needs_int8
    def test_a_graph_that_onnxruntime_does_not_take_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> Any:
            raise PackageError("onnxruntime cannot load the model: no")

        monkeypatch.setattr("edged.engine.opening.int8_served", refuse)
        assert published(MODELS / NAME) == "with an int8 KV cache: onnxruntime cannot load the model: no"

    @pytest.mark.slow
    @needs_int8
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "it cannot be read: no such file or directory"),
            (b"\xff\xfe\x00", "it is not UTF-8 text"),
            (b" \n\n ", "there is no text in it"),
            (b"word " * 300_000, "it is larger than 1024 KiB"),
        ],
    )
    def test_a_text_that_cannot_be_used(self, content: bytes | None, reason: str, tmp_path: Path) -> None:
        text = tmp_path / "text"
        if content is not None:
            text.write_bytes(content)
        assert published(MODELS / NAME, calibration=text) == f"model.calibration = {text}: {reason}"


def test_a_pulled_package_is_judged_by_its_published_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.engine.opening.calibrate", lambda *_: pytest.fail("scales are measured"))
    settings = Settings(model={"kv_cache": "int8", "threads": 1})
    verified, remark = check_package(settings, detect(), MODELS / NAME, NAME)
    assert verified is not None
    assert remark is None


@needs_int8
class TestDamage:
    @pytest.mark.parametrize("known_scales", [False, True])
    def test_damaged_weights_are_not_served(self, known_scales: bool, tmp_path: Path, state: Path) -> None:
        package = copy_package(NAME, tmp_path)
        if known_scales:
            load(package, state).close()
        data = package / "model.onnx.data"
        content = bytearray(data.read_bytes())
        content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
        data.write_bytes(content)
        with pytest.raises(PackageError, match="damaged weights"):
            load(package, state)


@needs_int8
class TestMemory:
    def memory(self, cache: int) -> Callable[[], Available]:
        """So much that a cache of `cache` bytes fits, and little more."""
        one = load(MODELS / NAME, rows=1, context=16)
        one.close()
        token = one.package.kv_bytes_per_token
        needed = one.plan.weights + one.plan.working + cache - (calibration.PIECE * token - 16 * token // 4)
        return lambda: Available((needed + (64 << 20)) * 50 // 49 + (1 << 20), "memory")

    def test_rows_that_fit_with_int8_alone(self) -> None:
        token = open_package(MODELS / NAME).kv_bytes_per_token
        settings: dict[str, Any] = {"rows": 64, "context": 512, "memory": self.memory(64 * 512 * token // 4)}
        one = load(MODELS / NAME, **settings)
        one.close()
        assert one.plan.cache == 64 * 512 * token // 4
        with pytest.raises(TooLargeError, match=r"would fit"):
            load(MODELS / NAME, kv_cache="published", **settings)

    def test_rows_that_do_not_fit_with_int8_either(self) -> None:
        token = open_package(MODELS / NAME).kv_bytes_per_token
        with pytest.raises(TooLargeError, match=r"would fit"):
            load(MODELS / NAME, rows=64, context=512, memory=self.memory(16 * 512 * token // 4))

    def test_the_published_cache_that_measures_scales_is_planned_for(self) -> None:
        package = open_package(MODELS / NAME)
        token = package.kv_bytes_per_token
        small, large = load(MODELS / NAME, rows=1, context=100), load(MODELS / NAME, rows=1, context=512)
        for one in (small, large):
            one.close()
        assert small.plan.cache + small.plan.working - large.plan.working == calibration.PIECE * token

    def test_where_int8_cannot_be_had_the_published_cache_must_fit(self, tmp_path: Path) -> None:
        token = open_package(MODELS / NAME).kv_bytes_per_token
        with pytest.raises(TooLargeError):
            load(
                MODELS / NAME,
                rows=64,
                context=512,
                memory=self.memory(64 * 512 * token // 4),
                calibration=tmp_path / "absent",
            )


class TestText:
    @pytest.fixture
    def tokenizer(self) -> Iterator[Tokenizer]:
        one = Tokenizer(open_package(MODELS / NAME))
        yield one
        one.close()

    def test_paragraphs_are_turns_of_a_chat(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.write_bytes(b"How warm?\r\n\r\n40 degrees.\n\n\n\nThanks.\n")
        turns = [("user", "How warm?"), ("assistant", "40 degrees."), ("user", "Thanks.")]
        wanted = tokenizer.encode_messages([{"role": role, "content": content} for role, content in turns])
        assert calibration.calibration_ids(tokenizer, text) == wanted

    def test_the_built_in_text_has_enough_tokens(self, tokenizer: Tokenizer) -> None:
        assert len(calibration.calibration_ids(tokenizer, None)) == calibration.TOKENS
