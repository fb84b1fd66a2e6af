"""Values of the link: its status, and how long it waits for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edged.faults import Fault
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.group_check import SILENT_SECONDS
from edged.mqtt.preferred import STEADY_SECONDS
from edged.mqtt.status_echo import ECHO_SECONDS


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """In seconds. `retry`: the first and the longest pause before a new attempt."""

    retry: tuple[float, float] = (1.0, 60.0)
    probe: float = 30.0
    """Interval of the checks whether another instance under our device id has left."""
    silent: float = SILENT_SECONDS
    echo: float = ECHO_SECONDS
    steady: float = STEADY_SECONDS


@dataclass(frozen=True)
class LinkStatus:
    """The link at one moment."""

    connected: bool
    """Both connections are up with all subscriptions that jobs need."""
    broker: str | None
    """Address of the broker that the device is connected to."""
    protocol: ProtocolVersion | None
    """The version of MQTT that they speak."""
    refused: tuple[str, ...]
    """Topic filters that the broker refused and without which jobs are lost."""
    groups: Mapping[str, bool]
    """Whether the device takes the jobs of each of its groups."""
    left: tuple[str, ...]
    """Groups that it has left for now."""
    warnings: tuple[Fault, ...]
    """Promises of the contract that do not hold on the present or latest connections."""
    delivery_fault: Fault | None
    """Why messages do not arrive although the broker granted the subscriptions."""
    delivery_warning: Fault | None
    """The same about messages without which the device can work."""
    stalled_seconds: float
    """Since the slower of the two loops last turned; each turns at least four times per keep-alive."""
