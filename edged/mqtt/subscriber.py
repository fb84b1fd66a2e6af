"""Makes and ends the subscriptions of one connection: one SUBSCRIBE at a time, and reads what the broker grants."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from paho.mqtt.client import Client
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.faults import Fault
from edged.mqtt.connection_faults import SUBSCRIPTION_REFUSED
from edged.mqtt.grants import Grants
from edged.mqtt.reason_codes import ReasonCode
from edged.mqtt.session_types import Subscription

MAX_FILTERS = 8
"""Topic filters in one SUBSCRIBE: AWS IoT Core disconnects clients that send more."""
_LARGEST_QOS = 2
"""Of a SUBACK's codes, all larger ones refuse (MQTT 5 §3.9.3)."""
_SHARED_PREFIX = "$share/"


class Subscriber:
    """Subscribes to everything in order; each SUBSCRIBE waits for the answer to the one before.

    Knows what one connection asked for and what the broker said; for the connection's own thread.
    """

    def __init__(self, groups: Sequence[Sequence[Subscription]], is_v5: bool) -> None:
        """`groups`: the filters of one group share a SUBSCRIBE as far as MAX_FILTERS allows, those of two never do."""
        self._is_v5 = is_v5
        self._wanted: dict[str, Subscription] = {}
        self._packets: deque[Sequence[Subscription]] = deque()
        self._refused: set[str] = set()
        self._warnings: dict[str, Fault] = {}
        self._mid: int | None = None
        self._asked: Sequence[Subscription] = ()
        self._asked_at = 0.0
        self._leaving: dict[int, Sequence[str]] = {}
        """Topic filters by the packet id of the UNSUBSCRIBE that is not answered yet."""
        self.want(groups)

    @property
    def asked(self) -> tuple[Subscription, ...]:
        """Those of the SUBSCRIBE that is not answered yet."""
        return tuple(self._asked)

    @property
    def waits_since(self) -> float | None:
        """Since when the broker has not answered that SUBSCRIBE; None without one."""
        return self._asked_at if self._asked else None

    def overdue(self, now: float, seconds: float) -> tuple[Subscription, ...]:
        """The same, where the broker has not answered it for so many seconds."""
        return self.asked if now - self._asked_at >= seconds else ()

    @property
    def refused(self) -> tuple[str, ...]:
        """Required topic filters that the broker refused."""
        return tuple(topic for topic, wanted in self._wanted.items() if topic in self._refused and wanted.required)

    @property
    def refused_others(self) -> tuple[str, ...]:
        """The other ones that it refused."""
        return tuple(topic for topic, wanted in self._wanted.items() if topic in self._refused and not wanted.required)

    @property
    def warnings(self) -> tuple[Fault, ...]:
        return tuple(self._warnings.values())

    def want(self, groups: Sequence[Sequence[Subscription]]) -> list[str]:
        """Queue what is new in `groups`; returns the topic filters that are not in it any more, to be unsubscribed."""
        wanted = {subscription.topic: subscription for group in groups for subscription in group}
        gone = [topic for topic in self._wanted if topic not in wanted]
        kept = [[one for one in packet if one.topic in wanted] for packet in self._packets]
        new = [[one for one in group if one.topic not in self._wanted] for group in groups]
        self._packets = deque(
            group[start : start + MAX_FILTERS] for group in (*kept, *new) for start in range(0, len(group), MAX_FILTERS)
        )
        for topic in self._wanted.keys() ^ wanted.keys():
            self._warnings.pop(topic, None)
        self._wanted = wanted
        self._refused.intersection_update(wanted)
        return gone

    def unsubscribe(self, client: Client, topic_filters: Sequence[str]) -> None:
        """Queue UNSUBSCRIBEs."""
        for start in range(0, len(topic_filters), MAX_FILTERS):
            some = topic_filters[start : start + MAX_FILTERS]
            mid = client.unsubscribe(list(some))[1]
            if mid is not None:
                self._leaving[mid] = some

    def unsubscribed(self, mid: int, codes: Sequence[ReasonCode]) -> None:
        """Read an UNSUBACK, which has codes on MQTT 5 only."""
        for topic, code in zip(self._leaving.pop(mid, ()), codes, strict=False):
            if code.is_failure and topic not in self._wanted:
                self._warnings[topic] = Fault(
                    "mqtt_unsubscription_refused",
                    f"the broker refuses to unsubscribe {topic}: {code.name}; messages still arrive",
                    "the broker's access control list must let this device unsubscribe",
                )

    def send_next(self, client: Client, grants: Grants, now: float) -> bool:
        """Queue the next SUBSCRIBE; False when all are answered. `now`: CLOCK_MONOTONIC seconds."""
        if self._mid is not None:
            return True
        while self._packets:
            filters = self._packets.popleft()
            if not grants.shared:
                # A broker without shared subscriptions disconnects who asks for one (MQTT 5 §3.2.2.3.13).
                for wanted in filters:
                    if wanted.topic.startswith(_SHARED_PREFIX):
                        self._refuse(wanted, "shared subscriptions not supported")
                filters = [wanted for wanted in filters if not wanted.topic.startswith(_SHARED_PREFIX)]
            if filters:
                self._asked, self._asked_at = filters, now
                self._mid = self._subscribe(client, filters)
                return True
        return False

    def answered(self, mid: int, codes: Sequence[ReasonCode], properties: Properties | None) -> bool:
        """Read a SUBACK; False where it answers another packet."""
        if mid != self._mid:
            return False
        words = getattr(properties, "ReasonString", None)
        for wanted, code in itertools.zip_longest(self._asked, codes[: len(self._asked)]):
            if wanted.topic not in self._wanted:
                continue
            if code is None:
                self._refuse(wanted, "its answer lacks this one")
            elif code.value > _LARGEST_QOS:
                self._refuse(wanted, f"{code.name}{f' ({words})' if words else ''}")
            elif code.value < wanted.qos:
                self._warn_of_qos(wanted, code.value)
        self._mid, self._asked = None, ()
        return True

    def _refuse(self, wanted: Subscription, reason: str) -> None:
        self._refused.add(wanted.topic)
        self._warnings[wanted.topic] = refusal(wanted, reason)

    def _warn_of_qos(self, wanted: Subscription, qos: int) -> None:
        self._warnings[wanted.topic] = Fault(
            "mqtt_subscription_qos_lowered",
            f"the broker grants {wanted.topic} QoS {qos} in place of {wanted.qos}: {wanted.purpose} can be lost",
            "allow QoS 1 at the broker",
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


def refusal(wanted: Subscription, reason: str) -> Fault:
    """The warning about a subscription that the broker refuses."""
    return Fault(
        SUBSCRIPTION_REFUSED,
        f"the broker refuses to subscribe {wanted.topic}: {reason}; {wanted.purpose} do not arrive",
        "let the broker's access control list allow it; provision.py upgrade gives older roles that",
    )
