"""`edged fleet list` at a real broker: 500 devices of one client, a real one, and who may look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from broker_rig import free_port
from daemon_fixtures import Daemon, Place
from fleet_fixtures import Fleet
from patience import eventually
from simulated_boards import Boards

pytest_plugins = ["fleet_fixtures", "daemon_fixtures"]
NAMES = [f"pi-{n:03}" for n in range(500)]
TROUBLE = NAMES[100:103]


@pytest.fixture(scope="module")
def fleet500() -> Iterator[Daemon]:
    """A device that never runs, for its settings, at a broker with a small queue that knows 500 others."""
    place = Place()
    # A save at each change takes long. The queue holds the documents of one channel.
    place.broker.configure(persistence=False, lines=["max_queued_messages 600"])
    place.broker.start()
    boards = Boards(place.broker.port)
    boards.report(*NAMES)
    broken, off, full = TROUBLE
    boards.report(broken, status={"ready": False, "faults": ["model_corrupt"], "reason": "a block differs"})
    boards.report(off, status={"ready": False, "state": "offline", "reason": "the connection was lost"})
    boards.report(full, status={"ready": False, "faults": ["spool_full"]}, info={"groups": ["north"]})
    boards.close()
    yield place.daemon(device="nobody")
    place.close()


def listed(daemon: Daemon, *options: str) -> tuple[int, list[dict[str, Any]]]:
    done = daemon.command("fleet", "list", "--json", "--stale", "3600", *options)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)["devices"]


@pytest.mark.slow
def test_nothing_of_500_devices_is_missing_and_those_in_trouble_come_first(fleet500: Daemon) -> None:
    code, devices = listed(fleet500)
    assert code == 0
    assert [one["device"] for one in devices[:3]] == [TROUBLE[0], TROUBLE[2], TROUBLE[1]]
    assert sorted(one["device"] for one in devices) == NAMES
    for one in devices:
        assert (one["model"], one["version"] is None) == ("phi-3", False)
        assert one["queued"] == (None if one["state"] == "offline" else 3)
        assert one["heard"] is not None


def test_the_table_says_why(fleet500: Daemon) -> None:
    done = fleet500.command("fleet", "list", "--not-ready", "--stale", "3600")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 4)
    for part in ("model_corrupt", "spool_full", "the connection was lost", "not ready", "offline"):
        assert part in done.stdout


@pytest.mark.slow
def test_filters_and_returncodes(fleet500: Daemon) -> None:
    assert [one["device"] for one in listed(fleet500, "--offline")[1]] == [TROUBLE[1]]
    assert listed(fleet500, "--group", "north", "--offline", "--model", "phi-3") == (1, [])
    done = fleet500.command("fleet", "list", "--group", "a b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_without_a_broker_it_is_one_line_and_69(fleet500: Daemon) -> None:
    done = fleet500.command("fleet", "list", "--mqtt-port", str(free_port()))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert "no broker listens there" in done.stderr


def test_a_real_device_shows_itself_and_its_end(place: Place) -> None:
    daemon = place.daemon(device="real").start()
    (one,) = listed(daemon)[1]
    assert (one["device"], one["state"], one["ready"], one["model"]) == ("real", "online", True, "phi3")
    daemon.kill()
    (one,) = eventually(lambda: listed(daemon, "--offline")[1], "it is still there")
    assert (one["state"], one["ready"], one["queued"]) == ("offline", False, None)


@pytest.mark.parametrize(("kind", "name"), [("exporter", "prometheus"), ("operator", "ops")])
def test_the_roles_that_the_script_makes_are_enough(fleet: Fleet, tmp_path: Any, kind: str, name: str) -> None:
    daemon = Daemon(tmp_path, fleet.port, **fleet.settings(kind, name))
    code, devices = listed(daemon)
    assert (code, devices) == (1, [])


def test_a_role_that_is_too_little_is_said(fleet: Fleet, tmp_path: Any) -> None:
    done = Daemon(tmp_path, fleet.port, **fleet.settings("sender", "gateway")).command("fleet", "list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert "the roles operator and exporter of provision.py do" in done.stderr
