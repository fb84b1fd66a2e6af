"""A process of its own that writes down what devices publish: `observer.py PORT FILE` until the message that ends it.

A plain paho subscriber with a session that outlives the broker's restarts. One JSON line a message:
[seconds, device, kind, job, what, digest], where `what` is an event's name or a result's state.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any, TextIO

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

END = "edged/v1/device/nobody/event/end"
"""Whoever publishes here ends the observer, after all that was published before."""
TOPICS = [("edged/v1/device/+/event/+", 1), ("edged/v1/device/+/result/+", 1)]


def digest(payload: bytes | bytearray) -> str:
    return hashlib.sha256(payload).hexdigest()[:24]


def observe(port: int, out: TextIO) -> None:
    """Write until END comes."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="chaos-observer", protocol=MQTTProtocolVersion.MQTTv5)
    began = time.monotonic()

    def heard(_client: Client, _data: object, message: MQTTMessage) -> None:
        if message.topic == END:
            client.disconnect()
            return
        _, _, _, device, kind, id = message.topic.split("/")
        document = json.loads(message.payload)
        line = (round(time.monotonic() - began, 3), device, kind, id)
        out.write(json.dumps([*line, document.get("event") or document.get("state"), digest(message.payload)]) + "\n")

    def subscribed(*_: Any) -> None:
        out.write("[]\n")  # whoever waits for it knows that nothing is missed from here on
        out.flush()

    session: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    session.SessionExpiryInterval = 3600
    client.on_message = heard
    client.on_connect = lambda client, *_: client.subscribe([*TOPICS, (END, 1)])
    client.on_subscribe = subscribed
    client.reconnect_delay_set(0.05, 0.1)  # type: ignore[arg-type]
    client.connect("127.0.0.1", port, clean_start=False, properties=session)
    client.loop_forever(retry_first_connection=True)


if __name__ == "__main__":
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        observe(int(sys.argv[1]), file)
