"""More jobs at once than the device takes on board. `make test-faults` sends 50,000."""

from __future__ import annotations

import pytest
from daemon_fixtures import Place
from flood import flood, without_persistence
from patience import PATIENCE

pytest_plugins = ["daemon_fixtures"]


@pytest.mark.slow
def test_four_thousand_jobs_for_a_device_that_takes_two_hundred(place: Place) -> None:
    without_persistence(place.broker)
    settings = {"MODEL__ROWS": "8", "JOBS__MAX_QUEUED": "200", "HEARTBEAT_SECONDS": "1"}
    daemon = place.daemon(**settings).start()
    figures = flood(daemon, place.broker.port, 4000, seconds=5 * PATIENCE)
    assert figures["jobs that waited on board, most"] <= 200
    last = figures["wait on board at priority 0, s, p50"]
    assert figures["wait on board at priority 9, s, p50"] < last / 2
    # A cancel passes the jobs and results that wait.
    assert figures["cancel to the job's end, s, p50"] < last
    assert figures["cancel to its result, for who waits for just that, s, p50"] < last
    assert figures["heartbeat (1 s), longest pause, s"] < figures["seconds"] / 2
    daemon.until_ready()
