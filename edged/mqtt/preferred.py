"""While another broker serves: watches the preferred one, and says when it is steady enough to go back to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import structlog

from edged.faults import Fault
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.session_types import Established, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import Topics
from edged.settings.mqtt import MqttSettings

STEADY_SECONDS = 60.0
"""Time for which a connection to the preferred broker must stand before the device goes back to it."""
LONGEST_STEADY_SECONDS = 3600.0

_log = structlog.get_logger(__name__)


class SteadyTime:
    """How long the preferred broker must be reachable: twice as long after each return that did not last.

    So a broker that comes and goes, or does not take the device, moves it less and less often.
    """

    def __init__(self, first: float = STEADY_SECONDS) -> None:
        self._first = first
        self.seconds = first

    def returned(self) -> None:
        """The device goes back to the preferred broker."""
        self.seconds = min(self.seconds * 2, LONGEST_STEADY_SECONDS)

    def left(self, after: float) -> None:
        """The device's connection to the preferred broker has ended after so many seconds."""
        if after >= self.seconds:
            self.seconds = self._first


class PreferredBroker:
    """Knows whether the device is at its preferred broker. While it is at another one, it waits to go back."""

    def __init__(
        self,
        mqtt: MqttSettings,
        topics: Topics,
        instance: str,
        steady_seconds: float,
        go_back: Callable[[], None],
    ) -> None:
        """`go_back` leaves the present broker for the preferred one; it must not block."""
        self._mqtt = mqtt.brokers[0]
        self._topics = topics
        self._instance = instance
        self._go_back = go_back
        self._steady = SteadyTime(steady_seconds)
        self._lock = threading.Lock()
        self._at: str | None = None
        self._watch: _Watch | None = None

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """The warning that another broker serves."""
        at, preferred = self._at, self._mqtt.address
        if at is None or at == preferred:
            return ()
        message = f"connected to {at} in place of {preferred}, which is away or does not take the device"
        return (Fault("mqtt_fallback", message, "the log has the reason; edged goes back when that broker is steady"),)

    def connected(self, address: str) -> None:
        """The device is connected to the broker with this address."""
        with self._lock:
            self._at = address
        for warning in self.warnings:
            _log.warning("mqtt_fallback", reason=warning.message, hint=warning.hint)
            self._watch = _Watch(self._mqtt, self._topics, self._instance, self._steady.seconds, self._is_steady)
            self._watch.start()

    def disconnected(self, after: float = 0.0) -> None:
        """Its connection has ended after so many seconds."""
        with self._lock:
            was_at, self._at = self._at, None
        if was_at == self._mqtt.address:
            self._steady.left(after)
        if self._watch is not None:
            self._watch.stop()

    def _is_steady(self) -> None:
        """Go back, unless the connection to the other broker has ended meanwhile."""
        with self._lock:
            if self._at is None or self._at == self._mqtt.address:
                return
            _log.info("mqtt_back_to_preferred", broker=self._mqtt.address)
            self._steady.returned()
            self._go_back()


class _Watch:
    """A connection to the preferred broker, which calls `steady` when it has stood for `seconds`.

    It has a client id of its own, so that it disturbs nothing that the broker keeps for the device.
    """

    def __init__(
        self, mqtt: MqttSettings, topics: Topics, instance: str, seconds: float, steady: Callable[[], None]
    ) -> None:
        role = Role(
            "preferred",
            f"{topics.device}-back-{instance[:8]}",
            [[Subscription(topics.status, qos=0, purpose="status documents")]],
            keep_session=False,
            log_warnings=False,
        )
        self._seconds = seconds
        self._steady = steady
        self._timer: threading.Timer | None = None
        self._connection = Connection(role, mqtt, self, Backoff())

    def start(self) -> None:
        self._connection.start()
        self._connection.open()

    def stop(self) -> None:
        """Returns at once."""
        self._cancel()
        self._connection.stop(0.0)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # Called by the connection's thread.

    def up(self, _established: Established) -> None:
        self._timer = threading.Timer(self._seconds, self._steady)
        self._timer.daemon = True
        self._timer.start()

    def down(self, _end: SessionEnd) -> None:
        self._cancel()

    def received(self, message: ReceivedMessage) -> None:
        """Nothing to do: the device hears its status where it is."""

    def published(self, _token: Hashable, _matched: bool) -> None:
        """Never called: nothing is published."""

    def publish_refused(self, _token: Hashable, _reason: str, _code: int | None) -> None:
        """Never called: nothing is published."""
