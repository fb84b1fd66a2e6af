"""One hall of devices for all tests of `make test-fleet`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hall import Hall


@pytest.fixture(scope="session")
def whole_hall() -> Iterator[Hall]:
    with contextlib.closing(Hall(int(os.environ.get("DAEMONS", "20")))) as hall:
        hall.start()
        hall.ready()
        yield hall
        logs = [daemon.log() for daemon in hall.daemons]
    for log in logs:
        assert "Traceback" not in log, log


@pytest.fixture
def hall(whole_hall: Hall) -> Iterator[Hall]:
    """All devices serve when a test begins, and nothing holds them back when it has ended."""
    whole_hall.ready()
    yield whole_hall
    for daemon in whole_hall.daemons:
        daemon.pace("")
