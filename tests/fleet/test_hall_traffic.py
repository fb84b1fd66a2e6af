"""What twenty idle and busy devices cost their broker, and what that is for 500 and 10,000: printed for the docs."""

from __future__ import annotations

import os
import time

from daemon_fixtures import job
from hall import ROOT, Hall
from meter import HOUR, Load, Meter, table

IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS", "300"))
JOBS, TOKENS = 5, 64
"""Jobs to each device, and tokens of each answer."""
JOB_SECONDS = 5.0
"""A busy device answers a job in so many seconds."""
FLEETS = (1, 500, 10_000)
SEGMENT_BYTES = 52
"""IPv4 and TCP with timestamps, of each segment."""


def idle(hall: Hall, meter: Meter, seconds: float) -> Load:
    began = meter.read()
    time.sleep(seconds)  # what is measured is the time in which nothing happens
    return meter.since(began)


def jobs(hall: Hall, meter: Meter, prefix: str, **fields: object) -> Load:
    """Each device answers JOBS jobs."""
    began = meter.read()
    ids = []
    for n in range(JOBS):
        for name in hall.names:
            ids.append(f"{prefix}-{n}-{name}")
            hall.send(job(ids[-1], TOKENS, **fields), to=f"{ROOT}/device/{name}/job")
    hall.answered(ids)
    return meter.since(began)


def test_traffic(hall: Hall) -> None:
    meter, boards = Meter(hall), len(hall.names)
    assert meter.connections == 2 * boards
    rest = idle(hall, meter, IDLE_SECONDS)
    plain = jobs(hall, meter, "plain")
    streamed = jobs(hall, meter, "streamed", stream=True)
    assert rest.messages / boards / rest.seconds * HOUR < 1000
    hourly = Row.of(rest, 1 / boards / rest.seconds * HOUR)
    of_job = [Row.of(load, 1 / boards / JOBS) - hourly * (load.seconds / HOUR / JOBS) for load in (plain, streamed)]
    busy = [hourly + one * (HOUR / JOB_SECONDS) for one in of_job]
    names = ["idle, an hour", "a job", "a job, streamed", "busy, an hour", "busy, streamed, an hour"]
    head = ["a board", "messages", "bytes in TCP (with TLS)", "bytes on the wire", "broker's CPU, ms"]
    rows = [hourly, *of_job, *busy]
    print(table(f"{boards} daemons, answers of {TOKENS} tokens, {IDLE_SECONDS:.0f} s idle", head,
                [[name, *row.cells()] for name, row in zip(names, rows, strict=True)]))  # fmt: skip
    by_channel = {name: count / boards / rest.seconds * HOUR for name, count in rest.channels.most_common()}
    print("\nidle, an hour, by topic: " + ", ".join(f"{name} {count:.0f}" for name, count in by_channel.items()))
    head = ["boards", "connections", "", "messages/s", "Mbit/s on the wire", "GB a day", "cores of the broker"]
    print(table("computed from that", head, [
        [count, 2 * count, name, *(row * (count / HOUR)).rates()]
        for count in FLEETS
        for name, row in (("idle", hourly), ("busy", busy[0]), ("busy, streamed", busy[1]))
    ]))  # fmt: skip
    print(f"\nbroker {meter.broker_memory():.1f} MiB resident; a device {meter.board_memory():.0f} MiB (PSS), "
          f"{rest.boards_cpu / boards / rest.seconds:.2%} of a core while idle")  # fmt: skip


class Row:
    """Messages, bytes in TCP, bytes on the wire and seconds of the broker's CPU."""

    def __init__(self, *values: float) -> None:
        self.values = values

    @staticmethod
    def of(load: Load, share: float) -> Row:
        wire = load.bytes + SEGMENT_BYTES * load.segments
        return Row(*(value * share for value in (load.messages, load.bytes, wire, load.broker_cpu)))

    def __mul__(self, factor: float) -> Row:
        return Row(*(value * factor for value in self.values))

    def __add__(self, other: Row) -> Row:
        return Row(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __sub__(self, other: Row) -> Row:
        return self + other * -1

    def cells(self) -> list[float]:
        messages, payload, wire, cpu = self.values
        return [messages, payload, wire, cpu * 1000]

    def rates(self) -> list[float]:
        messages, _, wire, cpu = self.values
        return [messages, wire * 8 / 1e6, wire * 86400 / 1e9, cpu]
