"""Any Linux board: model, serial number and cores from /proc and /sys."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edged.machine import cgroup

Kind = Literal["raspberry_pi", "jetson", "generic"]

# Cores are of one class down to this share of the fastest one's speed: turbo bins within a class differ by a few per
# cent, and the efficiency cores of a Core i5-1240P reach 0.75.
_SAME_CLASS = 0.8
# Placeholders that firmware has in DMI if the maker did not set a name.
_NO_NAME = {"", "to be filled by o.e.m.", "system product name", "default string", "not specified", "unknown"}


# Of /proc/cpuinfo: what a processor is. Other lines change while it runs.
_PROCESSOR = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
}


def read(path: Path) -> str | None:
    """A file's text, stripped and without the NUL of device-tree strings; None if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\0", " ").strip()
    except OSError:
        return None


def read_int(path: Path, base: int = 10) -> int | None:
    """A file's number; None if it cannot be read or is not a number."""
    try:
        return int(read(path) or "", base)
    except ValueError:
        return None


@dataclass(eq=False)
class Board:
    """A board. Missing or unreadable files give no value and no exception."""

    kind: Kind
    model: str
    serial: str | None
    l4t: str | None
    """Release of NVIDIA's Linux for Tegra, such as ``36.4.3``."""
    cores: tuple[int, ...]
    """Ids of the CPUs that are online."""
    root: Path = field(repr=False)

    def performance_cores(self, affinity: Collection[int] | None = None) -> tuple[int, ...]:
        """One CPU id for each physical core of the fastest class that this process may use, at least one.

        ``affinity``: CPUs that the process may use (``os.sched_getaffinity``); None: all. Siblings of simultaneous
        multithreading count once; cpu.max of the cgroups, rounded up, limits the number.
        """
        allowed = [cpu for cpu in self.cores if affinity is None or cpu in affinity] or list(self.cores)
        speeds = self._speeds(allowed)
        fastest = max(speeds.values())
        chosen: list[int] = []
        counted: set[int] = set()
        for cpu in allowed:
            if cpu not in counted and speeds[cpu] >= _SAME_CLASS * fastest:
                chosen.append(cpu)
                counted |= self._siblings(cpu)
        quota = cgroup.cpu_quota(self.root)
        return tuple(chosen if quota is None else chosen[: max(1, math.ceil(quota))])

    def processor(self) -> str:
        """A text that is another one for cores or caches of another kind, for which libraries choose other kernels."""
        cpuinfo = (read(self.root / "proc/cpuinfo") or "").splitlines()
        kinds = {line for line in cpuinfo if line.partition(":")[0].strip() in _PROCESSOR}
        caches = {
            f"{read(cache / 'level')} {read(cache / 'type')} {read(cache / 'size')}"
            for cpu in self.cores
            for cache in folders(self._cpu(cpu) / "cache", "index")
        }
        return "\n".join([*sorted(kinds), *sorted(caches)])

    def _cpu(self, cpu: int) -> Path:
        return self.root / f"sys/devices/system/cpu/cpu{cpu}"

    def _speeds(self, cpus: Collection[int]) -> dict[int, int]:
        for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
            speeds = {cpu: read_int(self._cpu(cpu) / name) for cpu in cpus}
            known = {cpu: speed for cpu, speed in speeds.items() if speed}
            if len(known) == len(speeds):
                return known
        return dict.fromkeys(cpus, 1)

    def _siblings(self, cpu: int) -> set[int]:
        return {cpu, *parse_list(read(self._cpu(cpu) / "topology/thread_siblings_list") or "")}


def generic(root: Path) -> Board:
    """The board below ``root``, of no special kind."""
    name = device_tree(root, "model")
    for candidate in (read(root / "sys/class/dmi/id/product_name"), _cpuinfo(root, "model name")):
        if name is None and candidate and candidate.lower() not in _NO_NAME:
            name = candidate
    return Board("generic", name or "unknown", serial(root), None, online(root), root)


def device_tree(root: Path, name: str) -> str | None:
    """A property of the device tree's root node; several strings are joined by spaces."""
    return read(root / "proc/device-tree" / name) or None


def serial(root: Path) -> str | None:
    """The board's serial number; None for zeros, which emulators and blank boards have."""
    for found in (device_tree(root, "serial-number"), _cpuinfo(root, "Serial")):
        if found and found.strip("0"):
            return found
    return None


def online(root: Path) -> tuple[int, ...]:
    """Ids of the CPUs that are online."""
    cpus = root / "sys/devices/system/cpu"
    return tuple(parse_list(read(cpus / "online") or "")) or (0,)


def parse_list(text: str) -> list[int]:
    """Numbers of a kernel list such as ``0-3,8`` (cpuset(7)); empty if it is invalid."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match:
            numbers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def folders(parent: Path, prefix: str) -> list[Path]:
    """Numbered folders such as hwmon0, hwmon1, by number."""
    found = [path for path in parent.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def hwmon(root: Path) -> Iterator[tuple[Path, str]]:
    """Folders and names of the hardware monitoring chips."""
    for chip in folders(root / "sys/class/hwmon", "hwmon"):
        if name := read(chip / "name"):
            yield chip, name


def _cpuinfo(root: Path, key: str) -> str | None:
    for line in (read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip() or None
    return None
