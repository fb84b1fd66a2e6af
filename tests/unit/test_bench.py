"""`edged bench`: figures come from the engine's own steps, and wrong arguments end in one line."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from engine_rig import MODELS, copy_package, load
from test_docs import first_column, section

from edged.cli import main
from edged.engine.bench import Bench, BenchError, StepTime, decode_seconds, measure
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import open_package
from edged.machine.bandwidth import largest_cache, read_bandwidth
from edged.machine.board import detect
from edged.machine.memory import available
from edged.machine.sensors.power import Power
from edged.settings import Settings


def step(began: float, seconds: float = 1.0, hook: float = 0.0, rows: int = 2, count: int = 1, past: int = 9) -> Any:
    return StepTime(began, began + seconds, began + seconds + hook, rows, count, past)


class Meter:
    """Of a board that draws 4 W, 3 of them on the CPU's rail."""

    def __init__(self, **rails: float) -> None:
        self.rails = rails

    def read(self) -> Power:
        return Power(self.rails)


def bring(rows: int, **changes: Any) -> LoadedModel:
    serving = load(MODELS / "phi3", rows=rows, context=256)
    return replace(serving, **changes)


def test_a_step_lasts_until_the_next_begins_without_the_hooks_time() -> None:
    steps = [step(0.0, hook=5.0), step(6.5, seconds=0.5), step(7.25)]
    assert decode_seconds(steps, rows=2, prompt=8) == [1.5, 0.75]


@pytest.mark.parametrize("other", [{"rows": 1}, {"count": 4}, {"past": 7}], ids=["fewer", "prefill", "last-chunk"])
def test_only_neighbouring_decode_steps_of_all_rows_count(other: dict[str, int]) -> None:
    steps = [step(0.0), step(1.0, **other), step(2.0), step(3.0), step(4.0, **other)]
    assert decode_seconds(steps, rows=2, prompt=8) == [1.0]


def test_figures_of_a_row_fit_together() -> None:
    serving = bring(3)
    figures = measure(serving, Meter(IN=4.0, CPU=3.0), [1, 3], prompt=40, tokens=6)
    assert [row.rows for row in figures.rows] == [1, 3]
    for row in figures.rows:
        decode = row.decode_tokens_per_second
        assert decode is not None
        assert row.prefill_tokens_per_second == pytest.approx(row.rows * 40 / row.first_token_cold_seconds)
        assert row.weights_bytes_per_second == pytest.approx(serving.package.step_bytes * decode / row.rows)
        assert row.joules_per_token == pytest.approx({"IN": 4 / decode, "CPU": 3 / decode})
    assert 0 < figures.resident_bytes <= figures.peak_bytes
    assert figures.load_seconds == serving.load_seconds


def test_a_board_that_does_not_measure_gives_no_energy() -> None:
    (row,) = measure(bring(1), Meter(), [1], prompt=8, tokens=2).rows
    assert row.joules_per_token == {}


def test_rows_decode_together_and_stop_when_enough_was_made() -> None:
    with Bench(bring(4)) as bench:
        steps = bench.decode([bench.prompt(30) for _ in range(4)], tokens=5)
        together = [s for s in steps if s.rows == 4 and s.count == 1]
        assert len(together) == 6
        assert steps[-1] == together[-1]
        assert {s.count for s in steps if s.past == 0} == {30}


@pytest.mark.slow
def test_rows_come_together_on_a_slow_model_without_a_prefix_cache() -> None:
    settings = Settings(model={"threads": 1, "rows": 4, "context": 180, "max_stall": 0.01}, cache={"ram_bytes": 0})
    serving = load_model(settings, detect(), available, MODELS / "phi3")

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(serving.session, name)

        def step(self, first: int, ids: Any, past: Any, width: int) -> Any:
            time.sleep(0.001 * ids.size)  # what is slow is the model
            return serving.session.step(first, ids, past, width)

    slow: Any = Slow()
    (row,) = measure(replace(serving, session=slow), Meter(), [4], prompt=130, tokens=4).rows
    assert row.decode_tokens_per_second is not None


