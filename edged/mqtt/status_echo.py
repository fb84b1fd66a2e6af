"""Whether the device's own status comes back on its topic: if not, the broker changes topics, or delivers nothing.

Pure: times are arguments, in seconds.
"""

from __future__ import annotations

from collections.abc import Hashable

from edged.faults import Fault

ECHO_SECONDS = 30.0
"""Time after the broker's PUBACK in which a status must come back."""


class StatusEcho:
    """The device subscribes to its own status, so that it hears what others hear."""

    def __init__(self, topic: str, echo_seconds: float = ECHO_SECONDS) -> None:
        self._topic = topic
        self._echo_seconds = echo_seconds
        self._subscribed = False
        self._under_way: set[Hashable] = set()
        self._silent_since: float | None = None
        self._ever_heard = False
        self._elsewhere: str | None = None

    def connected(self, subscribed: bool) -> None:
        """A connection stands; `subscribed`: the broker granted the subscription."""
        self._subscribed = subscribed

    def disconnected(self) -> None:
        """The connection has ended: what was under way comes back no more."""
        self._subscribed, self._silent_since = False, None
        self._under_way.clear()

    def sent(self, token: Hashable) -> None:
        """A status is about to be published under this token."""
        self._under_way.add(token)

    def withdrawn(self, token: Hashable) -> None:
        """It was not published after all."""
        self._under_way.discard(token)

    def acknowledged(self, token: Hashable, now: float) -> None:
        """The broker has the publication of this token; only those of a status count."""
        if token not in self._under_way:
            return
        self._under_way.discard(token)
        if self._silent_since is None:
            self._silent_since = now

    def heard(self, topic: str) -> None:
        """A status of this run of the device came on `topic`, before its PUBACK or after."""
        self._under_way.clear()
        self._silent_since = None
        self._ever_heard = True
        self._elsewhere = None if topic == self._topic else topic

    def fault(self, read_until: float | None) -> Fault | None:
        """What is wrong with what comes back. `read_until`: what came before was read, None without a connection."""
        if self._elsewhere is not None:
            message = f"the broker delivers what is published to {self._topic} on {self._elsewhere[:200]!a}"
            return Fault("mqtt_topic_changed", message, "use no dots in device.id and mqtt.root with this broker")
        return self._not_delivered(read_until) if self._ever_heard else None

    def warning(self, read_until: float | None) -> Fault | None:
        """The same for a status that was never heard: the device may lack the right to read it, and works without."""
        return None if self._ever_heard else self._not_delivered(read_until)

    def _not_delivered(self, read_until: float | None) -> Fault | None:
        since = self._silent_since
        if not self._subscribed or since is None or read_until is None or read_until - since <= self._echo_seconds:
            return None
        message = f"the broker grants {self._topic} and does not deliver the status that the device publishes there"
        return Fault("mqtt_status_not_delivered", message, "let the device read the topic; the broker's log says more")
