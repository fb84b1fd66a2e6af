"""Clocks: the kernel's readings, and when wall time counts as right."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from edged.machine import clock
from edged.machine.clock import Clock

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"


def kernel(result: int, maxerror: int, status: int = 0) -> Callable[[Any], int]:
    """An adjtimex(2) that answers so, at the offsets of the C structure."""

    def answer(pointer: Any) -> int:
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        word = ctypes.sizeof(ctypes.c_long)
        assert ctypes.c_uint.from_address(address).value == 0, "modes: it would set the clock"
        ctypes.c_long.from_address(address + 3 * word).value = maxerror
        ctypes.c_int.from_address(address + 5 * word).value = status
        return result

    return answer


@pytest.mark.parametrize(
    ("result", "maxerror", "status", "expected"),
    [
        (0, 250_000, 0, True),
        (0, 15_999_999, 0, True),
        (5, 16_000_000, 0x40, False),  # TIME_ERROR, STA_UNSYNC: since boot
        (5, 250_000, 0x40, True),  # a time daemon that keeps the kernel off the hardware clock
        (-1, 0, 0, False),
    ],
)
def test_the_clock_is_synchronised_while_its_greatest_error_is_below_16_seconds(
    monkeypatch: pytest.MonkeyPatch, result: int, maxerror: int, status: int, expected: bool
) -> None:
    monkeypatch.setattr(clock, "_adjtimex", kernel(result, maxerror, status))
    assert Clock().synchronised() is expected


def test_without_the_call_the_clock_is_not_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_adjtimex", None)
    assert Clock().synchronised() is False


def test_the_real_call_answers_without_harm() -> None:
    assert Clock().synchronised() in (True, False)


def test_the_structure_holds_at_least_what_the_kernel_writes() -> None:
    # struct timex: 208 bytes with 64-bit longs, 128 with 32-bit ones
    assert ctypes.sizeof(clock._Timex) >= (208 if ctypes.sizeof(ctypes.c_long) == 8 else 128)


def test_the_boot_id_is_the_kernels() -> None:
    assert Clock(BOARDS / "pi4").boot_id() == "44444444-0000-4000-8000-444444444444"


def test_time_since_boot_goes_on_and_wall_time_is_seconds_since_1970() -> None:
    first = Clock().boottime()
    assert Clock().boottime() >= first > 0
    assert abs(Clock().wall() - time.time()) < PATIENCE
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(uptime - first) < PATIENCE
