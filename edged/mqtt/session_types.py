"""Values of one network connection: what it is made with, what it carries, and how it ended."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edged.faults import Fault
from edged.mqtt.connection_faults import LOST
from edged.mqtt.events import Blame, ProtocolVersion
from edged.mqtt.events import ReceivedMessage as ReceivedMessage
from edged.mqtt.grants import Grants
from edged.settings.mqtt import MqttSettings


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter.

    `retained`: whether the broker shall send the retained message (MQTT 5 §3.8.3.1). `required`: whether jobs are lost
    where the broker refuses it. `purpose`: plural noun for the messages that it brings, used in warnings.
    """

    topic: str
    qos: int
    purpose: str = "messages"
    retained: bool = False
    required: bool = False


@dataclass(frozen=True, slots=True)
class Will:
    """The last will."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class WillLimits:
    """What the broker takes of a last will. A CONNACK that refuses the will lowers one of them for the next attempt."""

    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to connect and what to subscribe to. Each group of subscriptions has SUBSCRIBE packets of its own."""

    mqtt: MqttSettings
    client_id: str
    protocol: ProtocolVersion
    subscriptions: Sequence[Sequence[Subscription]]
    keep_session: bool = True
    will: Will | None = None
    will_limits: WillLimits = WillLimits()
    former_filters: Sequence[str] = ()
    """Topic filters that the broker's session may hold and that are not wanted any more."""
    muted: frozenset[str] = frozenset()
    """Families of topics to which nothing is published at QoS 0: the broker closes the connection on that."""
    recheck_seconds: float | None = None
    """Disconnect so long after CONNACK, to try another version; None: stay."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish. `token`: returned in the events about it; without one there are none."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    token: Hashable | None
    correlation: bytes | None
    alone: bool = False
    """Nothing else is published until the broker has answered it."""
    expiry_seconds: int | None = None
    """Message Expiry Interval (MQTT 5 §3.3.2.3.3): how long the broker keeps it; on 3.1.1 there is none."""

    def packet_bytes(self, protocol: ProtocolVersion) -> int:
        """Size of the PUBLISH packet (MQTT 5 §3.3), which a broker may limit."""
        size = 2 + len(self.topic.encode()) + (2 if self.qos else 0) + len(self.payload)
        if protocol == "5":
            properties = 0 if self.correlation is None else 3 + len(self.correlation)
            properties += 0 if self.expiry_seconds is None else 5
            size += _length_bytes(properties) + properties
        return 1 + _length_bytes(size) + size


def _length_bytes(length: int) -> int:
    """Bytes of a Variable Byte Integer (MQTT 5 §1.5.5)."""
    return 1 if length < 1 << 7 else 2 if length < 1 << 14 else 3 if length < 1 << 21 else 4


@dataclass(frozen=True, slots=True)
class Established:
    """A connection that was accepted, with the answers to its subscriptions."""

    session_present: bool
    protocol: ProtocolVersion
    grants: Grants = field(default_factory=Grants)
    refused: tuple[str, ...] = ()
    """Topic filters that the broker refused and without which jobs are lost."""
    refused_others: tuple[str, ...] = ()
    """The other topic filters that it refused."""
    warnings: tuple[Fault, ...] = ()
    """Promises that do not hold on this connection."""
    broker: str = ""
    """The broker's address."""


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How the connection ended. `accepted_seconds`: time since CONNACK accepted it, None if that never came.

    `alone_seconds`: for how long a publication that was sent alone had been under way, None if there was none.
    `broker`: its address.
    `asked`: subscriptions that the broker had not answered. `begun`: a family of topics (`topics.family`) to which the
    first publication of QoS 0 had gone a moment before, where the broker closed the connection.
    """

    fault: Fault = LOST
    accepted_seconds: float | None = None
    blame: Blame = Blame.NONE
    alone_seconds: float | None = None
    broker: str = ""
    asked: tuple[Subscription, ...] = ()
    begun: str | None = None


class Listener(Protocol):
    """Called by the thread in `Session.run`; must neither block nor raise.

    `resubscribed` follows each change of the subscriptions after `ready`. `matched`: False where the broker says that
    nobody subscribes to what was published.
    """

    def ready(self, established: Established) -> None: ...
    def resubscribed(self, established: Established) -> None: ...
    def received(self, message: ReceivedMessage) -> None: ...
    def published(self, token: Hashable, matched: bool) -> None: ...
    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None: ...
    def document_refused(self, topic: str, reason: str) -> None: ...
