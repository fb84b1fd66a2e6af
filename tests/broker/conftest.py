"""Fixtures of all tests over a broker. Other folders import broker_rig: there, conftest is another module."""

from broker_rig import broker, make_broker, make_device, make_peer, make_proxy, protocol  # noqa: F401
from scripted_broker import script  # noqa: F401
