"""provision.py upgrade: rights that an older version made become those of this one, at a broker that runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker_rig import Device
from daemon_fixtures import temporary_folder
from fleet_fixtures import Fleet
from patience import eventually
from structlog.testing import capture_logs

from edged.mqtt.events import LinkDown

Make = Callable[..., Any]


def saved(fleet: Fleet) -> dict[str, Any]:
    """What the broker keeps on disk."""
    return dict(json.loads((fleet.folder / "broker/dynamic-security.json").read_text()))


def rights(fleet: Fleet) -> dict[str, set[tuple[str, str]]]:
    return {
        role["rolename"]: {(acl["acltype"], acl["topic"]) for acl in role["acls"]} for role in saved(fleet)["roles"]
    }


@pytest.fixture
def old() -> Iterator[Fleet]:
    """A broker with the roles of the first version: without the trial of groups, and without Home Assistant."""
    folder = temporary_folder()
    with contextlib.closing(Fleet(folder)) as fleet:
        fleet.start()
        fleet.must("device", "a", "--groups", "north")
        fleet.must("device", "gone")
        fleet.must("revoke", "gone")
        fleet.must("sender", "gateway")
        fleet.stop()
        document = saved(fleet)
        document["roles"] = [role for role in document["roles"] if role["rolename"] != "home-assistant"]
        for role in document["roles"]:
            role["acls"] = [acl for acl in role["acls"] if not acl["topic"].endswith("/check")]
            if role["rolename"] == "sender":  # a topic that the contract has no more
                role["acls"].append({"acltype": "publishClientSend", "topic": "old", "priority": 0, "allow": True})
        file = fleet.folder / "broker/dynamic-security.json"
        file.write_text(json.dumps(document))  # the file stays mosquitto's own
        fleet.start()
        yield fleet
    shutil.rmtree(folder, ignore_errors=True)


def test_older_roles_become_those_of_this_version_and_a_second_run_changes_nothing(
    old: Fleet, make_device: Make
) -> None:
    def connected() -> tuple[Device, str]:
        """A device, and what it found out about its groups."""
        with capture_logs() as entries:
            device: Device = make_device(old.port, "a", ["north"], tls=True, **old.files("device", "a")).up()
            ends = ("mqtt_group_check_inconclusive", "mqtt_disconnected")
            found = eventually(lambda: next((entry["event"] for entry in entries if entry["event"] in ends), None))
        return device, found

    device, found = connected()
    assert found == "mqtt_group_check_inconclusive"
    device.link.stop(0.0)
    told = old.must("upgrade")
    assert "device-a: 4 rights added, 0 taken away" in told
    assert "sender: 0 rights added, 1 taken away" in told
    assert "home-assistant: new" in told
    assert "device-gone: the broker has no such role" in told
    assert "observer" not in told
    fresh = temporary_folder()
    with contextlib.closing(Fleet(fresh)) as new:
        new.start()
        new.must("device", "a", "--groups", "north")
        assert eventually(lambda: rights(old) == rights(new))
    shutil.rmtree(fresh, ignore_errors=True)
    device, found = connected()
    assert found == "mqtt_disconnected"  # the trial of groups succeeded and has ended
    before = saved(old)
    told = old.must("upgrade")
    assert told.splitlines() == [line for line in told.splitlines() if line.startswith("device-gone: ")]
    assert saved(old) == before
    device.none_of(LinkDown)


@pytest.mark.slow
def test_groups_and_home_assistant_are_remembered(old: Fleet) -> None:
    old.must("device", "a", "--groups", "north", "--home-assistant")
    before = rights(old)["device-a"]
    assert ("publishClientSend", "homeassistant/device/edged-a/config") in before
    assert "device-a" not in old.must("upgrade")
    assert rights(old)["device-a"] == before
