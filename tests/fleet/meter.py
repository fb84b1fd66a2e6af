"""What a fleet costs its broker, and what a board costs: counted by a client, by the kernel; and tables of it."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from hall import Hall

HOUR = 3600.0


@dataclass(frozen=True)
class Reading:
    """Counters at an instant."""

    at: float
    """CLOCK_MONOTONIC, seconds."""
    heard: int
    """Messages that the hall's observer has heard."""
    sockets: dict[int, tuple[int, int]]
    """By the device's port: bytes in both directions of TCP, and segments in both."""
    broker_cpu: float
    boards_cpu: float
    """Seconds, of all devices together."""


@dataclass(frozen=True)
class Load:
    """What came and went between two readings, over `seconds`, of all devices together."""

    seconds: float
    messages: int
    """PUBLISH packets to devices and from them."""
    bytes: int
    """TCP's payload in both directions: TLS is part of it."""
    segments: int
    broker_cpu: float
    boards_cpu: float
    channels: Counter[str]
    """The messages by the kind of their topic."""


class Meter:
    """Counts what the devices of a hall say and are told, while nothing restarts."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._pids = [daemon.process.pid for daemon in hall.daemons if daemon.process is not None]
        self._ports = {
            connection.laddr.port
            for pid in self._pids
            for connection in psutil.Process(pid).net_connections("tcp4")
            if connection.raddr and connection.raddr.port == hall.broker.port
        }

    @property
    def connections(self) -> int:
        """Connections of the devices to the broker."""
        return len(self._ports)

    def read(self) -> Reading:
        broker = self._hall.broker.process
        assert broker is not None
        counted = sockets(self._hall.broker.port)
        return Reading(
            time.monotonic(),
            len(self._hall.watch.heard),
            {port: counted[port] for port in self._ports & counted.keys()},
            cpu_seconds([broker.pid]),
            cpu_seconds(self._pids),
        )

    def since(self, one: Reading) -> Load:
        """From then until now."""
        two = self.read()
        heard = [topic for _, topic, _ in self._hall.watch.heard[one.heard : two.heard]]
        both = one.sockets.keys() & two.sockets.keys()  # a connection that was lost has no end
        moved = [tuple(b - a for a, b in zip(one.sockets[at], two.sockets[at], strict=True)) for at in both]
        return Load(
            two.at - one.at,
            len(heard),
            sum(bytes for bytes, _ in moved),
            sum(segments for _, segments in moved),
            two.broker_cpu - one.broker_cpu,
            two.boards_cpu - one.boards_cpu,
            Counter(map(channel, heard)),
        )

    def broker_memory(self) -> float:
        """MiB."""
        broker = self._hall.broker.process
        assert broker is not None
        return float(psutil.Process(broker.pid).memory_info().rss / 2**20)

    def board_memory(self) -> float:
        """Mean proportional set size of a device with its children, MiB."""
        processes = [one for pid in self._pids for one in family(pid)]
        return float(sum(one.memory_full_info().pss for one in processes) / len(self._pids) / 2**20)


def family(pid: int) -> list[psutil.Process]:
    """A process and its children."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def channel(topic: str) -> str:
    """The kind of a topic: edged/v1/device/pi-1/event/7 is `event`, edged/v1/group/hall/offer/pi-1 is `offer`."""
    return topic.split("/")[4] if topic.count("/") >= 4 else topic


def sockets(port: int) -> dict[int, tuple[int, int]]:
    """Of each TCP connection to this port of this machine, by the other side's port: bytes and segments, both ways."""
    line = ["ss", "-tinHO", "state", "established", f"( sport = :{port} )"]
    found = {}
    for entry in subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines():
        words = entry.split()
        told = dict(word.split(":", 1) for word in words[4:] if word.count(":") == 1)
        bytes, segments = (
            sum(int(told.get(name, 0)) for name in names)
            for names in (("bytes_sent", "bytes_received"), ("segs_out", "segs_in"))
        )
        found[int(words[3].rpartition(":")[2])] = bytes, segments
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes so far, all threads together."""
    return sum(
        int((thread / "schedstat").read_text().split()[0]) / 1e9
        for pid in pids
        for thread in Path(f"/proc/{pid}/task").iterdir()
    )


def table(title: str, head: list[str], rows: list[list[Any]]) -> str:
    """As Markdown, with a title above."""
    shown = [head, ["---"] * len(head), *[[figure(cell) for cell in row] for row in rows]]
    return "\n".join([f"\n{title}\n", *(f"| {' | '.join(row)} |" for row in shown)])


def figure(value: Any) -> str:
    """Numbers with three digits that count."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
