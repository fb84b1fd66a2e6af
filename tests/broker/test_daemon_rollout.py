"""Rollouts on the real daemon: what it is told to serve, how it gets there, and how it goes back."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from daemon_fixtures import REFERENCE, Client5, Daemon, Place, reference_job
from patience import PATIENCE, eventually
from pull_rig import publish, serving
from rollout_client import OPEN, desired, digest_of, refused, reported, selected, state, with_wrong_answers

from edged.rollout.desired import check_desired
from edged.rollout.signing import sign

pytest_plugins = ["daemon_fixtures"]

TOPIC = "edged/v1/device/board/desired"


def serves_phi3(daemon: Daemon, client: Client5, id: str) -> None:
    daemon.until_ready()
    answer = client.ask(reference_job(id))
    assert (answer["model"], answer["token_ids"]) == ("phi3", REFERENCE[0]["output_ids"])


@pytest.mark.slow
def test_a_signed_rollout_is_followed_to_the_new_model_and_no_other_document_is(place: Place) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().splitlines()[1]
    daemon = place.daemon(paced=True, MODEL__PATH="", FLEET__TRUSTED_KEYS=public)
    daemon.env["TEST_SYNCHRONISED"] = "1"
    client, package = place.client(), publish(place.folder / "stick")
    daemon.start()

    def signed(**fields: Any) -> dict[str, Any]:
        plain = desired(package, expires="2090-01-01T00:00:00Z", **fields)
        received = check_desired(plain, "device")
        return {
            **plain,
            "signature": sign(received, TOPIC, "release", key),
            "wave_signature": sign(received, TOPIC, "wave", key),
        }

    client.send(desired(package), to="desired", retain=True)
    assert refused(client, "desired_unsigned")["state"] == "REJECTED"
    good = signed(sequence=5)
    client.send({**good, "timeout": 60}, to="desired", retain=True)
    assert refused(client, "desired_signature_wrong")["sequence"] == 5
    client.send(good, to="desired", retain=True)
    done = reported(client, state="SUCCEEDED")
    assert done["model"] == {"name": "phi3", "digest": digest_of(package)}
    assert done["before"]["name"] == "edged-demo"
    assert (done["rollout"], done["sequence"], done["desired"], done["refused"]) == ("r1", 5, good, [])
    steps = [json.loads(message.payload)["step"] for message in client.all("reported")]
    assert "draining" in steps  # "loading" may be over before it can be reported
    assert daemon.metric('edged_rollout_state{state="SUCCEEDED"}') == 1
    serves_phi3(daemon, client, "new")
    assert not (daemon.state_dir / "models/.before").is_symlink()
    client.send(signed(sequence=4, rollout="old"), to="desired", retain=True)
    assert refused(client, "desired_replayed")["rollout"] == "old"
    assert '"code": "desired_replayed"' in daemon.get("/readyz")[1]
    daemon.end()
    before = len(client.all("reported"))
    daemon.start()
    eventually(lambda: len(client.all("reported")) > before)
    assert refused(client, "desired_replayed")["rollout"] == "old"  # known over a restart
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_package_that_fails_its_known_answers_goes_back_without_a_download(place: Place) -> None:
    daemon, client = place.daemon(**OPEN, MODEL__ROWS=""), place.client()
    good, bad = publish(place.folder / "good"), with_wrong_answers(publish(place.folder / "bad"))
    for arguments in (("pull", str(good)), ("use", "phi3")):
        assert daemon.command("model", *arguments).returncode == 0
    daemon.start()
    before = selected(daemon)
    wanted = desired(bad, settings={"model.rows": 2})
    client.send(wanted, to="desired", retain=True)
    failed = reported(client, state="FAILED", step=None)
    assert (failed["fault"]["code"], failed["failures"]) == ("rollout_package_failed", 1)
    assert "known" in failed["fault"]["message"]
    back = reported(client, state="FAILED", model={"name": "phi3", "digest": digest_of(good)})
    assert back["before"] == back["model"]
    assert back["settings"]["model.rows"] == {"value": None, "from": "default"}  # its settings go with it
    assert selected(daemon) == before
    serves_phi3(daemon, client, "back")
    assert "rollout_package_failed" in [fault["code"] for fault in json.loads(daemon.get("/readyz")[1])["warnings"]]
    client.send({**wanted, "abort": True}, to="desired", retain=True)  # what is over stays as it was
    client.send(desired(good, sequence=2, rollout="r2"), to="desired", retain=True)
    assert reported(client, state="SUCCEEDED", sequence=2)["rollout"] == "r2"  # serves it already
    assert daemon.end() == 0


@pytest.mark.slow
def test_another_content_than_wanted_is_not_taken(place: Place) -> None:
    daemon, client = place.daemon(**OPEN).start(), place.client()
    package = publish(place.folder / "stick")
    wanted = desired(package)
    (package / "SHA256SUMS").unlink()  # so that only the whole of it tells
    with (package / "model.onnx.data").open("ab") as file:
        file.write(b"more")
    client.send(wanted, to="desired", retain=True)
    failed = reported(client, state="FAILED")
    assert (failed["fault"]["code"], failed["failures"]) == ("rollout_digest_wrong", 1)
    assert failed["model"]["name"] == "edged-demo"
    assert not (daemon.state_dir / "models/current").is_symlink()
    assert not list((daemon.state_dir / "models/.pulls").iterdir())
    assert daemon.end() == 0


@pytest.mark.slow
def test_kill_9_at_each_step_is_resumed(place: Place) -> None:
    daemon, client = place.daemon(paced=True, **OPEN), place.client()
    package = publish(place.folder / "web", pad=4 << 20)
    held = threading.Event()
    with serving(package.parent) as server:

        def hold(handler: Any) -> bool:
            if handler.path.endswith("model.onnx.data") and handler.command == "GET":
                held.wait(PATIENCE)
            return False

        server.answer = hold
        daemon.start()
        client.send(desired(package, f"{server.url}/phi3/SHA256SUMS"), to="desired", retain=True)
        reported(client, state="IN_PROGRESS", step="downloading")
        eventually(lambda: server.gets("model.onnx.data"))
        daemon.kill()
        daemon.pace("no load")
        held.set()
        daemon.start(ready=False)
        reported(client, state="IN_PROGRESS", step="draining")
        reported(client, state="IN_PROGRESS", step="loading")
    daemon.kill()
    assert (daemon.state_dir / "models/.before").is_symlink()
    daemon.pace("")
    daemon.start()
    done = reported(client, state="SUCCEEDED")
    assert done["model"] == {"name": "phi3", "digest": digest_of(package)}
    assert not (daemon.state_dir / "models/.before").is_symlink()
    serves_phi3(daemon, client, "after")
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_package_that_ends_every_process_is_given_up_for_the_one_before(place: Place) -> None:
    daemon, client = place.daemon(paced=True, **OPEN, MODEL__ROWS="").start(), place.client()
    wanted = desired(publish(place.folder / "stick"), settings={"model.rows": 2})
    client.send(wanted, to="desired", retain=True)
    daemon.pace("no load")
    for loads in (1, 2, 3):
        eventually(lambda loads=loads: state(daemon).get("loads") == loads)
        daemon.kill()
        daemon.start(ready=False)
    daemon.pace("")
    failed = reported(client, state="FAILED", step=None)
    assert "the process ended 3 times" in failed["fault"]["message"]
    assert reported(client, state="FAILED", step=None, failures=1)["fault"]["code"] == "rollout_package_failed"
    daemon.until_ready()
    assert client.ask({"id": "x", "prompt": "hello", "max_tokens": 2})["model"] == "edged-demo"
    assert failed["settings"]["model.rows"] == {"value": None, "from": "default"}  # of the process that gave them up
    assert daemon.end() == 0


def test_a_device_without_keys_and_one_whose_package_is_set_by_hand_reject_it(place: Place) -> None:
    closed, client = place.daemon(MODEL__PATH="").start(), place.client()
    client.send(desired(publish(place.folder / "stick")), to="desired", retain=True)
    assert "fleet.trusted_keys" in refused(client, "desired_unsigned")["fault"]["hint"]
    assert closed.end() == 0
    by_hand = place.daemon(FLEET__UNSIGNED="true").start()
    rejected = reported(client, state="REJECTED")
    assert rejected["fault"]["code"] == "rollout_model_path_set"
    assert by_hand.end() == 0


@pytest.mark.slow
def test_a_document_that_needs_the_time_waits_for_the_clock_and_says_so(place: Place) -> None:
    daemon = place.daemon(paced=True, MODEL__PATH="", FLEET__UNSIGNED="true")
    daemon.env["TEST_SYNCHRONISED"] = "0"
    client, package = place.client(), publish(place.folder / "stick")
    daemon.start()
    client.send(desired(package, expires="2090-01-01T00:00:00Z"), to="desired", retain=True)
    assert reported(client, waiting_for="clock")["state"] == "QUEUED"
    eventually(lambda: "rollout_waits_for_clock" in daemon.get("/readyz")[1])
    assert "time server" in daemon.logged("rollout_waits_for_clock")[0]["hint"]
    assert len(daemon.logged("rollout_waits_for_clock")) == 1
    place.broker.kill()  # doctor's lines name no broker where there is none
    daemon.until_fault("not connected")
    found = json.loads(daemon.command("doctor", "--json").stdout)
    assert ("rollout", "warn") in [(one["check"], one["state"]) for one in found]
    assert not [one for one in found if one["message"].startswith("None")]
