"""Flow control of one connection: how much may be under way towards the broker, and how much may wait for us."""

from __future__ import annotations

from edged.mqtt.events import Receipt

WINDOW = 32
"""QoS 1 publications handed to the broker and not yet acknowledged."""
MAX_UNSENT = 256
"""QoS 0 publications not yet written to the socket; further ones are dropped."""
MAX_UNACKNOWLEDGED = 256
"""Messages received and not acknowledged at which reading stops. A broker without Receive Maximum, or one that ignores
it (mosquitto 2.0.11 after the first PUBACK), then waits in TCP and does not fill our memory."""
MAX_UNACKNOWLEDGED_BYTES = 16 << 20
"""The same limit in bytes: 256 of the largest messages would be half a gigabyte."""


class PublishSlots:
    """Free slots for publications. Not thread-safe: the caller holds a lock."""

    def __init__(self) -> None:
        self.free = 0
        """Slots for QoS 1; none before CONNACK."""
        self._window = 0
        self._free_qos0 = MAX_UNSENT
        self._alone = False

    def open(self, window: int) -> None:
        """Give out up to `window` slots for QoS 1."""
        self.free = self._window = window

    def take(self, qos: int, alone: bool = False) -> bool:
        """Take a slot; False when there is none. `alone`: while no other is taken, and no other is given meanwhile."""
        if self._alone or (alone and (self.free < self._window or self._free_qos0 < MAX_UNSENT)):
            return False
        if qos > 0:
            if self.free <= 0:
                return False
            self.free -= 1
        else:
            if self._free_qos0 <= 0:
                return False
            self._free_qos0 -= 1
        self._alone = alone
        return True

    def release(self, qos: int) -> None:
        """Give a slot back."""
        self._alone = False
        if qos > 0:
            self.free += 1
        else:
            self._free_qos0 += 1


class Unacknowledged:
    """Counts the QoS 1 messages that were received and not acknowledged. For the connection's thread alone."""

    def __init__(self) -> None:
        self._messages = self._bytes = 0

    def add(self, receipt: Receipt) -> None:
        """Count a message that arrived; one of QoS 0 does not count."""
        if receipt.qos > 0:
            self._messages += 1
            self._bytes += receipt.size

    def remove(self, receipt: Receipt) -> None:
        """Uncount a message whose PUBACK is being sent."""
        self._messages -= 1
        self._bytes -= receipt.size

    @property
    def full(self) -> bool:
        """Whether no more should be read."""
        return self._messages >= MAX_UNACKNOWLEDGED or self._bytes >= MAX_UNACKNOWLEDGED_BYTES
