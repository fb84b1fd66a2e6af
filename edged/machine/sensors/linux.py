"""What any Linux board can tell, and where the kernel documents it (paths of its source below Documentation/).

| quantity | files | documented in |
|---|---|---|
| temperature | /sys/class/thermal/thermal_zone*/{type,temp} | driver-api/thermal/sysfs-api.rst |
| temperature, fan | /sys/class/hwmon/hwmon*/{temp,fan,pwm}* | hwmon/sysfs-interface.rst |
| throttled | /sys/class/thermal/cooling_device*/{type,cur_state} | driver-api/thermal/sysfs-api.rst |
| throttled (Intel) | cpu0/thermal_throttle/package_throttle_count | ABI/testing/sysfs-devices-system-cpu |
| CPU frequency | cpufreq/policy*/{scaling_cur_freq,cpuinfo_max_freq}, kHz | admin-guide/pm/cpufreq.rst |
| memory | /proc/meminfo; CmaTotal - CmaFree is what a GPU without its own memory holds | filesystems/proc.rst |
| pressure | /proc/pressure/{cpu,memory,io} | accounting/psi.rst |
| disk wear | /sys/block/mmcblk*/device/{life_time,pre_eol_info} of an eMMC | driver-api/mmc/mmc-dev-attrs.rst |
| reset reason | /sys/class/watchdog/watchdog*/bootstatus | ABI/testing/sysfs-class-watchdog |
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edged.machine.board import Board
from edged.machine.board.generic import folders, hwmon, read
from edged.machine.clock import Clock
from edged.machine.sensors import quantities as q
from edged.machine.sensors.quantities import BROKEN, Sensor, Values, number, of_file
from edged.machine.storage import mount_of

_COOLING = {"cpu_cooling": r"(thermal-)?cpufreq-.*", "gpu_cooling": r"(thermal-)?devfreq-.*gpu.*"}
"""Cooling devices that lower a frequency because of a temperature, by the reason that is reported."""
_CARD_RESET = 0x20
"""WDIOF_CARDRESET of linux/watchdog.h: the watchdog caused the last reset."""
_EVENT_SECONDS = 60.0
"""An event that only increments a counter is reported for so long after it was seen."""


def sensors(board: Board, state_dir: Path) -> Iterator[Sensor]:
    """The sensors that are there now."""
    root = board.root
    yield from _temperatures(root)
    yield from _throttling(root)
    yield from _frequencies(root)
    yield from _fans(root)
    yield Sensor(q.MEMORY, lambda: _memory(root))
    for resource in ("cpu", "memory", "io"):
        if (path := root / "proc/pressure" / resource).exists():
            yield Sensor(q.PRESSURE, _pressure(path, "avg10", 0.01))
            yield Sensor(q.STALLED, _pressure(path, "total", 1e-6))
    yield Sensor(q.DISK_SIZE, lambda: _disk(state_dir, lambda disk: disk.f_blocks))
    yield Sensor(q.DISK_FREE, lambda: _disk(state_dir, lambda disk: disk.f_bavail))
    yield from _wear(root, state_dir)
    yield Sensor(q.UPTIME, lambda: {(): float((read(root / "proc/uptime") or "").split()[0])})
    yield Sensor(q.CLOCK, lambda: {(): float(Clock().synchronised())})


def facts(board: Board) -> dict[str, str]:
    """Whether a watchdog caused the last reset; nothing is said where no driver says so."""
    for device in folders(board.root / "sys/class/watchdog", "watchdog"):
        try:
            status = int(number(device / "bootstatus"))
        except BROKEN:
            continue
        if status & _CARD_RESET:
            return {"reset_reason": "watchdog"}
    return {}


def _temperatures(root: Path) -> Iterator[Sensor]:
    """Thermal zones by their type, then the hwmon chips that are no zones. Equal names get a number."""
    taken: set[str] = set()
    zones: set[str] = set()
    for zone in folders(root / "sys/class/thermal", "thermal_zone"):
        if name := read(zone / "type"):
            zones.add(name.replace("-", "_"))
            yield of_file(q.TEMPERATURE, zone / "temp", _unique(taken, name), scale=1e-3)
    for chip, name in hwmon(root):
        if name.replace("-", "_") in zones:  # the kernel lists a zone as a chip too
            continue
        for path in sorted(chip.glob("temp*_input")):
            label = read(path.with_name(path.name.replace("_input", "_label")))
            at = path.name.removeprefix("temp").removesuffix("_input")
            suffix = label.lower().replace(" ", "_") if label else "" if at == "1" else at
            zone_name = _unique(taken, f"{name}_{suffix}" if suffix else name)
            yield of_file(q.TEMPERATURE, path, zone_name, scale=1e-3)


def _unique(taken: set[str], name: str) -> str:
    found, count = name, 2
    while found in taken:
        found, count = f"{name}-{count}", count + 1
    taken.add(found)
    return found


def _throttling(root: Path) -> Iterator[Sensor]:
    devices: dict[str, list[Path]] = {}
    for device in folders(root / "sys/class/thermal", "cooling_device"):
        kind = read(device / "type") or ""
        for reason, pattern in _COOLING.items():
            if re.fullmatch(pattern, kind):
                devices.setdefault(reason, []).append(device / "cur_state")
    for reason, states in devices.items():
        yield Sensor(q.THROTTLED, any_above_zero(reason, states))
    counter = root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    if counter.exists():
        yield from event_sensors("package_too_hot", counter)


def any_above_zero(reason: str, states: list[Path]) -> Callable[[], Values]:
    """Reads 1 for `reason` while a cooling device of `states` is on."""
    return lambda: {(reason,): float(any(number(state) > 0 for state in states))}


def event_sensors(reason: str, counter: Path, now: Callable[[], float] = time.monotonic) -> Iterator[Sensor]:
    """An event that lasts milliseconds and increments a counter: seen in the last 60 s, and since boot.

    What was counted before the first reading may be days old, and counts since boot only.
    """
    known: list[float] = []
    seen = [float("-inf")]

    def recent() -> Values:
        count = number(counter)
        if known and count > known[0]:
            seen[0] = now()
        known[:] = [count]
        return {(reason,): float(now() - seen[0] < _EVENT_SECONDS)}

    yield Sensor(q.THROTTLED, recent)
    yield Sensor(q.THROTTLED_SINCE_BOOT, lambda: {(reason,): float(number(counter) > 0)})


def _frequencies(root: Path) -> Iterator[Sensor]:
    for policy in folders(root / "sys/devices/system/cpu/cpufreq", "policy"):
        cpu = policy.name.removeprefix("policy")
        yield of_file(q.CPU_FREQUENCY, policy / "scaling_cur_freq", cpu, scale=1e3)
        yield of_file(q.CPU_FREQUENCY_MAX, policy / "cpuinfo_max_freq", cpu, scale=1e3)


def _fans(root: Path) -> Iterator[Sensor]:
    taken: set[str] = set()
    for chip, name in hwmon(root):
        for path in sorted(chip.glob("fan*_input")):
            at = path.name.removeprefix("fan").removesuffix("_input")
            yield of_file(q.FAN_SPEED, path, _unique(taken, name if at == "1" else f"{name}_{at}"))
        for path in sorted(chip.glob("pwm*")):
            if (at := path.name.removeprefix("pwm")).isdecimal():
                yield of_file(q.FAN_DUTY, path, name if at == "1" else f"{name}_{at}", scale=1 / 255)


def _memory(root: Path) -> Values:
    """Bytes. `gpu`: NvMapMemUsed of NVIDIA's kernel (Jetson), else what is taken of CMA, which a Pi's GPU draws on."""
    found: dict[str, int] = {}
    for line in (read(root / "proc/meminfo") or "").splitlines():
        if match := re.fullmatch(r"(\w+):\s+(\d+) kB", line):
            found[match[1]] = int(match[2]) << 10
    values: dict[q.Labels, float] = {}
    if "MemTotal" in found:
        values["total",] = float(found["MemTotal"])
    if "MemAvailable" in found:
        values["available",] = float(found["MemAvailable"])
    if "NvMapMemUsed" in found:
        values["gpu",] = float(found["NvMapMemUsed"])
    elif found.get("CmaTotal") and "CmaFree" in found:
        values["gpu",] = float(found["CmaTotal"] - found["CmaFree"])
    return values


def _pressure(path: Path, key: str, scale: float) -> Callable[[], Values]:
    """Lines such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""

    def values() -> Values:
        found: dict[q.Labels, float] = {}
        for line in (read(path) or "").splitlines():
            tasks, *pairs = line.split()
            known = dict(pair.split("=", 1) for pair in pairs)
            found[path.name, tasks] = float(known[key]) * scale
        return found

    return values


