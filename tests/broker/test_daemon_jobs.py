"""What comes of a job that a sender puts on the wire: one daemon serves all these tests."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from daemon_fixtures import REFERENCE, Client5, Daemon, job, reference_job
from patience import eventually

from edged.machine.clock import Clock

pytest_plugins = ["daemon_fixtures"]
REPLY = "edged/v1/reply/"


def spoken(message: Any) -> tuple[str, bytes | None]:
    return json.loads(message.payload)["state"], getattr(message.properties, "CorrelationData", None)


@pytest.mark.parametrize("n", range(len(REFERENCE)))
def test_the_answer_is_right(client: Client5, daemon: Daemon, n: int) -> None:
    result = client.ask(reference_job(f"right-{n}", n))
    assert result["token_ids"] == REFERENCE[n]["output_ids"]
    assert result["state"] == "succeeded"
    assert result["finish_reason"] == "length"
    assert result["usage"]["prompt_tokens"] == len(REFERENCE[n]["prompt_ids"])
    assert result["usage"]["completion_tokens"] == len(REFERENCE[n]["output_ids"])
    assert 0 <= result["timings"]["queued"] <= result["timings"]["first_token"] <= result["timings"]["total"]
    assert (result["device"], result["model"], result["attempts"]) == ("board", "phi3", 1)


def test_accepted_is_told_after_the_commit_and_events_come_in_order(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    client.send(job("committed"))
    client.event("committed", "accepted")
    assert daemon.query("SELECT count(*) FROM job WHERE id = 'committed'") == [(1,)]
    daemon.pace("")
    client.result("committed")
    assert client.events("committed") == ["accepted", "started"]


def test_the_same_job_again_is_not_run_again_and_gets_the_same_bytes(client: Client5, daemon: Daemon) -> None:
    client.ask(reference_job("twice"))
    client.send(dict(reversed(reference_job("twice").items())))  # the order of fields is no content
    client.wait("result/twice", 2)
    first, second = client.all("result/twice")
    assert first.payload == second.payload
    assert client.events("twice") == ["accepted", "started", "accepted"]


def test_an_id_with_other_content_is_a_conflict_and_never_on_its_result_topic(client: Client5, daemon: Daemon) -> None:
    client.ask(job("taken"))
    client.send(job("taken", 5), ResponseTopic=REPLY + "taken", CorrelationData=b"c")
    error = client.event("taken", "id_conflict")["error"]
    assert error["code"] == "id_conflict"
    assert "new id" in error["message"]
    reply = client.wait(REPLY + "taken")
    assert json.loads(reply.payload)["error"]["code"] == "id_conflict"
    assert reply.properties.CorrelationData == b"c"
    assert len(client.all("result/taken")) == 1


def test_a_broken_job_under_a_known_id_does_not_touch_its_result(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    client.send(job("mine"))
    client.event("mine", "started")
    client.send({**job("mine"), "maximum": 3})
    assert "unknown field 'maximum'" in client.event("mine", "id_conflict")["error"]["message"]
    daemon.pace("")
    assert client.result("mine")["state"] == "succeeded"
    assert len(client.all("result/mine")) == 1


def test_every_waiter_is_answered(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    for n in range(3):
        client.send(job("waited"), ResponseTopic=f"{REPLY}waiter-{n}", CorrelationData=bytes([n]))
    client.send(job("waited"), ResponseTopic=f"{REPLY}waiter-0", CorrelationData=b"other")
    daemon.pace("")
    for n in range(3):
        assert spoken(client.wait(f"{REPLY}waiter-{n}")) == ("succeeded", bytes([n]))
    assert spoken(client.wait(f"{REPLY}waiter-0", 2)) == ("succeeded", b"other")
    client.send(job("waited"), ResponseTopic=f"{REPLY}late")
    assert spoken(client.wait(f"{REPLY}late")) == ("succeeded", None)
    assert {m.payload for m in client.messages if m.topic.startswith(f"{REPLY}waiter-")} == {
        client.all("result/waited")[0].payload
    }


def test_an_id_is_derived_from_reply_topic_and_correlation(client: Client5, daemon: Daemon) -> None:
    document = {"prompt": [1, 2], "max_tokens": 2}
    for count in (1, 2):
        client.send(document, ResponseTopic=REPLY + "derived", CorrelationData=b"same")
        id = json.loads(client.wait(REPLY + "derived", count).payload)["id"]
    assert id.startswith("r-")
    client.wait(f"event/{id}", 3)
    assert client.events(id) == ["accepted", "started", "accepted"]


@pytest.mark.parametrize("topic", ["elsewhere/me", "edged/v1/device/board/job", REPLY])
def test_a_reply_topic_outside_reply_is_refused(client: Client5, daemon: Daemon, topic: str) -> None:
    id = f"outside-{len(topic)}"
    result = client.ask(job(id), ResponseTopic=topic)
    assert (result["state"], result["error"]["code"]) == ("rejected", "invalid_job")
    assert REPLY in result["error"]["message"]
    assert not daemon.query("SELECT 1 FROM job WHERE id = ?", id)


def test_a_job_expires_while_it_waits(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    client.send(job("blocker-1"))
    client.event("blocker-1", "started")
    client.send(job("by-ttl", ttl=1000, metadata={"k": [1]}))
    client.send(job("by-message"), MessageExpiryInterval=1000)
    for id in ("by-ttl", "by-message"):
        client.event(id, "accepted")
    daemon.skip(1001)
    assert client.result("by-ttl")["state"] == "expired"
    result = client.result("by-message")  # behind it, and ended while the model is still in its step
    assert (result["state"], result["error"]["code"], result["attempts"]) == ("expired", "expired", 0)
    assert client.result("by-ttl")["metadata"] == {"k": [1]}
    assert client.events("by-message") == ["accepted"]


def test_a_job_expires_while_it_runs(client: Client5, daemon: Daemon) -> None:
    daemon.pace(0.1)
    client.send(job("too-slow", 400, ttl=1000))
    client.event("too-slow", "started")
    daemon.skip(1001)
    result = client.result("too-slow")
    assert (result["state"], result["attempts"]) == ("expired", 1)


def test_a_deadline_is_not_judged_without_a_synchronised_clock(client: Client5, daemon: Daemon) -> None:
    result = client.ask(job("past", deadline="2020-01-01T00:00:00Z"))
    if Clock().synchronised():
        assert result["state"] == "expired"
    else:
        assert (result["state"], result["deadline_judged"]) == ("succeeded", False)


def test_jobs_run_in_the_order_of_priority(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    client.send(job("first"))
    client.event("first", "started")
    for name, priority in (("low", 1), ("middle-1", 5), ("high", 9), ("middle-2", 5)):
        client.send(job(name, priority=priority))
        client.event(name, "accepted")
    daemon.pace("")
    client.result("low")
    started = [m.topic.rpartition("/")[2] for m in client.messages if b'"event": "started"' in m.payload]
    assert started[-4:] == ["high", "middle-1", "middle-2", "low"]


def test_cancel_of_a_queued_a_running_and_a_finished_job(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    client.send(job("running", 400, metadata={"a": 1}))
    client.event("running", "started")
    for name in ("next", "queued"):
        client.send(job(name, metadata={"b": 2}))
        client.event(name, "accepted")
        client.send({"id": name}, to="cancel")
    queued = client.result("queued")
    assert (queued["state"], queued["error"]["code"], queued["metadata"]) == ("cancelled", "cancelled", {"b": 2})
    assert client.result("next")["state"] == "cancelled"
    client.send({"id": "running"}, to="cancel")
    daemon.pace(0.1)
    running = client.result("running")
    assert (running["state"], running["attempts"], running["metadata"]) == ("cancelled", 1, {"a": 1})
    client.send({"id": "running"}, to="cancel")
    daemon.pace("")
    client.ask(job("after-cancels"))
    assert [len(client.all(f"result/{name}")) for name in ("queued", "running")] == [1, 1]


def test_a_cancel_that_comes_before_its_job_is_remembered(client: Client5, daemon: Daemon) -> None:
    client.send({"id": "foreseen"}, to="cancel")
    result = client.ask(job("foreseen"))
    assert result["state"] == "cancelled"
    assert client.events("foreseen") == ["accepted"]


def test_a_bad_cancel_is_answered(client: Client5, daemon: Daemon) -> None:
    for payload in (b"{}", b'{"id": 5}', b'{"id": "a/b"}', b"\xff", b"[" * 100_000, b'{"id": "a", "b": 1}'):
        assert client.refusal(payload, to="cancel")["error"]["code"] == "invalid_job"


@pytest.mark.slow
def test_pieces_that_come_fast_are_joined_and_all_leave_before_the_result(client: Client5, daemon: Daemon) -> None:
    daemon.pace(0.005)
    document = {"id": "streamed", "prompt": "The device", "max_tokens": 480, "ignore_eos": True, "stream": True}
    began = time.monotonic()
    result = client.ask(document)
    seconds = time.monotonic() - began
    pieces = [json.loads(message.payload) for message in client.all("stream/streamed")]
    assert [piece["seq"] for piece in pieces] == list(range(len(pieces)))
    assert "".join(piece["text"] for piece in pieces) == result["text"]
    assert 5 < len(pieces) <= 2 + 20 * seconds  # the first, one for each 50 ms, and the rest
    order = [m.topic.split("/")[-2] for m in client.messages if m.topic.endswith("/streamed")]
    assert order == ["event", "event", *["stream"] * len(pieces), "result"]


def test_what_is_not_stored_leaves_nothing_and_is_not_run_again(client: Client5, daemon: Daemon) -> None:
    document = {
        "id": "private",
        "prompt": "zebra-in-the-cellar",
        "max_tokens": 6,
        "ignore_eos": True,
        "store": False,
        "metadata": {"note": "giraffe-in-the-attic"},
    }
    answer = client.ask(document, ResponseTopic=REPLY + "private", CorrelationData=b"elephant")
    traces = [b"zebra-in", b"giraffe-in", b"elephant", answer["text"].encode()]

    def found() -> list[bytes]:
        files = [file.read_bytes() for file in daemon.state_dir.iterdir() if file.is_file()]
        return [trace for trace in traces if any(trace in file for file in files)]

    eventually(lambda: not found(), "traces are left in the state directory")
    assert b"zebra" not in daemon.log_file.read_bytes()
    client.send(document)
    assert client.wait("event/private", 3)
    assert json.loads(client.wait("event/private", 3).payload).items() >= {"repeat": True, "kept": False}.items()
    client.ask(job("after-private"))
    assert client.events("private") == ["accepted", "started", "accepted"]
    assert len(client.all("result/private")) == 1
