"""A daemon that shows itself to Home Assistant, and no longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from broker_rig import Peer
from daemon_fixtures import Place
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from patience import eventually

pytest_plugins = ["daemon_fixtures"]
TOPIC = "homeassistant/device/edged-board/config"


@pytest.mark.slow
def test_a_device_is_found_and_after_the_setting_is_gone_it_is_not(
    place: Place, make_peer: Callable[..., Peer]
) -> None:
    daemon, client = place.daemon(MQTT__DISCOVERY_PREFIX="homeassistant", HEARTBEAT_SECONDS="1").start(), place.client()
    topic, payload, retained = make_peer(place.broker.port).subscribe("homeassistant/#").get()
    assert (topic, retained) == (TOPIC, True)
    document = json.loads(payload)
    client.wait("health")

    def shown(template: str, of: str) -> str:
        newest = json.loads(client.all(of)[-1].payload)
        return ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(template).render(value_json=newest)

    def values() -> dict[str, Any]:
        components = document["components"].items()
        return {name: shown(one["value_template"], one["state_topic"]) for name, one in components}

    eventually(lambda: values()["model"] == "phi3")
    assert (values()["ready"], values()["queue"]) == ("ON", "0")
    assert shown(document["availability_template"], document["availability_topic"]) == "online"
    assert daemon.end() == 0
    assert shown(document["availability_template"], document["availability_topic"]) == "offline"
    del daemon.env["EDGED_MQTT__DISCOVERY_PREFIX"]
    daemon.start()
    eventually(lambda: (daemon.state_dir / "discovery").read_text() == "")
    peer = make_peer(place.broker.port).subscribe(TOPIC)
    peer.send(TOPIC, b"end", retain=False)
    assert peer.get() == (TOPIC, b"end", False)  # nothing is retained there
