"""Ten thousand malformed messages and more, over a real broker."""

from __future__ import annotations

from daemon_fixtures import Place
from figures import table
from hostile import Hostile
from hostile_run import send_and_judge

pytest_plugins = ["daemon_fixtures"]
MESSAGES = 12_000
GROWTH = 6 << 20
"""Bytes by which the least RSS of the last third may exceed that of the second: a kilobyte or two a message, which the
allocator's slack comes to."""


def test_malformed_messages(place: Place) -> None:
    daemon = place.daemon(MODEL__ROWS="4").start()
    figures = send_and_judge(daemon, place.broker.port, Hostile(seed=1), MESSAGES)
    table("hostile input", figures)
    assert figures["RSS, least in the last third"] - figures["RSS, least in the second third"] < GROWTH
