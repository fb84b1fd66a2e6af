"""`edged fleet rollout` and the commands beside it, with a real broker and simulated devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_fixtures import Daemon, Place
from fleet_fixtures import Fleet as LockedFleet
from fleet_fixtures import Guest
from patience import PATIENCE, eventually
from rollout_rig import DIGEST, document
from simulated_hall import Hall

from edged.cli.fleet_rollout import Fleet
from edged.rollout.conductor import Options, Verdict
from edged.rollout.conductor_run import Conductor
from edged.rollout.execution import State
from edged.settings import load

pytest_plugins = ["fleet_fixtures", "daemon_fixtures"]

MODEL = ("--group", "hall", "--model", "/media/stick/phi3", "--digest", DIGEST, "--rollout", "r1")
GROUP = ("--group", "hall")


@pytest.fixture
def hall(place: Place) -> Iterator[Hall]:
    """Six devices of the group hall, which follow what they are told."""
    with Hall(place.broker.port, 6) as hall:
        yield hall


@pytest.fixture
def operator(place: Place) -> Daemon:
    """A device that never runs, for its settings."""
    return place.daemon(device="nobody")


def status(operator: Daemon) -> dict[str, Any]:
    return dict(json.loads(operator.command("fleet", "status", *GROUP, "--json").stdout))


def test_a_conductor_brings_a_model_to_all_devices_and_another_one_finds_nothing_to_do(
    place: Place, hall: Hall
) -> None:
    settings = load(flags={"mqtt": {"host": "127.0.0.1", "port": place.broker.port}}).settings
    fleet, shown = Fleet(settings, "hall", None), []
    wanted = {name: value for name, value in document().items() if name != "sequence"}
    for _ in range(2):
        before = len(hall.told)
        last = Conductor(wanted, Options(), fleet.sign).run(fleet.connect, shown.append, pytest.fail)
        assert last.decision.verdict is Verdict.SUCCEEDED
        assert {member.state for member in last.members} == {State.SUCCEEDED}
    assert len(hall.told) == before
    assert hall.percents() == sorted(hall.percents())
    assert hall.percents()[0] < hall.percents()[-1] == 100.0


@pytest.mark.slow
def test_a_good_model_goes_to_all_devices_and_again_changes_nothing(hall: Hall, operator: Daemon) -> None:
    none = operator.command("fleet", "status", *GROUP)
    assert (none.returncode, none.stdout, none.stderr.count("\n")) == (1, "", 1)
    done = operator.command("fleet", "rollout", *MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    assert first == "group/hall: rollout r1, sequence 1; 6 devices, 6 there"
    assert last == "SUCCEEDED at 100 %: 6 SUCCEEDED"
    assert any("waits for the devices of this wave" in line for line in lines)
    assert hall.percents() == sorted(hall.percents())
    assert hall.percents()[0] < hall.percents()[-1] == 100.0
    before = len(hall.told)
    assert operator.command("fleet", "rollout", *MODEL).returncode == 0
    assert operator.command("fleet", "rollout", *GROUP).returncode == 0
    assert len(hall.told) == before
    seen = operator.command("fleet", "status", *GROUP)
    assert (seen.returncode, seen.stdout.count("SUCCEEDED")) == (0, 8)
    for command in ("rollout", "abort"):
        other = operator.command("fleet", command, "--group", "yard")
        assert (other.returncode, other.stdout, other.stderr.count("\n")) == (1, "", 1)
        assert "the group yard has no rollout" in other.stderr
    (past,) = json.loads(operator.command("fleet", "history", *GROUP, "--json").stdout)
    assert (past["rollout"], past["counts"]) == ("r1", {"SUCCEEDED": 6})


@pytest.mark.slow
def test_a_bad_model_is_aborted_after_the_first_wave_and_stays_so(hall: Hall, operator: Daemon) -> None:
    hall.good = False
    done = operator.command("fleet", "rollout", *MODEL, "--json")
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["state"], last["aborted"], last["counts"]["FAILED"]) == ("ABORTED", True, 3)
    eventually(lambda: {board.state for board in hall.boards} == {"FAILED", "CANCELED"})
    assert sum(board.begun for board in hall.boards) == 3
    hall.good = True
    assert operator.command("fleet", "rollout", *MODEL).returncode == 1
    assert operator.command("fleet", "status", *GROUP).returncode == 1
    other = operator.command("fleet", "rollout", *MODEL[:-1], "r2")
    assert (other.returncode, hall.told[-1]["sequence"]) == (0, 2)
    assert operator.command("fleet", "history", *GROUP).stdout.splitlines()[0].split()[:2] == ["2", "r2"]


@pytest.mark.slow
def test_a_paused_rollout_goes_on_after_it_was_resumed_with_another_conductor(hall: Hall, operator: Daemon) -> None:
    hall.hold()
    one = operator.background("fleet", "rollout", *MODEL)
    eventually(lambda: hall.told)
    assert operator.command("fleet", "pause", *GROUP).returncode == 0
    hall.go_on()
    eventually(lambda: status(operator)["counts"].get("SUCCEEDED") == 3)
    one.kill()
    one.communicate()
    seen = operator.command("fleet", "status", *GROUP)
    assert (seen.returncode, "PAUSED at" in seen.stdout) == (75, True)
    assert operator.command("fleet", "pause", *GROUP).returncode == 0  # once more changes nothing
    two = operator.background("fleet", "rollout", *GROUP)
    assert two.stdout is not None
    assert [two.stdout.readline()[:10], two.stdout.readline()[:6]] == ["group/hall", "PAUSED"]
    percent = status(operator)["percent"]
    assert percent < 100.0
    assert operator.command("fleet", "resume", *GROUP).returncode == 0
    assert two.wait(PATIENCE) == 0
    assert hall.percents() == sorted(hall.percents())
    assert status(operator)["percent"] == 100.0


@pytest.mark.slow
def test_two_conductors_and_an_abort_by_hand(hall: Hall, operator: Daemon) -> None:
    hall.hold()
    both = [operator.background("fleet", "rollout", *MODEL) for _ in range(2)]
    eventually(lambda: hall.told)
    aborted = operator.command("fleet", "abort", *GROUP)
    assert (aborted.returncode, aborted.stdout.splitlines()[-1][:7]) == (0, "ABORTED")
    assert [one.wait(PATIENCE) for one in both] == [1, 1]
    assert hall.told[-1]["abort"] is True
    assert {told["sequence"] for told in hall.told} == {1}


@pytest.mark.slow
def test_a_conductor_goes_on_when_the_broker_is_back(place: Place, hall: Hall, operator: Daemon) -> None:
    hall.hold()
    one = operator.background("fleet", "rollout", *MODEL)
    eventually(lambda: hall.told)
    place.broker.kill()
    assert one.stderr is not None
    assert "trying again" in one.stderr.readline()
    place.broker.start()
    hall.show()
    hall.go_on()
    assert one.wait(PATIENCE) == 0


@pytest.mark.slow
def test_only_the_account_of_a_conductor_may_steer(
    fleet: LockedFleet, guest: Callable[[str, str], Guest], tmp_path: Path
) -> None:
    topic = "edged/v1/group/fleet/desired"
    owner = guest("conductor", "rollouts")
    assert owner.publish(topic, json.dumps(document(percent=5)), retain=True)
    for kind, name in (("operator", "ops"), ("sender", "gateway"), ("device", "a"), ("exporter", "prometheus")):
        account = Daemon(tmp_path, fleet.port, **fleet.settings(kind, name))
        for arguments in (("abort", "--group", "fleet"), ("rollout", *MODEL[2:], "--group", "fleet")):
            done = account.command("fleet", *arguments)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1), (kind, done.stderr)
    conductor = Daemon(tmp_path, fleet.port, **fleet.settings("conductor", "rollouts"))
    seen = conductor.command("fleet", "status", "--group", "fleet", "--json")
    assert (seen.returncode, json.loads(seen.stdout)["state"]) == (75, "IN_PROGRESS")
    assert conductor.command("fleet", "abort", "--group", "fleet").returncode == 0
    assert conductor.command("fleet", "status", "--group", "fleet").returncode == 1
