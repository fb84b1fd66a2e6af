"""A package on trial on the real daemon: a good one stays, one that is too slow or crashes the process does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from pull_rig import publish, write_sums
from random_package import Shape, write_random_package
from rollout_client import OPEN, desired, digest_of, reported, selected, state

from edged.machine.board import detect
from edged.machine.clock import parse_time
from edged.machine.memory import available
from edged.models.record import record_known_answers
from edged.settings import Settings

pytest_plugins = ["daemon_fixtures"]


def decoder(folder: Path, layers: int, seed: int = 0) -> Path:
    """A package of so many layers, with known answers."""
    shape = Shape(hidden=128, heads=2, kv_heads=1, head_size=64, layers=layers)
    package = write_random_package(folder / "phi3", shape, seed)
    record_known_answers(Settings(model={"threads": 1}), detect(), available, package)
    write_sums(package)
    return package


def serving_package(daemon: Daemon, package: Path) -> Daemon:
    for arguments in (("pull", str(package)), ("use", "phi3")):
        assert daemon.command("model", *arguments).returncode == 0
    return daemon.start()


def served(client: Client5, package: Path, **fields: object) -> dict[str, object]:
    return reported(client, model={"name": "phi3", "digest": digest_of(package)}, **fields)


@pytest.mark.slow
def test_a_package_as_fast_stays_and_one_of_many_more_layers_goes_back(place: Place) -> None:
    thin, good = decoder(place.folder / "thin", 1), decoder(place.folder / "good", 1, seed=1)
    slow = decoder(place.folder / "slow", 40)
    daemon, client = serving_package(place.daemon(**OPEN), thin), place.client()
    client.send(desired(good, proving={"seconds": 2, "speed": 0.1}), to="desired", retain=True)
    proving = reported(client, state="IN_PROGRESS", step="proving")
    assert proving["model"]["digest"] == digest_of(good)
    assert client.ask(job("on-trial"))["state"] == "succeeded"
    done = served(client, good, state="SUCCEEDED")
    assert done["speed"] > 0.1
    assert (done["before"]["digest"], done["failures"]) == (digest_of(thin), 0)
    good_place = selected(daemon)
    wanted = desired(slow, rollout="r2", sequence=2, proving={"seconds": 3600, "speed": 0.5})
    client.send(wanted, to="desired", retain=True)
    failed = reported(client, rollout="r2", state="FAILED")
    assert failed["fault"]["code"] == "rollout_package_failed"
    assert "tokens a second" in failed["fault"]["message"]
    assert failed["speed"] < 0.5
    back = served(client, good, rollout="r2", state="FAILED", step=None)
    daemon.until_ready()
    load = json.loads(client.wait("info").payload)["model"]["load_seconds"]
    assert parse_time(back["time"]) - parse_time(failed["time"]) < 60 + load
    assert selected(daemon) == good_place
    assert client.ask(job("back"))["state"] == "succeeded"
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_package_that_crashes_the_process_while_it_is_proved_goes_back_and_a_kill_does_not(place: Place) -> None:
    good, other = publish(place.folder / "good"), publish(place.folder / "other", pad=1)
    daemon, client = serving_package(place.daemon(paced=True, **OPEN), good), place.client()
    before = selected(daemon)
    client.send(desired(other, proving={"seconds": 3600, "speed": 0.01}), to="desired", retain=True)
    reported(client, state="IN_PROGRESS", step="proving")
    daemon.kill()
    daemon.start()
    assert selected(daemon) != before
    assert (state(daemon)["step"], state(daemon)["loads"]) == ("proving", 1)
    client.send({"id": "poison", "prompt": [7, 7, 7], "max_tokens": 8, "ignore_eos": True})
    assert daemon.wait() != 0
    daemon.start(ready=False)
    failed = reported(client, state="FAILED")
    assert "the process crashed while it proved the package" in failed["fault"]["message"]
    served(client, good, state="FAILED", step=None, failures=1)
    assert selected(daemon) == before
    daemon.kill()


@pytest.mark.slow
def test_an_abort_ends_a_trial(place: Place) -> None:
    good, other = publish(place.folder / "good"), publish(place.folder / "other", pad=1)
    daemon, client = serving_package(place.daemon(**OPEN), good), place.client()
    before, proving = selected(daemon), {"seconds": 3600, "speed": 0}
    client.send(desired(other, proving=proving), to="desired", retain=True)
    assert reported(client, step="proving")["progress"] == 0.0
    client.send(desired(other, proving=proving, abort=True), to="desired", retain=True)
    assert served(client, good, state="CANCELED")["fault"]["code"] == "rollout_aborted"
    assert selected(daemon) == before
    assert daemon.end() == 0
