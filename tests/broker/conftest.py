"""Fixtures of all tests over a broker. Other folders import broker_rig: there, conftest is another module."""

import signal

import pytest
from broker_rig import broker, make_broker, make_device, make_peer, make_proxy, protocol  # noqa: F401
from scripted_broker import script  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C ends what tests start: where a script runs them in the background, it would be ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
