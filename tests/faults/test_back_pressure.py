"""50,000 jobs at once to one device."""

from __future__ import annotations

from daemon_fixtures import Place
from figures import table
from flood import MAX_QUEUED, flood, without_persistence

pytest_plugins = ["daemon_fixtures"]
JOBS = 50_000
GROWTH = 24 << 20
"""Bytes that RSS may grow by over four fifths of them: what they are together is more."""


def test_a_flood_of_jobs(place: Place) -> None:
    without_persistence(place.broker)
    settings = {"MODEL__ROWS": "8", "JOBS__MAX_QUEUED": str(MAX_QUEUED), "HEARTBEAT_SECONDS": "1"}
    daemon = place.daemon(**settings).start()
    figures = flood(daemon, place.broker.port, JOBS, seconds=3600)
    table(f"{JOBS} jobs at once, {MAX_QUEUED} on board", figures)
    assert figures["RSS at most after that"] - figures["RSS when a fifth was answered"] < GROWTH
    last = figures["wait on board at priority 0, s, p50"]
    assert figures["wait on board at priority 9, s, p50"] < last / 4
    assert figures["jobs that waited on board, most"] <= MAX_QUEUED
    # A cancel passes the jobs and results that wait. How fast it is stands in the table, for this machine.
    assert figures["cancel to the job's end, s, most"] < last
    assert figures["cancel to its result, for who waits for just that, s, most"] < last
    assert figures["heartbeat (1 s), longest pause, s"] < figures["seconds"] / 20
