"""One look whether the broker takes this device, without touching what a running edged has there."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Hashable

from edged.faults import Fault
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.session_plan import Incoming, Subscription
from edged.mqtt.topics import Topics
from edged.settings.model import MqttSettings


def reach(mqtt: MqttSettings, device: str, timeout: float) -> Fault | None:
    """Connect and subscribe to the device's own status, which a broker that is locked down allows too.

    None once that is done; else, at the first failure or after `timeout` seconds, why not.
    """
    answer: queue.SimpleQueue[Fault | None] = queue.SimpleQueue()
    steps = [[Subscription(Topics(mqtt.root, device).status, qos=0)]]
    role = Role("probe", f"{device}-doctor-{uuid.uuid4().hex[:8]}", steps, keep_session=False)
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

    def up(self, session_present: bool, protocol: ProtocolVersion, refused: tuple[str, ...]) -> None:
        message = f"the broker refuses to subscribe {', '.join(refused)}"
        hint = "let the broker's access control list allow it"
        self._answer.put(Fault("mqtt_subscription_refused", message, hint) if refused else None)

    def down(self, fault: Fault) -> None:
        self._answer.put(fault)

    def received(self, message: Incoming) -> None:
        message.receipt.session.acknowledge(message.receipt)

    def published(self, token: Hashable) -> None:
        pass

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        pass
