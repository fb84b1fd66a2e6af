"""What is logged: by level, and counted whatever the level is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

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


@pytest.mark.parametrize(
    ("level", "told"),
    [("debug", "abcde"), ("info", "bcde"), ("warning", "cde"), ("error", "de")],
)
def test_a_fault_is_counted_though_it_is_not_told(level: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level, "json")
    log = structlog.get_logger()
    before = logs.faults()
    log.debug("a")
    log.info("b")
    log.warning("c", reason="x")
    log.error("d")
    try:
        raise ValueError
    except ValueError:
        log.exception("e")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == list(told)
    counted = {key: count - before.get(key, 0) for key, count in logs.faults().items() if key[0] in "abcde"}
    assert counted == {("c", "warning"): 1, ("d", "error"): 1, ("e", "error"): 1}
    assert b'edged_faults_total{event="c",level="warning"}' in Metrics(detect(), Readings, LatestStatus(), ()).text()
