"""Hundreds of devices, as the broker knows them: one client publishes the documents of all."""

from __future__ import annotations

import json
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE
from test_fleet import documents

from edged.report.documents import HEALTH_EXPIRY_SECONDS

SAID = {channel: json.loads(document) for channel, document in documents("pi").items()}


class Boards:
    """Devices that serve, until they say otherwise."""

    def __init__(self, port: int) -> None:
        self.client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.max_inflight_messages_set(1000)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def report(self, *devices: str, retain: bool = True, **changed: dict[str, Any]) -> None:
        """Each publishes its documents; `changed`: fields by channel. Returns when the broker has them all."""
        expiry: Any = Properties(PacketTypes.PUBLISH)
        expiry.MessageExpiryInterval = HEALTH_EXPIRY_SECONDS
        under_way = [
            self.client.publish(
                f"edged/v1/device/{device}/{channel}",
                json.dumps({**document, "device": device, **changed.get(channel, {})}),
                qos=1,
                retain=retain,
                properties=expiry if channel == "health" else None,
            )
            for device in devices
            for channel, document in SAID.items()
        ]
        for info in under_way:
            info.wait_for_publish(PATIENCE)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
