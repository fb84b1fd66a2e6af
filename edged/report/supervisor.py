"""Notifies systemd (sd_notify(3)): ready, status line, sign of life, reloading, stopping.

Without NOTIFY_SOCKET, as on a terminal, nothing is sent.
"""

from __future__ import annotations

import math
import os
import socket
import time

import structlog

log = structlog.get_logger(__name__)

_PER_INTERVAL = 3
"""Signs of life per WatchdogSec=, so that a late one does no harm."""


class Supervisor:
    """Sends to systemd, if it started this process. Any thread may call it: each message is one datagram."""

    def __init__(self) -> None:
        """Take NOTIFY_SOCKET and the watchdog's variables out of the environment: child processes must not notify."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "0")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        self._environment = {"NOTIFY_SOCKET": address} if address else {}
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        ours = bool(address) and microseconds.isdecimal() and pid == str(os.getpid())
        self.watchdog_seconds = int(microseconds) / 1e6 if ours else 0.0
        """Seconds within which systemd expects a sign of life; 0: it expects none."""
        if self.watchdog_seconds:
            self._environment |= {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
        self.interval = self.watchdog_seconds / _PER_INTERVAL or math.inf
        """Longest time in seconds between two calls of alive()."""
        self._alive_at = float("-inf")
        self._status = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that were taken, for the program that replaces this one in its process."""
        return dict(self._environment)

    def ready(self) -> None:
        """The service is up, or has been reloaded."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Set the line in `systemctl status`. An unchanged one is not sent again."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={' '.join(text.split())[:400]}")

    def alive(self) -> None:
        """Give a sign of life. Call it often: only as many are sent as are due."""
        if self.watchdog_seconds and time.monotonic() - self._alive_at >= self.interval / 2:
            self._alive_at = time.monotonic()
            self._send("WATCHDOG=1")

    def long_work(self, seconds: float) -> None:
        """Extend the start timeout and the watchdog: there may be no sign of life for `seconds` from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")
        if seconds > self.watchdog_seconds > 0:
            self._send(f"WATCHDOG_USEC={int(seconds * 1e6)}")

    def long_work_done(self) -> None:
        """Set the watchdog back to its configured time."""
        if self.watchdog_seconds:
            self._send(f"WATCHDOG_USEC={int(self.watchdog_seconds * 1e6)}\nWATCHDOG=1")

    def reloading(self) -> None:
        """The service reads its settings again; ready() ends this state."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service drains and ends."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("systemd_not_told", reason=(error.strerror or str(error)).lower())
