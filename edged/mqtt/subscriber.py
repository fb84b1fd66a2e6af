"""Makes the subscriptions of one connection: one SUBSCRIBE at a time, and reads what SUBACK grants."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from paho.mqtt.client import Client
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.faults import Fault
from edged.mqtt.connection_faults import SUBSCRIPTION_REFUSED
from edged.mqtt.grants import Grants
from edged.mqtt.session_types import Subscription

MAX_FILTERS = 8
"""Topic filters in one SUBSCRIBE: AWS IoT Core disconnects clients that send more."""
_SHARED_PREFIX = "$share/"


class Subscriber:
    """Subscribes to everything in order; each SUBSCRIBE waits for the answer to the one before."""

    def __init__(self, groups: Sequence[Sequence[Subscription]], is_v5: bool) -> None:
        """`groups`: the filters of one group share a SUBSCRIBE as far as MAX_FILTERS allows, those of two never do."""
        self.refused: list[str] = []
        """Required topic filters that the broker refused."""
        self.refused_others: list[str] = []
        """The other ones that it refused."""
        self.warnings: list[Fault] = []
        self._is_v5 = is_v5
        self._packets = deque(
            group[start : start + MAX_FILTERS] for group in groups for start in range(0, len(group), MAX_FILTERS)
        )
        self._mid: int | None = None
        self._asked: Sequence[Subscription] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Topic filters of the SUBSCRIBE that is not answered yet."""
        return tuple(wanted.topic for wanted in self._asked)

    def send_next(self, client: Client, grants: Grants) -> bool:
        """Queue the next SUBSCRIBE; False when all are answered."""
        while self._packets:
            filters = self._packets.popleft()
            if not grants.shared:
                # A broker without shared subscriptions disconnects who asks for one (MQTT 5 §3.2.2.3.13).
                for wanted in filters:
                    if wanted.topic.startswith(_SHARED_PREFIX):
                        self._refuse(wanted, "shared subscriptions not supported")
                filters = [wanted for wanted in filters if not wanted.topic.startswith(_SHARED_PREFIX)]
            if filters:
                self._asked = filters
                self._mid = self._subscribe(client, filters)
                return True
        return False

    def answered(self, mid: int, codes: Sequence[ReasonCode], properties: Properties | None) -> bool:
        """Read a SUBACK; False where it answers another packet."""
        if mid != self._mid:
            return False
        words = getattr(properties, "ReasonString", None)
        for wanted, code in zip(self._asked, codes, strict=False):
            if code.is_failure:
                self._refuse(wanted, f"{code.getName().lower()}{f' ({words})' if words else ''}")
            elif code.value < wanted.qos:
                self._warn_of_qos(wanted, code.value)
        self._mid, self._asked = None, ()
        return True

    def _refuse(self, wanted: Subscription, reason: str) -> None:
        (self.refused if wanted.required else self.refused_others).append(wanted.topic)
        self.warnings.append(
            Fault(
                SUBSCRIPTION_REFUSED,
                f"the broker refuses to subscribe {wanted.topic}: {reason}; {wanted.purpose} do not arrive",
                "the broker's access control list must let this device read the topic; provision.py makes such roles",
            )
        )

    def _warn_of_qos(self, wanted: Subscription, qos: int) -> None:
        self.warnings.append(
            Fault(
                "mqtt_subscription_qos_lowered",
                f"the broker grants {wanted.topic} QoS {qos} in place of {wanted.qos}: {wanted.purpose} can be lost",
                "allow QoS 1 at the broker",
            )
        )

    def _subscribe(self, client: Client, filters: Sequence[Subscription]) -> int | None:
        if not self._is_v5:
            return client.subscribe([(wanted.topic, wanted.qos) for wanted in filters])[1]
        send, keep = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, SubscribeOptions.RETAIN_DO_NOT_SEND
        return client.subscribe(
            [
                (wanted.topic, SubscribeOptions(qos=wanted.qos, retainHandling=send if wanted.retained else keep))
                for wanted in filters
            ]
        )[1]
