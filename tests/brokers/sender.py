"""A sender for any broker: MQTT 5 or 3.1.1, with or without a password, which keeps all that it hears."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from brokers import PASSWORD, Broker
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE

ROOT = "edged/v1"
DEVICE = f"{ROOT}/device/board"
REPLY = f"{ROOT}/reply/sender/answers"
SECONDS = 15.0
"""How long a message that a broker is said to deliver may take; the load of the machine comes on top in `wait`."""


class Sender:
    """Connected and subscribed once made. Raises AssertionError where that does not come about."""

    def __init__(self, broker: Broker, protocol: MQTTProtocolVersion, name: str) -> None:
        self._messages: list[MQTTMessage] = []
        self._changed = threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol)
        if broker.username:
            self._client.username_pw_set(broker.username, PASSWORD)
        self._client.on_message = self._heard
        self._subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        kinds = [f"{DEVICE}/{kind}/+" for kind in ("event", "result", "stream")]
        filters = [(one, 1) for one in (*kinds, f"{DEVICE}/status", f"{DEVICE}/reported", REPLY)]
        self._client.on_connect = lambda client, *_: client.subscribe(filters)
        self._client.reconnect_delay_set(0.1, 0.5)  # type: ignore[arg-type]
        self._client.connect_async("127.0.0.1", broker.port)
        self._client.loop_start()
        assert self.subscribed(), "the sender cannot subscribe"

    def subscribed(self) -> bool:
        """Whether it is subscribed, now or within the patience of all tests."""
        return self._subscribed.wait(PATIENCE)

    def forget(self) -> None:
        """Wait at the next subscribed() for a subscription that is still to come."""
        self._subscribed.clear()

    def _heard(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def send(
        self, document: dict[str, Any], to: str = f"{DEVICE}/job", retain: bool = False, **properties: Any
    ) -> None:
        """QoS 1, and wait for the PUBACK."""
        packed: Any = Properties(PacketTypes.PUBLISH) if properties else None
        for name, value in properties.items():
            setattr(packed, name, value)
        info = self._client.publish(to, json.dumps(document), qos=1, retain=retain, properties=packed)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), "no PUBACK"

    def all(self, topic: str) -> list[MQTTMessage]:
        """What came on a topic, the first first."""
        with self._changed:
            return [message for message in self._messages if message.topic == topic]

    def wait(
        self, topic: str, what: Callable[[dict[str, Any]], bool] = bool, count: int = 1, seconds: float = SECONDS
    ) -> MQTTMessage:
        """The `count`th message on a topic whose document is like this. Raises AssertionError."""
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                found = [one for one in self._messages if one.topic == topic and what(json.loads(one.payload or b"{}"))]
                if len(found) >= count:
                    return found[count - 1]
                assert self._changed.wait(until - time.monotonic()), f"nothing like that on {topic}"

    def result(self, id: str, seconds: float = SECONDS) -> dict[str, Any]:
        """The first result of a job."""
        return dict(json.loads(self.wait(f"{DEVICE}/result/{id}", seconds=seconds).payload))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
