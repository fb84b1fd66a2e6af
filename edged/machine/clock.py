"""Clocks: wall time, time since boot, the id of the boot, and whether wall time is synchronised."""

from __future__ import annotations

import ctypes
import re
import time
from datetime import datetime, timezone
from pathlib import Path

# The kernel's NTP_PHASE_LIMIT in microseconds: an undisciplined clock has at least this error.
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
        ("rest", ctypes.c_long * 32),  # more than the kernel writes
    )


_adjtimex = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)


class Clock:
    """The machine's clocks. Tests may provide another object with the same four methods."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._boot_id = root / "proc/sys/kernel/random/boot_id"

    def wall(self) -> float:
        """Seconds since 1970; wrong on a board without a battery until the clock is synchronised."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since boot, sleep included (CLOCK_BOOTTIME). Never steps; restarts at each boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """A random id of this boot. Raises OSError if /proc cannot be read."""
        return self._boot_id.read_text("ascii").strip()

    def synchronised(self) -> bool:
        """Whether NTP or the like keeps wall time right; False if the kernel does not tell.

        Like systemd's ntp_synced: the maximum error is below 16 s. STA_UNSYNC is ignored, since time daemons set it
        on a synchronised clock too, to prevent the kernel from writing the hardware clock.
        """
        if _adjtimex is None:
            return False
        timex = _Timex()  # modes 0: read only
        return bool(_adjtimex(ctypes.byref(timex)) >= 0 and timex.maxerror < _UNDISCIPLINED)


TIME_ALLOWED = "an RFC 3339 time with its offset, such as 2027-01-31T18:00:00Z"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 date-time. Raises ValueError, which says what is wrong."""
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"must be {TIME_ALLOWED}")
    try:
        # Python 3.10 knows neither Z nor other than 3 or 6 digits of a second.
        digits = re.sub(r"(\.\d{1,6})\d*", lambda found: found[1].ljust(7, "0"), text.upper())
        return datetime.fromisoformat(digits.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("is not a time that exists") from None


def format_time(moment: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
