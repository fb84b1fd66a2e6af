"""Clocks: wall time, time since boot, which boot it is, and whether wall time can be trusted."""

from __future__ import annotations

import ctypes
import time
from datetime import datetime, timezone
from pathlib import Path

# The kernel's NTP_PHASE_LIMIT: a clock that nothing disciplines has at least this error, in microseconds.
_UNDISCIPLINED = 16_000_000


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),  # more than the kernel fills in
    )


_adjtimex = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)


class Clock:
    """The machine's clocks. A test gives a clock of its own with the same four methods."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._boot_id = root / "proc/sys/kernel/random/boot_id"

    def wall(self) -> float:
        """Seconds since 1970; wrong until the clock is synchronised on a board without a battery."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since boot, sleep included (CLOCK_BOOTTIME): never steps, starts anew at each boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """A random id of this boot. Raises OSError where /proc is not there."""
        return self._boot_id.read_text("ascii").strip()

    def synchronised(self) -> bool:
        """Whether something like NTP keeps wall time right; False where the kernel does not say.

        As systemd judges it (ntp_synced): the maximum error is below 16 s. STA_UNSYNC is not looked at, since
        time daemons set it on a good clock too, to keep the kernel from writing the hardware clock.
        """
        if _adjtimex is None:
            return False
        timex = _Timex()  # modes 0: only read
        return bool(_adjtimex(ctypes.byref(timex)) >= 0 and timex.maxerror < _UNDISCIPLINED)


def format_time(moment: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
