"""A damaged spool on a disk that has no room for a second one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from daemon_fixtures import Place
from disk import Disk, on

from edged.jobs.records import Moment
from edged.jobs.spool import Spool

pytest_plugins = ["daemon_fixtures", "disk"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
JOBS = 5000


def make(path: Path) -> None:
    """A spool of some MiB, all of it answered and the last answer not delivered, and its header lost."""
    moment = Moment(1.0, 1.0, "b", False)
    rest: dict[str, Any] = {"priority": 5, "store": True, "ttl": None, "deadline": None}
    path.parent.mkdir(mode=0o700)
    with contextlib.closing(Spool(path)) as spool, spool.transaction():
        for n in range(JOBS):
            document = json.dumps({"id": f"job-{n}", "prompt": "What is it?"}).encode()
            digest = hashlib.sha256(document).digest()
            job = spool.add_job(f"job-{n}", digest, document, moment, **rest)
            result = {"id": job.id, "state": "succeeded", "text": f"{n} " * 200}
            spool.add_result(job.number, "succeeded", json.dumps(result).encode(), moment)
            if n < JOBS - 1:
                spool.mark_delivered(job.number)
    with path.open("r+b") as file:
        file.write(os.urandom(100))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0, 1.5, 1.9])
def test_nothing_is_lost_where_the_disk_is_full_and_all_is_there_once_it_has_room(
    place: Place, disk: Disk, share: float
) -> None:
    """With room for that share of the spool: the copy that is read from does not fit, or what is written does not."""
    daemon, client = on(place, disk), place.client()
    path = daemon.state_dir / "spool.db"
    make(path)
    damaged = path.read_bytes()
    disk.fill(int(len(damaged) * share))
    for _ in range(2):
        said = daemon.command("run")
        assert (said.returncode, said.stderr.count("\n")) == (1, 1), said.stderr
        assert "is damaged, and recovering it failed: " in said.stderr
        takes, free = map(
            float, re.findall(r"takes up to (\S+) MiB of free space, and there are (\S+)\n", said.stderr)[0]
        )
        assert takes > free == pytest.approx(len(damaged) * share / 2**20, abs=0.2)
        assert path.read_bytes() == damaged
        assert {file.name for file in daemon.state_dir.iterdir()} <= {"spool.db", "lock"}
    disk.empty()
    daemon.start()
    (line,) = (json.loads(line) for line in daemon.log().splitlines() if '"spool_recovered"' in line)
    assert (line["jobs"], line["results"]) == (JOBS, JOBS)
    assert client.result(f"job-{JOBS - 1}")["text"].startswith(f"{JOBS - 1} ")
    assert daemon.end() == 0
