"""Raspberry Pi: under-voltage and throttling, the rails of a Pi 5, and why it started.

| quantity | place | documented in |
|---|---|---|
| throttled, now and since boot | `get_throttled` of the firmware | os.html#get_throttled |
| the same | /sys/devices/platform/soc*/soc*:firmware/get_throttled | drivers/firmware/raspberrypi.c, Raspberry Pi's |
| under-voltage | hwmon `rpi_volt`, in0_lcrit_alarm | drivers/hwmon/raspberrypi-hwmon.c of Linux |
| power (Pi 5) | `pmic_read_adc` of the firmware | os.html#vcgencmd |
| reset reason | `get_rsts` of the firmware, PM_RSTS | drivers/watchdog/bcm2835_wdt.c of Linux |

os.html: raspberrypi.com/documentation/computers/os.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edged.machine.board import Board
from edged.machine.board.generic import device_tree, hwmon
from edged.machine.sensors import quantities as q
from edged.machine.sensors.power import Power
from edged.machine.sensors.quantities import BROKEN, Sensor, Values, number
from edged.machine.sensors.vcio import Gencmd

_BITS = {"under_voltage": 0, "frequency_capped": 1, "throttled": 2, "soft_temperature_limit": 3}
"""Bits of GET_THROTTLED for the current state; the same bits 16 higher are set once it has occurred."""
_PMIC_FACTOR, _PMIC_REST = 1.1451, 0.5879
"""The twelve rails of a Pi 5 leave out losses and what hangs at 5 V. What a meter at the plug showed is a straight line
of their sum: github.com/jfikar/RPi5-power. USB devices and an SSD come on top of it."""
_RAIL = re.compile(r"\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(\S+)[AV]")
_POWER_ON, _FULL_RESET = 0x1000, 0x20
"""Bits of PM_RSTS. A reboot, a watchdog that was not fed and the reset button are all a full reset by the watchdog,
after which the first bit may still be set."""


def sensors(board: Board, ask: Gencmd) -> Iterator[Sensor]:
    """What a Raspberry Pi has beside the sensors of any Linux board.

    All four reasons come from the firmware, or from the kernel's get_throttled (Raspberry Pi's own kernel up to the
    Pi 4; reading it logs one deprecation warning per boot). Where neither can be read, only rpi_volt is left, which
    asks for under-voltage every 2 s.
    """
    root = board.root
    files = sorted((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled"))
    yield Sensor(q.THROTTLED, lambda: _throttled(root, files, ask, 0))
    yield Sensor(q.THROTTLED_SINCE_BOOT, lambda: _reasons(_word(files, ask), 16))


def _throttled(root: Path, files: list[Path], ask: Gencmd, shift: int) -> Values:
    alarm = None
    for chip, name in hwmon(root):
        if name == "rpi_volt":
            try:
                alarm = number(chip / "in0_lcrit_alarm")
            except BROKEN:
                continue
    try:
        found = dict(_reasons(_word(files, ask), shift))
    except BROKEN:
        if alarm is None:
            raise
        found = {("under_voltage",): 0.0}
    if alarm:
        found["under_voltage",] = 1.0
    return found


def _word(files: list[Path], ask: Gencmd) -> int:
    """The firmware's word. Raises OSError or ValueError where there is none."""
    try:
        return int(ask("get_throttled").removeprefix("throttled="), 16)
    except BROKEN:
        for path in files:
            return int(number(path, base=16))
        raise


def _reasons(word: int, shift: int) -> Values:
    return {(reason,): float(word >> bit + shift & 1) for reason, bit in _BITS.items()}


class PmicMeter:
    """The rails of a Pi 5's power management chip; other models know no such command."""

    def __init__(self, ask: Gencmd) -> None:
        self._ask = ask

    def read(self) -> Power:
        """Watts by rail; the total has the published correction and is None where a rail is missing."""
        try:
            lines = self._ask("pmic_read_adc").splitlines()
        except BROKEN:
            return Power({})
        parts: dict[str, dict[str, float]] = {"A": {}, "V": {}}
        for line in lines:
            if match := _RAIL.fullmatch(line):
                try:
                    parts[match[2]][match[1]] = float(match[3])
                except ValueError:
                    continue
        amperes, volts = parts["A"], parts["V"]
        rails = {name: amperes[name] * volts[name] for name in amperes if name in volts}
        rails = {name: watts for name, watts in rails.items() if q.POWER.plausible(watts)}
        wanted = sum(bool(re.match(r"\s*\w+_A ", line)) for line in lines)
        if not rails or len(rails) < wanted:
            return Power(rails)
        return Power(rails, sum(rails.values()) * _PMIC_FACTOR + _PMIC_REST, "pmic")


def has_pmic(board: Board) -> bool:
    """Whether it is a Pi 5, 500 or Compute Module 5: they have the power management chip that the firmware reads."""
    return "brcm,bcm2712" in (device_tree(board.root, "compatible") or "")


def facts(ask: Gencmd) -> dict[str, str]:
    """`reset_reason`: power_on or reset, which may be a reboot, a watchdog or the button; the firmware says no more."""
    try:
        word = int(ask("get_rsts").removeprefix("get_rsts="), 16)
    except BROKEN:
        return {}
    return {"reset_reason": "reset" if word & _FULL_RESET else "power_on" if word & _POWER_ON else f"0x{word:x}"}
