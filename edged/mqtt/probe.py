"""Tries the broker once for `edged doctor`, under a client id of its own: a running edged stays connected."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Hashable
from dataclasses import dataclass

from edged.faults import Fault
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.connection_faults import SUBSCRIPTION_REFUSED
from edged.mqtt.session_types import Established, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import Topics
from edged.settings.mqtt import MqttSettings


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of the broker. `fault`: why it does not take this device; `warnings`: promises that do not hold."""

    fault: Fault | None = None
    warnings: tuple[Fault, ...] = ()


def reach(mqtt: MqttSettings, device: str, timeout: float) -> Answer:
    """Connect and subscribe to the device's own status, which provision.py's roles allow.

    Returns at the first success or failure, or after `timeout` seconds.
    """
    answer: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    subscriptions = [[Subscription(Topics(mqtt.root, device).status, qos=0, purpose="status documents")]]
    role = Role("probe", f"{device}-doctor-{uuid.uuid4().hex[:8]}", subscriptions, keep_session=False)
    connection = Connection(role, mqtt, _Owner(answer), Backoff(0.5, 10.0))
    connection.start()
    connection.open()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        hint = "check mqtt.host, mqtt.port and the network"
        return Answer(Fault("mqtt_no_answer", f"no answer within {timeout:g} s", hint))
    finally:
        connection.stop(0.0)
        connection.join(3.0)


class _Owner:
    """Puts each outcome into the queue."""

    def __init__(self, answer: queue.SimpleQueue[Answer]) -> None:
        self._answer = answer

    def up(self, established: Established) -> None:
        warnings = established.warnings
        refusal = next((warning for warning in warnings if warning.code == SUBSCRIPTION_REFUSED), None)
        self._answer.put(Answer(refusal, warnings))

    def down(self, end: SessionEnd) -> None:
        self._answer.put(Answer(end.fault))

    def received(self, message: ReceivedMessage) -> None:
        message.receipt.session.acknowledge(message.receipt)

    def published(self, token: Hashable) -> None:
        pass

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        pass
