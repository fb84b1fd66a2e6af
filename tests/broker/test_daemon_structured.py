"""Structured answers over the wire: each form that a job may ask for, in pieces, and after a crash in the middle."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from patience import PATIENCE

pytest_plugins = ["daemon_fixtures"]

READING = {
    "type": "object",
    "properties": {"pump": {"type": "integer"}, "on": {"type": "boolean"}, "by": {"enum": ["hand", "timer"]}},
    "required": ["pump", "on", "by"],
    "additionalProperties": False,
}
FORMS: dict[str, Any] = {
    "json_schema": {"json_schema": {"name": "reading", "strict": True, "schema": READING}},
    "json_object": {},
    "regex": {"regex": "[0-9]{2}:[0-9]{2}"},
    "choice": {"choice": ["on", "only", "off"]},
    "grammar": {"grammar": 'start: "set " PUMP\nPUMP: /[1-9]/'},
}


def form(type: str) -> dict[str, Any]:
    return {"type": type, **FORMS[type]}


def asked(id: str, type: str, **fields: Any) -> dict[str, Any]:
    return job(id, 200, prompt="Say something:", response_format=form(type), ignore_eos=False, **fields)


def is_reading(text: str) -> bool:
    value = json.loads(text)
    types = [type(one) for one in value.values()]
    return list(value) == ["pump", "on", "by"] and types == [int, bool, str] and value["by"] in ("hand", "timer")


@pytest.mark.parametrize("type", FORMS)
def test_an_answer_has_the_form_that_the_job_asks_for(client: Client5, daemon: Daemon, type: str) -> None:
    result = client.ask(asked(f"form-{type}", type))
    assert result["state"] == "succeeded"
    text, reason = result["text"], result["finish_reason"]
    if type == "json_object":
        assert text.startswith("{")
        assert reason == "length" or isinstance(json.loads(text), dict)
        return
    assert reason == "stop"
    if type == "json_schema":
        assert is_reading(text)
    else:
        assert re.fullmatch({"regex": r"\d\d:\d\d", "choice": "on|only|off", "grammar": "set [1-9]"}[type], text)


def test_a_choice_has_the_probability_of_each_label(client: Client5, daemon: Daemon) -> None:
    result = client.ask(asked("probable", "choice"))
    assert list(result["probabilities"]) == ["on", "only", "off"]
    assert sum(result["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert result["text"] == max(result["probabilities"], key=lambda label: result["probabilities"][label])
    assert result["usage"]["completion_tokens"] >= 1


def test_documents_are_ranked(client: Client5, daemon: Daemon) -> None:
    documents = ["The pump runs.", "The valve is open.", "It is noon."]
    result = client.ask({"id": "ranked", "query": "Is the valve open?", "documents": documents})
    scores = [one["score"] for one in result["ranking"]]
    assert (result["state"], sorted(scores, reverse=True)) == ("succeeded", scores)
    assert sorted(one["index"] for one in result["ranking"]) == [0, 1, 2]
    assert all(0 < score < 1 for score in scores)
    asked = daemon.background("submit", "--job", "-", stdin=json.dumps({"query": "x", "documents": ["a"]}))
    said, _ = asked.communicate(timeout=PATIENCE)
    assert json.loads(said)["index"] == 0


def test_pieces_join_to_the_answer(client: Client5, daemon: Daemon) -> None:
    result = client.ask(asked("pieces", "json_schema", stream=True, temperature=1.0, seed=4))
    pieces = [json.loads(message.payload) for message in client.all("stream/pieces")]
    assert [piece["seq"] for piece in pieces] == list(range(len(pieces)))
    assert "".join(piece["text"] for piece in pieces) == result["text"]
    assert is_reading(result["text"])


def test_an_answer_that_is_cut_off_says_length(client: Client5, daemon: Daemon) -> None:
    result = client.ask({**asked("cut", "json_schema"), "max_tokens": 3})
    assert (result["state"], result["finish_reason"]) == ("succeeded", "length")
    with pytest.raises(json.JSONDecodeError):
        json.loads(result["text"])


@pytest.mark.slow
def test_many_jobs_with_schemas_of_their_own_are_all_answered(client: Client5, daemon: Daemon) -> None:
    ids = [f"many-{n}" for n in range(40)]
    for n, id in enumerate(ids):
        schema = {"type": "object", "properties": {f"p{n}": {"const": n}}, "required": [f"p{n}"]}
        wanted = {"type": "json_schema", "json_schema": {"schema": {**schema, "additionalProperties": False}}}
        client.send(job(id, 60, prompt="Say something:", response_format=wanted, ignore_eos=False))
    for n, id in enumerate(ids):
        assert json.loads(client.result(id)["text"]) == {f"p{n}": n}


def test_info_says_what_answers_may_be(daemon: Daemon, shared: Place) -> None:
    model = json.loads(shared.client().wait("info").payload)["model"]
    assert model["response_formats"] == ["text", "choice", "json_schema", "json_object", "regex", "grammar"]
    assert model["response_formats_reason"] is None


@pytest.mark.slow
def test_a_job_that_a_crash_interrupts_within_its_grammar_says_the_same_again(place: Place) -> None:
    daemon, client = place.daemon(paced=True).start(), place.client()
    wanted: dict[str, Any] = {"temperature": 1.5, "return_token_ids": True}
    daemon.pace(0)
    first = client.ask(asked("a", "json_schema", seed=11, **wanted))
    daemon.pace("hold")
    client.send(asked("b", "json_schema", seed=11, stream=True, **wanted))
    client.event("b", "started")
    daemon.pace(0.2)
    client.wait("stream/b", 3)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    daemon.pace(0)
    daemon.start()
    again = client.result("b")
    assert again["attempts"] == 2
    assert again["token_ids"] == first["token_ids"]
    assert is_reading(again["text"])
