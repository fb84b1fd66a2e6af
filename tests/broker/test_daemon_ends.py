"""How the daemon ends, by order or by a crash, and what comes of its jobs then."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from daemon_fixtures import Client5, Daemon, Place, job, reference_job
from patience import eventually

pytest_plugins = ["daemon_fixtures"]


def running(daemon: Daemon, client: Client5, id: str, **fields: object) -> None:
    """Send a job that stands in its first step."""
    daemon.pace("hold")
    client.send(job(id, **fields))  # type: ignore[arg-type]
    client.event(id, "started")


@pytest.mark.parametrize("protocol", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
def test_a_job_sent_while_the_process_is_dead_arrives_after_the_restart(place: Place, protocol: str) -> None:
    daemon = place.daemon(MQTT__PROTOCOL=protocol).start()
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    client = place.client()
    client.send(reference_job("while-dead"))
    daemon.start()
    assert client.result("while-dead")["state"] == "succeeded"


@pytest.mark.slow
def test_a_job_that_was_killed_runs_again_and_the_kill_is_not_held_against_it(place: Place) -> None:
    daemon, client = place.daemon(paced=True).start(), place.client()
    for attempt in range(4):  # more often than crashes are allowed
        if attempt == 0:
            running(daemon, client, "killed")
        else:
            client.wait("event/killed", attempt + 2)
        daemon.end(signal.SIGKILL)
        daemon.start(ready=False)
    daemon.pace("")
    result = client.result("killed")
    assert (result["state"], result["attempts"]) == ("succeeded", 5)
    assert client.events("killed") == ["accepted", "started", *["retrying"] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_three_crashes_while_it_ran_alone_are_a_crash_loop(place: Place, number: signal.Signals) -> None:
    daemon, client = place.daemon(paced=True).start(), place.client()
    running(daemon, client, "poison")
    for crash in range(3):
        # Writing down every thread's stack while they go on, CPython can crash itself (its issue 116008): once in 60.
        assert daemon.end(number) in (-number, -signal.SIGSEGV)
        daemon.start(ready=False)
        if crash < 2:
            client.wait("event/poison", crash + 3)
    result = client.result("poison")
    assert (result["state"], result["error"]["code"], result["attempts"]) == ("failed", "crash_loop", 3)
    daemon.pace("")
    daemon.until_ready()
    assert client.ask(job("healthy"))["state"] == "succeeded"
    crashes = [json.loads(line) for line in daemon.log().splitlines() if "crashed_before" in line]
    assert [crash["jobs"] for crash in crashes] == [["poison"]] * 3
    words = {signal.SIGABRT: "Fatal Python error: Aborted", signal.SIGSEGV: "Fatal Python error: Segmentation fault"}
    assert {crash["reason"] for crash in crashes} == {words[number]}


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "thread"), [([11, 11, 11], "engine"), ("end", "preparer")])
def test_a_thread_that_ends_takes_the_process_with_it_and_three_times_alone_are_a_crash_loop(
    place: Place, prompt: object, thread: str
) -> None:
    daemon, client = place.daemon(paced=True).start(), place.client()
    client.send(job("ends", prompt=prompt))
    for crash in range(3):
        assert daemon.wait() == -signal.SIGABRT, crash
        daemon.start(ready=False)
    error = client.result("ends")["error"]
    assert (error["code"], f"the {thread} thread has ended" in error["message"]) == ("crash_loop", True)
    assert client.ask(job("healthy"))["state"] == "succeeded"
    log = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    assert [entry["jobs"] for entry in log if entry["event"] == "crashed_before"] == [["ends"]] * 3
    daemon.end()
    daemon.log_file.write_text("")  # it holds the traceback of what ended the engine, and the fixture allows none


@pytest.mark.slow
def test_after_a_crash_with_two_rows_the_suspects_run_one_at_a_time(place: Place) -> None:
    daemon, client = place.daemon(paced=True, MODEL__ROWS="2").start(), place.client()
    running(daemon, client, "suspect-1")
    client.send(job("suspect-2", priority=9))
    client.send(job("bystander", priority=0))
    client.event("bystander", "accepted")
    daemon.pace(0.05)
    client.event("suspect-2", "started")
    eventually(lambda: len(json.loads((daemon.state_dir / "running").read_text())["jobs"]) == 2)
    daemon.pace("hold")
    daemon.end(signal.SIGSEGV)
    since = len(client.messages)
    daemon.start()
    client.event("suspect-2", "retrying")
    daemon.pace("")
    for id in ("suspect-1", "suspect-2", "bystander"):
        assert client.result(id)["state"] == "succeeded"
    order = [
        (message.topic.split("/")[-2], message.topic.split("/")[-1])
        for message in client.messages[since:]
        if "suspect" in message.topic
    ]
    assert order.index(("result", "suspect-2")) < order.index(("event", "suspect-1"))
    assert [client.result(f"suspect-{n}")["attempts"] for n in (1, 2)] == [2, 2]


def test_sigterm_lets_what_runs_finish_and_leaves_the_rest_for_the_next_start(place: Place) -> None:
    daemon, client = place.daemon(paced=True).start(), place.client()
    running(daemon, client, "finishes")
    for id in ("stays-1", "stays-2"):
        client.send(job(id))
        client.event(id, "accepted")
    daemon.send_signal(signal.SIGTERM)
    client.status("draining")
    daemon.pace("")
    assert client.result("finishes")["state"] == "succeeded"
    assert daemon.wait() == 0
    assert client.status("offline", reason="stopped")["ready"] is False
    assert [client.all(f"result/stays-{n}") for n in (1, 2)] == [[], []]
    daemon.start()
    assert [client.result(f"stays-{n}")["attempts"] for n in (1, 2)] == [1, 1]


@pytest.mark.slow
def test_a_job_longer_than_the_drain_is_cut_and_runs_again(place: Place) -> None:
    daemon, client = place.daemon(paced=True, DRAIN_SECONDS="0").start(), place.client()
    daemon.pace(0.05)
    client.send(job("cut", 300))
    client.event("cut", "started")
    assert daemon.end() == 0
    assert not client.all("result/cut")
    assert '"drain_cut_short"' in daemon.log()
    daemon.pace("")
    daemon.start()
    result = client.result("cut")
    assert (result["state"], result["attempts"]) == ("succeeded", 2)


@pytest.mark.slow
def test_a_second_sigterm_stops_at_once(place: Place) -> None:
    daemon, client = place.daemon(paced=True, DRAIN_SECONDS="600").start(), place.client()
    daemon.pace(0.05)
    client.send(job("endless", 400))
    client.event("endless", "started")
    daemon.send_signal(signal.SIGTERM)
    client.status("draining")
    assert daemon.end() == 0
    assert client.status("offline")


@pytest.mark.slow
def test_a_cancel_counts_even_if_the_process_ends_before_the_job_does(place: Place) -> None:
    daemon, client = place.daemon(paced=True, DRAIN_SECONDS="0").start(), place.client()
    running(daemon, client, "cancelled")
    client.send({"id": "cancelled"}, to="cancel")
    client.send({"id": 0}, to="cancel")  # its refusal tells that the one before has been read
    eventually(lambda: any("/result/invalid-" in message.topic for message in client.messages))
    daemon.end()
    assert client.result("cancelled")["state"] == "cancelled"
    daemon.pace("")
    daemon.start()
    client.ask(job("after"))
    assert client.events("cancelled") == ["accepted", "started"]


@pytest.mark.slow
def test_a_second_daemon_on_the_same_state_is_refused_in_one_line(place: Place) -> None:
    daemon = place.daemon().start()
    result = daemon.command("run")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "another edged runs on" in result.stderr


@pytest.mark.slow
def test_a_second_daemon_under_the_same_device_id_is_named_as_the_fault(place: Place) -> None:
    first = place.daemon().start()
    second = place.daemon().start(ready=False)
    assert eventually(
        lambda: [fault for d in (first, second) for fault in d.faults() or [] if "another device uses the id" in fault]
    )


def test_a_port_that_is_taken_is_one_line(place: Place) -> None:
    first = place.daemon().start()
    second = place.daemon(HTTP__PORT=str(first.http))
    result = second.command("run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"http.port = {first.http}" in result.stderr


def test_a_state_that_is_no_folder_is_one_line(place: Place, tmp_path: Path) -> None:
    daemon = place.daemon()
    daemon.state_dir.write_text("")
    result = daemon.command("run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert str(daemon.state_dir) in result.stderr
