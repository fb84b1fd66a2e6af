"""Load shared over a group: eight daemons, two of them ten times slower, beside a central queue and a blind broker.

Jobs come at random (Poisson) at a share of what the eight can carry, and take five to ten seconds on a fast member,
which sleeps between its steps: so eight of them fit on two cores. The central queue is computed, for the same arrivals
and durations: it knows all durations and rows, and each job goes at once to the row that finishes it first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("broker", "unit")]

from edged import logs  # noqa: E402

logs.configure("error", "json")  # the fixtures load a model

from daemon_fixtures import Place, job  # noqa: E402
from paho.mqtt.client import Client, MQTTMessage  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion  # noqa: E402
from patience import eventually  # noqa: E402

STEP_SECONDS = 0.25
ROWS = 4
SLOWER = (1.0,) * 6 + (10.0,) * 2
"""How many times slower each member is."""
TOKENS = (20, 40)
GOAL = 1.3
LIMIT_SECONDS = 60.0
"""After the last arrival; what has no result by then counts as one that comes never."""


class Told(NamedTuple):
    """An event or a result."""

    at: float
    """CLOCK_MONOTONIC seconds."""
    device: str
    ran: float
    """Of a result: seconds from the row on."""


@dataclass(frozen=True)
class Arrival:
    """A job: seconds after the begin, and tokens of its answer."""

    at: float
    tokens: int


def arrivals(load: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson arrivals at a share of what the members can carry."""
    chance = random.Random(seed)
    carried = sum(ROWS / slower for slower in SLOWER) / (statistics.fmean(TOKENS) * STEP_SECONDS)
    found, at = [], 0.0
    while (at := at + chance.expovariate(load * carried)) < seconds:
        found.append(Arrival(at, chance.randint(*TOKENS)))
    return found


def central(jobs: Sequence[Arrival], seconds: Sequence[float]) -> list[float]:
    """Seconds to the answer of each job where one queue knows all. `seconds`: what each takes on a fast member."""
    rows = [[0.0, slower] for slower in SLOWER for _ in range(ROWS)]
    took = []
    for one, duration in zip(jobs, seconds, strict=True):
        row = min(rows, key=lambda row: max(row[0], one.at) + duration * row[1])
        row[0] = max(row[0], one.at) + duration * row[1]
        took.append(row[0] - one.at)
    return took


def p95(took: Sequence[float]) -> float:
    """The value that 95 % do not exceed."""
    return sorted(took)[math.ceil(0.95 * len(took)) - 1]


