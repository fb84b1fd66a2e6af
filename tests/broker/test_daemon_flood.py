"""More jobs at once than the device takes on board. `make test-faults` sends 50,000."""

from __future__ import annotations

from daemon_fixtures import Place
from flood import flood, without_persistence

pytest_plugins = ["daemon_fixtures"]


def test_four_thousand_jobs_for_a_device_that_takes_two_hundred(place: Place) -> None:
    without_persistence(place.broker)
    settings = {"MODEL__ROWS": "8", "JOBS__MAX_QUEUED": "200", "HEARTBEAT_SECONDS": "1"}
    daemon = place.daemon(**settings).start()
    figures = flood(daemon, place.broker.port, 4000, seconds=120)
    assert figures["jobs that waited on board, most"] <= 200
    assert figures["cancel to the job's end, s, p50"] <= 1.0
    assert figures["cancel to its result, for who waits for just that, s, p50"] <= 1.0
    assert figures["heartbeat (1 s), longest pause, s"] <= 2.0
    assert figures["wait on board at priority 9, s, p50"] < figures["wait on board at priority 0, s, p50"] / 2
    daemon.until_ready()
