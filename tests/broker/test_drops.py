"""A connection that is lost again and again: each loss is made up for, and what causes them must not stay unsaid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from broker_rig import Device
from scripted_broker import ScriptedBroker
from structlog.testing import capture_logs

from edged.faults import Fault
from edged.mqtt.connection_faults import CLOSED, LOST, LOST_AT_PUBLISH, NO_PING, RECHECK
from edged.mqtt.drops import WITHIN_SECONDS, Drops

Make = Callable[..., Any]
Script = Callable[..., ScriptedBroker]
UNSTABLE = "mqtt_connection_unstable"


def unstable(device: Device) -> list[Fault]:
    return [warning for warning in device.link.status().warnings if warning.code == UNSTABLE]


@pytest.mark.parametrize("code", [None, 0x98])
def test_a_connection_that_is_lost_again_and_again_is_a_warning(
    script: Script, make_device: Make, code: int | None
) -> None:
    broker = script()
    with capture_logs() as entries:
        device: Device = make_device(broker.port, protocol="5").up()
        for _ in range(3):
            assert unstable(device) == []
            broker.drop() if code is None else broker.disconnect(code)
            device.until_up()
    assert ["control" in unstable(device)[0].message, "jobs" in unstable(device)[1].message] == [True, True]
    logged = [entry for entry in entries if entry["event"] == "mqtt_disconnected"]
    for connection in ("control", "jobs"):
        told = [entry for entry in logged if entry["connection"] == connection]
        assert [entry["log_level"] for entry in told] == ["info", "info", "warning"]
        assert (told[-1]["code"], "client id board" in told[-1]["hint"]) == (UNSTABLE, True)


def test_losses_with_a_warning_of_their_own_or_long_ago_are_not_counted() -> None:
    drops = Drops("jobs", "board")
    for at in (0.0, 1.0, WITHIN_SECONDS + 1.0):
        for fault in (CLOSED, RECHECK, Fault(LOST_AT_PUBLISH, "at a topic")):
            assert drops.note(fault, at) is None
        assert drops.note(LOST, at) is None
    warning = drops.note(NO_PING, WITHIN_SECONDS + 1.0)
    assert warning is not None
    assert warning.code == UNSTABLE
    assert NO_PING.message in warning.message
    assert drops.warning(2 * WITHIN_SECONDS) is None
