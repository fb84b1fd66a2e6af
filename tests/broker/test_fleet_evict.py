"""`edged fleet evict`: what the broker retains of a device is gone, and nothing else; who may do it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_fixtures import Daemon, Place
from fleet_fixtures import Fleet, Guest
from simulated_boards import Boards

pytest_plugins = ["fleet_fixtures", "daemon_fixtures"]


def devices(daemon: Daemon) -> list[str]:
    return [one["device"] for one in json.loads(daemon.command("fleet", "list", "--json").stdout)["devices"]]


@pytest.fixture
def gone(place: Place) -> Daemon:
    """A device that never runs, for its settings; the broker retains documents of two others."""
    boards = Boards(place.broker.port)
    boards.report("gone", status={"state": "offline", "ready": False})
    boards.report("here")
    boards.close()
    return place.daemon(device="nobody")


def test_a_device_that_is_gone_leaves_nothing_and_others_stay(gone: Daemon) -> None:
    done = gone.command("fleet", "evict", "gone")
    assert (done.returncode, done.stderr) == (0, "")
    assert "health, info, status of gone" in done.stdout
    assert "provision.py revoke gone" in done.stdout
    assert "shows itself again" not in done.stdout
    assert devices(gone) == ["here"]
    done = gone.command("fleet", "evict", "gone")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_of_one_that_is_there_it_says_so(gone: Daemon) -> None:
    assert (
        "here is there, and shows itself again until its account is revoked"
        in gone.command("fleet", "evict", "here").stdout
    )


def test_an_id_that_is_none_is_bad_use(gone: Daemon) -> None:
    done = gone.command("fleet", "evict", "a/b")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_an_operator_may_and_an_exporter_may_not(
    fleet: Fleet, guest: Callable[[str, str], Guest], tmp_path: Path
) -> None:
    device = guest("device", "a")
    assert device.publish("edged/v1/device/a/status", json.dumps({"state": "offline"}), retain=True)
    assert device.publish("edged/v1/device/a/bridge", "0", retain=True)
    exporter = Daemon(tmp_path, fleet.port, **fleet.settings("exporter", "prometheus"))
    done = exporter.command("fleet", "evict", "a")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert devices(exporter) == ["a"]
    operator = Daemon(tmp_path, fleet.port, **fleet.settings("operator", "ops"))
    assert "status of a" in operator.command("fleet", "evict", "a").stdout
    assert devices(exporter) == []
    late = guest("sender", "gateway")
    assert late.subscribe("edged/v1/device/+/bridge")
    assert device.publish("edged/v1/device/a/bridge", "1")
    assert late.until("edged/v1/device/a/bridge", "1") == []
