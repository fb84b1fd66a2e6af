"""Detects another edged that uses this device's id."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable
from dataclasses import dataclass

from edged.mqtt.session_types import Established, ReceivedMessage, SessionEnd

STATUS_INSTANCE = "instance"
"""The field of the status document that tells one run of edged from another."""
STATUS_STATE = "state"
"""The field of the status document that says `online`, `draining` or `offline`."""
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

    Our own, and those seen before our first connection was up: the last will of a predecessor may come late. Any other
    instance connected after us.
    """

    def __init__(self, instance: str) -> None:
        self._known = {instance}
        self._learning = True

    def is_unexpected(self, status: InstanceStatus) -> bool:
        if status.instance in self._known:
            return False
        if self._learning:
            self._known.add(status.instance)
            return False
        return True

    def stop_learning(self) -> None:
        """Call when the first connection is up."""
        self._learning = False

    def start_learning(self) -> None:
        """Call when the other device has left: what it left behind is expected."""
        self._learning = True


class DeviceIdWatch:
    """Listens to the device's own status and health until the other device has left.

    It has a client id of its own: to connect under the device's ids would disconnect the other device.
    """

    def __init__(self, instance: str, status_topic: str) -> None:
        self._instance = instance
        self._status_topic = status_topic
        self._lock = threading.Lock()
        self._up = False
        self._status: InstanceStatus | None = None
        self._alive = False
        self._silent_checks = 0

    def is_free(self) -> bool:
        """Whether the id is free. Call at intervals: it judges the messages since the last call."""
        with self._lock:
            if not self._up:
                return False
            status, alive = self._status, self._alive
            self._alive = False
            if status is not None and (status.state == "offline" or status.instance == self._instance):
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

    def published(self, _token: Hashable) -> None:
        """Never called: the watch publishes nothing."""

    def publish_refused(self, _token: Hashable, _reason: str, _code: int | None) -> None:
        """Never called: the watch publishes nothing."""
