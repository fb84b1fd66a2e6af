"""Cuts the power at every sync in a daemon's life, and at many instants between: `make power` prints the table.

The real daemon works over a real mosquitto while recorder.c, preloaded, writes down every change of its state folder.
A subscriber of its own stamps what the daemon says with the same clock. Then each state that the disk may have been in
is laid out anew and opened as the daemon would: whatever was said before that instant must be there. Settings that a
rollout sets are the old ones or the new ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("broker", "unit")]
from daemon_fixtures import Daemon, Place, eventually, job  # noqa: E402
from disk import SYNC, TRUNCATE, UNLINK, WRITE, Change, Disk, read_recording  # noqa: E402

from edged.checked_json import DamagedError  # noqa: E402
from edged.jobs.schema import SpoolError  # noqa: E402
from edged.jobs.spool_recovery import open_spool  # noqa: E402
from edged.settings.remote import read_kept  # noqa: E402

SEED = 20_26
SUBSETS = 2_000
SABOTAGED_SUBSETS = 200
RETENTION = 4
SET = "cache.daily_write_bytes"
"""What rollouts set: their number in MB."""
SLACK = 1.5
"""Seconds by which the subscriber may hear of a result later than the daemon finished it."""
SHOWN = 5


@dataclass
class Heard:
    """What the daemon said, and when (CLOCK_MONOTONIC, ns)."""

    accepted: dict[str, int] = field(default_factory=dict)
    results: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)
    settings: dict[int, int] = field(default_factory=dict)
    """When a rollout of settings was said to have succeeded, by its number."""
    returned: int | None = None
    """When the one that fails was said to have gone back."""

    def take(self, message: MQTTMessage) -> None:
        now = time.monotonic_ns()
        channel, _, id = message.topic.removeprefix("edged/v1/device/board/").partition("/")
        if channel == "reported":
            self._take_report(now, json.loads(message.payload))
        elif channel == "result":
            self.results.setdefault(id, (now, message.payload))
        elif json.loads(message.payload)["event"] == "accepted":
            self.accepted.setdefault(id, now)

    def _take_report(self, now: int, report: dict[str, Any]) -> None:
        if report["state"] == "SUCCEEDED":
            self.settings.setdefault(int(report["rollout"]), now)
        elif report["state"] == "FAILED" and report["step"] is None:
            self.returned = self.returned or now


def lived(folder: Path, library: Path, sabotage: str = "") -> tuple[list[Change], Heard]:
    """A short life with all that writes: (recording, what was heard)."""
    heard = Heard()
    place = Place()
    place.broker.start()
    listener = Client(CallbackAPIVersion.VERSION2)
    listener.on_message = lambda _client, _data, message: heard.take(message)
    listener.connect("127.0.0.1", place.broker.port)
    listener.subscribe([("edged/v1/device/board/event/+", 1), ("edged/v1/device/board/result/+", 1)])
    listener.subscribe("edged/v1/device/board/reported", 1)
    listener.loop_start()
    try:
        settings = {"JOBS__RETENTION": str(RETENTION), "MODEL__ROWS": "8", "FLEET__UNSIGNED": "true"}
        daemon = place.daemon(folder=folder, paced=True, **settings)
        daemon.env |= {"POWER_FOLDER": str(daemon.state_dir), "POWER_RECORD": str(folder / "record")}
        daemon.env |= {"LD_PRELOAD": str(library)}
        if sabotage:
            daemon.env["POWER_SABOTAGE"] = sabotage
            daemon._script = [str(HERE / "sabotaged_edged.py")]
        work(daemon, place, heard)
    finally:
        listener.disconnect()
        listener.loop_stop()
        place.close()
    return list(read_recording(folder / "record")), heard


def work(daemon: Daemon, place: Place, heard: Heard) -> None:
    client = place.client()
    sent: list[str] = []

    def send(name: str, count: int, **fields: Any) -> list[str]:
        ids = [f"{name}-{n}" for n in range(count)]
        for id in ids:
            client.send(job(id, **fields))
        sent.extend(ids)
        return ids

    def answered(ids: list[str]) -> None:
        eventually(lambda: all(id in heard.results for id in ids), "no result", timeout=60)

    daemon.start()
    for n in range(10):
        answered(send(f"alone-{n}", 1))
    answered(send("batch", 32))
    answered(send("unstored", 5, store=False))
    for n in range(10):  # with them come checkpoints
        answered(send(f"large-{n}", 10, metadata={"words": "of some length " * 1400}))
    kept = send("forgotten", 1)
    answered(kept)
    heard.forgotten[kept[0]] = time.monotonic_ns()
    assert daemon.command("forget", kept[0]).returncode == 0
    pruned = [id for id in sent if id.startswith("alone")]
    eventually(lambda: not {row[0] for row in daemon.query("SELECT id FROM job")} & set(pruned), "not pruned")
    daemon.pace("hold")
    held = send("held", 12)
    eventually(lambda: all(id in heard.accepted for id in held), "not accepted")
    daemon.kill()
    daemon.pace("")
    daemon.start()
    answered(held)
    answered(send("after", 32))
    assert daemon.end() == 0
    daemon.start()
    answered(send("again", 16))
    for number in (1, 2):
        client.send(rollout(number, {SET: number * 1_000_000}), to="desired", retain=True)
        eventually(lambda number=number: number in heard.settings, "no new settings", timeout=60)
    client.send(rollout(3, {SET: 3_000_000, "model.context": 1 << 20}), to="desired", retain=True)  # cannot be loaded
    eventually(lambda: heard.returned is not None, "not returned", timeout=60)
    assert daemon.end() == 0


def rollout(number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A desired document of settings."""
    return {"rollout": str(number), "sequence": number, "settings": settings, "proving": {"seconds": 0}}


