"""A rollout's download at a limited rate."""

from __future__ import annotations

import hashlib
import queue
import time
from pathlib import Path

import pytest
from patience import PATIENCE
from pull_rig import publish, serving

from edged.models.fetch import Pace, fetch
from edged.models.sources import open_source
from edged.rollout.puller import Order, PullEnded, Puller, PullEvent, PullProgress


def test_files_come_no_faster_than_the_limit_over_all_of_them(tmp_path: Path) -> None:
    package = publish(tmp_path / "stick")
    listing = open_source(str(package))
    pace, began = Pace(listing.bytes), time.monotonic()
    for file in listing.files:
        fetch(file, tmp_path / "to" / file.path, lambda _path, _count: None, pace)
    assert time.monotonic() - began >= 0.95
    assert all(
        (tmp_path / "to" / file.path).read_bytes() == (package / file.path).read_bytes() for file in listing.files
    )


@pytest.mark.slow
def test_the_process_that_pulls_for_a_rollout_keeps_to_its_limit(tmp_path: Path) -> None:
    package = publish(tmp_path / "web")
    with serving(package.parent) as server:
        source = f"{server.url}/phi3/SHA256SUMS"
        size = open_source(source).bytes
        events: queue.SimpleQueue[tuple[float, PullEvent]] = queue.SimpleQueue()
        puller = Puller(tmp_path / "state", lambda event: events.put((time.monotonic(), event)), size // 4)
        puller.start(Order(source, "phi3", _identity(package)))
        first, event = events.get(timeout=PATIENCE)
        assert isinstance(event, PullProgress)
        at, left = first, size - event.done
        while not isinstance(event, PullEnded):
            at, event = events.get(timeout=PATIENCE)
    assert event.version is not None, event.reason
    assert at - first >= 0.95 * left / (size // 4)


def _identity(package: Path) -> str:
    files = {file.path: file.digest.value for file in open_source(str(package)).files if file.digest}
    return hashlib.sha256("".join(f"{files[path]} {path}\n" for path in sorted(files)).encode()).hexdigest()
