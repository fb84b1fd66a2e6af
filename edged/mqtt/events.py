"""Events that the link delivers, in the order in which they happened on each connection."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from edged.faults import Fault

ConnectionName = Literal["jobs", "control"]
ProtocolVersion = Literal["5", "3.1.1"]


class Blame(enum.Enum):
    """What the end of a connection says about the publications that were under way."""

    NONE = enum.auto()
    """Nothing: the line broke, we closed it, or the broker went away."""
    POSSIBLE = enum.auto()
    """The broker closed it, and gave no reason that has nothing to do with them."""
    SIZE = enum.auto()
    """The broker said that a packet was too large."""
    TOPIC = enum.auto()
    """The broker said that it does not allow what was published."""
    RATE = enum.auto()
    """The broker said that there were too many; each of them may be taken later."""
    UNANSWERED = enum.auto()
    """The broker answered pings and not the oldest of them, so that we closed it."""

    @property
    def counts(self) -> bool:
        """Whether the broker closed the connection, and perhaps because of one of them."""
        return self in (Blame.POSSIBLE, Blame.SIZE, Blame.TOPIC)


class Acknowledging(Protocol):
    """A network connection that acknowledges messages."""

    def acknowledge(self, receipt: Receipt) -> bool:
        """Send PUBACK; False when this connection has ended: the broker sends the message again on the next one."""

    def unsubscribe(self, topic_filter: str) -> None:
        """Give up a subscription."""


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """A handle for acknowledging one message of `size` bytes; good only on the connection that brought it."""

    session: Acknowledging
    mid: int
    qos: int
    size: int


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message as it came; the properties are None on MQTT 3.1.1.

    `expiry_seconds` is the rest of the Message Expiry Interval on arrival (MQTT 5 §3.3.2.3.3).
    """

    receipt: Receipt
    topic: str
    payload: bytes
    retained: bool
    redelivered: bool
    response_topic: str | None
    correlation: bytes | None
    expiry_seconds: int | None


@dataclass(frozen=True, slots=True)
class JobReceived:
    """A job message."""

    message: ReceivedMessage


@dataclass(frozen=True, slots=True)
class CancelReceived:
    """A cancel message; like a job it is to be acknowledged."""

    message: ReceivedMessage


@dataclass(frozen=True, slots=True)
class DesiredReceived:
    """A desired document, or its removal; to be acknowledged. `group` None: for this device alone."""

    message: ReceivedMessage
    group: str | None


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A document on a command's topic, or its removal; to be acknowledged. `group` None: on the device's own topic.

    Commands by name and id, which both are ids.
    """

    message: ReceivedMessage
    group: str | None
    name: str
    id: str


@dataclass(frozen=True, slots=True)
class GroupPing:
    """Another device of the group asks whether somebody serves. `nonce` is to be repeated in the answer."""

    group: str
    nonce: str


@dataclass(frozen=True, slots=True)
class GroupPong:
    """Another device of the group answers that it serves."""

    group: str
    nonce: str


@dataclass(frozen=True, slots=True)
class ShareReceived:
    """What another member of a group says of waiting jobs (sharing/), on the topic of `member`."""

    kind: Literal["offer", "give", "given"]
    group: str
    member: str
    message: ReceivedMessage


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The connection is up and its subscriptions were answered.

    `refused`: topic filters that the broker refused and without which jobs are lost. `warnings`: promises of the
    contract that do not hold on this connection.
    """

    which: ConnectionName
    session_present: bool
    protocol: ProtocolVersion
    refused: tuple[str, ...] = ()
    warnings: tuple[Fault, ...] = ()
    maximum_packet_size: int | None = None
    """Bytes that the broker announced as its limit."""
    broker: str = ""
    """Its address."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection was lost or closed, or could not be made for a reason not yet told.

    What was handed to `Link.publish` before a `LinkDown("control")` and not answered by then never will be.
    """

    which: ConnectionName
    fault: Fault
    blame: Blame = Blame.NONE
    alone_seconds: float | None = None
    """For how long a publication that was sent alone had been under way; None if there was none."""
    broker: str = ""
    """Its address."""

    @property
    def reason(self) -> str:
        """The fault, for people."""
        return self.fault.message


@dataclass(frozen=True, slots=True)
class Published:
    """The broker has the publication (QoS 1), or it was written to the socket (QoS 0)."""

    token: Hashable


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """The publication was not taken.

    `code` is MQTT 5's reason code (§2.4), also for one that was not sent since the broker's limit says that it is too
    large; None for a topic that cannot be published to.
    """

    token: Hashable
    reason: str
    code: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceIdTaken:
    """Another edged speaks under this device's id; both connections are closed until `DeviceIdFree`.

    `other` is its instance, empty where the broker told only that the session was taken over.
    """

    other: str


@dataclass(frozen=True, slots=True)
class DeviceIdFree:
    """The other one has left; the link connects again."""


@dataclass(frozen=True, slots=True)
class StatusOutdated:
    """The broker has published the last will of an earlier connection: the retained status says `offline`."""


Event: TypeAlias = (
    JobReceived
    | CancelReceived
    | DesiredReceived
    | CommandReceived
    | GroupPing
    | GroupPong
    | ShareReceived
    | LinkUp
    | LinkDown
    | Published
    | PublishRefused
    | DeviceIdTaken
    | DeviceIdFree
    | StatusOutdated
)
