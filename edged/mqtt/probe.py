"""One look whether the broker takes this device, without touching what a running edged has there."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Hashable

from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.options import MqttOptions
from edged.mqtt.session_plan import Incoming, Subscription
from edged.mqtt.topics import Topics


def reach(options: MqttOptions, device: str, timeout: float) -> str | None:
    """Connect and subscribe to the device's own status, which a broker that is locked down allows too.

    None once that is done; else, at the first failure or after `timeout` seconds, why not.
    """
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    steps = [[Subscription(Topics(options.root, device).status, qos=0)]]
    role = Role("probe", f"{device}-doctor-{uuid.uuid4().hex[:8]}", steps, keep_session=False)
    connection = Connection(role, options, _Owner(answer), Backoff(0.5, 10.0))
    connection.start()
    connection.open()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return f"no answer within {timeout:g} s"
    finally:
        connection.stop(0.0)
        connection.join(3.0)


class _Owner:
    """Hands over the first thing that is known."""

    def __init__(self, answer: queue.SimpleQueue[str | None]) -> None:
        self._answer = answer

    def up(self, session_present: bool, protocol: ProtocolVersion, refused: tuple[str, ...]) -> None:
        why = f"the broker refuses to subscribe {', '.join(refused)}: check its access list"
        self._answer.put(why if refused else None)

    def down(self, reason: str, taken_over: bool) -> None:
        self._answer.put(reason)

    def received(self, message: Incoming) -> None:
        message.receipt.session.acknowledge(message.receipt)

    def published(self, token: Hashable) -> None:
        pass

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        pass
