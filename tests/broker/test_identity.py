"""Two devices with one id, and all that must not be mistaken for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Peer, Proxy
from patience import PATIENCE, QUIET

from edged.mqtt.events import DeviceIdFree, DeviceIdTaken, JobReceived, LinkUp, Published

Make = Callable[..., Any]


def online(device: Device) -> Device:
    device.up()
    device.say("online")
    device.wait_for(Published, token="online")
    return device


@pytest.mark.slow
def test_of_two_devices_with_one_id_one_stays_and_the_other_says_so_and_comes_back(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    older = online(make_device(broker.port, protocol=protocol, probe_seconds=1.5))
    newer: Device = make_device(broker.port, protocol=protocol, probe_seconds=1.5).start()
    _settle(newer)
    assert older.wait_for(DeviceIdTaken).other == newer.instance
    # Whatever was thrown out on the way is back, and only the newer one has it.
    peer: Peer = make_peer(broker.port).subscribe(newer.topics.status)
    _settle(newer)
    peer.until(newer.topics.status, newer.status("online"))
    older.none_of(DeviceIdFree, within=4.0)
    peer.send(newer.topics.job, b"for one")
    newer.link.acknowledge(newer.wait_for(JobReceived).message.receipt)
    older.none_of(JobReceived)
    newer.none_of(DeviceIdTaken)
    newer.say("offline")
    newer.link.stop(PATIENCE)
    older.wait_for(DeviceIdFree)
    older.until_up()
    peer.send(older.topics.job, b"back")
    assert older.wait_for(JobReceived).message.payload == b"back"


def _settle(device: Device) -> None:
    """Do as a daemon does: say `online` at each LinkUp, until nothing happens any more."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            event = device.wait_for(LinkUp, 1.0)
        except AssertionError:
            if device.link.connected("control") and device.link.connected("jobs"):
                return
            assert time.monotonic() < until, device.seen[-8:]
            continue
        if event.which == "control":
            # False: lost again already, there will be another LinkUp.
            device.link.publish(device.topics.status, device.status("online"), qos=1, retain=True)


def test_a_reconnect_of_ones_own_is_no_other_instance(
    broker: Mosquitto, make_device: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device = online(make_device(proxy.port, protocol=protocol))
    for _ in range(3):
        proxy.cut()
        device.down()
        device.until_up()
    device.none_of(DeviceIdTaken)


def test_a_connection_that_the_broker_still_holds_is_no_other_instance(
    broker: Mosquitto, make_device: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device = online(make_device(proxy.port, protocol=protocol))
    proxy.cut_half()
    device.down()
    device.until_up()
    device.none_of(DeviceIdTaken)


def test_the_status_of_a_predecessor_is_no_other_instance(
    broker: Mosquitto, make_device: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    crashed = online(make_device(broker.port, protocol=protocol))
    crashed.link.stop(PATIENCE)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    proxy.cut()
    device.down()
    device.until_up()
    device.none_of(DeviceIdTaken, within=QUIET)
