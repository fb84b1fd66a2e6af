"""Which package the daemon serves: what `edged model use` chose, taken up by a reload, and back."""

from __future__ import annotations

import json
import signal

import pytest
from daemon_fixtures import MODELS, REFERENCE, Place, reference_job
from patience import eventually
from pull_rig import publish

from edged.models.pull import held_by_daemon

pytest_plugins = ["daemon_fixtures"]


@pytest.mark.slow
def test_a_package_is_pulled_used_taken_up_by_a_reload_and_turned_back(place: Place) -> None:
    daemon, client = place.daemon(MODEL__PATH=""), place.client()

    def serves(name: str) -> None:
        daemon.until_ready()
        answer = client.ask(
            {"id": f"to-{name}-{len(client.messages)}", "messages": [{"role": "user", "content": "hello"}]}
        )
        assert (answer["state"], answer["model"]) == ("succeeded", name)

    daemon.start()
    serves("edged-demo")
    for name in ("phi3", "llama3"):
        assert daemon.command("model", "pull", str(MODELS / name)).returncode == 0
        done = daemon.command("model", "use", name)
        assert "systemctl reload edged" in done.stdout, done.stderr
    serves("edged-demo")  # nothing changes by itself
    assert (daemon.state_dir / "bits.json").is_file()
    assert held_by_daemon(daemon.state_dir) > 20 << 20  # what it would give back for another model
    before = daemon.log().count('"starting"')
    daemon.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log().count('"starting"') > before)
    serves("llama3")
    assert daemon.command("model", "use", "phi3").returncode == 0
    daemon.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log().count('"starting"') > before + 1)
    serves("phi3")
    client.send(reference_job("exact"))
    assert client.result("exact")["token_ids"] == REFERENCE[0]["output_ids"]
    listed = json.loads(daemon.command("model", "list", "--json").stdout)["packages"]
    assert {row["name"]: row["used"] for row in listed} == {"llama3": False, "phi3": True}
    assert daemon.end() == 0
    assert held_by_daemon(daemon.state_dir) == 0


@pytest.mark.slow
def test_a_chosen_package_that_breaks_is_served_once_another_is_chosen(place: Place) -> None:
    daemon, client = place.daemon(MODEL__PATH=""), place.client()
    for name in ("phi3", "llama3"):
        assert daemon.command("model", "pull", str(MODELS / name)).returncode == 0
    assert daemon.command("model", "use", "phi3").returncode == 0
    (daemon.state_dir / "models/phi3/model.onnx.data").write_bytes(b"cut")
    daemon.start(ready=False)
    daemon.until_fault("model.onnx.data at byte 3: the file ends here and should be longer")
    assert daemon.command("model", "use", "llama3").returncode == 0
    daemon.until_ready()  # it looks at the folder every two seconds
    assert client.ask(reference_job("x"))["model"] == "llama3"
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_package_that_decays_while_it_is_served_is_not_served_until_a_pull_has_mended_it(place: Place) -> None:
    daemon, client = place.daemon(MODEL__PATH="", MODEL__SCRUB_INTERVAL="1"), place.client()
    source = str(publish(place.folder / "stick"))
    assert daemon.command("model", "pull", source).returncode == 0
    assert daemon.command("model", "use", "phi3").returncode == 0
    daemon.start()
    manifest = json.loads((daemon.state_dir / "models/phi3/edged-manifest.json").read_text())
    late = place.client()
    assert json.loads(late.wait("info").payload)["model"]["digest"] == manifest["identity"]
    eventually(lambda: daemon.metric("edged_model_scrubbed_bytes_total") > 0, "a block was read")
    with (daemon.state_dir / "models/phi3/model.onnx.data").open("r+b", buffering=0) as file:
        file.seek(100_000)
        (byte,) = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte ^ 4]))
    daemon.until_fault("the model package is damaged: model.onnx.data at byte 0: ")
    assert [fault["code"] for fault in json.loads(daemon.get("/readyz")[1])["faults"]] == ["model_corrupt"]
    assert daemon.metric("edged_model_corrupt_blocks") == 1
    assert '"scrub_found_damage"' in daemon.log()
    refused = client.ask(reference_job("refused"))
    assert (refused["state"], refused["error"]["code"]) == ("rejected", "model_unavailable")
    doctor = json.loads(daemon.command("doctor", "--json").stdout)
    assert [found["state"] for found in doctor if "the model package is damaged" in found["message"]] == ["fail"]
    assert "1 damaged blocks fetched anew" in daemon.command("model", "pull", source).stdout
    daemon.until_ready()
    assert client.ask(reference_job("mended"))["token_ids"] == REFERENCE[0]["output_ids"]
    assert daemon.metric("edged_model_corrupt_blocks") == 0
    assert daemon.end() == 0
