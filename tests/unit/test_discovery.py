"""The document by which Home Assistant finds a device: its fields, its templates over real documents, its removal."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from structlog.testing import capture_logs
from test_outbox import FakeLink, Stub

from edged.discovery import FILE, Discovery
from edged.faults import Fault
from edged.jobs.outbox import Outbox
from edged.machine.board import detect
from edged.machine.clock import Clock
from edged.machine.sensors.quantities import TEMPERATURE
from edged.machine.sensors.readings import Reading, Readings
from edged.mqtt.events import LinkDown, LinkUp
from edged.mqtt.topics import Topics
from edged.report.discovery import discovery_document
from edged.report.documents import health_document, info_document, offline_document, status_document
from edged.settings import Settings
from edged.status import DaemonState, ModelStatus, Status

TOPICS = Topics("edged/v1", "hall-3")
TOPIC = "homeassistant/device/edged-hall-3/config"
DOCUMENT = discovery_document(
    TOPICS.discovery_id, "hall-3", "Raspberry Pi 5", status=TOPICS.status, health=TOPICS.health, info=TOPICS.info
)

# home-assistant.io/integrations/mqtt, /integrations/sensor.mqtt, /integrations/binary_sensor.mqtt; 2025.1.
SHARED = {"availability", "availability_mode", "availability_template", "availability_topic", "command_topic"}
SHARED |= {"encoding", "payload_available", "payload_not_available", "qos", "state_topic"}
DEVICE = {"identifiers", "connections", "manufacturer", "model", "model_id", "name", "hw_version", "serial_number"}
DEVICE |= {"sw_version", "via_device", "suggested_area", "configuration_url"}
ORIGIN = {"name", "sw_version", "support_url"}
ENTITY = {"device_class", "enabled_by_default", "entity_category", "entity_picture", "expire_after", "force_update"}
ENTITY |= {"icon", "json_attributes_template", "json_attributes_topic", "name", "object_id", "platform", "unique_id"}
ENTITY |= {"value_template"} | SHARED - {"command_topic"}
SENSOR = {"last_reset_value_template", "options", "state_class", "suggested_display_precision", "unit_of_measurement"}
FIELDS = {"binary_sensor": ENTITY | {"off_delay", "payload_on", "payload_off"}, "sensor": ENTITY | SENSOR}


def test_every_field_is_documented_and_every_needed_one_is_there() -> None:
    assert DOCUMENT.keys() <= SHARED | {"device", "origin", "components"}
    assert {"identifiers", "name"} <= DOCUMENT["device"].keys() <= DEVICE
    assert {"name"} <= DOCUMENT["origin"].keys() <= ORIGIN
    components = DOCUMENT["components"]
    assert set(components) == {"ready", "temperature", "queue", "model"}
    for component in components.values():
        needed = {"platform", "unique_id", "state_topic", "name"}
        assert needed <= component.keys() <= FIELDS[component["platform"]]
        assert component["state_topic"] in (TOPICS.status, TOPICS.health, TOPICS.info)
    assert len({component["unique_id"] for component in components.values()}) == 4
    assert components["temperature"]["device_class"] == "temperature"
    assert components["temperature"]["unit_of_measurement"] == "°C"


@pytest.mark.parametrize("root", ["edged/v1", "plant/one"])
def test_each_device_has_a_name_of_its_own_that_home_assistant_takes(root: str) -> None:
    names = [Topics(root, device).discovery_id for device in ("a.b", "a_b", "a-b", "A.B", "x" * 64)]
    assert len(set(names)) == 5
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", name) for name in names)
    assert (Topics(root, "a-b").discovery_id == "edged-a-b") == (root == "edged/v1")


def readings(**celsius: float) -> Readings:
    now = time.monotonic()
    return Readings({TEMPERATURE: {(zone,): Reading(value, now) for zone, value in celsius.items()}})


def seen(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What Home Assistant shows: each template over the document that came on its topic."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    shown = {
        name: environment.from_string(component["value_template"]).render(
            value_json=documents[component["state_topic"]]
        )
        for name, component in DOCUMENT["components"].items()
    }
    template = environment.from_string(DOCUMENT["availability_template"])
    return shown | {"availability": template.render(value_json=documents[DOCUMENT["availability_topic"]])}


def documents(status: Status, readings: Readings) -> dict[str, Mapping[str, Any]]:
    return {
        TOPICS.status: status_document("hall-3", status),
        TOPICS.health: health_document("hall-3", readings, status),
        TOPICS.info: info_document("hall-3", Settings(), detect(), status),
    }


def test_a_device_that_serves_is_shown() -> None:
    serving = Status(unready=(), queued=7, model=ModelStatus("serving", "phi3"))
    found = documents(serving, readings(soc=61.5, nvme=48.0))
    found[TOPICS.info] = {**found[TOPICS.info], "model": {"state": "serving", "reason": None, "name": "phi3"}}
    assert seen(found) == {
        "ready": "ON",
        "temperature": "61.5",
        "queue": "7",
        "model": "phi3",
        "availability": "online",
    }


def test_what_is_null_is_unknown_and_nothing_is_undefined() -> None:
    loading = Status(unready=(Fault("model_loading", "model loading"),))
    found = documents(loading, readings())
    assert seen(found) == {
        "ready": "OFF",
        "temperature": "None",
        "queue": "0",
        "model": "None",
        "availability": "online",
    }
    # A document that was cut to what the broker takes.
    found[TOPICS.info] = {**found[TOPICS.info], "model": None}
    assert seen(found)["model"] == "None"


@pytest.mark.parametrize(("state", "available"), [("online", "online"), ("draining", "online"), ("offline", "offline")])
def test_availability_follows_the_status_and_its_last_will(state: str, available: str) -> None:
    status = Status(state=DaemonState(state), unready=())
    found = documents(status, readings())
    if state == "offline":
        found[TOPICS.status] = offline_document("hall-3", status, "the connection was lost")
    assert seen(found)["availability"] == available


class World:
    """An outbox over a link that takes everything, and the publisher of one run."""

    def __init__(self, folder: Path, prefix: str | None) -> None:
        self.link = FakeLink()
        self.outbox = Outbox(Stub({}), self.link, TOPICS, "hall-3", Clock())  # type: ignore[arg-type]
        settings = Settings(state_dir=folder, mqtt={"discovery_prefix": prefix})  # type: ignore[arg-type]
        self.discovery = Discovery(self.outbox, TOPICS, settings, detect())

    def connect(self, limit: int | None = None) -> World:
        self.outbox.connected(LinkUp("control", True, "5", maximum_packet_size=limit))
        return self

    def turn(self, confirm: bool = True) -> dict[str, bytes]:
        """What was published, newest last."""
        self.discovery.publish()
        self.outbox.pump()
        taken, self.link.taken = self.link.taken, []
        for _, _, token in taken if confirm else ():
            self.link.under_way.remove(token)
            self.outbox.confirmed(token)
        self.discovery.publish()
        return {topic: payload for topic, payload, _ in taken}


def noted(folder: Path) -> list[str]:
    file = folder / FILE
    return file.read_text().splitlines() if file.exists() else []


def test_without_the_setting_nothing_is_published_or_written(tmp_path: Path) -> None:
    assert World(tmp_path, None).connect().turn() == {}
    assert list(tmp_path.iterdir()) == []


def test_it_is_published_once_a_connection_and_removed_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    world = World(tmp_path, "homeassistant")
    assert world.turn() == {}  # not connected
    assert world.connect().turn()[TOPIC].startswith(b'{"device": ')
    assert world.turn() == {}
    world.outbox.disconnected(LinkDown("control", Fault("x", "lost")))
    world.connect()
    world.discovery.publish_again()
    assert list(world.turn()) == [TOPIC]
    assert noted(tmp_path) == [TOPIC]
    later = World(tmp_path, None).connect()
    assert later.turn(confirm=False) == {TOPIC: b""}
    assert noted(tmp_path) == [TOPIC]  # the broker has not said that it is gone
    again = World(tmp_path, None).connect()
    assert again.turn() == {TOPIC: b""}
    assert noted(tmp_path) == []
    assert World(tmp_path, None).connect().turn() == {}


def test_under_another_prefix_the_old_document_goes(tmp_path: Path) -> None:
    World(tmp_path, "homeassistant").connect().turn()
    published = World(tmp_path, "ha").connect().turn()
    assert published.keys() == {TOPIC, "ha/device/edged-hall-3/config"}
    assert published[TOPIC] == b""
    assert noted(tmp_path) == ["ha/device/edged-hall-3/config"]


def test_a_document_that_is_too_large_for_the_broker_is_left_out_and_named(tmp_path: Path) -> None:
    world = World(tmp_path, "homeassistant").connect(limit=1000)
    with capture_logs() as entries:
        assert world.turn() == {}
    assert [entry["code"] for entry in entries if entry["event"] == "document_too_large"] == ["mqtt_document_refused"]
    assert [warning.code for warning in world.outbox.warnings] == ["mqtt_document_refused"]


def test_a_note_that_is_damaged_publishes_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("edged/v1/device/other/status\n#\nhomeassistant/device/../config\n\n")
    assert World(tmp_path, None).connect().turn() == {}


def test_a_note_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with capture_logs() as entries:
        assert list(World(tmp_path, "homeassistant").connect().turn()) == [TOPIC]
    assert [entry["event"] for entry in entries] == ["discovery_not_noted"]
