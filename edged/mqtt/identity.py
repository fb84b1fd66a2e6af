"""Notices another edged that speaks under one's own device id."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable
from dataclasses import dataclass

from edged.faults import Fault
from edged.mqtt.session_plan import Established, Incoming

STATUS_INSTANCE = "instance"
"""The field of the status document that tells one run of edged from another."""
STATUS_STATE = "state"
"""The field of the status document that says `online`, `draining` or `offline`."""
SILENT_LOOKS = 20
"""Looks without a sign of life after which a status that claims `online` is held to be left over."""
_LARGEST_STATUS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Status:
    instance: str
    state: str


def read_status(payload: bytes) -> Status | None:
    """What matters here of a status document; None if it is none (an empty one says: removed)."""
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
    return Status(instance, state)


class Acquaintances:
    """Which instances may rightly show up in one's own status topic.

    That is oneself, and whoever was there before one's first connection came up: its last will may come late.
    Any other has connected after us.
    """

    def __init__(self, instance: str) -> None:
        self._known = {instance}
        self._learning = True

    def is_stranger(self, status: Status) -> bool:
        if status.instance in self._known:
            return False
        if self._learning:
            self._known.add(status.instance)
            return False
        return True

    def settled(self) -> None:
        """The first connection is up."""
        self._learning = False

    def begin_anew(self) -> None:
        """The other has left; what it left behind is a predecessor's."""
        self._learning = True


class Watch:
    """Listens to the device's own status and health under a third client id, until the other one has left.

    It never connects under the device's own ids: that would throw the other out.
    """

    def __init__(self, instance: str, status_topic: str) -> None:
        self._instance = instance
        self._status_topic = status_topic
        self._lock = threading.Lock()
        self._up = False
        self._status: Status | None = None
        self._alive = False
        self._silent_looks = 0

    def look(self) -> bool:
        """Whether the id is free. Called at intervals: what counts is what was heard since the last look."""
        with self._lock:
            if not self._up:
                return False
            status, alive = self._status, self._alive
            self._alive = False
            if status is not None and (status.state == "offline" or status.instance == self._instance):
                return True
            self._silent_looks = 0 if alive else self._silent_looks + 1
            return (status is None and not alive) or self._silent_looks >= SILENT_LOOKS

    # Called by the probe's connection.

    def up(self, _established: Established) -> None:
        with self._lock:
            self._up = True

    def down(self, _fault: Fault) -> None:
        with self._lock:
            self._up = False
            self._status = None

    def received(self, message: Incoming) -> None:
        with self._lock:
            if not message.retained:
                self._alive = True
            if message.topic == self._status_topic:
                self._status = read_status(message.payload)

    def published(self, _token: Hashable) -> None:
        """The probe publishes nothing."""

    def publish_refused(self, _token: Hashable, _reason: str, _code: int | None) -> None:
        """The probe publishes nothing."""
