"""Rollouts to twenty real daemons: a good model, a bad one, kills at each step, a broker that is killed on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from daemon_fixtures import REFERENCE, Daemon, job, reference_job
from hall import LONG, ROOT, Hall
from patience import eventually
from pull_rig import publish, serving
from rollout_client import digest_of, selected, state, with_wrong_answers
from screen import record

from edged.engine.manifest import identity_of

QUICK = {"seconds": 5, "speed": 0}


@pytest.fixture
def package(hall: Hall, request: pytest.FixtureRequest) -> Path:
    """A good package that no device has."""
    return publish(hall.folder / request.node.name, pad=hall.sequence + 1)


def answers(hall: Hall, prefix: str, count: int) -> None:
    """The group answers as the package does."""
    ids = [f"{prefix}-{n}" for n in range(count)]
    for id in ids:
        hall.send(reference_job(id))
    hall.answered(ids)
    assert {tuple(hall.results(id)[0]["token_ids"]) for id in ids} == {tuple(REFERENCE[0]["output_ids"])}


def test_a_good_model_reaches_all_wave_by_wave(hall: Hall, package: Path) -> None:
    since = len(hall.watch.heard)
    with hall.rollout(hall.signed(package, "good", proving=QUICK)) as conductor:
        assert conductor.ends() == 0, conductor
    hall.serves(package, "good")
    answers(hall, "good", 3 * len(hall.names))
    percents = [one["percent"] for one in hall.watch.all("/group/hall/desired", since)]
    assert percents == sorted(percents)
    assert percents[0] < percents[-1] == 100
    print(f"\nA good model, {len(hall.names)} daemons:\n{conductor}")


def test_a_bad_model_reaches_the_first_wave_and_is_taken_back(hall: Hall, package: Path) -> None:
    with hall.rollout(hall.signed(package, "before", proving=QUICK), waves="100") as conductor:
        assert conductor.ends() == 0, conductor
    hall.serves(package, "before")
    answers(hall, "warm", 3 * len(hall.names))
    since, good = len(hall.watch.heard), {"name": "phi3", "digest": digest_of(package)}
    bad = with_wrong_answers(publish(hall.folder / "bad"))
    with hall.rollout(hall.signed(bad, "bad", proving=QUICK)) as conductor:
        if "FLEET_PICTURE" in os.environ:
            hall.watch.wait_until(lambda: hall.watch.all("/reported", since, state="FAILED"), "a device failed", LONG)
            record(hall, Path(os.environ["FLEET_PICTURE"]))
        assert conductor.ends() == 1, conductor

    def left() -> list[Any]:
        told = [hall.watch.last(name, "reported") for name in hall.names]
        ended = {"CANCELED", "FAILED"}
        return [(one["device"], one["state"]) for one in told if one["state"] not in ended or one["model"] != good]

    hall.watch.wait_until(lambda: not left(), lambda: f"ended, with the model of before: all but {left()}", LONG)
    hall.ready()
    begun = {one["device"] for one in hall.watch.all("/reported", since) if one["step"] == "downloading"}
    assert 3 <= len(begun) <= max(3, len(hall.names) // 4)
    answers(hall, "bad", len(hall.names))
    print(f"\nA bad model, {len(hall.names)} daemons:\n{conductor}")


class Victims:
    """Devices that are killed in one step each, and started again."""

    def __init__(self, hall: Hall, names: list[str]) -> None:
        self._hall = hall
        self._since = len(hall.watch.heard)
        self._names = names
        self.killed: dict[str, str | None] = {}
        """The step that the execution on disk was in, by the step that it was to be killed in."""

    def in_step(self, step: str, name: str) -> None:
        """Kill this device when it reports the step."""
        self._hall.watch.reported(name, self._since, state="IN_PROGRESS", step=step)
        self._kill(step, self._hall.daemon(name))

    def while_checking(self, name: str, files: set[str]) -> None:
        """Kill this device when all files are there: the pull compares digests and known answers now."""
        daemon = self._hall.daemon(name)
        staging = daemon.state_dir / "models/.pulls/phi3"

        def complete() -> bool:
            return staging.is_dir() and files <= {path.name for path in staging.iterdir()}

        eventually(complete, "all files are there", LONG)
        self._kill("checking", daemon)

    def _kill(self, step: str, daemon: Daemon) -> None:
        daemon.kill()
        self.killed[step] = state(daemon).get("step")
        daemon.pace("")
        daemon.start(ready=False)


def test_kill_9_at_each_step_ends_with_the_new_model_everywhere(hall: Hall, package: Path) -> None:
    files = {path.name for path in package.iterdir()} - {"SHA256SUMS"}
    steps = ("downloading", "checking", "draining", "loading", "proving")
    names = dict(zip(steps, hall.names[:: max(1, len(hall.names) // len(steps))], strict=False))
    hall.daemon(names["loading"]).pace("no load")
    drained = hall.daemon(names["draining"])
    drained.pace("hold")
    hall.send(job("drained"), to=f"{ROOT}/device/{drained.device}/job")
    hall.heard("drained", "started")
    victims, held = Victims(hall, hall.names), threading.Event()

    def hold(handler: Any) -> bool:
        if handler.path.endswith("model.onnx.data") and handler.command == "GET":
            held.wait(LONG)
        return False

    with serving(package.parent) as server, ThreadPoolExecutor() as pool:
        server.answer = hold
        model = {"source": f"{server.url}/phi3/SHA256SUMS", "digest": digest_of(package), "name": "phi3"}
        document = hall.signed(package, "killed", model=model, proving={"seconds": 30, "speed": 0})
        with hall.rollout(document, waves="100") as conductor:
            victims.in_step("downloading", names["downloading"])
            kills: list[Callable[[], None]] = [
                lambda step=step: victims.in_step(step, names[step]) for step in ("draining", "loading", "proving")
            ]
            under_way = [pool.submit(kill) for kill in kills]
            under_way.append(pool.submit(victims.while_checking, names["checking"], files))
            held.set()
            for one in under_way:
                one.result()
            assert conductor.ends() == 0, conductor
    hall.serves(package, "killed")
    hall.ready()
    hall.answered(["drained"])
    assert {identity_of(selected(daemon)) for daemon in hall.daemons} == {digest_of(package)}
    answers(hall, "killed", len(hall.names))
    print(f"\nkill -9; the step that each was in, as its disk said: {victims.killed}\n{conductor}")
    assert set(victims.killed) == set(steps)
    assert [victims.killed[step] for step in steps] == ["downloading", "downloading", "loading", "loading", "proving"]


def test_a_broker_that_is_killed_and_one_that_is_restarted_on_the_way_change_nothing(hall: Hall, package: Path) -> None:
    def begun() -> int:
        told = [hall.watch.last(name, "reported") for name in hall.names]
        return sum(one["rollout"] == "over" and one["state"] in ("IN_PROGRESS", "SUCCEEDED") for one in told)

    with hall.rollout(hall.signed(package, "over", proving=QUICK)) as conductor:
        hall.watch.wait_until(lambda: begun() >= 1, "one has begun", LONG)
        hall.broker.kill()
        hall.broker.start()
        hall.watch.wait_until(lambda: begun() >= len(hall.names) // 2, "half of them have begun", LONG)
        hall.broker.stop()
        hall.broker.start()
        assert conductor.ends() == 0, conductor
    hall.serves(package, "over")
    answers(hall, "over", len(hall.names))
    print(f"\nThe broker killed, then restarted:\n{conductor}")
