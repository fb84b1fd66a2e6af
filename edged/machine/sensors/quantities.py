"""The quantities that boards measure: name, labels, unit and the range in which a reading can be true."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Labels = tuple[str, ...]
Values = Mapping[Labels, float]
BROKEN = (OSError, ValueError, LookupError)
"""What reading a sensor raises that is gone, off or broken; it costs the values of this sensor only."""
_OFF = {errno.EAGAIN, errno.ENODATA, errno.ENOENT, errno.EACCES, errno.EPERM}
"""What drivers answer while the sensor's part of the chip is off, and the kernel where a sensor is closed to edged."""
EACH = 5.0
"""Seconds between two readings of most sensors."""
SELDOM = 60.0
"""The same for what hardly changes."""


@dataclass(frozen=True)
class Quantity:
    """`name` has the unit at its end, as Prometheus wants it; a reading outside `lowest` to `highest` is none."""

    name: str
    help: str
    labels: Labels = ()
    lowest: float = 0.0
    highest: float = math.inf
    counter: bool = False
    every: float = EACH

    def plausible(self, value: float) -> bool:
        """Whether a sensor can have measured this: NaN and infinity never."""
        return math.isfinite(value) and self.lowest <= value <= self.highest


@dataclass(frozen=True, eq=False)
class Sensor:
    """One place to read a quantity: `read` gives values by label values, in their quantity's order. Raises BROKEN."""

    quantity: Quantity
    read: Callable[[], Values]


TEMPERATURE = Quantity("temperature_celsius", "Temperature by zone of the board", ("zone",), -55, 200)
THROTTLED = Quantity("throttled", "1 while the board slows itself down for this reason", ("reason",), 0, 1)
THROTTLED_SINCE_BOOT = Quantity(
    "throttled_since_boot", "1 if the board has slowed itself down for this reason since it started", ("reason",), 0, 1
)
CPU_FREQUENCY = Quantity("cpu_frequency_hertz", "Frequency of a core and those that share its clock", ("cpu",), 1)
CPU_FREQUENCY_MAX = Quantity(
    "cpu_frequency_max_hertz", "Highest frequency of a core and those that share its clock", ("cpu",), 1, every=SELDOM
)
MEMORY = Quantity(
    "memory_bytes", "Memory of the board: `total`, `available`, and `gpu`, what its GPU holds of it", ("part",)
)
PRESSURE = Quantity(
    "pressure_ratio",
    "Share of the last 10 s in which `some` or `full`, all, tasks waited for `cpu`, `memory` or `io`",
    ("resource", "tasks"),
    0,
    1,
)
STALLED = Quantity(
    "pressure_stalled_seconds",
    "Time that they have waited since the board started",
    ("resource", "tasks"),
    counter=True,
)
DISK_SIZE = Quantity("disk_size_bytes", "Size of the file system of `state_dir`")
DISK_FREE = Quantity("disk_free_bytes", "Free space in the file system of `state_dir`")
DISK_WEAR = Quantity(
    "disk_wear_ratio",
    "Used share of the eMMC's life, by type of its cells; SD cards and NVMe tell the kernel nothing",
    ("cells",),
    0,
    1.1,
    every=SELDOM,
)
DISK_RESERVE = Quantity(
    "disk_reserve_used_ratio",
    "Used share of the eMMC's reserve blocks: 0, 0.8 or 0.9",
    (),
    0,
    1,
    every=SELDOM,
)
FAN_SPEED = Quantity("fan_speed_rpm", "Revolutions of a fan per minute", ("fan",), 0, 100_000)
FAN_DUTY = Quantity("fan_duty_ratio", "Duty cycle of a fan's control signal", ("fan",), 0, 1)
GPU_LOAD = Quantity("gpu_load_ratio", "Share of time in which the GPU works", (), 0, 1)
GPU_FREQUENCY = Quantity("gpu_frequency_hertz", "Frequency of the GPU", (), 0)
GPU_FREQUENCY_MAX = Quantity("gpu_frequency_max_hertz", "Highest frequency of the GPU", (), 1, every=SELDOM)
UPTIME = Quantity("uptime_seconds", "Time since the board started")
CLOCK = Quantity("clock_synchronised", "1 while a time server keeps the clock right", (), 0, 1)
POWER = Quantity("power_watts", "Power by rail; a rail may include others", ("rail",), 0, 10_000)

QUANTITIES = (
    TEMPERATURE,
    THROTTLED,
    THROTTLED_SINCE_BOOT,
    CPU_FREQUENCY,
    CPU_FREQUENCY_MAX,
    MEMORY,
    PRESSURE,
    STALLED,
    DISK_SIZE,
    DISK_FREE,
    DISK_WEAR,
    DISK_RESERVE,
    FAN_SPEED,
    FAN_DUTY,
    GPU_LOAD,
    GPU_FREQUENCY,
    GPU_FREQUENCY_MAX,
    UPTIME,
    CLOCK,
    POWER,
)


def number(path: Path, scale: float = 1.0, base: int = 10) -> float:
    """A file's whole number times `scale`. Raises OSError, or ValueError for text and for -1, drivers' error value."""
    value = int(path.read_bytes().decode("ascii", "replace").strip(), base)
    if value == -1:
        raise ValueError(f"{path} is -1")
    return value * scale


def is_off(error: Exception) -> bool:
    """Whether a sensor that raised this is switched off or closed to edged, and not broken."""
    return isinstance(error, OSError) and error.errno in _OFF


def of_file(quantity: Quantity, path: Path, *labels: str, scale: float = 1.0) -> Sensor:
    """A sensor that is one number in one file."""
    return Sensor(quantity, lambda: {labels: number(path, scale)})