def test_the_time_of_a_hook_is_not_the_engines() -> None:
    with Bench(bring(1)) as bench:
        plain = decode_seconds(bench.decode([bench.prompt(8)], tokens=20), 1, 8)
        ran = []
        bench.stopwatch.hook = lambda _step: ran.append(np.sort(np.random.default_rng(0).random(1_000_000)))
        slowed = decode_seconds(bench.decode([bench.prompt(8)], tokens=20), 1, 8)
        assert len(ran) >= 20
        assert np.median(slowed) < np.median(plain) + 0.02


def test_rows_that_never_run_together_have_no_speed_together() -> None:
    serving = bring(2)
    alone = replace(serving.package.graph, operators=Counter({"SparseAttention": 1}))
    serving = replace(serving, package=replace(serving.package, graph=alone))
    (row,) = measure(serving, Meter(), [2], prompt=8, tokens=2).rows
    assert row.decode_tokens_per_second is None
    assert row.weights_bytes_per_second is None


@pytest.mark.slow
def test_a_model_that_fails_ends_the_measurement_with_its_reason() -> None:
    serving = bring(1)

    class Broken:
        def step(self, *_: Any) -> None:
            raise RuntimeError("no such kernel")

    broken: Any = Broken()
    with Bench(replace(serving, session=broken)) as bench, pytest.raises(BenchError, match="no such kernel"):
        bench.first_token([(1, 2, 3)])


@pytest.mark.parametrize(("name", "table"), [("phi3", 1000 * 64 * 4), ("gemma2", 0)], ids=["own table", "tied"])
def test_a_table_that_is_looked_up_is_not_read_by_every_step(name: str, table: int) -> None:
    package = open_package(MODELS / name)
    assert package.weight_bytes - package.step_bytes == table


def test_bandwidth_is_within_what_machines_have() -> None:
    assert 1e8 < read_bandwidth(2, size=16 << 20) < 1e13


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    assert largest_cache(tmp_path) == 0
    for index, size in enumerate(("48K\n", "2048K\n", "32M\n", "none\n")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size)
    assert largest_cache(tmp_path) == 32 << 20


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of `edged bench …`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["edged", "bench", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    # Loggers would keep this test's captured stderr for the tests that follow.
    monkeypatch.setattr("edged.logs.configure", lambda *_: None)
    with structlog.testing.capture_logs(), pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


SMALL = ("--model", str(MODELS / "phi3"), "--prompt", "16", "--tokens", "4")


def test_json_has_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, *SMALL, "--rows", "1, 2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "phi3"
    assert document["memory"]["package_bytes"] < document["memory"]["planned_bytes"]
    assert [row["rows"] for row in document["rows"]] == [1, 2]
    for row in document["rows"]:
        share = row["weights_bytes_per_second"] / document["memory"]["bytes_per_second"]
        assert row["memory_bandwidth_share"] == pytest.approx(share)
        assert row["first_token_warm_seconds"] > 0
    documented = first_column(section("Measurements"))
    assert documented == {*document, *(f"rows[].{name}" for name in document["rows"][0])}
    assert all(f"`{name}`" in section("Measurements") for name in document["memory"])


def test_the_table_has_a_line_for_each_number_of_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *SMALL, "--rows", "1,3") == 0
    printed = capsys.readouterr().out
    assert "phi3 on " in printed
    assert [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")] == ["1", "3"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rows", "1,two"), "give numbers from 1 to 64"),
        (("--rows", ""), "give numbers from 1 to 64"),
        (("--rows", "0"), "give numbers from 1 to 64"),
        (("--rows", "65"), "give numbers from 1 to 64"),
        (("--prompt", "1"), "--prompt must be at least 2"),
        (("--tokens", "0"), "--tokens at least 1"),
        (("--prompt", "500", "--tokens", "13"), "together more than the model's context of 512"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    assert run(monkeypatch, *SMALL, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err
    assert printed.err.count("\n") == 1


def test_rows_beyond_memory_are_refused_with_the_plans_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    huge = copy_package("phi3", tmp_path, context_length=1 << 24)
    assert run(monkeypatch, "--model", str(huge), "--prompt", str(1 << 23), "--rows", "64") == 2
    told = capsys.readouterr().err
    assert "are usable of" in told
    assert "would fit" in told


def test_a_broken_package_fails_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    package = copy_package("phi3", tmp_path)
    (package / "model.onnx.data").write_bytes(b"short")
    assert run(monkeypatch, "--model", str(package)) == 1
    assert "model.onnx.data is cut" in capsys.readouterr().err
