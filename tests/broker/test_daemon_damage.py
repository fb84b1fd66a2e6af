"""The daemon and a spool whose content is broken, at the start and while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from daemon_fixtures import Daemon, Place, job
from patience import eventually

from edged.jobs.database import PAGE_BYTES

pytest_plugins = ["daemon_fixtures"]


def lines(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def garbage(path: Path, first_page: int) -> None:
    """From this page (counted from 0) to the end."""
    with path.open("r+b") as file:
        file.seek(first_page * PAGE_BYTES)
        file.write(os.urandom(path.stat().st_size - first_page * PAGE_BYTES))


@pytest.mark.slow
def test_a_spool_without_its_header_is_recovered_at_the_start(place: Place) -> None:
    daemon, client = place.daemon().start(), place.client()
    answers = {id: client.ask(job(id)) for id in ("one", "two")}
    assert daemon.end() == 0
    path = daemon.state_dir / "spool.db"
    with path.open("r+b") as file:
        file.write(b"garbage " * 10)
    daemon.start()
    (line,) = lines(daemon, "spool_recovered")
    assert (line["jobs"], line["results"]) == (2, 2)
    assert re.fullmatch(rf"{path}\.damaged-\d{{8}}T\d{{6}}Z", line["set_aside"])
    assert Path(line["set_aside"]).read_bytes()[:8] == b"garbage "
    assert "edged_spool_damaged_files 1.0" in daemon.get("/metrics")[1]
    client.send(job("one"))
    assert client.result("one", 2) == answers["one"]
    assert client.ask(job("three"))["state"] == "succeeded"
    assert daemon.command("forget", "one").stdout == "erased 1 job and 1 damaged spool\n"
    eventually(lambda: "edged_spool_damaged_files 0.0" in daemon.get("/metrics")[1], "the gauge follows the next tick")
    assert daemon.end() == 0


@pytest.mark.slow
def test_damage_met_while_it_runs_leads_there_by_a_new_start(place: Place) -> None:
    daemon, client = place.daemon().start(), place.client()
    for n in range(20):
        client.ask(job(f"old-{n}"))
    path = daemon.state_dir / "spool.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        garbage(path, first_page=10)
        other.execute(f"PRAGMA user_version={other.execute('PRAGMA user_version').fetchone()[0]}")
    # What another process wrote makes the daemon read the file again.
    client.send(job("new"))
    eventually(lambda: lines(daemon, "spool_recovered"), "not recovered")
    assert len(lines(daemon, "spool_damaged")) == 1
    daemon.until_ready()
    assert "edged_spool_damaged_files 1.0" in daemon.get("/metrics")[1]
    # Not accepted before: the broker still has it.
    assert client.result("new")["state"] == "succeeded"
    assert daemon.process is not None
    assert daemon.process.poll() is None  # the same process, started anew
    assert daemon.end() == 0
