"""The daemon on an onnxruntime out of a folder of wheels, and what it says where that cannot be."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from daemon_fixtures import REFERENCE, Daemon, Place, reference_job
from patience import eventually
from wheel_rig import NAME, OTHER, SAME, VERSION, WRONG, make

pytest_plugins = ["daemon_fixtures"]


def reload(daemon: Daemon) -> None:
    before = daemon.log().count('"starting"')
    daemon.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log().count('"starting"') > before)
    daemon.until_ready()


@pytest.mark.slow
def test_a_wheel_is_taken_up_at_a_reload_refused_when_it_breaks_and_given_up(place: Place) -> None:
    folder = place.folder / "wheels"
    place.folder.chmod(0o1777)  # as /tmp is; mosquitto writes there
    daemon, client = place.daemon(MODEL__RUNTIME_WHEELS=str(folder)), place.client()

    def info() -> dict[str, Any]:
        """What is said after the last start, of the model that it serves."""
        said = [json.loads(message.payload) for message in client.all("info")]
        last = said[-1] if len({document["started"] for document in said}) == starts else {}
        return last if last and last["model"]["state"] == "serving" else {}

    def answers(id: str) -> None:
        client.send(reference_job(id))
        assert client.result(id)["token_ids"] == REFERENCE[0]["output_ids"]

    make(folder, OTHER)
    starts = 1
    daemon.start()
    assert eventually(info)["versions"]["onnxruntime"] == VERSION
    answers("with-the-wheel")
    (took,) = daemon.logged("runtime_from_wheel")
    assert took["wheel"] == str(folder / NAME)
    (unpacked,) = (daemon.state_dir / "runtimes").iterdir()

    make(folder, WRONG)
    starts = 2
    reload(daemon)
    told = eventually(info)
    assert told["versions"]["onnxruntime"] != VERSION
    reason = told["model"]["execution_provider_reason"]
    assert reason.startswith("the package was made for CPU; model.runtime_wheels = ")
    assert f"{folder} is not used: {NAME} does not work here: the model answers otherwise" in reason
    assert reason.partition("; ")[2] == daemon.logged("runtime_wheels_refused")[0]["reason"]
    assert f'reason="{reason[:60]}' in daemon.get("/metrics")[1]
    answers("without-it")
    (refused,) = (daemon.state_dir / "runtimes").iterdir()  # what is not used any more would only take up the card
    assert refused != unpacked
    inode = refused.stat().st_ino
    starts = 3
    reload(daemon)
    assert refused.stat().st_ino == inode  # nor is it written at each start

    make(folder, OTHER)
    starts = 4
    reload(daemon)
    assert eventually(info)["versions"]["onnxruntime"] == VERSION
    answers("with-it-again")
    assert daemon.end() == 0

    del daemon.env["EDGED_MODEL__RUNTIME_WHEELS"]
    starts = 5
    daemon.start()
    assert eventually(info)["versions"]["onnxruntime"] != VERSION
    assert not list((daemon.state_dir / "runtimes").iterdir())
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_reload_while_a_wheel_is_tried_comes_after_it(place: Place) -> None:
    folder = place.folder / "wheels"
    place.folder.chmod(0o1777)
    make(folder, f"import time; time.sleep(1){SAME}")
    daemon = place.daemon(MODEL__RUNTIME_WHEELS=str(folder)).start(ready=False)
    eventually(lambda: list(daemon.state_dir.glob("runtimes/[!.]*")))
    daemon.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log().count('"starting"') == 2)
    daemon.until_ready()
    assert daemon.end() == 0
