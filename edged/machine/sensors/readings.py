"""The last readings of a board's sensors, with their age."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from edged.machine.sensors.quantities import BROKEN, EACH, THROTTLED, Labels, Quantity, Sensor

STALE = 6.0
"""A reading that is as many times older than the time between two is no reading any more: its sensor hangs."""


@dataclass(frozen=True)
class Reading:
    """A value and when it was read, in CLOCK_MONOTONIC seconds."""

    value: float
    at: float


@dataclass(frozen=True)
class Readings:
    """All readings at one moment."""

    values: Mapping[Quantity, Mapping[Labels, Reading]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """`power_mode` and `reset_reason`, where the board tells."""
    total: float | None = None
    """Watts of what `source` names, from which energy is counted; None where the board does not measure it."""
    source: str = ""
    broken: int = 0
    """Sensors that are there, are not switched off, and gave no true value at their last reading."""

    def of(self, quantity: Quantity, now: float) -> dict[Labels, float]:
        """Values by labels that are not stale at `now`."""
        oldest = now - STALE * max(quantity.every, EACH)
        found = self.values.get(quantity, {})
        return {labels: reading.value for labels, reading in found.items() if reading.at >= oldest}

    def age(self, quantity: Quantity, now: float) -> float | None:
        """Seconds since the oldest value of a quantity was read, stale ones too; None without a value."""
        return max((now - reading.at for reading in self.values.get(quantity, {}).values()), default=None)

    def by_name(self, quantity: Quantity, now: float) -> dict[str, float]:
        """The same by label, for a quantity with one label."""
        return {labels[0]: value for labels, value in self.of(quantity, now).items()}

    def throttled(self, now: float) -> list[str]:
        """Why the board slows itself down now."""
        return [reason for reason, on in self.by_name(THROTTLED, now).items() if on]


def read_sensor(sensor: Sensor) -> dict[Labels, float]:
    """Its values that can be true. Raises BROKEN where there is none."""
    values = sensor.read()
    true = {labels: value for labels, value in values.items() if sensor.quantity.plausible(value)}
    if not true:
        raise ValueError(f"{sensor.quantity.name} cannot be {values}")
    return true


def read_once(sensors: Iterable[Sensor], quantity: Quantity) -> dict[Labels, float]:
    """What the sensors of one quantity say now; for commands, which have no sampler."""
    found: dict[Labels, float] = {}
    for sensor in sensors:
        if sensor.quantity is quantity:
            with suppress(*BROKEN):
                found |= read_sensor(sensor)
    return found
