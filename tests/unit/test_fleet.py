"""The fleet as its devices tell it: who is up, what is exported of whom, and what of nonsense."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_overview import READY

from edged.fleet.boards import FORGET_SECONDS, MOST_BOARDS, MOST_BYTES, STALE_SECONDS, Boards
from edged.fleet.exposition import EXPORTED, MOST_VALUES, OWN, metrics, targets
from edged.machine.board import detect
from edged.machine.sensors.quantities import POWER, TEMPERATURE, THROTTLED
from edged.machine.sensors.readings import Reading, Readings
from edged.report.documents import encode, health_document, info_document, offline_document, status_document
from edged.report.metric_table import ROWS
from edged.settings import Settings

BOARD = detect()
STATUS = replace(
    READY,
    queued=3,
    running=2,
    outbox=1,
    ended={"succeeded": 7, "failed": 1},
    generated_tokens=900,
    prompt_tokens=400,
    groups={"hall": True, "yard": False},
    certificates={"mqtt": 2_000_000_000.0},
)


class Fleet:
    """Boards with clocks that the test sets."""

    def __init__(self) -> None:
        self.time, self.wall = 1000.0, READY.wall_time
        self.boards = Boards("edged/v1", now=lambda: self.time, wall=lambda: self.wall)
        self.boards.connect()

    def say(self, device: str, channel: str, document: Any, retained: bool = False) -> None:
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.boards.take(f"edged/v1/device/{device}/{channel}", payload, retained)

    def report(self, device: str, **settings: Any) -> None:
        """All three documents, as the device makes them."""
        for channel, document in documents(device, **settings).items():
            self.say(device, channel, document, retained=channel != "health")

    def up(self) -> dict[str, bool]:
        return {name: board.up for name, board in self.boards.all().items()}

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        families = text_string_to_metric_families(metrics(self.boards).decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, tuple(sorted(labels.items()))))


def documents(device: str, **settings: Any) -> dict[str, bytes]:
    """What a device publishes."""
    own = Settings(device={"groups": ["hall", "yard"]}, **settings)
    return {
        "status": encode(status_document(device, STATUS)),
        "info": encode(info_document(device, own, BOARD, STATUS)),
        "health": encode(health_document(device, readings(), STATUS)),
    }


@functools.cache
def readings() -> Readings:
    at = time.monotonic() + 1e6
    values = {
        TEMPERATURE: {("cpu",): Reading(61.5, at), ("gpu",): Reading(60.0, at), ("board",): Reading(50.0, at)},
        POWER: {("VDD_IN",): Reading(7.5, at)},
        THROTTLED: {("under_voltage",): Reading(1.0, at)},
    }
    return Readings(values, total=7.5)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_what_a_device_says_is_exported_under_its_own_names(fleet: Fleet) -> None:
    fleet.report("pi-7")
    wanted = {
        ("edged_fleet_up", ()): 1,
        ("edged_ready", ()): 1,
        ("edged_jobs_queued", ()): 3,
        ("edged_jobs_running", ()): 2,
        ("edged_outbox_results", ()): 1,
        ("edged_jobs_total", (("state", "succeeded"),)): 7,
        ("edged_jobs_total", (("state", "failed"),)): 1,
        ("edged_generated_tokens_total", ()): 900,
        ("edged_prompt_tokens_total", ()): 400,
        ("edged_board_temperature_celsius", (("zone", "cpu"),)): 61.5,
        ("edged_board_power_watts", (("rail", "VDD_IN"),)): 7.5,
        ("edged_board_throttled", (("reason", "under_voltage"),)): 1,
        ("edged_group_joined", (("group", "hall"),)): 1,
        ("edged_group_joined", (("group", "yard"),)): 0,
        ("process_start_time_seconds", ()): 0,
        ("edged_fleet_clock_offset_seconds", ()): 0,
        ("edged_certificate_expiry_timestamp_seconds", (("certificate", "mqtt"),)): 2_000_000_000,
    }
    found = fleet.samples()
    assert {key: found.get((key[0], tuple(sorted((("instance", "pi-7"), *key[1]))))) for key in wanted} == wanted
    names = {name for name, _ in found}
    assert names <= {*EXPORTED, *OWN}
    assert {name for name in EXPORTED if name not in names} == {"edged_faults_total"}  # none is in the log of this test
    for name, labels in found:
        if name in ROWS:
            assert {key for key, _ in labels} - {"instance"} <= set(ROWS[name].labels), name


def test_a_device_that_says_nothing_is_down_and_its_other_metrics_are_gone(fleet: Fleet) -> None:
    fleet.report("pi-7")
    fleet.time += STALE_SECONDS
    assert fleet.up() == {"pi-7": True}
    fleet.time += 1
    found = fleet.samples()
    assert fleet.value("edged_fleet_up", instance="pi-7") == 0
    assert {name for name, labels in found if dict(labels).get("instance")} == {
        "edged_fleet_up",
        "edged_fleet_heard_timestamp_seconds",
    }
    fleet.report("pi-7")
    assert fleet.value("edged_jobs_queued", instance="pi-7") == 3
    fleet.time += FORGET_SECONDS + 1
    assert fleet.up() == {}


def test_the_last_will_is_down_at_once(fleet: Fleet) -> None:
    fleet.report("pi-7")
    fleet.say("pi-7", "status", encode(offline_document("pi-7", STATUS, "the connection was lost")))
    assert fleet.up() == {"pi-7": False}


def test_without_the_broker_nothing_is_said_of_any_device_and_nothing_is_held_against_it(fleet: Fleet) -> None:
    fleet.report("pi-7")
    fleet.boards.disconnect()
    assert fleet.value("edged_fleet_broker_connected") == 0
    assert {name for name, _ in fleet.samples()} <= set(OWN)
    assert fleet.value("edged_fleet_up", instance="pi-7") is None
    fleet.time += 10 * STALE_SECONDS
    fleet.boards.connect()
    assert fleet.up() == {"pi-7": True}
    fleet.time += STALE_SECONDS + 1
    assert fleet.up() == {"pi-7": False}


def test_a_retained_document_is_no_sign_of_life(fleet: Fleet) -> None:
    fleet.report("pi-7")
    fleet.time += STALE_SECONDS + 1
    fleet.say("pi-7", "info", {"device": "pi-7"}, retained=True)
    assert fleet.up() == {"pi-7": False}


def test_a_device_whose_documents_are_taken_away_is_gone(fleet: Fleet) -> None:
    fleet.report("pi-7")
    for channel in ("status", "info", "health"):
        assert "pi-7" in fleet.up()
        fleet.say("pi-7", channel, b"", retained=True)
    assert fleet.up() == {}


def test_a_clock_that_is_wrong_shows(fleet: Fleet) -> None:
    fleet.wall += 86400
    fleet.report("pi-7")
    assert fleet.value("edged_fleet_clock_offset_seconds", instance="pi-7") == -86400


NONSENSE = (
    b"\xff",
    b"[]",
    b"null",
    b"{",
    b"[" * 100_000,
    b'{"queued": 1}' + b" " * MOST_BYTES,
)


@pytest.mark.parametrize("payload", NONSENSE, ids=range(len(NONSENSE)))
def test_what_is_no_document_is_counted_and_dropped(fleet: Fleet, payload: bytes) -> None:
    fleet.say("pi-7", "health", payload)
    assert fleet.up() == {}
    assert fleet.value("edged_fleet_refused_messages_total") == 1


@pytest.mark.parametrize(
    "topic", ["edged/v1/device/pi-7/job", "edged/v1/device//status", "x", "edged/v1/device/a b/info"]
)
def test_other_topics_are_dropped(fleet: Fleet, topic: str) -> None:
    fleet.boards.take(topic, b"{}", False)
    assert (fleet.up(), fleet.boards.refused) == ({}, 1)


def test_values_that_make_no_sense_cost_themselves_alone(fleet: Fleet) -> None:
    odd: dict[str, Any] = {
        "time": "yesterday",
        "ready": "yes",
        "queued": float("nan"),
        "running": 2,
        "outbox": [1],
        "spool_bytes": 1e400,
        "memory_available_bytes": None,
        "temperature_celsius": {'x"\\\n': 50, "b": "hot"},
        "power_watts": [5],
        "throttled": ["a", "a", 7, None],
        "certificates": {"mqtt": "soon", "http": 5},
        "counters": {"jobs": "many", "faults": [1, {"event": None}], "prompt_tokens": {}},
    }
    fleet.say("pi-7", "health", odd)
    fleet.say("pi-7", "info", {"model": 1, "board": [], "versions": None, "started": 5, "groups": {"a": 1}, "http": 1})
    found = {key: value for key, value in fleet.samples().items() if dict(key[1]).get("instance")}
    told = {name: labels for name, labels in found if not name.startswith("edged_fleet_")}
    assert set(told) == {"edged_jobs_running", "edged_board_temperature_celsius", "edged_board_throttled"}
    assert dict(told["edged_board_temperature_celsius"])["zone"] == 'x"\\\n'
    assert targets(fleet.boards) == b"[]\n"


def test_sizes_are_bounded(fleet: Fleet) -> None:
    fleet.say("pi-7", "health", {"temperature_celsius": {f"zone-{n}": 50.0 for n in range(3 * MOST_VALUES)}})
    assert sum(name == "edged_board_temperature_celsius" for name, _ in fleet.samples()) == MOST_VALUES
    for n in range(MOST_BOARDS + 10):
        fleet.say(f"b-{n}", "health", {"queued": 1})
    assert len(fleet.up()) == MOST_BOARDS


def test_devices_that_serve_http_to_others_are_targets(fleet: Fleet) -> None:
    fleet.report("closed")
    fleet.report("open", http={"host": "10.0.0.7", "plain_text": True})
    fleet.report("six", http={"host": "fd00::7", "port": 80, "plain_text": True})
    fleet.say("evil", "info", {"http": {"host": "a/b@c", "port": 1, "tls": False}})
    fleet.say("odd", "info", {"http": {"host": "a", "port": "9765", "tls": False}})
    assert json.loads(targets(fleet.boards)) == [
        {"targets": ["10.0.0.7:9765"], "labels": {"instance": "open", "__scheme__": "http"}},
        {"targets": ["[fd00::7]:80"], "labels": {"instance": "six", "__scheme__": "http"}},
    ]


def test_500_boards_with_10000_series_take_less_than_200_ms(fleet: Fleet) -> None:
    said = documents("pi")
    for n in range(500):
        for channel, document in said.items():
            fleet.say(f"pi-{n}", channel, document)
    metrics(fleet.boards)
    began = time.thread_time()  # of this thread, whatever else the machine does
    text = metrics(fleet.boards)
    seconds = time.thread_time() - began
    assert sum(not line.startswith(b"#") for line in text.splitlines()) >= 10_000
    assert seconds < 0.2
