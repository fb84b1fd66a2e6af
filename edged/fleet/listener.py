"""The connection that hears what all devices say of themselves."""

from __future__ import annotations

import uuid
from collections.abc import Hashable

from edged.fleet.boards import CHANNELS, Boards
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.session_types import Established, ReceivedMessage, SessionEnd, Subscription
from edged.settings.mqtt import MqttSettings


def listen(mqtt: MqttSettings, boards: Boards) -> Connection:
    """A connection that is not started yet; it needs the right to read `<root>/device/+/` status, info and health."""
    client_id = f"edged-export-{uuid.uuid4().hex[:12]}"
    role = Role("export", client_id, [subscriptions(mqtt.root, last_heartbeats=False)], keep_session=False)
    return Connection(role, mqtt, _Owner(boards), Backoff(0.5, 30.0))


def subscriptions(root: str, last_heartbeats: bool) -> list[Subscription]:
    """What brings the documents of all devices, one for each channel.

    `last_heartbeats`: whether those that the broker keeps shall come too, which may be old.
    """
    return [
        Subscription(
            f"{root}/device/+/{channel}",
            qos=0 if channel == "health" else 1,
            purpose=f"{channel} documents",
            retained=last_heartbeats or channel != "health",
            required=True,
        )
        for channel in CHANNELS
    ]


class _Owner:
    """Passes messages on."""

    def __init__(self, boards: Boards) -> None:
        self._boards = boards

    def up(self, established: Established) -> None:
        if not established.refused:
            self._boards.connect()

    def down(self, end: SessionEnd) -> None:
        self._boards.disconnect()

    def received(self, message: ReceivedMessage) -> None:
        message.receipt.session.acknowledge(message.receipt)
        self._boards.take(message.topic, message.payload, message.retained, message.expiry_seconds)

    def published(self, token: Hashable, matched: bool) -> None:
        pass

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        pass
