"""What is logged: by level, and counted whatever the level is."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from patience import PATIENCE

from edged import logs
from edged.log_limit import BURST, OF_JOBS, PER_SECOND, LineLimit
from edged.machine.board import detect
from edged.machine.sensors.readings import Readings
from edged.report.metrics import Metrics
from edged.status import LatestStatus


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def counts() -> dict[tuple[str, str], int]:
    return {(noted.event, noted.level): noted.count for noted in logs.noted()}


@pytest.mark.parametrize(
    ("level", "told"),
    [("debug", "abcde"), ("info", "bcde"), ("warning", "cde"), ("error", "de")],
)
def test_a_fault_is_counted_though_it_is_not_told(level: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level, "json")
    log = structlog.get_logger()
    before = counts()
    log.debug("a")
    log.info("b")
    log.warning("c", reason="x")
    log.error("d")
    try:
        raise ValueError
    except ValueError:
        log.exception("e")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == list(told)
    counted = {key: count - before.get(key, 0) for key, count in counts().items() if key[0] in "abcde"}
    assert counted == {("c", "warning"): 1, ("d", "error"): 1, ("e", "error"): 1}
    assert b'edged_faults_total{event="c",level="warning"}' in Metrics(detect(), Readings, LatestStatus(), ()).text()


def test_the_last_words_of_each_event_are_kept_the_latest_first() -> None:
    logs.configure("error", "json")
    log = structlog.get_logger()
    log.warning("f", reason="first", hint="do this")
    log.warning("g", jobs=3)
    log.warning("f", reason="x" * 10_000)
    told = [noted for noted in logs.noted() if noted.event in "fg"]
    assert [(noted.event, noted.count, noted.hint) for noted in told] == [("f", 2, ""), ("g", 1, "")]
    assert told[0].reason == "x" * 500
    assert told[1].reason == ""
    assert 0 <= time.time() - told[0].time < PATIENCE


# The list of events


def generator() -> Any:
    path = Path(__file__).parents[2] / "deploy/log/make.py"
    spec = importlib.util.spec_from_file_location("make_log_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_events_is_what_the_code_logs() -> None:
    make = generator()
    events = make.events()
    assert make.MEANINGS.keys() == events.keys()
    assert make.PAGE.read_text(encoding="utf-8") == make.page(events), "run deploy/log/make.py"
    assert events.keys() >= OF_JOBS


# Storms


class Storm:
    """A limit with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.limit = LineLimit(lambda: self.now)

    def lines(self, count: int, event: str = "storm", level: str = "warning", **more: Any) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = [{"event": event, "n": n, **more} for n in range(count)]
        return [line for line in lines if self.limit.take(level, line)]


def test_of_a_storm_the_first_lines_are_written_and_the_others_counted() -> None:
    storm = Storm()
    assert [line["n"] for line in storm.lines(BURST + 50)] == list(range(BURST))
    assert storm.limit.held() == []
    assert len(storm.lines(1, "other")) == 1
    assert len(storm.lines(1, level="error")) == 1
    storm.now += 1.0
    (first, *rest) = storm.lines(30)
    assert first == {"event": "storm", "n": 0, "suppressed": 50}
    assert len(rest) == PER_SECOND - 1
    assert not any("suppressed" in line for line in rest)


def test_the_last_line_of_a_storm_is_written_when_it_is_over() -> None:
    storm = Storm()
    storm.lines(BURST + 3, exc_info=ValueError("with frames"))
    storm.now += 2 / PER_SECOND
    assert storm.limit.held() == [("warning", {"event": "storm", "n": BURST + 2, "suppressed": 2})]
    assert storm.limit.held() == []
    storm.lines(2)
    assert storm.limit.held(all=True) == [("warning", {"event": "storm", "n": 1, "suppressed": 0})]


def test_lines_of_jobs_are_never_held_back() -> None:
    storm = Storm()
    assert all(len(storm.lines(10 * BURST, event, "info")) == 10 * BURST for event in OF_JOBS)


def test_a_storm_is_counted_in_full_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json")
    log = structlog.get_logger()
    for n in range(BURST + 20):
        log.warning("stormy", reason=str(n))
    logs.tell_held(all=True)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert BURST < len(lines) < BURST + 20
    assert len(lines) + sum(line.get("suppressed", 0) for line in lines) == BURST + 20
    assert (lines[-1]["reason"], lines[-1]["level"]) == (str(BURST + 19), "warning")
    assert counts()["stormy", "warning"] == BURST + 20
