"""What was measured of a package's bits is remembered: a later load measures only what nobody has measured here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from engine_rig import MODELS, RUNTIME, copy_package
from folders import flip
from structlog.testing import capture_logs

from edged.checked_json import checksum_of
from edged.engine import kept_bits
from edged.engine.bit_classes import BitClasses
from edged.engine.kept_bits import KeptBits
from edged.engine.kv_layout import KVLayout
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import open_package
from edged.engine.splits import SplitRule
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
CPU = ["CPUExecutionProvider"]
BOTH = ["find_split_rule", "find_bit_classes"]
AGREE = BitClasses(lone_row_differs=False, batches_differ=False, chunks_differ=False)
LAYOUT = KVLayout.of(open_package(MODELS / "phi3"))
needs_int8 = pytest.mark.skipif(RUNTIME < (1, 27), reason="no int8 cache")


@dataclass
class Session:
    """What KeptBits takes from a session."""

    providers: list[str]
    device: str = "cpu"
    logits_computed: str = "wanted"
    layout: KVLayout = LAYOUT


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the measurements that are made, in order."""
    made: list[str] = []

    def count(name: str) -> None:
        measure = getattr(kept_bits, name)

        def counted(*given: Any) -> Any:
            made.append(name)
            return measure(*given)

        monkeypatch.setattr(kept_bits, name, counted)

    for name in BOTH:
        count(name)
    return made


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return copy_package("phi3", tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bits.json"


def load(package: Path, file: Path, root: Path = Path("/"), **model: Any) -> LoadedModel:
    """Load as the daemon does, and let go of what a model holds beside memory."""
    settings = Settings(model={"threads": 1, "rows": 2, **model}, cache={"ram_bytes": 0})
    loaded = load_model(settings, detect(root), available, package, bits_file=file)
    loaded.close()
    return loaded


@pytest.fixture
def known(package: Path, file: Path, measured: list[str]) -> Iterator[LoadedModel]:
    """A package that was loaded once, with all measurements made."""
    loaded = load(package, file)
    assert measured == BOTH
    measured.clear()
    return loaded


class TestRemembered:
    def test_a_second_load_measures_nothing_and_has_the_same(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str]
    ) -> None:
        before = file.stat()
        again = load(package, file)
        assert measured == []
        assert (again.splits, again.bits) == (known.splits, known.bits)
        after = file.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # the card is not written to

    def test_packages_are_remembered_beside_each_other(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str]
    ) -> None:
        load(MODELS / "llama3", file)
        assert measured == BOTH
        load(package, file)
        load(MODELS / "llama3", file)
        assert measured == BOTH

    def test_a_load_that_keeps_nothing_measures(self, known: LoadedModel, package: Path, measured: list[str]) -> None:
        settings = Settings(model={"threads": 1, "rows": 2}, cache={"ram_bytes": 0})
        load_model(settings, detect(), available, package).close()
        assert measured == BOTH

    def test_the_oldest_are_forgotten(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = open_package(MODELS / "phi3")
        monkeypatch.setattr(kept_bits, "find_bit_classes", lambda *_: AGREE)
        for rows in range(40):
            KeptBits(file, package, detect(), 1).classes(Session(CPU), rows)  # type: ignore[arg-type]
        assert len(json.loads(file.read_text())["classes"]) == 32
        assert file.stat().st_size < 8192


class TestMeasuredAnew:
    def test_for_other_weights_all_but_the_splits(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str]
    ) -> None:
        """Attention alone decides where prompts may be split, and it is the same."""
        (package / "known_answers.json").unlink()
        flip(package / "model.onnx.data", 8 * 1000)
        load(package, file)
        assert measured == ["find_bit_classes"]

    def test_for_another_attention(self, known: LoadedModel, package: Path, file: Path, measured: list[str]) -> None:
        (package / "known_answers.json").unlink()
        content = (package / "model.onnx").read_bytes()
        window = b"local_window_size\x18" + b"\xff" * 9 + b"\x01"  # onnx.proto: AttributeProto.i, -1
        assert window in content
        # As many bytes: a varint may have leading zeros.
        (package / "model.onnx").write_bytes(content.replace(window, window[:-10] + b"\xa0" + b"\x80" * 8 + b"\x00"))
        load(package, file)
        assert measured == BOTH

    @pytest.mark.parametrize("name", ["__version__", "get_build_info"])
    def test_for_another_onnxruntime(
        self,
        known: LoadedModel,
        package: Path,
        file: Path,
        measured: list[str],
        name: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        value = "1.32.99" if name == "__version__" else lambda: "another compiler"
        monkeypatch.setattr(f"onnxruntime.{name}", value)
        load(package, file)
        assert measured == BOTH

    def test_for_another_processor(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str], tmp_path: Path
    ) -> None:
        load(package, file, root=BOARDS / "pi5")
        assert measured == BOTH

    def test_for_another_edged(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which may measure otherwise."""
        monkeypatch.setattr("edged.__version__", "99")
        load(package, file)
        assert measured == BOTH

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ({"threads": 2}, BOTH),
            ({"rows": 3}, ["find_bit_classes"]),
            pytest.param({"kv_cache": "int8"}, BOTH, marks=needs_int8),
        ],
    )
    def test_for_other_threads_or_rows_or_another_cache(
        self,
        known: LoadedModel,
        package: Path,
        file: Path,
        measured: list[str],
        more: dict[str, int],
        expected: list[str],
    ) -> None:
        load(package, file, **more)
        assert measured == expected


class TestRefused:
    @pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
    def test_a_damaged_file_is_told_ignored_and_made_anew(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str], place: float
    ) -> None:
        flip(file, int(8 * file.stat().st_size * place))
        with capture_logs() as logs:
            again = load(package, file)
        assert measured == BOTH
        assert (again.splits, again.bits) == (known.splits, known.bits)
        assert [line["event"] for line in logs if line["event"] == "kept_bits_refused"]
        load(package, file)
        assert measured == BOTH

    @pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"crc32": 0}', "[" * 5000, "\0" * 100])
    def test_a_foreign_file_is_ignored(self, package: Path, file: Path, measured: list[str], content: str) -> None:
        file.write_text(content)
        load(package, file)
        assert measured == BOTH

    @pytest.mark.parametrize("change", [{"format": 2}, {"splits": {"x": {"grain": "128"}}}, {"classes": []}])
    def test_so_is_one_of_another_format(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str], change: dict[str, Any]
    ) -> None:
        document = {**json.loads(file.read_text()), **change}
        del document["crc32"]
        file.write_text(json.dumps({**document, "crc32": checksum_of(document)}))
        load(package, file)
        assert measured == BOTH

    def test_of_a_file_that_is_far_too_large_no_more_is_read_than_the_limit(
        self, known: LoadedModel, package: Path, file: Path, measured: list[str]
    ) -> None:
        os.truncate(file, 256 << 20)
        load(package, file)
        assert measured == BOTH
        assert file.stat().st_size < 8192

    def test_a_file_that_cannot_be_written_is_told_and_costs_no_load(self, package: Path, tmp_path: Path) -> None:
        with capture_logs() as logs:
            load(package, tmp_path / "absent" / "bits.json")
        assert "bits_not_kept" in {line["event"] for line in logs}

    def test_what_found_no_way_to_the_same_bits_is_measured_again(
        self, package: Path, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may have failed for another cause."""
        loaded = load(package, file)
        file.unlink()
        for differ in ({"batches_differ": True}, {"chunks_differ": True}):
            monkeypatch.setattr(kept_bits, "find_split_rule", lambda *_: SplitRule(holds=False))
            monkeypatch.setattr(kept_bits, "find_bit_classes", lambda *_, with_=differ: replace(loaded.bits, **with_))
            load(package, file)
            assert not file.exists()

    def test_nothing_is_kept_for_a_gpu(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = KeptBits(file, open_package(MODELS / "phi3"), detect(), 1)
        providers = ["CUDAExecutionProvider", *CPU]
        assert kept.splits(providers) == SplitRule()
        monkeypatch.setattr(kept_bits, "find_bit_classes", lambda *_: AGREE)
        assert kept.classes(Session(providers, "cuda"), 1) == AGREE  # type: ignore[arg-type]
        assert not file.exists()
