"""Raspberry Pi: under-voltage and throttling as the firmware reports them."""

from __future__ import annotations

from pathlib import Path

from edged.machine.board.generic import Board, device_tree, online, read_int, serial

# Bits of the firmware's GET_THROTTLED for the current state; the same bits 16 higher are set once it has occurred.
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_BITS = {"under_voltage": 0, "frequency_capped": 1, "throttled": 2, "soft_temperature_limit": 3}


class RaspberryPi(Board):
    """A Raspberry Pi."""

    def throttled(self) -> dict[str, bool]:
        """The current state that the firmware reports.

        All four reasons if the kernel has get_throttled (Raspberry Pi's own kernel up to the Pi 4; reading it logs one
        deprecation warning per boot). Otherwise only ``under_voltage``, which the rpi_volt driver polls every 2 s: a
        Pi 5 reports the others only to vcgencmd.
        """
        found: dict[str, bool] = {}
        # soc:firmware up to the Pi 4, soc@…:firmware if the node has an address
        for path in sorted((self.root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled")):
            word = read_int(path, base=16)
            if word is not None:
                found = {reason: bool(word >> bit & 1) for reason, bit in _BITS.items()}
                break
        for chip, name in self.hwmon():
            alarm = read_int(chip / "in0_lcrit_alarm") if name == "rpi_volt" else None
            if alarm is not None:
                found["under_voltage"] = found.get("under_voltage", False) or bool(alarm)
        return found


def raspberry_pi(root: Path) -> RaspberryPi | None:
    """The Raspberry Pi below ``root``, if it is one."""
    if "raspberrypi," not in (device_tree(root, "compatible") or ""):
        return None
    model = device_tree(root, "model") or "Raspberry Pi"
    return RaspberryPi("raspberry_pi", model, serial(root), None, online(root), root)
