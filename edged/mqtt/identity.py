"""Detects another edged that uses this device's id."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Hashable
from dataclasses import dataclass

from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.session_types import Established, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import Topics
from edged.settings.mqtt import MqttSettings

STATUS_INSTANCE = "instance"
"""The field of the status document that tells one run of edged from another."""
STATUS_STATE = "state"
"""The field of the status document that says `online`, `draining` or `offline`."""
OFFLINE = "offline"
MAX_SILENT_CHECKS = 20
"""Checks without any message from the other device after which its status `online` counts as stale."""
_LARGEST_STATUS = 64 * 1024


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """The fields of a status document that matter here."""

    instance: str
    state: str


def read_status(payload: bytes) -> InstanceStatus | None:
    """Read a status document; None if it is not one. An empty payload means that the status was removed."""
    if not payload or len(payload) > _LARGEST_STATUS:
        return None
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    instance, state = document.get(STATUS_INSTANCE), document.get(STATUS_STATE)
    if not isinstance(instance, str) or not isinstance(state, str):
        return None
    return InstanceStatus(instance, state)


class KnownInstances:
    """Instance ids that we expect on our own status topic.

    Our own, and those seen at a broker before our first connection to it was up: the last will of a predecessor may
    come late. Any other instance connected after us.
    """

    def __init__(self, instance: str) -> None:
        self._known = {instance}
        self._been_at: set[str] = set()

    def is_unexpected(self, status: InstanceStatus, broker: str) -> bool:
        """Whether another device has published this at the broker, given by its address."""
        if status.instance in self._known:
            return False
        if broker not in self._been_at:
            self._known.add(status.instance)
            return False
        return True

    def connected(self, broker: str) -> None:
        """Call when a connection to this broker is up."""
        self._been_at.add(broker)

    def other_has_left(self) -> None:
        """What the other device left behind is expected, wherever it was."""
        self._been_at.clear()


class DeviceIdWatch:
    """Listens to the device's own status and health until the other device has left.

    It has a client id of its own: to connect under the device's ids would disconnect the other device.
    """

    def __init__(
        self, mqtt: MqttSettings, topics: Topics, instance: str, retry_seconds: tuple[float, float] = (1.0, 60.0)
    ) -> None:
        """`instance`: our own."""
        self._instance = instance
        self._status_topic = topics.status
        role = Role(
            "probe",
            f"{topics.device}-probe-{instance[:8]}",
            [[Subscription(topics.status, qos=0, retained=True)], [Subscription(topics.health, qos=0)]],
            keep_session=False,
        )
        self._connection = Connection(role, mqtt, self, Backoff(*retry_seconds))
        self._lock = threading.Lock()
        self._up = False
        self._status: InstanceStatus | None = None
        self._alive = False
        self._silent_checks = 0

    def wait_until_free(self, interval: float, stopping: threading.Event) -> bool:
        """Listen until the id is free; checks about every `interval` seconds. False where `stopping` was set."""
        self._connection.start()
        self._connection.open()
        try:
            while not stopping.wait(interval * random.uniform(0.8, 1.2)):
                if self.is_free():
                    return True
            return False
        finally:
            self._connection.stop(0.0)

    def is_free(self) -> bool:
        """Whether the id is free. Call at intervals: it judges the messages since the last call."""
        with self._lock:
            if not self._up:
                return False
            status, alive = self._status, self._alive
            self._alive = False
            if status is not None and (status.state == OFFLINE or status.instance == self._instance):
                return True
            self._silent_checks = 0 if alive else self._silent_checks + 1
            return (status is None and not alive) or self._silent_checks >= MAX_SILENT_CHECKS

    # Called by the connection of the watch.

    def up(self, _established: Established) -> None:
        with self._lock:
            self._up = True

    def down(self, _end: SessionEnd) -> None:
        with self._lock:
            self._up = False
            self._status = None

    def received(self, message: ReceivedMessage) -> None:
        with self._lock:
            if not message.retained:
                self._alive = True
            if message.topic == self._status_topic:
                self._status = read_status(message.payload)

    def published(self, _token: Hashable, _matched: bool) -> None:
        """Never called: the watch publishes nothing."""

    def publish_refused(self, _token: Hashable, _reason: str, _code: int | None) -> None:
        """Never called: the watch publishes nothing."""
