"""`edged model prepare`: the graph that is served, as a package of its own, with the same ids and no work at a load."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from engine_rig import MODELS, copy_package, ids, load, random_prompt, request, running
from patience import PATIENCE
from structlog.testing import capture_logs
from test_int8 import needs_int8
from test_serving_graph import with_relu

from edged.cli.common import BadUseError
from edged.cli.model import app
from edged.engine.attention_probe import INT8_SINCE
from edged.engine.integrity import CorruptPackageError
from edged.engine.known_answers import FILE as KNOWN_ANSWERS
from edged.engine.known_answers import WrongAnswersError, read_known_answers
from edged.engine.loaded_model import LoadedModel
from edged.engine.manifest import FILE as MANIFEST
from edged.engine.manifest import read_manifest
from edged.engine.package import POSITIONS, PackageError, open_package
from edged.engine.serving_graph import serving_graph
from edged.machine.board import detect
from edged.machine.memory import Available, available
from edged.models.prepare import Prepared, PrepareError, prepare_package
from edged.models.sources import open_source
from edged.settings import Settings

NAME = "phi3"


def prepare(
    source: Path, out: Path, memory: Callable[[], Available] = available, rows: int = 3, **model: Any
) -> Prepared:
    settings = Settings(model={"threads": 1, "rows": rows, **model})
    return prepare_package(settings, detect(), memory, source, None, out)


def answers(loaded: LoadedModel) -> list[list[int]]:
    """Ids of jobs that run together, greedy ones and one that is sampled."""
    jobs = [request(seed, random_prompt(seed, tokens), 12) for seed, tokens in enumerate((1, 2, 70, 200))]
    with closing(loaded), running(loaded) as rig:
        ends = rig.run(*jobs)
    return [ids(ends[job.key]) for job in jobs]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "fleet"
    prepare(MODELS / NAME, out)
    return out


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "fleet-int8"
    prepare(MODELS / NAME, out, kv_cache="int8")
    return out


class TestServed:
    def test_a_load_rewrites_nothing_and_the_ids_are_the_same(self, published: Path) -> None:
        served = serving_graph(open_package(published))
        assert (served.model, served.logits, served.reason) == (None, "wanted", None)
        one, other = load(published, rows=3), load(MODELS / NAME, rows=3)
        assert (one.session.logits_computed, one.logits_reason) == ("wanted", None)
        assert (one.splits, one.bits, one.chunk) == (other.splits, other.bits, other.chunk)
        assert one.verified is not None
        assert answers(one) == answers(other)

    @needs_int8
    def test_with_an_int8_cache_nothing_is_measured_and_the_ids_are_the_same(self, int8: Path) -> None:
        with capture_logs() as logs:
            one = load(int8, rows=3)
            load(int8, kv_cache="int8").close()  # what it has already
        told = {line["event"] for line in logs}
        assert not told & {"kv_scales_measured", "kv_cache_as_published", "model_not_verified"}
        assert one.kv_reason is None
        assert one.cache.layout.dtype == "int8"
        other = load(MODELS / NAME, rows=3, kv_cache="int8")
        assert (one.splits, one.bits, one.chunk) == (other.splits, other.bits, other.chunk)
        assert one.plan.cache == other.plan.cache
        assert answers(one) == answers(other)

    @pytest.mark.slow
    @needs_int8
    def test_tokens_are_guessed_as_with_the_setting(self, int8: Path) -> None:
        reasons = []
        for package in (int8, MODELS / NAME):
            one = load(package, kv_cache="int8", speculation="on")
            one.close()
            reasons.append((one.drafts is None, one.speculation_reason))
        assert reasons[0] == reasons[1]

    @pytest.mark.slow
    @needs_int8
    def test_an_int8_cache_is_added_to_one_that_was_prepared_without(self, published: Path, tmp_path: Path) -> None:
        out = tmp_path / "again"
        made = prepare(published, out, kv_cache="int8")
        assert (made.logits, made.kv_cache) == ("wanted", "int8")
        assert answers(load(out)) == answers(load(MODELS / NAME, kv_cache="int8"))

    @pytest.mark.slow
    def test_a_graph_that_computes_the_last_logits_alone(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert prepare(MODELS / "qwen2-pruned", out).logits == "last"
        assert (out / "model.onnx").read_bytes() == (MODELS / "qwen2-pruned" / "model.onnx").read_bytes()

    @needs_int8
    def test_an_onnxruntime_without_int8_is_named(self, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: Any) -> bytes:
            raise RuntimeError("Unrecognized attribute: k_quant_type")

        monkeypatch.setattr("edged.engine.attention_probe.with_int8_cache", unknown)
        with pytest.raises(PackageError, match=f"its KV cache is int8: .* install {INT8_SINCE} or newer"):
            load(int8)


class TestThePackage:
    def test_weights_are_shared_and_the_rest_is_its_own(self, published: Path) -> None:
        source = MODELS / NAME
        assert (published / "model.onnx.data").samefile(source / "model.onnx.data")
        own = {path.name for path in published.iterdir()} - {"model.onnx.data"}
        assert own == {*open_package(source).files, MANIFEST, "SHA256SUMS"} - {"model.onnx.data"}
        assert not any((published / name).samefile(source / name) for name in own if (source / name).exists())
        assert (published / KNOWN_ANSWERS).read_bytes() == (source / KNOWN_ANSWERS).read_bytes()

    def test_a_pull_of_the_folder_and_of_its_sums_has_the_same_identity(self, published: Path) -> None:
        listing = open_source(str(published))
        assert listing.identity == read_manifest(published / MANIFEST).identity
        checked = subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=published, check=False
        )
        assert checked.returncode == 0

    @needs_int8
    def test_an_int8_cache_has_known_answers_of_its_own(self, int8: Path) -> None:
        known, before = read_known_answers(open_package(int8)), read_known_answers(open_package(MODELS / NAME))
        assert known is not None
        assert before is not None
        assert [one.margins for one in known.questions] != [one.margins for one in before.questions]

    @pytest.mark.slow
    def test_a_package_without_known_answers_gets_some(self, tmp_path: Path) -> None:
        package = copy_package(NAME, tmp_path)
        (package / KNOWN_ANSWERS).unlink()
        made = prepare(package, tmp_path / "out")
        assert made.verified.compared >= 4
        assert KNOWN_ANSWERS in read_manifest(tmp_path / "out" / MANIFEST).files


class TestNothingIsWritten:
    """What is refused, with one line, and leaves neither the folder nor anything beside it."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Path]:
        place = tmp_path / "place"
        place.mkdir()
        yield place
        assert not list(place.iterdir())

    def reason(self, source: Path, out: Path, memory: Callable[[], Available] = available, **model: Any) -> str:
        with pytest.raises(PrepareError) as caught:
            prepare(source, out, memory, **model)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_package_that_is_changed_meanwhile(self, tmp_path: Path, place: Path) -> None:
        package = copy_package(NAME, tmp_path)

        def change() -> Available:
            os.utime(package / "model.onnx.data")
            return available()

        assert self.reason(package, place / "out", change).endswith("was changed while it was prepared: do it again")

    def test_a_graph_that_is_served_as_published(self, tmp_path: Path, place: Path) -> None:
        package = copy_package(NAME, tmp_path)
        (package / KNOWN_ANSWERS).unlink()
        with_relu(package)
        assert self.reason(package, place / "out").startswith("there is nothing to prepare, it is served as published:")

    @needs_int8
    def test_an_int8_cache_that_cannot_be_had(self, place: Path) -> None:
        reason = self.reason(MODELS / "phi3-small", place / "out", kv_cache="int8")
        assert reason.startswith("an int8 KV cache cannot be had: the graph has SparseAttention")

    def test_a_package_that_answers_wrongly(self, tmp_path: Path, place: Path) -> None:
        package = copy_package(NAME, tmp_path)
        data = package / "model.onnx.data"
        content = data.read_bytes()
        data.write_bytes(content[: len(content) // 4] + bytes(len(content) // 4) + content[len(content) // 2 :])
        with pytest.raises(WrongAnswersError):
            prepare(package, place / "out")

    def test_a_disk_without_room(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        small = tmp_path / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount here")
        try:
            reason = self.reason(MODELS / NAME, small / "out")
            assert not list(small.iterdir())
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)
        assert f"are to be written and {small} has" in reason


@pytest.mark.slow
def test_what_a_killed_one_left_is_in_nobodys_way_and_one_that_writes_is_waited_for(tmp_path: Path) -> None:
    left = tmp_path / ".out.preparing"
    (left / "onnx").mkdir(parents=True)
    (left / "onnx" / "model.onnx").write_bytes(b"half")
    (left / "other").symlink_to("nowhere")
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(PrepareError, match="another edged model prepare writes"):
        prepare(MODELS / NAME, tmp_path / "out")
    os.close(descriptor)
    (tmp_path / "out").mkdir()  # empty
    prepare(MODELS / NAME, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "onnx").exists()


class TestDamage:
    """A prepared graph is one of the package's files: the manifest and the known answers hold for it too."""

    @pytest.mark.parametrize("how", ["cut", "edited", "of another package"])
    def test_another_graph_is_not_served(self, how: str, published: Path, tmp_path: Path) -> None:
        package = tmp_path / "package"
        package.mkdir()
        for path in published.iterdir():
            (package / path.name).write_bytes(path.read_bytes())
        graph = package / "model.onnx"
        content = graph.read_bytes()
        wrong = {
            "cut": content[:-100],
            "edited": content.replace(b"GatherND", b"GatherXX"),
            "of another package": (MODELS / "llama3" / "model.onnx").read_bytes(),
        }
        graph.write_bytes(wrong[how])
        with pytest.raises(CorruptPackageError, match=r"model\.onnx"):
            load(package)
        (package / MANIFEST).unlink()  # as if only the folder had been copied
        with pytest.raises(PackageError):
            load(package)

    def test_an_input_of_a_newer_edged_is_named(self, published: Path, tmp_path: Path) -> None:
        package = copy_package(NAME, tmp_path)
        other = POSITIONS.replace("positions", "somewhere")
        graph = (published / "model.onnx").read_bytes()
        (package / "model.onnx").write_bytes(graph.replace(POSITIONS.encode(), other.encode()))
        with pytest.raises(PackageError, match=r"an input that edged does not know: 'edged\.somewhere'"):
            open_package(package)


def call(*arguments: str | Path) -> int:
    with mock.patch("edged.logs.configure"):  # other tests of this process capture what is logged
        return int(app(["prepare", "--config", "/dev/null", *map(str, arguments)], standalone_mode=False))


def refused(*arguments: str | Path) -> str:
    with pytest.raises(BadUseError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestTheCommand:
    @pytest.mark.slow
    def test_a_package_is_written_and_told(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ["--model", MODELS / NAME, "--out", out, "--json"]
        command = [sys.executable, "-m", "edged", "model", "prepare", "--config", "/dev/null", *map(str, arguments)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGED_")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
        document = json.loads(done.stdout)
        assert (document["path"], document["logits"], document["kv_cache"]) == (str(out), "wanted", "float32")
        assert document["linked_bytes"] == (MODELS / NAME / "model.onnx.data").stat().st_size < document["bytes"]
        assert document["identity"] == read_manifest(out / MANIFEST).identity
        assert document["compared"] >= 4

    def test_a_folder_that_is_not_empty(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("mine")
        assert call("--model", MODELS / NAME, "--out", tmp_path) == 2
        told = capsys.readouterr()
        assert (told.out, told.err) == ("", f"edged: {tmp_path} is not empty: give a folder that is not there yet\n")

    def test_no_package(self, tmp_path: Path) -> None:
        assert "is not a folder" in refused("--model", tmp_path / "gone", "--out", tmp_path / "out")
        assert "there is no genai_config.json" in refused("--model", tmp_path, "--out", tmp_path / "out")

    def test_flags_that_do_not_fit(self, tmp_path: Path) -> None:
        out = ("--model", MODELS / NAME, "--out", tmp_path / "out")
        assert "give published or int8" in refused(*out, "--kv-cache", "int4")
        assert "is not a file" in refused(*out, "--kv-cache", "int8", "--calibration-text", tmp_path)
        assert "is for --kv-cache int8" in refused(*out, "--calibration-text", __file__)

    @pytest.mark.parametrize(
        ("out", "reason"),
        [("phi3/out", "lies within the package"), ("no/out", "make it first"), ("file", "is no folder")],
    )
    def test_a_place_that_cannot_be(self, out: str, reason: str, tmp_path: Path) -> None:
        package = copy_package(NAME, tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(PrepareError, match=reason) as caught:
            prepare(package, tmp_path / out)
        assert caught.value.bad_use