@dataclass
class Verdict:
    """What was found in the states."""

    states: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    faults: list[str] = field(default_factory=list)


def judge(changes: list[Change], heard: Heard, subsets: int) -> Verdict:
    """Lay out and open every state at a sync, and so many random ones."""
    verdict, disk, chance = Verdict(), Disk(), random.Random(SEED)
    trials = Counter(chance.randrange(len(changes)) for _ in range(subsets))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        for n, change in enumerate(changes):
            disk.apply(change)
            # Nothing else reaches the disk before the next call begins, or ends where that is a sync.
            following = changes[n + 1] if n + 1 < len(changes) else None
            until = following.ended if following and following.op == SYNC else following.began if following else 1 << 63
            at_sync = change.op == SYNC or (following is not None and following.op == SYNC)
            cases = (
                [("boundary", disk.after_a_cut(None)), ("boundary", disk.after_a_cut(None, True))] if at_sync else []
            )
            for _ in range(trials[n]):
                cases.append(("subset", disk.after_a_cut(chance)))
                verdict.torn += bool(disk.pending)
            for kind, files in cases:
                verdict.states[kind] += 1
                folder = Path(name) / "state"
                folder.mkdir()
                for file, content in files.items():
                    if "/" not in file and file.startswith(("spool.db", "settings.json")):
                        (folder / file).write_bytes(content)
                verdict.faults += [f"call {n}, {kind}: {fault}" for fault in faults_of(folder, heard, until)]
                shutil.rmtree(folder)
    return verdict


def faults_of(folder: Path, heard: Heard, until: int) -> Iterator[str]:
    """What is missing or wrong in a state of the disk at that instant."""
    yield from faults_of_settings(folder, heard, until)
    try:
        spool = open_spool(folder / "spool.db")
    except OSError as error:
        yield f"cannot be opened: {error}"
        return
    try:
        if spool.set_aside:
            yield "was set aside as damaged"
        found = [row[0] for row in spool._db.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            yield f"integrity check: {found[0]}"
        queued = {job.id for job in spool.queued()}
        known = set(spool.ids())
        for id, when in heard.accepted.items():
            if when >= until or heard.forgotten.get(id, until) < until:
                continue
            published, document = heard.results.get(id, (until, b""))
            if id not in known:
                if until - published < (RETENTION - SLACK) * 1e9:
                    yield f"job {id} was accepted and is not there"
                continue
            if published >= until:
                continue
            if id in queued:
                yield f"job {id} had its result published and is queued"
                continue
            job = spool.find(id)
            if job is None:
                yield f"job {id} is there and is not found"
            elif spool.result(job.number) not in (document, None if id.startswith("unstored") else document):
                yield f"the result of {id} is not the one that was published"
    except SpoolError as error:
        yield str(error)
    finally:
        spool.close()


def faults_of_settings(folder: Path, heard: Heard, until: int) -> Iterator[str]:
    """Settings are those of the last rollout that succeeded, or of a later one, and all of the same."""
    try:
        kept = read_kept(folder)
    except (DamagedError, OSError) as error:
        yield f"settings: {error}"
        return
    told = max((number for number, when in heard.settings.items() if when < until), default=0)
    for serving in [kept.serving] if kept.before is None else [kept.serving, kept.before]:
        values = {name: one.value for name, one in serving.items()}
        number = values.get(SET, 0) // 1_000_000
        if number < told or len(values) != {0: 0, 3: 2}.get(number, 1):
            yield f"settings {values} where those of rollout {told} were said to serve"
    if heard.returned is not None and heard.returned < until and (kept.before is not None or number == 3):
        yield "settings that were given up"


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    bad = False
    with tempfile.TemporaryDirectory(prefix="edged-power-") as name:
        folder = Path(name)
        library = folder / "recorder.so"
        source = HERE / "recorder.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl", "-lpthread"], check=True)
        print(f"edged and power cuts — seed {SEED}, tearing at 512 bytes", flush=True)
        for sabotage in ("", "OFF", "NORMAL"):
            run = folder / (sabotage or "whole")
            run.mkdir()
            changes, heard = lived(run, library, sabotage)
            verdict = judge(changes, heard, SABOTAGED_SUBSETS if sabotage else SUBSETS)
            if not sabotage:
                show(changes, heard, verdict)
                bad |= bool(verdict.faults) or verdict.states["subset"] < 1000
            else:
                states, count = sum(verdict.states.values()), len(verdict.faults)
                row(
                    f"sabotaged (synchronous={sabotage}): {states} states",
                    f"{count} faults: {'found' if count else 'NOT FOUND'}",
                )
                bad |= not count
    sys.exit(bad)


def show(changes: list[Change], heard: Heard, verdict: Verdict) -> None:
    ops = Counter(change.op for change in changes)
    checkpoints = sum(change.op == SYNC and change.path == "spool.db" for change in changes)
    row("recorded", f"{ops[WRITE]} writes, {ops[SYNC]} syncs, {ops[TRUNCATE]} truncations, {ops[UNLINK]} removals")
    row("in them", f"{checkpoints} checkpoints, a kill, a clean stop, two restarts, a forget, prunings")
    row("rollouts of settings", f"{len(heard.settings)} that succeeded, one that went back")
    row("jobs accepted, results published", f"{len(heard.accepted)}, {len(heard.results)}")
    row("states at a sync, nothing or all of the unsynced written", str(verdict.states["boundary"]))
    row(
        "states with a random part of the unsynced written",
        f"{verdict.states['subset']} ({verdict.torn} with some to lose)",
    )
    row("faults", str(len(verdict.faults)))
    for fault in verdict.faults[:SHOWN]:
        print(f"    {fault}")


def row(name: str, value: str) -> None:
    print(f"  {name:<58} {value}", flush=True)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    main()