class Hall:
    """The members of the group and a client that sends jobs and hears what becomes of them."""

    def __init__(self, place: Place, shares: bool) -> None:
        self._heard: dict[tuple[str, str], Told] = {}
        self._changed = threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", place.broker.port)
        self._client.subscribe([(f"edged/v1/device/+/{kind}/+", 1) for kind in ("event", "result")])
        self._client.loop_start()
        settings = {"DEVICE__GROUPS": "hall", "MODEL__ROWS": str(ROWS), "DRAIN_SECONDS": "300"}
        settings["DEVICE__SHARE_LOAD"] = str(shares).lower()
        self.members = [place.daemon(device=f"member-{n}", paced=True, **settings) for n in range(len(SLOWER))]
        for member, slower in zip(self.members, SLOWER, strict=True):
            member.pace(f"every {slower * STEP_SECONDS}")
            member.start(ready=False)
        for n, member in enumerate(self.members):
            member.until_ready()
            self.send(
                f"first-{shares}-{n}", TOKENS[0] // 2, f"device/{member.device}/job"
            )  # from then on it knows its speed
        for n in range(len(self.members)):
            self.wait(f"first-{shares}-{n}", "result")

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        *_, device, kind, id = message.topic.split("/")
        document = json.loads(message.payload)
        times = document.get("timings", {"total": 0.0, "queued": 0.0})
        what = kind if kind == "result" else str(document["event"])
        with self._changed:
            self._heard[id, what] = Told(time.monotonic(), device, times["total"] - times["queued"])  # the last one
            self._changed.notify_all()

    def send(self, id: str, tokens: int, to: str = "group/hall/job") -> None:
        """Send a job."""
        self._client.publish(f"edged/v1/{to}", json.dumps(job(id, tokens)), qos=1)

    def heard(self, id: str, what: str) -> Told | None:
        """When, and from whom."""
        with self._changed:
            return self._heard.get((id, what))

    def wait(self, id: str, what: str, until: float = math.inf) -> Told | None:
        """The same once it is there; None where it has not come by then."""
        with self._changed:
            self._changed.wait_for(
                lambda: (id, what) in self._heard, None if until == math.inf else max(0.0, until - time.monotonic())
            )
            return self._heard.get((id, what))

    def close(self) -> None:
        """End all members at once."""
        for member in self.members:
            member.kill()
        self._client.disconnect()
        self._client.loop_stop()


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs of a run."""

    took: list[float]
    """Seconds to each answer; infinite where none came."""
    seconds: list[float]
    """What each took from its row on, as on a fast member; as planned where there is no answer."""
    by_slow: int
    """Those that slow members answered."""


def run(hall: Hall, jobs: Sequence[Arrival], name: str) -> Outcome:
    """Send the jobs, and wait for their answers."""
    begin, sent = time.monotonic(), []
    for n, one in enumerate(jobs):
        time.sleep(max(0.0, begin + one.at - time.monotonic()))
        sent.append(time.monotonic())
        hall.send(f"{name}-{n}", one.tokens)
    until = time.monotonic() + LIMIT_SECONDS
    slower = {member.device: slower for member, slower in zip(hall.members, SLOWER, strict=True)}
    took, seconds, by_slow = [], [], 0
    for n, (one, at) in enumerate(zip(jobs, sent, strict=True)):
        answer = hall.wait(f"{name}-{n}", "result", until)
        took.append(math.inf if answer is None else answer.at - at)
        seconds.append(one.tokens * STEP_SECONDS if answer is None else answer.ran / slower[answer.device])
        by_slow += answer is not None and slower[answer.device] > 1
    return Outcome(took, seconds, by_slow)


def show(load: float, what: str, jobs: Sequence[Arrival], outcome: Outcome) -> None:
    """Two lines of the table."""
    best = central(jobs, outcome.seconds)
    for name, took in ((what, outcome.took), ("central queue, same jobs", best)):
        words = f"{len(took):>5} {statistics.median(took):>8.1f} s {p95(took):>8.1f} s {p95(took) / p95(best):>9.2f}"
        words += f" {outcome.by_slow:>8}" if took is outcome.took else ""
        lost = sum(math.isinf(one) for one in took)
        print(f"  {f'{load:.0%} load: {name}':<34} {words}" + (f"   ({lost} without)" if lost else ""), flush=True)


def drain(hall: Hall) -> None:
    """One member is told to end while jobs wait at all of them."""
    ids = [f"burst-{n}" for n in range(8 * sum(slower == 1 for slower in SLOWER))]
    for id in ids:
        hall.send(id, TOKENS[0])
    leaving = hall.members[0]
    for id in ids:
        hall.wait(id, "accepted")
    began = time.monotonic()
    leaving.send_signal(signal.SIGTERM)
    mine = [id for id in ids if (told := hall.heard(id, "accepted")) is not None and told.device == leaving.device]
    waiting = [id for id in mine if hall.heard(id, "started") is None]
    for id in waiting:
        hall.wait(id, "result", began + LIMIT_SECONDS)
    others = [
        told for id in waiting if (told := hall.heard(id, "result")) is not None and told.device != leaving.device
    ]
    started = [told.at for id in waiting if (told := hall.heard(id, "started")) is not None]
    print(
        f"\n  a member drains while {len(ids)} jobs are there, {len(waiting)} of them wait at it: "
        f"{len(others)} answered by others, started within {max(started, default=began) - began:.1f} s, "
        f"answered within {max((told.at for told in others), default=began) - began:.1f} s"
        f" (a job takes {TOKENS[0] * STEP_SECONDS:g} s)",
        flush=True,
    )
    eventually(lambda: leaving.process is not None and leaving.process.poll() is not None, "the member has ended")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which jobs come, for each line")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    print(
        f"{len(SLOWER)} daemons of {ROWS} rows, {sum(slower > 1 for slower in SLOWER)} of them "
        f"{max(SLOWER):g} times slower; jobs of {TOKENS[0] * STEP_SECONDS:g} to {TOKENS[1] * STEP_SECONDS:g} s; "
        f"load of the machine before: {os.getloadavg()[0]:.1f}\n"
        f"  {'':<34} {'jobs':>5} {'median':>10} {'p95':>10} {'p95 ÷':>9} {'by slow':>8}\n"
        f"  {'':<34} {'':>5} {'':>10} {'':>10} {'central':>9} {'members':>8}",
        flush=True,
    )
    loads = {load: arrivals(load, arguments.seconds, arguments.seed) for load in (0.60, 0.75)}
    for shares, what in ((True, "shared"), (False, "in turn, not shared")):
        with contextlib.closing(Place()) as place:
            place.broker.start()
            with contextlib.closing(Hall(place, shares)) as hall:
                for load, jobs in loads.items():
                    show(load, what, jobs, run(hall, jobs, f"at-{load:g}"))
                if shares:
                    drain(hall)
    print(f"\n  goal: p95 ≤ {GOAL} × that of the central queue, at both loads")


if __name__ == "__main__":
    main()
