"""One look whether the broker takes this device, without touching what a running edged has there."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Hashable

from edged.faults import Fault
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.session_plan import Established, Incoming, Subscription
from edged.mqtt.topics import Topics
from edged.settings.model import MqttSettings


def reach(mqtt: MqttSettings, device: str, timeout: float) -> Fault | None:
    """Connect and subscribe to the device's own status, which a broker that is locked down allows too.

    None once that is done; else, at the first failure or after `timeout` seconds, why not.
    """
    answer: queue.SimpleQueue[Fault | None] = queue.SimpleQueue()
    subscriptions = [[Subscription(Topics(mqtt.root, device).status, qos=0, purpose="status documents")]]
    role = Role("probe", f"{device}-doctor-{uuid.uuid4().hex[:8]}", subscriptions, keep_session=False)
    connection = Connection(role, mqtt, _Owner(answer), Backoff(0.5, 10.0))
    connection.start()
    connection.open()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return Fault("mqtt_no_answer", f"no answer within {timeout:g} s", "check mqtt.host, mqtt.port and the network")
    finally:
        connection.stop(0.0)
        connection.join(3.0)


class _Owner:
    """Hands over the first thing that is known."""

    def __init__(self, answer: queue.SimpleQueue[Fault | None]) -> None:
        self._answer = answer

    def up(self, established: Established) -> None:
        refusal = (warning for warning in established.warnings if warning.code == "mqtt_subscription_refused")
        self._answer.put(next(refusal, None))

    def down(self, fault: Fault) -> None:
        self._answer.put(fault)

    def received(self, message: Incoming) -> None:
        message.receipt.session.acknowledge(message.receipt)

    def published(self, token: Hashable) -> None:
        pass

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        pass
