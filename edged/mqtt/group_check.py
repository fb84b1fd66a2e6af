"""Tries whether the broker delivers what is published to a shared subscription.

`$share/…` has a meaning in MQTT 5 only. Brokers that speak 3.1.1 may grant it as if it were a plain topic, on which
nothing ever comes. The trial has a topic and a connection of its own, so that it disturbs nothing, whatever the broker
does.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Collection, Hashable, Sequence

import structlog

from edged.faults import Fault
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.session_types import Established, Publication, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import Topics
from edged.settings.mqtt import MqttSettings

SILENT_SECONDS = 20.0
"""Time after the broker's PUBACK in which the message must come back."""
CONNECT_SECONDS = 60.0
"""Time limit for everything before that."""

_log = structlog.get_logger(__name__)


def not_delivered(groups: Sequence[str]) -> Fault:
    """The fault of a broker that grants shared subscriptions and delivers nothing there."""
    message = f"the broker grants shared subscriptions and delivers nothing there: jobs of {', '.join(groups)} are lost"
    return Fault("mqtt_group_not_delivered", message, "use a broker with shared subscriptions, or no device.groups")


class GroupCheck:
    """One trial at a time, on a thread of its own."""

    def __init__(self, topics: Topics, groups: Collection[str], silent_seconds: float = SILENT_SECONDS) -> None:
        self._topics = topics
        self._groups = sorted(groups)
        self._silent_seconds = silent_seconds
        self._lock = threading.Lock()
        self._running = False
        self._mqtt: MqttSettings | None = None
        self._delivers: bool | None = None
        """What the last trial at this broker found, None while it is not known."""

    @property
    def fault(self) -> Fault | None:
        """That the broker grants shared subscriptions and delivers nothing there."""
        return not_delivered(self._groups) if self._delivers is False else None

    def connected(self, mqtt: MqttSettings, protocol: ProtocolVersion, stopping: threading.Event) -> None:
        """Try once whether the broker of these settings delivers, and again at each connect where it did not."""
        with self._lock:
            if mqtt != self._mqtt:
                self._mqtt, self._delivers = mqtt, None
            if not self._groups or self._running or self._delivers:
                return
            self._running = True
        arguments = (mqtt, protocol, stopping)
        threading.Thread(target=self._run, args=arguments, name="mqtt-group-check", daemon=True).start()

    def _run(self, mqtt: MqttSettings, protocol: ProtocolVersion, stopping: threading.Event) -> None:
        found = self.run(mqtt, protocol, stopping)
        with self._lock:
            self._running = False
            now = self._mqtt
            if found is not None and mqtt == now:
                self._delivers = found
        if now is not None and mqtt != now:
            self.connected(now, protocol, stopping)

    def run(self, mqtt: MqttSettings, protocol: ProtocolVersion, stopping: threading.Event) -> bool | None:
        """Whether the broker of these settings delivers to shared subscriptions; None where that cannot be known.

        A message that a plain subscription does not bring either says nothing: the device may lack the right to read
        the topic. That is a trial of its own, as a broker may deliver one copy for both (MQTT 5 §3.3.4).
        """
        topic = self._topics.check
        found = self._trial(f"$share/{self._topics.device}/{topic}", mqtt, protocol, stopping)
        if found is False and not self._trial(topic, mqtt, protocol, stopping):
            found = None
        if found is None and not stopping.is_set():
            hint = "allow the device to subscribe, read and write the topic; provision.py upgrade gives its roles that"
            _log.info("mqtt_group_check_inconclusive", topic=topic, hint=hint)
        return found

    def _trial(
        self, topic_filter: str, mqtt: MqttSettings, protocol: ProtocolVersion, stopping: threading.Event
    ) -> bool | None:
        """Whether a message came back over this subscription; None where the broker allows no trial."""
        nonce = uuid.uuid4().hex
        owner = _Owner(nonce.encode())
        role = Role(
            "check",
            f"{self._topics.device}-check-{nonce[:8]}",
            [[Subscription(topic_filter, qos=1, purpose="trials of shared subscriptions", required=True)]],
            keep_session=False,
            log_warnings=False,
        )
        connection = Connection(role, mqtt, owner, Backoff(LONG_PAUSE, LONG_PAUSE))
        connection.start()
        connection.open((mqtt, protocol))
        try:
            if _wait(owner, CONNECT_SECONDS, stopping) != "up":
                return None
            connection.publish(Publication(self._topics.check, owner.nonce, 1, False, "check", None))
            found = _wait(owner, CONNECT_SECONDS, stopping)
            if found == "published":
                found = _wait(owner, self._silent_seconds, stopping)
                if found is None and not stopping.is_set():
                    return False
            return True if found == "received" else None
        finally:
            connection.stop(0.0)


TURN_SECONDS = 0.25
LONG_PAUSE = 3600.0
"""Seconds: a trial is not repeated by itself."""


class _Owner:
    """Puts a word for each event into the queue."""

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self.happened: queue.SimpleQueue[str] = queue.SimpleQueue()

    def up(self, established: Established) -> None:
        self.happened.put("refused" if established.refused else "up")

    def down(self, end: SessionEnd) -> None:
        self.happened.put("down")

    def received(self, message: ReceivedMessage) -> None:
        message.receipt.session.acknowledge(message.receipt)
        if message.payload == self.nonce:
            self.happened.put("received")

    def published(self, token: Hashable, matched: bool) -> None:
        self.happened.put("published")

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        self.happened.put("refused")


def _wait(owner: _Owner, seconds: float, stopping: threading.Event) -> str | None:
    """What happens next, None if nothing does."""
    for _ in range(max(1, int(seconds / TURN_SECONDS))):
        if stopping.is_set():
            return None
        try:
            return owner.happened.get(timeout=TURN_SECONDS)
        except queue.Empty:
            continue
    return None
