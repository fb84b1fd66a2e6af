"""Whether the device's own status comes back on its topic: if not, the broker changes topics, or delivers nothing.

Pure: times are arguments, in seconds.
"""

from __future__ import annotations

from edged.faults import Fault

ECHO_SECONDS = 30.0
"""Time after a publication in which it must come back."""


class StatusEcho:
    """The device subscribes to its own status, so that it hears what others hear."""

    def __init__(self, topic: str, echo_seconds: float = ECHO_SECONDS) -> None:
        self._topic = topic
        self._echo_seconds = echo_seconds
        self._subscribed = False
        self._sent_at: float | None = None
        self._elsewhere: str | None = None

    def connected(self, subscribed: bool) -> None:
        """A connection stands; `subscribed`: the broker granted the subscription."""
        self._subscribed, self._sent_at = subscribed, None

    def sent(self, now: float) -> None:
        """A status was published."""
        if self._sent_at is None:
            self._sent_at = now

    def heard(self, topic: str) -> None:
        """A status of this run of the device came on `topic`."""
        self._sent_at = None
        self._elsewhere = None if topic == self._topic else topic

    def fault(self, now: float) -> Fault | None:
        """What is wrong with what comes back."""
        if self._elsewhere is not None:
            message = f"the broker delivers what is published to {self._topic} on {self._elsewhere[:200]!a}"
            return Fault("mqtt_topic_changed", message, "use no dots in device.id and mqtt.root with this broker")
        if self._subscribed and self._sent_at is not None and now - self._sent_at > self._echo_seconds:
            message = f"the broker grants {self._topic} and does not deliver the status that the device publishes there"
            return Fault("mqtt_status_not_delivered", message, "the broker's own log says more")
        return None
