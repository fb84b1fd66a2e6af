"""What a job writes to the card, counted at the block device: `make bench-card` prints the table (root).

The state folder lies on an ext4 of its own (its defaults: data=ordered, a commit every 5 s) on a loop device, whose
sectors the kernel counts: pages, write-ahead log, checkpoints, the file system's journal and inodes, all of it.
A real mosquitto, the daemon as a process of its own with the demo model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
from figures import Figure, show
from jobs import PROMPT, Client, Served, percentile, wait_for

from edged.jobs.records import Moment
from edged.jobs.spool import Spool
from edged.machine.clock import Clock

JOBS = 640
"""Of each size of burst, so that several checkpoints are among them."""
SIZES = {1: 24.0, 8: 6.0, 32: 4.0}
"""Jobs that are sent at once, and the goal in KiB a job."""
KEPT = 20_000
IDLE_SECONDS = 60.0
HEARTBEAT = 5
COMMIT_SECONDS = 6.0
"""Longer than ext4 keeps a change of its own to itself."""
SECTOR = 512


class Card:
    """An ext4 on a loop device."""

    def __init__(self, folder: Path, mib: int = 256) -> None:
        image, self.folder = folder / "image", folder / "card"
        with image.open("wb") as file:
            file.truncate(mib << 20)
        self.folder.mkdir()
        self._device = _output("losetup", "--find", "--show", str(image))
        # Else the kernel goes on making the file system in the background, and that would be counted.
        lazy = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", lazy, self._device], check=True)
        subprocess.run(["mount", self._device, str(self.folder)], check=True)

    def written(self, sync: bool = True) -> int:
        """Bytes that the device was given since it is there, those included that the page cache still holds."""
        if sync:
            subprocess.run(["sync", "-f", str(self.folder)], check=True)
        return int(self._stat()[6]) * SECTOR

    def at_rest(self) -> bool:
        """Whether ext4 itself has done: a while after a mount it renews its superblock, whoever wrote."""
        before = self.written()
        time.sleep(COMMIT_SECONDS)
        return self.written() == before

    def flushes(self) -> int:
        """Cache flushes that the device was told to make: what an fsync costs besides bytes."""
        return int(self._stat()[15])

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        subprocess.run(["losetup", "--detach", self._device], check=True)

    def _stat(self) -> list[str]:
        return Path(f"/sys/block/{Path(self._device).name}/stat").read_text().split()


@contextlib.contextmanager
def served(folder: Path, state: Path) -> Iterator[tuple[Served, Client]]:
    """A daemon whose state lies in `state`, ready, and a client of its broker."""
    settings = {"MODEL__ROWS": 8, "HEARTBEAT_SECONDS": HEARTBEAT}
    folder.mkdir()
    with Served(folder, state, **settings) as place:
        place.start()
        client = place.client()
        yield place, client
        client.close()


def run(client: Client, jobs: int, at_once: int, **fields: object) -> tuple[float, list[float]]:
    """Send `jobs` in bursts, each when the results of the one before are here: (seconds, each burst's seconds)."""
    began, spent = time.perf_counter(), []
    for _ in range(jobs // at_once):
        sent = time.perf_counter()
        for _ in range(at_once):
            client.send(uuid.uuid4().hex, messages=PROMPT, max_tokens=16, ignore_eos=True, **fields)
        for _ in range(at_once):
            _, result = client.results.get(timeout=60)
            assert result["state"] == "succeeded", result
        spent.append(time.perf_counter() - sent)
    return time.perf_counter() - began, spent


def measure(folder: Path, card: Card) -> Iterator[Figure]:
    disk: dict[int, tuple[float, list[float]]] = {}
    memory: dict[int, tuple[float, list[float]]] = {}
    with served(folder / "disk", card.folder / "state") as (place, client):
        run(client, 32, 32)
        wait_for(lambda: settled(place))
        wait_for(lambda: card.at_rest(), seconds=120)
        before = card.written()
        time.sleep(IDLE_SECONDS)  # the one thing that must be waited out: idleness
        idle = card.written() - before
        name = f"written while idle, {IDLE_SECONDS:.0f} s with a heartbeat each {HEARTBEAT} s"
        yield Figure(name, f"{idle / 1024:.1f} KiB", "0", idle == 0)
        largest = 0
        for size, goal in SIZES.items():
            disk[size], each, flushes = counted(card, place, client, size)
            largest = max(largest, (place.state / "spool.db-wal").stat().st_size)
            yield Figure(
                f"written a job, {named(size)}",
                f"{each:.1f} KiB, {flushes:.2f} flushes",
                f"≤ {goal:g} KiB",
                each <= goal,
            )
        yield Figure("the write-ahead log at its largest", f"{largest / 1024:.0f} KiB")
        _, each, flushes = counted(card, place, client, 1, jobs=JOBS // 10, store=False)
        yield Figure("written a job, one at a time, store: false", f"{each:.1f} KiB, {flushes:.2f} flushes")
        _, each, flushes = counted(card, place, client, 8, jobs=JOBS // 4)
        yield Figure("8 at once, while the log grows anew after that", f"{each:.1f} KiB, {flushes:.2f} flushes")
    kept = card.folder / "kept"
    keep(kept)
    with served(folder / "kept", kept) as (place, client):
        for size in SIZES:
            _, each, flushes = counted(card, place, client, size)
            name = f"the same with {KEPT} jobs in the spool, {named(size)}"
            yield Figure(name, f"{each:.1f} KiB, {flushes:.2f} flushes")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as tmpfs, served(folder / "tmpfs", Path(tmpfs)) as (_, client):
        run(client, 32, 32)
        for size in SIZES:
            memory[size] = run(client, JOBS, size)
    for size in SIZES:
        (seconds, bursts), (memory_seconds, memory_bursts) = disk[size], memory[size]
        p50, p99 = (
            " / ".join(f"{percentile(each, share) * 1000:.0f}" for each in (bursts, memory_bursts))
            for share in (0.5, 0.99)
        )
        rates = f"{JOBS / seconds:.0f} / {JOBS / memory_seconds:.0f}"
        yield Figure(f"jobs/s, {named(size)}, spool on the card / in tmpfs", f"{rates}, p50 {p50} ms, p99 {p99} ms")


def named(size: int) -> str:
    return "one at a time" if size == 1 else f"{size} at once"


def counted(
    card: Card, place: Served, client: Client, size: int, jobs: int = JOBS, **fields: object
) -> tuple[tuple[float, list[float]], float, float]:
    """A run, and what it cost the card: KiB a job and flushes a job, until every confirmation is written down."""
    written, flushes = card.written(), card.flushes()
    timed = run(client, jobs, size, **fields)
    wait_for(lambda: settled(place))
    flushes = card.flushes() - flushes
    return timed, (card.written() - written) / jobs / 1024, flushes / jobs


def keep(state: Path) -> None:
    """A spool with many jobs that are answered and delivered, so that its tables and its index have their size."""
    state.mkdir()
    with contextlib.closing(Spool(state / "spool.db")) as spool, spool.transaction():
        moment = Moment.now(Clock())
        for _ in range(KEPT):
            id = uuid.uuid4().hex
            document = json.dumps({"id": id, "messages": PROMPT, "max_tokens": 16}).encode()
            job = spool.add_job(
                id,
                hashlib.sha256(document).digest(),
                document,
                moment,
                priority=5,
                store=True,
                ttl=None,
                deadline=None,
            )
            spool.add_result(job.number, "succeeded", b"x" * 600, moment)
            spool.mark_delivered(job.number)


def settled(place: Served) -> bool:
    """Whether every confirmation of the broker is written down."""
    with contextlib.closing(sqlite3.connect(f"file:{place.state}/spool.db?mode=ro", uri=True)) as db:
        query = "SELECT (SELECT count(*) FROM result) = (SELECT count(*) FROM delivered)"
        return bool(db.execute(query).fetchone()[0])


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays mounted
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            card = Card(folder)
        except (subprocess.CalledProcessError, OSError) as error:
            sys.exit(f"bench-card needs root, losetup and mkfs.ext4: {error}")
        try:
            print(
                f"edged on the card — {psutil.cpu_count()} cores, {platform.machine()}, ext4 on a loop device, "
                f"SQLite {sqlite3.sqlite_version}, demo model",
                flush=True,
            )
            show(measure(folder, card))
        finally:
            card.close()


if __name__ == "__main__":
    main()
