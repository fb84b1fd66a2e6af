"""However many jobs of whatever kind a daemon has had: /metrics has the series that it had, and no text of them."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from daemon_fixtures import Daemon, Place, job
from flood import without_persistence
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE, eventually
from prometheus_client.parser import text_string_to_metric_families

pytest_plugins = ["daemon_fixtures"]

SECRET = "xylophone"
DEVICE = "edged/v1/device/board"


def documents(n: int) -> list[dict[str, Any]]:
    """One job of each kind, with a text and names of its own; now and then also with grammars, each tried for 0.4 s."""
    secret = f"{SECRET} {n}"
    base = {"max_tokens": 1, "metadata": {"about": secret}}
    schema = {"properties": {secret: {"const": n}}, "required": [secret], "additionalProperties": False}
    kinds: list[dict[str, Any]] = [
        {**base, "prompt": secret, "ignore_eos": True},
        {**base, "messages": [{"role": "user", "content": secret}], "stream": True, "priority": n % 10},
        {**base, "prompt": secret, "store": False, "temperature": 1.0, "seed": n},
        {**base, "prompt": secret, "max_tokens": 32, "response_format": {"type": "choice", "choice": [secret, f"{n}"]}},
        {**base, "prompt": secret, "deadline": "2020-01-01T00:00:00Z"},
        {**base, "prompt": [1, 5, 9], "max_tokens": 10_000 + n},
        {**base, "prompt": secret, "model": f"{SECRET}-{n}"},
        {**base, "prompt": secret, f"{SECRET}_{n}": n},
        {**base, "prompt": secret, "response_format": {"type": f"{SECRET}-{n}"}},
    ]
    structures: list[dict[str, Any]] = [
        {"type": "regex", "regex": f"{SECRET} {n}.*"},
        {"type": "regex", "regex": f"{SECRET}(((({n}"},
        {"type": "json_schema", "json_schema": {"schema": schema}},
    ]
    if n % 50 == 0:
        kinds += [{**base, "prompt": secret, "response_format": structure} for structure in structures]
    return [{"id": f"kind{kind}-{n}", **fields} for kind, fields in enumerate(kinds)]


class Sender:
    """Sends on one connection, and notes on another whose result has come."""

    def __init__(self, port: int) -> None:
        self.states: dict[str, str] = {}
        self.clients = []
        subscribed = threading.Event()
        for _ in range(2):
            client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
            client.max_inflight_messages = 200
            client.connect("127.0.0.1", port)
            self.clients.append(client)
            client.loop_start()
        self.clients[1].on_message = self._note
        self.clients[1].on_subscribe = lambda *_: subscribed.set()
        self.clients[1].subscribe(f"{DEVICE}/result/+", 1)
        assert subscribed.wait(PATIENCE)

    def _note(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        document = json.loads(message.payload)
        self.states[document["id"]] = document["state"]

    def send(self, numbers: range) -> int:
        """Jobs of every kind, and a conflict, a message that is no JSON, a cancel; how many jobs have a result."""
        sent: list[str] = []

        def missing() -> set[str]:
            return set(sent).difference(self.states)

        for n in numbers:
            of_all, last = documents(n), n == numbers[-1]
            sent += [document["id"] for document in of_all]
            for document in of_all:
                self._publish("job", json.dumps(document), f"{SECRET}-{n}")
            self._publish("job", json.dumps({**of_all[0], "top_k": n + 1}))
            self._publish("job", f"{SECRET} {n}")
            self._publish("cancel", json.dumps({"id": f"kind1-{n}"}))
            if last or n % 50 == 0:  # a device drops refusals where more than 10,000 publications wait
                eventually(lambda: not missing(), lambda: f"no result of {missing()}")
        return len(sent)

    def _publish(self, kind: str, payload: str, reply: str | None = None) -> None:
        properties: Any = Properties(PacketTypes.PUBLISH)
        if reply is not None:
            properties.ResponseTopic, properties.CorrelationData = f"edged/v1/reply/{reply}", reply.encode()
        self.clients[0].publish(f"{DEVICE}/{kind}", payload, qos=1, properties=properties)

    def close(self) -> None:
        for client in self.clients:
            client.disconnect()
            client.loop_stop()


def series(daemon: Daemon) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Names and labels of everything at /metrics."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(daemon.get("/metrics")[1])
        for sample in family.samples
    }


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_series_grows_with_jobs_or_time_and_no_text_of_them_is_told(place: Place, count: int) -> None:
    without_persistence(place.broker)
    daemon = place.daemon(paced=True, model__rows="8", log__level="debug")
    daemon.env["TEST_SYNCHRONISED"] = "1"
    daemon.start()
    sender = Sender(place.broker.port)
    sender.send(range(3))
    assert {"succeeded", "rejected", "expired"} <= set(sender.states.values())
    eventually(lambda: daemon.metric("edged_outbox_results") == 0)
    before, size = series(daemon), len(daemon.get("/metrics")[1])
    assert sender.send(range(3, 4 + count // len(documents(1)))) >= count
    daemon.skip(86_400)
    assert place.client().ask(job("a-day-later"))["state"] == "succeeded"
    sender.close()
    assert series(daemon) == before
    assert len(daemon.get("/metrics")[1]) < 1.05 * size
    told = {path: daemon.get(path)[1] for path in ("/metrics", "/", "/status.json", "/readyz")}
    told |= {topic: str([message.payload for message in place.clients[0].all(topic)]) for topic in ("status", "info")}
    assert all(told.values())
    assert daemon.end() == 0
    assert "job_rejected" in daemon.log()
    assert [place for place, text in {**told, "log": daemon.log()}.items() if SECRET in text] == []
