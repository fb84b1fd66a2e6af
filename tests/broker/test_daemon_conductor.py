"""A conductor and real devices: a good model goes to all of them, a bad one to the first."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from conductor_rig import TOPIC
from daemon_fixtures import Client5, Place
from patience import PATIENCE, eventually
from pull_rig import publish
from rollout_client import Keys, digest_of, with_wrong_answers

pytest_plugins = ["daemon_fixtures"]

GROUP = ("fleet", "rollout", "--group", "hall")
OPTIONS = ("--waves", "25,100", "--min-executed", "1")


def until_reported(clients: list[Client5], state: str, rollout: str) -> list[dict[str, Any]]:
    """Wait until the last report of each device says so."""

    def last() -> list[dict[str, Any]]:
        heard = [client.all("reported") for client in clients]
        return [json.loads(messages[-1].payload) for messages in heard if messages]

    def all_do() -> bool:
        told = last()
        return len(told) == len(clients) and all((one["state"], one["rollout"]) == (state, rollout) for one in told)

    eventually(all_do, lambda: f"{state}; the last reports: {last()}")
    return last()


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a whole rollout: several devices pull and load, one wave after the other."""
    out, errors = process.communicate(timeout=4 * PATIENCE)
    return process.returncode, out + errors


@pytest.mark.slow
def test_a_good_model_reaches_all_devices_over_a_killed_conductor_and_a_bad_one_reaches_one(place: Place) -> None:
    keys = Keys(place.folder)
    names = ("pi-1", "pi-2", "pi-3")
    settings = {"MODEL__PATH": "", "DEVICE__GROUPS": "hall", **keys.settings}
    daemons = [place.daemon(device=name, paced=True, **settings) for name in names]
    clients = [place.client(name) for name in names]
    operator = daemons[0]
    key = ("--key", str(keys.conductor.file))
    for daemon in daemons:
        daemon.env["TEST_SYNCHRONISED"] = "1"
        daemon.start()
    good, bad = publish(place.folder / "good"), with_wrong_answers(publish(place.folder / "bad"))

    signed = keys.signed(operator, good, rollout="good")
    one = operator.background(*GROUP, "--document", str(signed), *key, *OPTIONS)
    assert one.stdout is not None
    while "IN_PROGRESS at" not in one.stdout.readline():
        assert one.poll() is None
    one.kill()
    one.communicate()
    two = operator.background(*GROUP, *key, *OPTIONS)
    code, told = ends(two)
    assert code == 0, told
    assert told.rstrip().endswith("SUCCEEDED at 100 %: 3 SUCCEEDED")
    wanted = {"name": "phi3", "digest": digest_of(good)}
    assert [one["model"] for one in until_reported(clients, "SUCCEEDED", "good")] == [wanted] * 3

    forged = json.loads(signed.read_text()) | {"percent": 50, "sequence": 9}
    place.client("nobody").send(forged, to=TOPIC, retain=True)  # neither devices nor conductors heed it
    signed = keys.signed(operator, bad, rollout="bad-4", sequence=2)  # with this id, pi-1 alone is in 25 %
    three = operator.background(*GROUP, "--document", str(signed), *key, *OPTIONS)
    code, told = ends(three)
    assert (code, "ABORTED at 25 %: 1 FAILED, 2 LATER" in told) == (1, True), told
    assert "rollout_package_failed" in told
    assert "is not heeded: wave_signature is of none of the keys" in told

    def states() -> list[str]:
        return sorted(str(json.loads(client.all("reported")[-1].payload)["state"]) for client in clients)

    eventually(lambda: states() == ["CANCELED", "CANCELED", "FAILED"], lambda: str(states()))
    for daemon, client in zip(daemons, clients, strict=True):
        daemon.until_ready()
        eventually(lambda client=client: json.loads(client.all("reported")[-1].payload)["model"] == wanted)
        assert client.ask({"id": "after", "prompt": [1, 5, 9], "max_tokens": 2})["model"] == "phi3"
    assert [daemon.end() for daemon in daemons] == [0, 0, 0]
