"""How a connection ends: the first fault, and what it says about the publications that were under way."""

from __future__ import annotations

import ssl

from paho.mqtt.properties import Properties

from edged.faults import Fault
from edged.mqtt import connection_faults
from edged.mqtt.client import PahoClient
from edged.mqtt.events import Blame
from edged.mqtt.publications import Publications
from edged.mqtt.reason_codes import ReasonCode
from edged.mqtt.session_types import SessionEnd
from edged.mqtt.subscriber import Subscriber
from edged.settings.mqtt import MqttSettings


class Ending:
    """Collects what is known. For the connection's own thread."""

    def __init__(self, mqtt: MqttSettings) -> None:
        self._mqtt = mqtt
        self._fault: Fault | None = None
        self._blame: Blame | None = None
        """What the broker's DISCONNECT or our time limit says; None: there was none."""
        self._said: str | None = None
        """The broker's words in DISCONNECT."""
        self._about_subscription = False

    def note(self, fault: Fault, blame: Blame | None = None) -> None:
        """Keep the first fault: the others follow from it."""
        if self._fault is None:
            self._fault, self._blame = fault, blame

    def refused(self, code: ReasonCode, properties: Properties | None) -> None:
        """CONNACK refuses the connection."""
        self.note(connection_faults.connack_refused(code, properties, self._mqtt))

    def disconnected(self, code: ReasonCode, properties: Properties | None) -> None:
        """The broker has sent DISCONNECT."""
        self._said = connection_faults.broker_said(code, properties)
        self._about_subscription = connection_faults.about_subscription(code)
        self.note(connection_faults.disconnected(code, properties), connection_faults.blame(code))

    def lost(self, code: int, accepted: bool) -> None:
        """The connection has ended in another way; `code`: paho's reason code."""
        if not accepted:
            self.note(connection_faults.closed_before_connack(code, self._mqtt))
        elif code == connection_faults.KEEP_ALIVE_TIMEOUT:
            self.note(connection_faults.NO_PING)
        else:
            self.note(connection_faults.LOST)

    def conclude(
        self,
        client: PahoClient,
        publications: Publications,
        subscriber: Subscriber,
        *,
        now: float,
        seconds: float | None,
        closing: bool,
    ) -> SessionEnd:
        """`seconds`: since CONNACK accepted the connection, None without it. `closing`: we have disconnected."""
        if seconds is None and isinstance(client.socket_error, ssl.SSLError):
            return SessionEnd(connection_faults.tls_read_failed(client.socket_error, self._mqtt))
        if closing and self._fault != connection_faults.RECHECK:
            return SessionEnd(connection_faults.CLOSED, seconds)
        fault, blame = self._fault or connection_faults.LOST, self._blame
        if blame is None:
            blame = Blame.POSSIBLE if client.closed_by_peer else Blame.NONE
        if client.malformed:
            fault = connection_faults.MALFORMED
        asked, oldest, begun = [wanted.topic for wanted in subscriber.asked], publications.oldest, None
        refused = publications.refused(now)
        said_so = blame.counts or (self._about_subscription and asked)
        if seconds is not None and (fault == connection_faults.LOST or said_so):
            if oldest is None and not asked and said_so:
                begun = publications.begun(now)
            fault = connection_faults.lost_during(
                fault, self._said, asked, oldest, begun or (refused if said_so else None)
            )
        return SessionEnd(fault, seconds, blame, publications.alone_seconds(now), asked=subscriber.asked, begun=begun)
