"""The publications of one connection: hands them to paho, and keeps what the broker has not answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.mqtt import connection_faults
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.grants import Grants
from edged.mqtt.reason_codes import ReasonCode
from edged.mqtt.session_types import Listener, Publication
from edged.mqtt.topics import family

BLAMED_SECONDS = 2.0
"""A connection that the broker closes so soon after a publication of QoS 0 may have been closed because of it."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    publication: Publication
    at: float
    acknowledged: bool
    """Whether the broker answers it: the QoS that it allows is above 0."""


class Publications:
    """For the connection's own thread. Times are CLOCK_MONOTONIC seconds."""

    def __init__(
        self, protocol: ProtocolVersion, listener: Listener, muted: frozenset[str], release: Callable[[int], None]
    ) -> None:
        """`muted`: families of topics that get nothing at QoS 0. `release` gives the slot of a publication back."""
        self.grants = Grants()
        """What the broker granted in CONNACK."""
        self._protocol: ProtocolVersion = protocol
        self._listener = listener
        self._muted = muted
        self._release = release
        self._under_way: dict[int, _UnderWay] = {}
        self._oldest_since = 0.0
        self._families: set[str] = set()
        """Families of topics that got something at QoS 0 on this connection."""
        self._begun: dict[str, float] = {}
        """When the first such publication was handed over, of families that the broker is not known to take."""
        self._refused: tuple[float, str] | None = None
        """When the broker refused the latest one that it refused, and its topic."""

    @property
    def acknowledged(self) -> bool:
        """Whether the broker has answered all that it is to answer."""
        return all(sent.publication.qos == 0 for sent in self._under_way.values())

    @property
    def oldest(self) -> str | None:
        """Topic of the oldest one that the broker has not answered."""
        return next((sent.publication.topic for sent in self._under_way.values()), None)

    def alone_seconds(self, now: float) -> float | None:
        """For how long the one that was to go alone has been under way; None without such a one."""
        return next((now - sent.at for sent in self._under_way.values() if sent.publication.alone), None)

    @property
    def waits_since(self) -> float | None:
        """Since when the broker has not answered the oldest one; None where nothing is under way."""
        return self._oldest_since if self._under_way else None

    def overdue(self, now: float, seconds: float) -> str | None:
        """Topic of the oldest one, where the broker has not answered it for so many seconds."""
        return self.oldest if self._under_way and now - self._oldest_since >= seconds else None

    def begun(self, now: float) -> str | None:
        """A family of topics to which the first publication of QoS 0 on this connection has only just gone."""
        recent = [(at, topics) for topics, at in self._begun.items() if now - at <= BLAMED_SECONDS]
        return max(recent)[1] if recent else None

    def refused(self, now: float) -> str | None:
        """The topic of a publication that the broker has only just refused: mosquitto 2.0.11 then hangs up, too."""
        return self._refused[1] if self._refused is not None and now - self._refused[0] <= BLAMED_SECONDS else None

    def send(self, client: Client, publication: Publication, now: float) -> None:
        """Hand it to paho, or refuse it where the broker takes none such."""
        topic, limit = publication.topic, self.grants.maximum_packet_size
        if publication.qos == 0 and family(topic) in self._muted:
            self._release(0)
            self._refuse(publication, "the broker closes the connection on it", None)
            return
        if limit is not None and (size := publication.packet_bytes(self._protocol)) > limit:
            # The broker would close the connection (MQTT 5 §3.2.2.3.6), now and at every attempt.
            self._release(publication.qos)
            reason = f"{topic}: {size} bytes, but the broker takes at most {limit}"
            self._refuse(publication, reason, connection_faults.PACKET_TOO_LARGE)
            return
        try:
            mid = self._hand_over(client, publication)
        except ValueError as error:
            self._release(publication.qos)
            self._refuse(publication, f"{topic!r} cannot be published to: {error}", None)
            return
        if not self._under_way:
            self._oldest_since = now
        acknowledged = min(publication.qos, self.grants.maximum_qos) > 0
        self._under_way[mid] = _UnderWay(publication, now, acknowledged)
        if publication.qos == 0 and family(topic) not in self._families:
            self._families.add(family(topic))
            self._begun[family(topic)] = now

    def _hand_over(self, client: Client, publication: Publication) -> int:
        properties = _properties(publication) if self._protocol == "5" else None
        qos = min(publication.qos, self.grants.maximum_qos)
        retain = publication.retain and self.grants.retain
        while True:
            info = client.publish(publication.topic, publication.payload, qos, retain, properties)
            # After 65,535 messages paho's next packet id may still be under way; it then takes nothing.
            if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                return int(info.mid)

    def answered(self, mid: int, code: ReasonCode, properties: Properties | None, now: float) -> None:
        """The broker has answered (QoS 1), or it is written to the socket (QoS 0)."""
        was_oldest = next(iter(self._under_way), None) == mid
        sent = self._under_way.pop(mid, None)
        if sent is None:
            return
        publication = sent.publication
        if was_oldest:
            self._oldest_since = now
        if sent.acknowledged:  # a broker reads in order: it has taken what was handed over before
            self._begun = {topics: at for topics, at in self._begun.items() if at > sent.at}
        self._release(publication.qos)
        if code.is_failure:
            self._refused = now, publication.topic
            reason = connection_faults.publication_refused(code, properties, publication.topic)
            self._refuse(publication, reason, code.value)
        elif publication.token is not None:
            self._listener.published(publication.token, code.value != connection_faults.NO_MATCHING_SUBSCRIBERS)

    def _refuse(self, publication: Publication, reason: str, code: int | None) -> None:
        if publication.token is not None:
            self._listener.publish_refused(publication.token, reason, code)
        if publication.token is None or (publication.retain and not connection_faults.curable(code)):
            self._listener.document_refused(family(publication.topic), reason)


def _properties(publication: Publication) -> Properties | None:
    """The properties of its PUBLISH (MQTT 5 §3.3.2.3); None without any."""
    if publication.correlation is None and publication.expiry_seconds is None:
        return None
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if publication.correlation is not None:
        properties.CorrelationData = publication.correlation
    if publication.expiry_seconds is not None:
        properties.MessageExpiryInterval = publication.expiry_seconds
    return properties  # type: ignore[no-any-return]
