"""NVIDIA Jetson: throttling alerts, over-current events and the power rails of the INA3221."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edged.machine.board.generic import Board, device_tree, folders, online, read, read_int, serial

# Over-current inputs of Orin, "Platform Power and Performance" of the Jetson Linux developer guide.
_EVENTS = {1: "under_voltage", 2: "average_over_current", 3: "instantaneous_over_current"}
# An event lasts milliseconds and only increments a counter. It is reported for this long after it was seen.
_EVENT_SECONDS = 60.0


@dataclass(eq=False)
class Jetson(Board):
    """A Jetson."""

    now: Callable[[], float] = field(default=time.monotonic, repr=False)
    _counts: dict[str, int] = field(default_factory=dict, repr=False)
    _noticed: dict[str, float] = field(default_factory=dict, repr=False)

    def throttled(self) -> dict[str, bool]:
        """Active thermal alerts, and over-current events seen in the last 60 s.

        Events before the first call are not reported, since they may be days old.
        """
        found: dict[str, bool] = {}
        for device in folders(self.root / "sys/class/thermal", "cooling_device"):
            name, state = read(device / "type"), read_int(device / "cur_state")
            if name and name.endswith("-alert") and state is not None:
                found[name.replace("-", "_")] = state > 0
        for chip, name in self.hwmon():
            if name == "soctherm_oc":
                for number, reason in _EVENTS.items():
                    count = read_int(chip / f"oc{number}_event_cnt")
                    if count is not None:
                        found[reason] = self._recent(reason, count)
        return found

    def _recent(self, reason: str, count: int) -> bool:
        if count > self._counts.get(reason, count):
            self._noticed[reason] = self.now()
        self._counts[reason] = count
        return self.now() - self._noticed.get(reason, float("-inf")) < _EVENT_SECONDS

    def power_watts(self) -> dict[str, float]:
        """Watts by rail of the INA3221 (mV times mA); VDD_IN, if present, is the whole module."""
        found: dict[str, float] = {}
        for chip, name in self.hwmon():
            if name != "ina3221":
                continue
            for channel in (1, 2, 3):  # 4 to 7 are shunt voltages and their sum
                label = read(chip / f"in{channel}_label")
                millivolts = read_int(chip / f"in{channel}_input")
                milliamperes = read_int(chip / f"curr{channel}_input")
                if label and label != "NC" and millivolts is not None and milliamperes is not None:
                    found[label] = millivolts * milliamperes / 1e6
        return found


def cuda_runtime(l4t: str | None, python: tuple[int, int]) -> str:
    """Advice which onnxruntime can use the GPU of a Jetson with this Linux for Tegra and Python, and where to get it.

    L4T 35 is JetPack 5 (CUDA 11.4), 36.2 and 36.3 are JetPack 6.0 (CUDA 12.2, cuDNN 8), 36.4 and later 6.1 and 6.2
    (CUDA 12.6, cuDNN 9), 38 and later JetPack 7 (CUDA 13). PyPI's wheels for Arm begin with 1.29, for CUDA 13.
    """
    if l4t is None:
        return "look up the L4T release in /etc/nv_tegra_release of the Jetson itself: the wheel depends on it"
    release = [int(part) for part in l4t.split(".")[:2]]
    if release < [36]:
        return f"L4T {l4t} has CUDA 11, for which no onnxruntime from 1.23 on is made: install JetPack 6.1 or newer"
    if release < [36, 4]:
        return f"L4T {l4t} is JetPack 6.0: install JetPack 6.1 or newer, for whose CUDA 12.6 NVIDIA has wheels"
    if release < [37]:
        index = " --platform linux_aarch64 --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"
        remark = "" if python == (3, 10) else " (they are for Python 3.10, JetPack 6's own)"
        return f"{_fetch('3.10', index, '1.23')}{remark}; {_SET}"
    if python < (3, 11):
        return "PyPI's onnxruntime-gpu for Arm needs Python 3.11 and glibc 2.34: take JetPack 7's own python3"
    wheel = _fetch(f"{python[0]}.{python[1]}", " --platform manylinux_2_34_aarch64", "1.29")
    return f"{wheel} (CUDA 13; an Orin may find no kernels of its own in it: edged bench tells); {_SET}"


_SET = "lay the wheel into a folder of root's, such as /etc/edged/wheels, and set model.runtime_wheels to that"


def _fetch(python: str, more: str, oldest: str) -> str:
    """The command that downloads the wheel, on any machine with a network."""
    options = f"--no-deps --only-binary :all: --python-version {python}{more}"
    return f"pip download {options} 'onnxruntime-gpu>={oldest}'"


def jetson(root: Path) -> Jetson | None:
    """The Jetson below ``root``, if it is one. A container may see only the device tree."""
    release = read(root / "etc/nv_tegra_release")
    if release is None and "nvidia,tegra" not in (device_tree(root, "compatible") or ""):
        return None
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    l4t = f"{match[1]}.{match[2]}" if match else None
    model = device_tree(root, "model") or "NVIDIA Jetson"
    return Jetson("jetson", model, serial(root), l4t, online(root), root)
