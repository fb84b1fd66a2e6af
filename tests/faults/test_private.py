"""What must be gone is gone from the raw disk: read block by block, past every file system."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from disk import Disk, on
from figures import table
from patience import eventually

pytest_plugins = ["daemon_fixtures", "disk"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
INSTRUCTION = "You watch the pumps of a water works and answer in one short line, whatever is asked of you. " * 4


def asked(client: Client5, id: str, **fields: Any) -> list[bytes]:
    """Ask a job; what may be found of it: of its prompt, metadata, answer and Correlation Data.

    Prompt and metadata hold their trace several times, since one that spans two pages is not found.
    """
    prompt, note, correlation = f"prompt-of-{id}-walrus", f"note-of-{id}-narwhal", f"correlation-{id}".encode()
    document = job(id, 40, prompt=f"{prompt} " * 4, metadata={"n": f"{note} " * 4}, **fields)
    answer = client.ask(document, ResponseTopic="edged/v1/reply/p", CorrelationData=correlation)
    words = max(re.findall(r"[A-Za-z ]+", answer["text"]), key=len)  # what JSON writes as it is
    assert len(words) > 6
    return [prompt.encode(), note.encode(), words.encode(), correlation]


def delivered(daemon: Daemon, count: int) -> None:
    eventually(lambda: daemon.query("SELECT count(*) FROM delivered") == [(count,)])


def test_what_is_not_stored_is_on_no_block_of_the_disk(place: Place, disk: Disk) -> None:
    daemon, client = on(place, disk).start(), place.client()
    control = asked(client, "kept")
    traces = asked(client, "private", store=False)
    delivered(daemon, 2)
    eventually(lambda: not disk.holds(*traces), "traces stay on the disk")
    assert len(disk.holds(*control)) >= 3
    assert daemon.end() == 0
    assert not disk.holds(*traces)


def test_what_is_forgotten_is_on_no_block_of_the_disk(place: Place, disk: Disk) -> None:
    daemon, client = on(place, disk).start(), place.client()
    first, second = asked(client, "beside"), asked(client, "after-a-kill")
    delivered(daemon, 2)
    assert all(len(disk.holds(*traces)) >= 3 for traces in (first, second))
    assert daemon.command("forget", "beside").returncode == 0
    assert not disk.holds(*first)
    daemon.end(signal.SIGKILL)
    assert daemon.command("forget", "after-a-kill").returncode == 0
    assert not disk.holds(*second)
    daemon.start()
    eventually(lambda: (daemon.state_dir / "spool.db-wal").stat().st_size == 0)  # the tidying after a start
    third = asked(client, "after-a-stop")
    delivered(daemon, 1)
    assert len(disk.holds(*third)) >= 3
    assert daemon.end() == 0
    spool = (daemon.state_dir / "spool.db").read_bytes()
    os.sync()  # SQLite has removed its log: nothing of it may be left beside the file
    assert disk.image.read_bytes().count(third[0]) == spool.count(third[0]) > 0
    assert daemon.command("forget", "--all").returncode == 0
    assert not disk.holds(*third)


def test_what_is_past_retention_is_on_no_block_of_the_disk(place: Place, disk: Disk) -> None:
    daemon, client = on(place, disk, JOBS__RETENTION="4").start(), place.client()
    traces = asked(client, "pruned")
    assert len(disk.holds(*traces)) >= 3
    eventually(lambda: daemon.query("SELECT count(*) FROM job") == [(0,)])
    eventually(lambda: not disk.holds(*traces), "traces stay on the disk")


def test_keys_and_values_of_forgotten_prefixes_are_gone_and_stay_gone(place: Place, disk: Disk) -> None:
    daemon, client = on(place, disk).start(), place.client()

    def ask(id: str, instruction: str = INSTRUCTION) -> None:
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": "Is pump 3 on?"}]
        assert client.ask({"id": id, "messages": messages, "max_tokens": 2})["state"] == "succeeded"

    def written() -> list[Path]:
        return list((daemon.state_dir / "prefixes").glob("*.kv"))

    for n in range(3):
        ask(f"prefix-{n}")
    files = eventually(written)
    traces = [data[len(data) // 2 :][:256] for data in (path.read_bytes() for path in files)]
    assert disk.holds(*traces) == traces
    assert daemon.command("forget", "prefix-0").returncode == 0
    assert not disk.holds(*traces)
    for n in range(9):  # the engine comes to rest with another prefix that is worth a write, twice
        ask(f"other-{n}", INSTRUCTION[1 + n // 3 :])
    eventually(written)
    assert not disk.holds(*traces), "memory wrote it again"


def test_nothing_of_a_prompt_is_in_log_metrics_or_core_dumps(place: Place, disk: Disk) -> None:
    """The daemon logs at debug level. It is denied its limit of core dumps, so that the kernel does write one."""
    daemon, client = on(place, disk), place.client()
    daemon.start()
    traces = [trace for id in ("one", "two") for trace in asked(client, id, stream=True)]
    client.send(b'{"id": "prompt-of-one-walrus"')
    delivered(daemon, 2)
    text = (daemon.log() + daemon.get("/metrics")[1]).encode()
    assert not [trace for trace in traces if trace in text]
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    assert process.rlimit(resource.RLIMIT_CORE)[0] == 0
    process.rlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    folder = Path(f"/proc/{process.pid}/cwd").resolve()
    before = set(folder.glob("core*"))
    daemon.end(signal.SIGABRT)
    cores = set(folder.glob("core*")) - before
    try:
        assert cores or pattern != "core"
        for core in cores:
            assert not [trace for trace in traces if trace in core.read_bytes()]
            table("core dump", {"bytes of a core dump, memory left out": core.stat().st_size})
    finally:
        for core in cores:
            core.unlink()


def test_what_erasing_costs_the_disk(place: Place, disk: Disk) -> None:
    daemon, client = on(place, disk).start(), place.client()
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    figures = {}
    for store in (True, False):
        before, count = process.io_counters().write_bytes, 20
        for n in range(count):
            client.ask(job(f"{store}-{n}", store=store))
            delivered(daemon, n + 1 + (0 if store else count))
            if not store:
                eventually(lambda: (daemon.state_dir / "spool.db-wal").stat().st_size == 0)
        written = (process.io_counters().write_bytes - before) / count
        figures[f"bytes written a job alone, store: {json.dumps(store)}"] = f"{written / 1024:.1f} KiB"
    table("erasing", figures)
