"""When to try again, and with which version of MQTT."""

from __future__ import annotations

import random
from typing import Literal

from edged.mqtt.events import ProtocolVersion

SILENT_ATTEMPTS = 2
"""Connections closed at CONNECT without a word, after which the other version is tried."""


class Backoff:
    """Full jitter: each delay is drawn evenly between 0 and a ceiling that doubles, in seconds.

    A fleet that lost its broker at one moment so comes back spread over time.
    """

    def __init__(self, first: float = 1.0, most: float = 60.0, draw: random.Random | None = None) -> None:
        self._first = first
        self._most = most
        self._ceiling = first
        self._draw = draw or random.Random()

    def next(self) -> float:
        """The seconds to wait now; the ceiling doubles for the next time."""
        delay = self._draw.uniform(0, self._ceiling)
        self._ceiling = min(self._most, self._ceiling * 2)
        return delay

    def reset(self) -> None:
        """After a connection that lasted."""
        self._ceiling = self._first


class ProtocolChoice:
    """MQTT 5 first, 3.1.1 where the broker does not speak it; unless the setting names one."""

    def __init__(self, setting: Literal["auto", "5", "3.1.1"]) -> None:
        self._auto = setting == "auto"
        self.current: ProtocolVersion = "5" if setting == "auto" else setting
        self._silent = 0

    def new_series(self) -> None:
        """A connection that stood has ended: the broker may be another one now."""
        self._silent = 0
        if self._auto:
            self.current = "5"

    def refused(self) -> bool:
        """The broker does not speak this version. Returns whether another is to be tried at once."""
        self._silent = 0
        if not self._auto:
            return False
        self.current = "3.1.1" if self.current == "5" else "5"
        return self.current == "3.1.1"

    def closed_silently(self) -> bool:
        """The broker closed at CONNECT without CONNACK. Returns whether another is to be tried at once."""
        self._silent += 1
        return self._silent >= SILENT_ATTEMPTS and self.refused()

    def failed_otherwise(self) -> None:
        """The attempt ended for a reason that has nothing to do with the version."""
        self._silent = 0
