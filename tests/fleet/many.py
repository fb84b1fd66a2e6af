"""`make show-fleet`: as many real daemons as fit in memory, their broker, and when all have heard of a rollout."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("broker", "unit")]

import psutil  # noqa: E402
from fleet_fixtures import Guest  # noqa: E402
from hall import GROUP, ROOT, Hall  # noqa: E402
from meter import HOUR, Meter, table  # noqa: E402
from pull_rig import publish  # noqa: E402

DAEMON_MEMORY = 90 << 20
"""Bytes that a daemon takes at the most, with its children."""
SPARE = 2 << 30


def hears(hall: Hall, document: Path) -> list[float]:
    """Publish a document by which no device begins yet; after how many seconds each device has reported it."""
    account = Guest(hall.broker.port, hall.broker.files("conductor", "rollouts"))
    rollout, since, began = json.loads(document.read_text())["rollout"], len(hall.watch.heard), time.monotonic()
    assert account.publish(f"{ROOT}/group/{GROUP}/desired", document.read_text(), retain=True)
    account.close()
    heard: dict[str, float] = {}

    def all_have() -> bool:
        nonlocal since
        new, since = hall.watch.heard[since:], len(hall.watch.heard)
        for at, topic, payload in new:
            if topic.endswith("/reported") and json.loads(payload)["rollout"] == rollout:
                heard.setdefault(topic.split("/")[3], at - began)
        return len(heard) == len(hall.names)

    hall.watch.wait_until(all_have, lambda: f"heard by {len(heard)}", HOUR)
    return sorted(heard.values())


def conducted(hall: Hall, document: Path, package: Path, per_minute: int | None) -> tuple[float, str]:
    """Roll it out; seconds until every device serves it, and what the conductor said."""
    began, more = time.monotonic(), () if per_minute is None else ("--per-minute", str(per_minute))
    with hall.rollout(document, more=more) as conductor:
        assert conductor.ends() == 0, conductor
    hall.serves(package, json.loads(document.read_text())["rollout"])
    return time.monotonic() - began, str(conductor)


def show(count: int, idle_seconds: float, per_minute: int | None) -> None:
    began = time.monotonic()
    with contextlib.closing(Hall(count)) as hall:
        made = time.monotonic()
        print(f"{count} keys and accounts made in {made - began:.0f} s", flush=True)
        hall.start()
        hall.ready()
        print(f"{count} daemons ready after {time.monotonic() - made:.0f} s", flush=True)
        meter = Meter(hall)
        one = meter.read()
        time.sleep(idle_seconds)
        idle = meter.since(one)
        package = publish(hall.folder / "package")
        document = hall.signed(package, "many", percent=0, proving={"seconds": 5, "speed": 0})
        heard = hears(hall, document)
        rows: list[list[object]] = [
            ["connections", meter.connections],
            ["a daemon, MiB (PSS, with its child)", meter.board_memory()],
            ["a daemon's share of a core, idle", f"{idle.boards_cpu / count / idle.seconds:.2%}"],
            ["broker, MiB resident", meter.broker_memory()],
            ["broker's share of a core, idle", f"{idle.broker_cpu / idle.seconds:.2%}"],
            ["messages a daemon and hour, idle", idle.messages / count / idle.seconds * HOUR],
            ["bytes in TCP a daemon and hour, idle", idle.bytes / count / idle.seconds * HOUR],
            ["first daemon has reported the rollout, s", heard[0]],
            ["half of them, s", statistics.median(heard)],
            ["all, s", heard[-1]],
        ]
        title = f"{count} daemons, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
        print(table(title, ["", ""], rows), flush=True)
        seconds, said = conducted(hall, document, package, per_minute)
        print(f"\n{said}\n\nall serve the new model after {seconds:.0f} s (waves of 5, 25 and 100 %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    fit = (psutil.virtual_memory().available - SPARE) // DAEMON_MEMORY
    parser.add_argument("--daemons", type=int, default=fit, help="how many; else as many as fit in memory")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds of rest that are measured")
    parser.add_argument("--per-minute", type=int, help="most devices that join the rollout within a minute")
    arguments = parser.parse_args()
    if arguments.daemons > fit:
        sys.exit(f"{arguments.daemons} daemons do not fit: there is memory for {fit}")
    show(arguments.daemons, arguments.idle, arguments.per_minute)


if __name__ == "__main__":
    main()
