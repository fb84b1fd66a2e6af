"""What one network connection is made for, what it carries, and how it ended."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edged.faults import Fault
from edged.mqtt.connection_faults import LOST
from edged.mqtt.events import Incoming as Incoming
from edged.mqtt.events import ProtocolVersion
from edged.settings.model import MqttSettings


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter. `retained`: whether the broker shall send what it keeps there (MQTT 5 §3.8.3.1).

    `optional`: it may be refused, and the connection is none the worse.
    """

    topic: str
    qos: int
    retained: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Will:
    """The last will: QoS 1, retained."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What to connect as. Each step is one SUBSCRIBE, sent when the one before was answered."""

    mqtt: MqttSettings
    client_id: str
    protocol: ProtocolVersion
    steps: Sequence[Sequence[Subscription]]
    keep_session: bool = True
    will: Will | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    token: Hashable | None
    correlation: bytes | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How the connection ended. `accepted_seconds`: time since CONNACK accepted it, None if that never came."""

    fault: Fault = LOST
    accepted_seconds: float | None = None


class Listener(Protocol):
    """Called by the thread in `Session.run`; must neither block nor raise."""

    def ready(self, session_present: bool, refused: tuple[str, ...]) -> None: ...
    def received(self, message: Incoming) -> None: ...
    def published(self, token: Hashable) -> None: ...
    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None: ...
