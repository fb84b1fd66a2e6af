"""When to try again, at which broker, and with which version of MQTT."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal

from edged.faults import Fault
from edged.mqtt.connection_faults import CLOSED
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.session_types import SessionEnd, Subscription, WillLimits
from edged.settings.mqtt import MqttSettings

SILENT_ATTEMPTS = 2
"""Connections closed at CONNECT without CONNACK after which the other version is tried."""
RECHECK_SECONDS = 600.0
"""Time on 3.1.1 after which 5 is tried again, where 3.1.1 was a guess; it doubles each time."""
LONGEST_RECHECK_SECONDS = 24 * 3600.0
HANG_UPS = 3
"""What no job is lost without is left out after the broker closed the connection on it so many times: a SUBSCRIBE, or
publications of QoS 0."""


class Backoff:
    """Full jitter: each delay is drawn evenly between 0 and a ceiling that doubles, in seconds.

    This spreads the reconnects of a fleet that lost its broker at one moment.
    """

    def __init__(self, first: float = 1.0, most: float = 60.0, draw: random.Random | None = None) -> None:
        self._first = first
        self._most = most
        self._ceiling = first
        self._draw = draw or random.Random()

    def next(self) -> float:
        """Seconds to wait now; the ceiling doubles for the next time."""
        delay = self._draw.uniform(0, self._ceiling)
        self._ceiling = min(self._most, self._ceiling * 2)
        return delay

    def reset(self) -> None:
        """Begin anew, after a connection that lasted."""
        self._ceiling = self._first


class ProtocolChoice:
    """Which version of MQTT to try: 5 first, 3.1.1 where the broker does not speak it; unless the setting names one.

    A broker that does not answer MQTT 5, or hangs up, may be an old one or just starting behind a load balancer. So
    3.1.1 is then a guess: it is not made where the broker has spoken 5 before, and else checked again and again.
    """

    def __init__(self, setting: Literal["auto", "5", "3.1.1"]) -> None:
        self._auto = setting == "auto"
        self.current: ProtocolVersion = "5" if setting == "auto" else setting
        self._silent = 0
        self._spoke_5 = False
        self._guessed = False
        self._recheck = RECHECK_SECONDS

    @property
    def recheck_seconds(self) -> float | None:
        """How long to stay connected before 5 is tried again; None: for ever."""
        return self._recheck if self._guessed and self.current == "3.1.1" else None

    def connected(self) -> None:
        """The broker accepted a connection with the present version."""
        self._silent = 0
        if self.current == "5":
            self._spoke_5 = True
            self._recheck = RECHECK_SECONDS

    def new_series(self) -> None:
        """An accepted connection has ended: the broker may be another one now."""
        self._silent = 0
        if self._auto:
            if self.recheck_seconds is not None:
                self._recheck = min(self._recheck * 2, LONGEST_RECHECK_SECONDS)
            self.current = "5"
            self._guessed = False

    def refused(self) -> bool:
        """The broker does not speak this version. Returns whether another is to be tried at once."""
        self._guessed = False
        return self._switch()

    def closed_silently(self) -> bool:
        """The broker closed at CONNECT without CONNACK. Returns whether another is to be tried at once."""
        self._silent += 1
        return self._silent >= SILENT_ATTEMPTS and self._guess()

    def unanswered(self) -> bool:
        """The broker did not answer CONNECT in time. Returns whether another is to be tried at once."""
        return self._guess()

    def failed_otherwise(self) -> None:
        """The attempt ended for a reason that has nothing to do with the version."""
        self._silent = 0

    def _guess(self) -> bool:
        if self._spoke_5:
            return False
        self._guessed = True
        return self._switch()

    def _switch(self) -> bool:
        self._silent = 0
        if not self._auto:
            return False
        self.current = "3.1.1" if self.current == "5" else "5"
        return self.current == "3.1.1"


class Broker:
    """One broker, and what connections to it have found out."""

    def __init__(self, mqtt: MqttSettings, protocol: Literal["auto", "5", "3.1.1"]) -> None:
        self.mqtt = mqtt
        """The settings with the host and port of this broker."""
        self.choice = ProtocolChoice(protocol)
        self.will_limits = WillLimits()
        self.will_faults: tuple[Fault, ...] = ()
        """Why it does not take the last will as it should be."""
        self.hang_ups: Counter[tuple[Subscription, ...]] = Counter()
        """Times that it closed the connection on a SUBSCRIBE, without another loss in between."""
        self.hang_ups_at_publish: Counter[str] = Counter()
        """The same for the first publication of QoS 0 to a family of topics."""

    @property
    def avoided(self) -> tuple[Subscription, ...]:
        """Subscriptions that it has to be spared."""
        avoided = {one for asked, times in self.hang_ups.items() if times >= HANG_UPS for one in asked}
        return tuple(sorted(avoided, key=lambda one: one.topic))

    @property
    def muted(self) -> frozenset[str]:
        """Families of topics to which nothing is to be published at QoS 0."""
        return frozenset(topics for topics, times in self.hang_ups_at_publish.items() if times >= HANG_UPS)

    def note_end(self, ending: SessionEnd) -> None:
        """Count a connection that the broker closed on a topic: AWS IoT Core, say, does so in place of refusing it."""
        if ending.asked and ending.fault != CLOSED:
            if not any(one.required for one in ending.asked):
                self.hang_ups[ending.asked] += 1
        elif ending.begun is not None:
            self.hang_ups_at_publish[ending.begun] += 1
        elif ending.accepted_seconds is not None:
            self.hang_ups.clear()  # perhaps the rights have changed
            self.hang_ups_at_publish.clear()


class Brokers:
    """The brokers in order of preference, and which of them is tried next."""

    def __init__(self, mqtt: MqttSettings) -> None:
        self._all = [Broker(one, mqtt.protocol) for one in mqtt.brokers]
        self._at = 0

    @property
    def current(self) -> Broker:
        """The broker of the present or next attempt."""
        return self._all[self._at]

    def start_over(self) -> None:
        """Begin with the preferred one: a connection that lasted has ended."""
        self._at = 0

    def failed(self) -> bool:
        """Go on to the next one. Returns whether to try it at once: all were tried when the first one is due again."""
        self._at = (self._at + 1) % len(self._all)
        return self._at > 0
