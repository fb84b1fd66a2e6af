"""Bad input over a real broker: each gets a clear refusal, and the daemon goes on."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from patience import PATIENCE

pytest_plugins = ["daemon_fixtures"]

REGEX = {"type": "regex", "regex": "(a"}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"contains": {"type": "null"}}}}
DEEP = b'{"id": "deep", "metadata": {"a": ' + b"[" * 900 + b"]" * 900 + b'}, "prompt": "x"}'


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "the payload is empty"),
        (b"hello", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1, 2]", "must be a JSON object"),
        (b'{"id": "a", "id": "b"}', "'id' stands there twice"),
        (DEEP, "nested too deeply"),
        (b"[" * 200_000, "nested too deeply"),
        (json.dumps(job("a/b")).encode(), "id must be 1 to 64 characters"),
        (json.dumps(job("a#")).encode(), "id must be 1 to 64 characters"),
        (json.dumps(job("x" * 65)).encode(), "id must be 1 to 64 characters"),
        (json.dumps(job("")).encode(), "id must be 1 to 64 characters"),
        (b'{"id": 7, "prompt": "x"}', "id must be 1 to 64 characters out of A-Z a-z 0-9 . _ -, is 7"),
        (b'{"prompt": "x"}', "id must be there"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_payload_without_a_usable_id_is_answered_under_another(
    client: Client5, daemon: Daemon, payload: bytes, words: str
) -> None:
    result = client.refusal(payload)
    assert result["error"]["code"] == "invalid_job"
    assert words in result["error"]["message"]
    assert "\n" not in result["error"]["message"]


@pytest.mark.parametrize(
    ("id", "payload", "words"),
    [
        ("nan", b'{"id": "nan", "temperature": NaN}', "NaN is not a number"),
        ("much", b'{"id": "much", "temperature": 1e400}', "1e400 is beyond"),
        ("digits", b'{"id": "digits", "seed": ' + b"9" * 5000 + b"}", "5000 digits"),
        ("doubled", b'{"id": "doubled", "prompt": "x", "prompt": "y"}', "'prompt' stands there twice"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_a_broken_number_or_a_doubled_field_is_answered_under_the_id(
    client: Client5, daemon: Daemon, id: str, payload: bytes, words: str
) -> None:
    client.send(payload)
    result = client.result(id)
    assert (result["state"], result["error"]["code"]) == ("rejected", "invalid_job")
    assert words in result["error"]["message"]


def test_a_broken_number_under_the_id_of_another_job_is_a_conflict(client: Client5, daemon: Daemon) -> None:
    client.ask(job("taken"))
    client.send(b'{"id": "taken", "temperature": NaN}')
    assert "NaN is not a number" in client.event("taken", "id_conflict")["error"]["message"]
    assert len(client.all("result/taken")) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_token": 3}, "unknown field 'max_token'; did you mean 'max_tokens'?"),
        ({"max_tokens": "3"}, "max_tokens must be a whole number from 1 to 16777216, is text"),
        ({"max_tokens": -1}, "max_tokens must be a whole number from 1 to 16777216, is -1"),
        ({"stream": "yes"}, "stream must be true or false, is text"),
        ({"prompt": "a \ud800 b"}, "lone surrogate"),
        ({"prompt": [1, -5]}, "token id -5"),
        ({"prompt": [1] * 50_000}, "the prompt has 50000 tokens"),
        ({"seed": 1 << 70}, "seed must be a whole number from 0 to"),
        ({"deadline": "tomorrow"}, "RFC 3339"),
        ({"model": "gpt"}, "serves 'phi3'"),
        ({"logprobs": 3}, "logprobs must be true or false, is 3"),
        ({"response_format": {"type": "json_object"}, "stop": "x"}, "stop does not go with a response_format"),
        ({"response_format": REGEX, "ignore_eos": False}, "response_format of type 'regex': "),
        ({"response_format": SCHEMA, "ignore_eos": False}, "with this content is not served: Unimplemented keys"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named(client: Client5, daemon: Daemon, fields: dict[str, Any], words: str) -> None:
    id = f"wrong-{abs(hash(words))}"
    result = client.ask(job(id) | fields)
    assert result["state"] == "rejected"
    assert words in result["error"]["message"]


def test_100000_tokens_are_context_exceeded(client: Client5, daemon: Daemon) -> None:
    result = client.ask({"id": "long", "prompt": "a b " * 50_000})
    assert result["error"]["code"] == "context_exceeded"
    assert "512" in result["error"]["message"]


def test_nul_in_a_prompt_is_text_like_any_other(client: Client5, daemon: Daemon) -> None:
    assert client.ask(job("nul", prompt="a\0b"))["state"] == "succeeded"


def test_1_mb_is_too_large_and_told_under_its_id(client: Client5, daemon: Daemon) -> None:
    result = client.ask(job("mb", metadata={"x": "y" * 1_000_000}))
    assert result["error"]["code"] == "too_large"
    assert "262144" in result["error"]["message"]


def test_10_mb_are_dropped_by_the_broker_and_the_daemon_goes_on(client: Client5, daemon: Daemon) -> None:
    client.send(b"x" * 10_000_000)
    assert client.ask(job("after-10-mb"))["state"] == "succeeded"
    assert daemon.faults() == []


def test_nothing_of_a_prompt_or_a_refused_payload_is_logged(client: Client5, daemon: Daemon) -> None:
    client.refusal(b'{"secret-word-1": ')
    client.ask(job("s1", prompt="secret-word-2", messages=[]))
    client.ask(job("s2", metadata={"secret-word-3": 1}, **{"secret-word-4": 2}))
    client.ask(job("s3", prompt="secret-word-5", stop=["secret-word-6"]))
    client.send(job("s3", prompt="secret-word-7"))
    client.event("s3", "id_conflict")
    client.refusal(b'{"id": "secret-word-8 ??"}', to="cancel")
    assert "secret-word" not in daemon.log()
    assert "secret-word" not in daemon.get("/metrics")[1]


def raw_publish(port: int, topic: str, payload: bytes, properties: bytes) -> None:
    """A PUBLISH as paho would not send it. `properties` in MQTT 5's encoding."""

    def text(value: bytes) -> bytes:
        return struct.pack("!H", len(value)) + value

    def packet(kind: int, body: bytes) -> bytes:
        assert len(body) < 16384
        length = bytes([len(body)]) if len(body) < 128 else bytes([len(body) % 128 | 128, len(body) // 128])
        return bytes([kind]) + length + body

    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(packet(0x10, text(b"MQTT") + b"\x05\x02\x00\x3c\x00" + text(b"raw")))
        connection.recv(1024)
        connection.sendall(packet(0x30, text(topic.encode()) + bytes([len(properties)]) + properties + payload))
        connection.sendall(b"\xe0\x00")
        connection.recv(1024)


@pytest.mark.parametrize("wildcard", ["edged/v1/reply/#", "edged/v1/reply/+/x"])
def test_a_reply_topic_with_a_wildcard_is_refused_or_kept_off_by_the_broker(
    client: Client5, daemon: Daemon, shared: Place, wildcard: str
) -> None:
    id = f"wild-{len(wildcard)}"
    reply = b"\x08" + struct.pack("!H", len(wildcard)) + wildcard.encode()
    raw_publish(shared.broker.port, f"{client.topics}/job", json.dumps(job(id)).encode(), reply)
    client.ask(job(f"after-{id}"))
    refused = [json.loads(message.payload)["error"] for message in client.all(f"result/{id}")]
    assert all("wildcards" in error["message"] for error in refused)
    assert not daemon.query("SELECT 1 FROM job WHERE id = ?", id)


@pytest.mark.slow
def test_10_mb_over_3_1_1_are_too_large(place: Place) -> None:
    device = place.daemon(MQTT__PROTOCOL="3.1.1").start()
    client = place.client()
    result = client.refusal(b'{"id": "huge", "prompt": "' + b"x" * 10_000_000 + b'"}')
    assert result["error"]["code"] == "too_large"
    assert client.ask(job("after"))["state"] == "succeeded"
    assert device.faults() == []


def test_retained_jobs_and_cancels_are_ignored_on_3_1_1_too(place: Place) -> None:
    """On MQTT 5 the subscription itself says that it wants none."""
    client = place.client()
    client.send(job("retained"), retain=True)
    client.send({"id": "not-cancelled"}, to="cancel", retain=True)
    device = place.daemon(MQTT__PROTOCOL="3.1.1").start()
    assert client.ask(job("not-cancelled"))["state"] == "succeeded"
    assert not client.all("event/retained")
    assert "retained_job_ignored" in device.log()
    assert "retained_cancel_ignored" in device.log()
    client.send({"id": "??"}, to="cancel")
    client.send(job("not-cancelled", 9))
    client.event("not-cancelled", "id_conflict")
    text = device.get("/metrics")[1]
    for event in ("retained_job_ignored", "retained_cancel_ignored", "cancel_rejected", "job_conflict"):
        assert f'edged_faults_total{{event="{event}",level="warning"}} 1.0' in text
