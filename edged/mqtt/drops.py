"""Whether a connection that stands is lost again and again. Pure: times are arguments, in seconds (CLOCK_MONOTONIC)."""

from __future__ import annotations

from edged.faults import Fault
from edged.mqtt.connection_faults import AT_A_PACKET, CLOSED, RECHECK, SESSION_TAKEN_OVER

AGAIN_AND_AGAIN = 3
"""Losses within WITHIN_SECONDS from which on there is a warning: each is made up for by the next connection, but what
closes the connection so often wants a look."""
WITHIN_SECONDS = 600.0


class Drops:
    """The losses of one connection. Those with a cause that has a warning of its own do not count."""

    def __init__(self, connection: str, client_id: str) -> None:
        self._connection = connection
        self._client_id = client_id
        self._at: tuple[float, ...] = ()
        self._last = CLOSED

    def note(self, fault: Fault, now: float) -> Fault | None:
        """A connection that the broker had accepted has ended with this fault. Returns the warning if that counts."""
        if fault in (CLOSED, RECHECK) or fault.code == SESSION_TAKEN_OVER or fault.code in AT_A_PACKET:
            return None
        self._last = fault
        self._at = (*self._at, now)[-AGAIN_AND_AGAIN:]
        return self.warning(now)

    def warning(self, now: float) -> Fault | None:
        """The warning that it is lost again and again. Any thread may call this."""
        at = self._at
        if len(at) < AGAIN_AND_AGAIN or now - at[0] > WITHIN_SECONDS:
            return None
        message = f"the {self._connection} connection is lost again and again, at last with: {self._last.message}"
        hint = (
            f"see whether another client uses the client id {self._client_id}, whether something between closes idle "
            "connections (mqtt.keep_alive), and the network; the broker's own log says more"
        )
        return Fault("mqtt_connection_unstable", message, hint)
