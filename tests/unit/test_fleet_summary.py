"""A line for each device: what its documents tell, in which order, and which are wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from test_fleet import STATUS, documents
from test_overview import READY

from edged.cli.fleet_table import COLUMNS, lines
from edged.cli.fleet_top import headline, picture
from edged.faults import Fault
from edged.fleet.boards import STALE_SECONDS, Boards
from edged.fleet.summary import Filter, Summary, summaries
from edged.report.documents import HEALTH_EXPIRY_SECONDS, encode, offline_document, status_document

NOW = READY.wall_time
BROKEN = replace(STATUS, unready=(Fault("model_unavailable", "the package is broken"),))


class Fleet:
    """What the broker retains of some devices, heard at NOW."""

    def __init__(self) -> None:
        self.boards = Boards("edged/v1", now=lambda: 1000.0, wall=lambda: NOW)
        self.boards.connect()

    def retained(self, device: str, age: float | None = 0, **changed: bytes) -> None:
        """`age`: of its heartbeat, as the expiry tells it; None: the broker tells no expiry."""
        for channel, document in (documents(device) | changed).items():
            expiry = None if age is None or channel != "health" else int(HEALTH_EXPIRY_SECONDS - age)
            self.boards.take(f"edged/v1/device/{device}/{channel}", document, True, expiry)

    def found(self, wanted: Filter | None = None) -> list[Summary]:
        return summaries(self.boards.all(), NOW, wanted)

    def states(self, wanted: Filter | None = None) -> dict[str, str]:
        return {one.device: one.state for one in self.found(wanted)}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_a_device_that_serves_tells_all(fleet: Fleet) -> None:
    fleet.retained("pi-7", age=12)
    (one,) = fleet.found()
    assert (one.state, one.ready, one.faults, one.reason) == ("online", True, (), None)
    assert (one.model, one.queued, one.running, one.groups) == ("phi-3", 3, 2, ("hall", "yard"))
    assert (one.temperature_celsius, one.power_watts, one.heard) == (61.5, 7.5, NOW - 12)
    assert one.limited == ("under_voltage",)


def test_one_that_does_not_serve_says_why(fleet: Fleet) -> None:
    fleet.retained("pi-7", status=encode(status_document("pi-7", BROKEN)))
    (one,) = fleet.found()
    assert (one.state, one.ready, one.faults) == ("online", False, ("model_unavailable",))
    assert "model_unavailable" in lines([one], NOW)[1]
    assert "not ready" in lines([one], NOW)[1]


def test_the_age_of_a_heartbeat_is_what_the_broker_took_off_its_expiry(fleet: Fleet) -> None:
    wrong_clock = json.loads(documents("x")["health"]) | {"time": "1970-01-01T00:00:10.000Z"}
    fleet.retained("heard", age=STALE_SECONDS, health=encode(wrong_clock))
    fleet.retained("silent", age=STALE_SECONDS + 1)
    fleet.retained("over-3.1.1", age=None, health=encode(wrong_clock))
    assert fleet.states() == {"silent": "silent", "over-3.1.1": "silent", "heard": "online"}
    fleet.boards.take("edged/v1/device/silent/health", documents("silent")["health"], False)
    assert fleet.states()["silent"] == "online"


def test_how_one_that_is_away_was_is_not_shown(fleet: Fleet) -> None:
    fleet.retained("off", status=encode(offline_document("off", STATUS, "the connection was lost")))
    fleet.retained("silent", age=STALE_SECONDS + 1)
    for one in fleet.found():
        assert (one.ready, one.model, one.queued, one.temperature_celsius) == (False, "phi-3", None, None)
        assert one.heard is not None
    assert "the connection was lost" in lines(fleet.found(), NOW)[2]


def test_those_in_trouble_come_first(fleet: Fleet) -> None:
    calm = encode(json.loads(documents("x")["health"]) | {"throttled": []})
    for device in ("b", "a"):
        fleet.retained(device, health=calm)
    fleet.retained("limited")
    fleet.retained("warned", health=calm, status=encode(json.loads(documents("w")["status"]) | {"warnings": ["w"]}))
    fleet.retained("off", status=encode(offline_document("off", STATUS, "stopped")))
    fleet.retained("silent", age=STALE_SECONDS + 1)
    fleet.retained("broken", status=encode(status_document("broken", BROKEN)))
    assert list(fleet.states()) == ["broken", "silent", "off", "limited", "warned", "a", "b"]


def test_filters(fleet: Fleet) -> None:
    fleet.retained("a", info=encode(json.loads(documents("a")["info"]) | {"groups": ["north"]}))
    fleet.retained("b", status=encode(offline_document("b", STATUS, "stopped")))
    fleet.retained("c", status=encode(status_document("c", BROKEN)))
    assert set(fleet.states(Filter(group="hall"))) == {"b", "c"}
    assert set(fleet.states(Filter(model="phi-3"))) == {"a", "b", "c"}
    assert set(fleet.states(Filter(model="phi"))) == set()
    assert set(fleet.states(Filter(not_ready=True))) == {"b", "c"}
    assert set(fleet.states(Filter(offline=True))) == {"b"}
    assert set(fleet.states(Filter(group="north", not_ready=True))) == set()


@pytest.mark.parametrize("value", [None, 7, "text", [None, {}], {"a": {"b": "c"}}, True, 10**400])
def test_values_that_make_no_sense_are_not_known(fleet: Fleet, value: Any) -> None:
    for channel in ("status", "info", "health"):
        keys = json.loads(documents("x")[channel])
        fleet.boards.take(f"edged/v1/device/odd/{channel}", json.dumps(dict.fromkeys(keys, value)).encode(), True)
    (one,) = fleet.found()
    assert (one.state, one.ready, one.model, one.temperature_celsius) == ("unknown", False, None, None)
    assert len(lines([one], NOW)) == 2


def test_no_text_steers_the_terminal(fleet: Fleet) -> None:
    evil = "\x1b]0;title\x07\x1b[2J"
    fleet.retained("a", status=encode(json.loads(documents("a")["status"]) | {"ready": False, "faults": [evil]}))
    text = "\n".join(lines(fleet.found(), NOW))
    assert "\x1b" not in text
    assert "\x07" not in text


def test_without_a_device_there_is_the_head_alone() -> None:
    assert [line.split() for line in lines([], NOW)] == [list(COLUMNS)]


@pytest.mark.parametrize("width", [40, *(pytest.param(width, marks=pytest.mark.slow) for width in (80, 200))])
def test_500_devices_fit_the_terminal(fleet: Fleet, width: int) -> None:
    for n in range(500):
        fleet.retained(f"pi-{n:03}")
    console = Console(file=StringIO(), width=width, height=24)
    console.print(picture(fleet.found(), NOW, width, 24))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue().splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= width
    assert shown[0].startswith("500 devices: 500 ready")


def test_the_headline_adds_up(fleet: Fleet) -> None:
    fleet.retained("a")
    fleet.retained("b", status=encode(status_document("b", BROKEN)))
    fleet.retained("c", status=encode(offline_document("c", STATUS, "stopped")))
    told = "3 devices: 1 ready · 1 not ready · 1 offline · waiting 6 · running 4 · drawing 15 W"
    assert headline(fleet.found()) == told