def _disk(state_dir: Path, blocks: Callable[[os.statvfs_result], int]) -> Values:
    disk = os.statvfs(state_dir)
    return {(): float(blocks(disk) * disk.f_frsize)}


def _wear(root: Path, state_dir: Path) -> Iterator[Sensor]:
    """The eMMC under state_dir: life time in tenths, reported as the end of the tenth that is being used up."""
    mount = mount_of(state_dir.resolve(), root)
    match = re.match(r"/dev/(mmcblk\d+)", mount.source if mount is not None else "")
    if match is None:
        return
    device = root / "sys/block" / match[1] / "device"
    if (device / "life_time").exists():
        yield Sensor(q.DISK_WEAR, lambda: _life_time(device / "life_time"))
    if (device / "pre_eol_info").exists():
        yield Sensor(q.DISK_RESERVE, lambda: {(): _RESERVES[int(number(device / "pre_eol_info", base=16))]})


_RESERVES = {1: 0.0, 2: 0.8, 3: 0.9}
"""PRE_EOL_INFO of JEDEC's eMMC standard: normal, warning (80 % used), urgent (90 % used)."""


def _life_time(path: Path) -> Values:
    """Two bytes such as ``0x01 0x03``, for cells of type A and B; 0 is not defined, 0x0b more than all."""
    tenths = [int(word, 16) for word in (read(path) or "").split()]
    return {(kind,): tenth / 10 for kind, tenth in zip("ab", tenths, strict=False) if tenth}
