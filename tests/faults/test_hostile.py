"""Ten thousand malformed messages and more, over a real broker."""

from __future__ import annotations

from daemon_fixtures import Place
from figures import table
from hostile import Hostile
from hostile_run import send_and_judge

pytest_plugins = ["daemon_fixtures"]
MESSAGES = 12_000
GROWTH = 16 << 20
"""Bytes that RSS may grow by over the last two thirds: the allocator's own slack, far below what was sent."""


def test_malformed_messages(place: Place) -> None:
    daemon = place.daemon(MODEL__ROWS="4").start()
    figures = send_and_judge(daemon, place.broker.port, Hostile(seed=1), MESSAGES)
    table("hostile input", figures)
    assert figures["RSS at the end"] - figures["RSS after a third"] < GROWTH
