"""The daemon and a disk that is read-only, fills up, or holds a broken model."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_fixtures import MODELS, REFERENCE, Place, job, reference_job
from patience import eventually

pytest_plugins = ["daemon_fixtures"]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in memory. Root may write where permissions forbid it, so chmod does not do."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "edged-test", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_disk_at_the_start_is_one_line(place: Place, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "ro") as folder:
        result = place.daemon(STATE_DIR=str(folder)).command("run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "read-only" in result.stderr


@pytest.mark.slow
def test_a_disk_that_fills_up_takes_nothing_falsely_and_recovers(place: Place, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=2m") as folder:
        daemon, client = place.daemon(paced=True, STATE_DIR=str(folder)).start(), place.client()
        daemon.state_dir = folder
        daemon.pace("hold")
        client.send(job("before"))
        client.event("before", "started")
        ballast = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(ballast, b"x" * 4096)
        client.send(job("during", metadata={"x": "y" * 200_000}))
        daemon.until_fault("full")
        daemon.pace("")  # a result that cannot be written down must not be published either
        client.send({"id": ""}, to="cancel")
        eventually(lambda: any("/result/invalid-" in message.topic for message in client.messages))
        assert not client.all("event/during")
        assert not client.all("result/before")
        os.ftruncate(ballast, 0)
        os.close(ballast)
        for id in ("before", "during"):
            assert client.result(id)["state"] == "succeeded"
        daemon.until_ready()
        assert len(client.all("result/before")) == 1
        assert [line for line in ("spool_fault", "spool_mended") if daemon.log().count(line) != 1] == []
        assert daemon.end() == 0


@pytest.mark.slow
def test_a_fault_ends_by_itself_when_no_job_waits_any_more(place: Place, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=2m") as folder:
        daemon, client = place.daemon(STATE_DIR=str(folder)).start(), place.client()
        with (folder / "ballast").open("wb") as ballast, pytest.raises(OSError, match="No space"):
            while True:
                os.write(ballast.fileno(), b"x" * 4096)
        client.send(job("tried", metadata={"x": "y" * 200_000}))
        daemon.until_fault("full")
        place.broker.stop()
        daemon.until_fault("not connected")
        (folder / "ballast").unlink()
        eventually(lambda: not [fault for fault in daemon.faults() or ["?"] if "spool" in fault])
        place.broker.start()
        assert client.result("tried")["state"] == "succeeded"


@pytest.mark.slow
def test_a_broken_package_leaves_the_device_up_and_is_mended_without_a_restart(place: Place) -> None:
    package = place.folder / "phi3"
    shutil.copytree(MODELS / "phi3", package)
    data = package / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    daemon = place.daemon(MODEL__PATH=str(package)).start(ready=False)
    fault = daemon.until_fault("model unavailable")
    assert "\n" not in fault
    client = place.client()
    client.status("online", model="model_unavailable", ready=False)
    assert daemon.get("/healthz")[0] == 200
    result = client.ask(job("refused"))
    assert (result["state"], result["error"]["code"]) == ("rejected", "model_unavailable")
    data.write_bytes(whole)
    daemon.until_ready()
    client.status("online", model="serving", ready=True)
    answer = client.ask(reference_job("served"))
    assert answer["token_ids"] == REFERENCE[0]["output_ids"]
    client.send(job("refused"))
    assert client.result("refused", 2)["state"] == "succeeded"


@pytest.mark.slow
def test_jobs_accepted_before_the_package_broke_are_answered_once_it_is_mended(place: Place) -> None:
    package = place.folder / "phi3"
    shutil.copytree(MODELS / "phi3", package)
    daemon, client = place.daemon(paced=True, MODEL__PATH=str(package), DRAIN_SECONDS="0").start(), place.client()
    daemon.pace("hold")
    for id in ("kept-1", "kept-2"):
        client.send(job(id))
        client.event(id, "accepted")
    client.event("kept-1", "started")
    daemon.kill()
    config = package / "genai_config.json"
    config.rename(package / "away")
    daemon.pace("")
    daemon.start(ready=False)
    daemon.until_fault("model unavailable")
    client.send(job("kept-1"))  # a repeat of what was accepted is no new job, and not refused
    client.wait("event/kept-1", 3)
    (package / "away").rename(config)
    for id in ("kept-1", "kept-2"):
        assert client.result(id)["state"] == "succeeded"
    assert all(len(client.all(f"result/{id}")) == 1 for id in ("kept-1", "kept-2"))
