"""Jobs that kill or hang the process, and boards that lose power at a job: who is to blame, and who is answered."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from patience import eventually

pytest_plugins = ["daemon_fixtures"]

POISON, HANG = [7, 7, 7], [13, 13, 13]
"""Prompts that paced_edged.py does harm at."""


def run_until_answered(daemon: Daemon, client: Client5, ids: list[str]) -> list[int]:
    """Start the daemon again after each end of its own, as systemd does; the exit codes."""
    ends: list[int] = []

    def answered() -> bool:
        assert daemon.process is not None
        if daemon.process.poll() is not None:
            ends.append(daemon.process.returncode)
            assert len(ends) < 8
            daemon.start(ready=False)
        return all(client.all(f"result/{id}") for id in ids)

    eventually(answered, lambda: f"answered; ends: {ends}")
    return ends


@pytest.mark.slow
def test_of_eight_jobs_in_a_batch_the_one_that_aborts_the_process_is_found_and_seven_are_answered(place: Place) -> None:
    daemon, client = place.daemon(paced=True, MODEL__ROWS="8").start(), place.client()
    daemon.pace("hold")
    ids = [f"batch-{n}" for n in range(8)]
    for id in ids:
        client.send(job(id, 8, prompt=POISON) if id == "batch-5" else job(id, 8))
        client.event(id, "accepted")
    daemon.pace(0.02)
    eventually(lambda: len(json.loads((daemon.state_dir / "running").read_text())["jobs"]) == 8)
    # One crash in company, after which all eight run alone; three more of the one that is to blame.
    assert run_until_answered(daemon, client, ids) == [-signal.SIGABRT] * 4
    results = {id: client.result(id) for id in ids}
    poison = results.pop("batch-5")
    assert (poison["state"], poison["error"]["code"], poison["attempts"]) == ("failed", "crash_loop", 4)
    assert "Fatal Python error: Aborted" in poison["error"]["message"]
    assert {result["state"] for result in results.values()} == {"succeeded"}
    suspects = [crash["jobs"] for crash in daemon.logged("crashed_before")]
    assert [len(jobs) for jobs in suspects] == [8, 1, 1, 1]
    assert suspects[1:] == [["batch-5"]] * 3
    daemon.until_ready()
    assert client.ask(job("healthy"))["state"] == "succeeded"


@pytest.mark.slow
def test_a_job_that_is_cut_by_power_ten_times_succeeds(place: Place) -> None:
    daemon, client = place.daemon(paced=True), place.client()
    daemon.pace("hold")
    for cut in range(10):
        daemon.env["TEST_BOOT_ID"] = f"boot-{cut}"
        daemon.start(ready=cut == 0)
        if cut == 0:
            client.send(job("cut"))
        client.event("cut", "started") if cut == 0 else client.wait("event/cut", cut + 2)
        daemon.end(signal.SIGKILL)
        if cut % 2:  # what an earlier crash wrote may reach the disk late, or never: after a reboot it blames nobody
            (daemon.state_dir / "crash.txt").write_text("Fatal Python error: Aborted\n")
    daemon.env["TEST_BOOT_ID"] = "boot-10"
    daemon.pace("")
    daemon.start()
    result = client.result("cut")
    assert (result["state"], result["attempts"]) == ("succeeded", 11)
    assert not daemon.logged("crashed_before")


@pytest.mark.slow
def test_a_hung_step_ends_the_process_and_three_times_alone_are_a_crash_loop(place: Place) -> None:
    daemon, client = place.daemon(paced=True), place.client()
    daemon.start()
    client.send(job("hangs", prompt=HANG))
    client.event("hangs", "started")
    client.send(job("behind"))
    assert run_until_answered(daemon, client, ["hangs", "behind"]) == [-signal.SIGABRT] * 3
    assert client.result("behind")["state"] == "succeeded"
    error = client.result("hangs")["error"]
    assert error["code"] == "crash_loop"
    assert "a step of the model hung for" in error["message"]
    assert [entry["jobs"] for entry in daemon.logged("thread_stuck")] == [1, 1, 1]
    assert [entry["jobs"] for entry in daemon.logged("crashed_before")] == [["hangs"]] * 3


@pytest.mark.slow
def test_a_hung_load_is_a_fault_and_ends_the_process_and_no_job_is_to_blame(place: Place) -> None:
    daemon, client = place.daemon(paced=True), place.client()
    daemon.env["TEST_LOAD_SECONDS"] = "10"
    daemon.pace("no load")
    daemon.start(ready=False)
    eventually(lambda: daemon.faults() == ["model loading"])
    client.send(job("waits"))
    client.event("waits", "accepted")
    assert daemon.wait() == -signal.SIGABRT
    [stuck] = daemon.logged("thread_stuck")
    assert "loading the model hung for" in stuck["reason"]
    daemon.pace("")
    del daemon.env["TEST_LOAD_SECONDS"]
    daemon.start()
    result = client.result("waits")
    assert (result["state"], result["attempts"]) == ("succeeded", 1)
    [crash] = daemon.logged("crashed_before")
    assert (crash["jobs"], "loading the model hung" in crash["reason"]) == ([], True)
    assert 'edged_faults_total{event="crashed_before",level="error"} 1.0' in daemon.get("/metrics")[1]


@pytest.mark.slow
def test_a_prompt_that_is_never_prepared_ends_the_process_and_itself(place: Place) -> None:
    daemon, client = place.daemon(paced=True), place.client()
    daemon.start()
    client.send(job("hangs", prompt="hang"))
    client.event("hangs", "accepted")
    client.send(job("behind"))
    assert run_until_answered(daemon, client, ["hangs", "behind"]) == [-signal.SIGABRT] * 3
    assert client.result("behind")["state"] == "succeeded"
    error = client.result("hangs")["error"]
    assert error["code"] == "crash_loop"
    assert "preparing a prompt hung for" in error["message"]


@pytest.mark.slow
def test_a_pinned_instruction_that_aborts_the_process_is_given_up_and_no_job_is_to_blame(place: Place) -> None:
    daemon, client = place.daemon(paced=True, MODEL__ROWS="2").start(), place.client()
    daemon.pace("hold")
    client.send(job("waits"))
    client.event("waits", "started")
    daemon.end(signal.SIGKILL)
    daemon.pace("")
    daemon.env |= {"EDGED_CACHE__PINNED": json.dumps(["You watch pumps."]), "TEST_PINNED_ABORTS": "1"}
    daemon.start(ready=False)
    ends: list[int] = []

    def given_up() -> list[dict[str, Any]]:
        assert daemon.process is not None
        if daemon.process.poll() is not None:
            ends.append(daemon.process.returncode)
            assert len(ends) < 6
            daemon.start(ready=False)
        return daemon.logged("pinned_instruction_given_up")

    [line] = eventually(given_up, f"ends: {ends}")
    assert line["number"] == 1
    assert set(ends) == {-signal.SIGABRT}
    assert len(ends) in (3, 4)  # three alone; in the first the job may have had a row too
    assert [crash["pinned"] for crash in daemon.logged("crashed_before")] == [1] * len(ends)
    assert client.result("waits")["state"] == "succeeded"
    daemon.until_ready()
    assert client.ask(job("healthy"))["state"] == "succeeded"
