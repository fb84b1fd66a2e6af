"""Settings by a desired document on the real daemon: what serves, what is refused, and what outlives a restart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from patience import eventually
from rollout_client import reported
from test_rollout_signing import Signer

pytest_plugins = ["daemon_fixtures"]

WANTED = {"model.rows": 2, "log.level": "warning", "jobs.retention": 1234, "device.groups": ["hall"]}


def document(sequence: int, settings: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"rollout": f"r{sequence}", "sequence": sequence, "settings": settings, "proving": {"seconds": 0}, **fields}


def limits(client: Client5) -> dict[str, Any]:
    """Of the newest info document."""
    return dict(json.loads(client.all("info")[-1].payload)["limits"])


def refused(client: Client5, target: str) -> str:
    """Wait until the last report refuses a document of this target, and why."""

    def told() -> list[str]:
        last = json.loads(client.all("reported")[-1].payload)["refused"]
        return [one["fault"]["message"] for one in last if one["target"] == target]

    return str(eventually(told)[0])


def from_where(daemon: Daemon) -> dict[str, Any]:
    told = json.loads(daemon.command("config", "--json").stdout)
    return {name: (one["value"], one["from"]) for name, one in told.items() if name in WANTED}


@pytest.mark.slow
def test_settings_are_taken_refused_overridden_and_outlive_a_restart(place: Place) -> None:
    daemon = place.daemon(FLEET__UNSIGNED="true", MODEL__ROWS="", JOBS__RETENTION="77")
    client = place.client()
    daemon.start()
    client.send(document(1, WANTED), to="desired", retain=True)
    done = reported(client, state="SUCCEEDED", rollout="r1")
    assert done["settings"]["model.rows"] == {"value": 2, "from": "rollout r1"}
    assert done["settings"]["jobs.retention"] == {
        "value": 77,
        "from": "EDGED_JOBS__RETENTION",
        "overrides": {"value": 1234, "from": "rollout r1"},
    }
    assert done["settings"]["model.context"] == {"value": None, "from": "default"}
    steps = [json.loads(message.payload)["step"] for message in client.all("reported")]
    assert "checking" in steps
    assert "downloading" not in steps
    assert "rollout_settings_overridden" in [one["code"] for one in json.loads(daemon.get("/readyz")[1])["warnings"]]
    assert len(daemon.logged("starting")) == 1  # the process with these settings logs warnings only
    assert from_where(daemon) == {
        "model.rows": (2, "rollout r1"),
        "log.level": ("warning", "rollout r1"),
        "jobs.retention": (77, "EDGED_JOBS__RETENTION"),
        "device.groups": (["hall"], "rollout r1"),
    }
    kept = (daemon.state_dir / "settings.json").read_bytes()

    client.send(document(2, {"model.rows": 0}), to="desired", retain=True)
    assert refused(client, "device") == "settings: model.rows = 0: must be a whole number from 1 to 64"
    hall = "edged/v1/group/hall/desired"  # the device has joined it
    client.send(document(9, {"device.groups": []}), to=hall, retain=True)
    assert "device.groups goes in the document of one device only" in refused(client, "group/hall")
    assert (daemon.state_dir / "settings.json").read_bytes() == kept

    daemon.end()
    heard = len(client.all("info"))
    daemon.start()
    eventually(lambda: len(client.all("info")) > heard and limits(client)["rows"] == 2)
    assert limits(client)["retention_seconds"] == 77
    assert (daemon.state_dir / "settings.json").read_bytes() == kept
    client.send(document(3, {}), to="desired", retain=True)  # takes all back
    back = reported(client, state="SUCCEEDED", rollout="r3")
    assert back["settings"]["model.rows"]["from"] == back["settings"]["device.groups"]["from"] == "default"
    assert daemon.end() == 0


@pytest.mark.slow
def test_settings_with_which_the_model_does_not_load_are_taken_back(place: Place) -> None:
    daemon, client = place.daemon(FLEET__UNSIGNED="true").start(), place.client()
    client.send(document(1, {"model.context": 256}), to="desired", retain=True)
    reported(client, state="SUCCEEDED", rollout="r1")
    client.send(document(2, {"model.context": 1_048_576}), to="desired", retain=True)
    failed = reported(client, state="FAILED", step=None, rollout="r2")
    assert "model.context = 1048576 is more than the package's context" in failed["fault"]["message"]
    back = {"value": 256, "from": "rollout r1"}
    eventually(lambda: json.loads(client.all("reported")[-1].payload)["settings"]["model.context"] == back)
    daemon.until_ready()
    assert client.ask(job("after"))["state"] == "succeeded"

    client.send(document(3, {"model.context": 128}, proving={"seconds": 600}), to="desired", retain=True)
    reported(client, step="proving", rollout="r3")
    client.send(document(4, {"model.context": 256}), to="desired", retain=True)  # ends the trial of the other
    reported(client, state="SUCCEEDED", rollout="r4")
    eventually(lambda: json.loads(client.all("reported")[-1].payload)["settings"]["model.context"] == back)
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_conductor_brings_settings_to_a_group_without_a_model(place: Place) -> None:
    key = Signer(place.folder, "fleet")
    daemon = place.daemon(paced=True, DEVICE__GROUPS="hall", FLEET__TRUSTED_KEYS=key.public)
    daemon.env["TEST_SYNCHRONISED"] = "1"
    client = place.client()
    daemon.start()
    options = ("--expires", "2090-01-01T00:00:00Z", "--waves", "100", "--min-executed", "1", "--key", str(key.file))
    wanted = ("--set", "jobs.retention=60", "--set", "log.level=warning")
    done = daemon.command("fleet", "rollout", "--group", "hall", *wanted, *options)
    assert done.returncode == 0, done.stderr
    told = reported(client, state="SUCCEEDED", target="group/hall")
    assert told["desired"]["settings"] == {"jobs.retention": 60, "log.level": "warning"}
    assert told["settings"]["jobs.retention"] == {"value": 60, "from": f"rollout {told['rollout']}"}
    assert "proving" not in told["desired"]  # nor does the engine notice these: no trial of ten minutes
    assert daemon.end() == 0
