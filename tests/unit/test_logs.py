"""What is logged: by level, and counted whatever the level is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import structlog
from patience import PATIENCE

from edged import logs
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
