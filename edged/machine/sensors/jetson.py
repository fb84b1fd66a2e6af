"""NVIDIA Jetson: throttling alerts, over-current events, power rails, GPU, power mode and reset reason.

| quantity | place | documented in |
|---|---|---|
| throttled | cooling devices `*-alert`, cur_state | the developer guide: Thermal Management |
| over-current | hwmon `soctherm_oc`, oc*_event_cnt | the developer guide: Electrical Management |
| power | hwmon `ina3221`, in{1,2,3}_{label,input} x curr{1,2,3}_input | hwmon/ina3221.rst of Linux |
| power (Thor) | hwmon `ina238`, power1_input in µW, the whole input `VIN` | hwmon/ina238.rst of Linux |
| GPU load | /sys/class/devfreq/*gpu*/device/load (Orin), …/gpu-gpc-0/load (Thor), 0 to 1000 | jetson_stats on GitHub |
| GPU frequency | /sys/class/devfreq/*gpu*/{cur_freq,max_freq}, Hz | ABI/testing/sysfs-class-devfreq of Linux |
| power mode | /var/lib/nvpmodel/status `pmode:0002`, names in /etc/nvpmodel.conf | the developer guide: nvpmodel |
| reset reason | /sys/devices/platform/[bus@0/]*.pmc/reset_reason | drivers/soc/tegra/pmc.c of Linux |

The developer guide: docs.nvidia.com/jetson, Platform Power and Performance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edged.machine.board import Board
from edged.machine.board.generic import folders, hwmon, read
from edged.machine.sensors import quantities as q
from edged.machine.sensors.linux import any_above_zero, event_sensors
from edged.machine.sensors.power import Power
from edged.machine.sensors.quantities import BROKEN, Sensor, number, of_file

_EVENTS = {1: "under_voltage", 2: "average_over_current", 3: "instantaneous_over_current"}
"""Over-current inputs of Orin, by number."""
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that are the whole board or module, the widest first."""
_AGX_ORIN = {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}
_THOR = {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}
"""Rails of modules without such an input, which together are the module (VDDQ_VDD2_1V8AO is part of VIN_SYS_5V0)."""


def sensors(board: Board) -> Iterator[Sensor]:
    """What a Jetson has beside the sensors of any Linux board."""
    root = board.root
    for device in folders(root / "sys/class/thermal", "cooling_device"):
        name = read(device / "type") or ""
        if name.endswith("-alert"):
            yield Sensor(q.THROTTLED, any_above_zero(name.replace("-", "_"), [device / "cur_state"]))
    for chip, name in hwmon(root):
        if name == "soctherm_oc":
            for at, reason in _EVENTS.items():
                counter = chip / f"oc{at}_event_cnt"
                if counter.exists():
                    yield from event_sensors(reason, counter)
    gpu = _gpu(root)
    if gpu is not None:
        load = next((path for path in (gpu / "device/load", gpu / "load") if path.exists()), None)
        if load is not None:
            yield of_file(q.GPU_LOAD, load, scale=1e-3)
        yield of_file(q.GPU_FREQUENCY, gpu / "cur_freq")
        yield of_file(q.GPU_FREQUENCY_MAX, gpu / "max_freq")


def _gpu(root: Path) -> Path | None:
    """The GPU's folder: 17000000.gpu or 17000000.ga10b on an Orin, gpu-gpc-0 on a Thor."""
    names = ("*.gpu", "*.ga10b", "*.gv11b", "gpu-gpc-0")
    found = [path for name in names for path in sorted((root / "sys/class/devfreq").glob(name))]
    return found[0] if found else None


class InaMeter:
    """The rails of the INA3221 (mV times mA) and INA238 (µW) chips."""

    def __init__(self, board: Board) -> None:
        self._root = board.root

    def read(self) -> Power:
        """Watts by rail; the total where a rail is the whole input, or all rails of the module are there."""
        rails: dict[str, float] = {}
        for chip, name in hwmon(self._root):
            if name == "ina3221":
                for channel in (1, 2, 3):  # 4 to 7 are shunt voltages and their sum
                    label = read(chip / f"in{channel}_label")
                    if label and label != "NC":
                        _add(rails, label, chip / f"in{channel}_input", chip / f"curr{channel}_input")
            elif name == "ina238":
                _add(rails, read(chip / "label") or read(chip / "power1_label") or "VIN", chip / "power1_input")
        for whole in _INPUTS:
            if whole in rails:
                return Power(rails, rails[whole], whole)
        for module in (_AGX_ORIN, _THOR):
            if module <= rails.keys():
                return Power(rails, sum(rails[name] for name in module), "+".join(sorted(module)))
        return Power(rails)


def _add(rails: dict[str, float], label: str, first: Path, second: Path | None = None) -> None:
    """Set a rail's watts from the product of two files in thousandths, or from one in millionths."""
    try:
        watts = number(first) * (number(second) if second is not None else 1.0) * 1e-6
    except BROKEN:
        return
    if q.POWER.plausible(watts):
        rails[label] = watts


def facts(board: Board) -> dict[str, str]:
    """`power_mode`: its name in nvpmodel.conf, else its number. `reset_reason`: the driver's word, as MAINSWRST."""
    found = {}
    status = re.search(r"pmode:(\d+)", read(board.root / "var/lib/nvpmodel/status") or "")
    if status:
        number_ = int(status[1])
        named = rf"<\s*POWER_MODEL\s+ID={number_}\s+NAME=(\S+?)\s*>"
        name = re.search(named, read(board.root / "etc/nvpmodel.conf") or "")
        found["power_mode"] = name[1] if name else str(number_)
    platform = board.root / "sys/devices/platform"
    for path in sorted((*platform.glob("*.pmc/reset_reason"), *platform.glob("bus@0/*.pmc/reset_reason"))):
        if reason := read(path):
            found["reset_reason"] = reason
    return found
