"""A daemon with model.speculation = "on": the ids are those of single steps, also after a kill, and it is told."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import onnxruntime
import pytest
from daemon_fixtures import EXACT, Client5, Place, job

pytest_plugins = ["daemon_fixtures"]

HAS_INT8 = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 27)
needs_int8 = pytest.mark.skipif(not HAS_INT8, reason="onnxruntime takes an int8 cache from 1.27 on")
BIAS = {"logit_bias": {str(token): 100 for token in (40, 41, 42)}}
"""Answers of three tokens repeat themselves, with changes."""
ASK: dict[str, Any] = {"prompt": [1, 5, 9], "max_tokens": 300, **BIAS, **EXACT}


def model_of(client: Client5) -> dict[str, Any]:
    return dict(json.loads(client.all("info")[-1].payload)["model"])


def speculated(metrics: str) -> dict[str, float]:
    """edged_speculated_tokens_total by its label."""
    lines = [line for line in metrics.splitlines() if line.startswith("edged_speculated_tokens_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


@needs_int8
def test_answers_are_those_of_single_steps_and_drafts_are_counted(place: Place) -> None:
    settings = {"MODEL__KV_CACHE": "int8", "MODEL__ROWS": "3"}
    daemon, client = place.daemon(**settings).start(), place.client()
    plain = client.ask(job("off", **ASK))
    assert "speculated_tokens" not in plain["usage"]
    assert model_of(client)["speculation"] == "off"
    assert daemon.end() == 0
    daemon.env["EDGED_MODEL__SPECULATION"] = "on"
    daemon.start()
    alone = client.ask(job("alone", **ASK))
    model = model_of(client)
    assert (model["speculation"], model["speculation_reason"]) == ("on", None)
    assert alone["token_ids"] == plain["token_ids"]
    taken = alone["usage"]["speculated_tokens"]
    assert taken > 0
    counted = speculated(daemon.get("/metrics")[1])
    assert counted["true"] == taken
    assert counted["false"] > 0
    for key in range(3):
        client.send(job(f"together-{key}", **ASK))
    for key in range(3):
        assert client.result(f"together-{key}")["token_ids"] == plain["token_ids"]


@needs_int8
@pytest.mark.slow
def test_what_a_structure_forces_is_counted_and_the_same_after_a_kill(place: Place) -> None:
    settings = {"MODEL__KV_CACHE": "int8", "MODEL__SPECULATION": "on"}
    daemon, client = place.daemon(paced=True, **settings).start(), place.client()
    regex = {"type": "regex", "regex": "(pump|valve) [0-9]{3}(, as the report of the night shift says, [a-z]{9}){12}"}
    ask: dict[str, Any] = {
        "prompt": [1, 5, 9], "max_tokens": 400, "response_format": regex, "ignore_eos": False, "return_token_ids": True
    }  # fmt: skip
    undisturbed = client.ask(job("undisturbed", **ask))
    usage = undisturbed["usage"]
    assert usage["forced_tokens"] > 100
    assert usage["forced_tokens"] + usage["speculated_tokens"] < usage["completion_tokens"]
    counted = re.search(r"^edged_forced_tokens_total (\S+)$", daemon.get("/metrics")[1], re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) == usage["forced_tokens"]
    daemon.pace(0.02)
    client.send(job("killed", **ask, stream=True))
    client.wait("stream/killed", 5)
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    daemon.pace("")
    daemon.start()
    again = client.result("killed")
    assert (again["attempts"], again["token_ids"]) == (2, undisturbed["token_ids"])
    assert again["usage"]["forced_tokens"] == usage["forced_tokens"]


@needs_int8
@pytest.mark.slow
def test_a_kill_within_an_answer_changes_no_id(place: Place) -> None:
    settings = {"MODEL__KV_CACHE": "int8", "MODEL__SPECULATION": "on"}
    daemon, client = place.daemon(paced=True, **settings).start(), place.client()
    undisturbed = client.ask(job("undisturbed", **ASK))
    daemon.pace(0.02)
    client.send(job("killed", **ASK, stream=True))
    client.wait("stream/killed", 5)
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    daemon.pace("")
    daemon.start()
    again = client.result("killed")
    assert (again["attempts"], again["token_ids"]) == (2, undisturbed["token_ids"])
    assert again["usage"]["speculated_tokens"] == undisturbed["usage"]["speculated_tokens"] > 0


@pytest.mark.slow
def test_where_it_cannot_be_had_info_says_why(place: Place) -> None:
    daemon, client = place.daemon(MODEL__SPECULATION="on").start(), place.client()
    assert "speculated_tokens" not in client.ask(job("asked"))["usage"]
    model = model_of(client)
    assert model["speculation"] == "off"
    assert model["speculation_reason"].endswith('set model.kv_cache = "int8"')
    assert daemon.log().count('"speculation_off"') == 1
