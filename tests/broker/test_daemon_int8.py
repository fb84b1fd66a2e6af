"""A daemon with an int8 KV cache: info tells, scales are measured once, and ids stay over a restart."""

from __future__ import annotations

import json
from typing import Any

import onnxruntime
import pytest
from daemon_fixtures import MODELS, Place, job

pytest_plugins = ["daemon_fixtures"]

HAS_INT8 = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 27)


def model_of(client: Any) -> dict[str, Any]:
    return dict(json.loads(client.all("info")[-1].payload)["model"])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_INT8, reason="onnxruntime takes an int8 cache from 1.27 on")
def test_scales_are_measured_at_the_first_start(place: Place) -> None:
    daemon, client = place.daemon(MODEL__KV_CACHE="int8", MODEL__ROWS="3").start(), place.client()
    ask = {"max_tokens": 24, "return_token_ids": True}
    first = client.ask(job("first", **ask))
    assert (model_of(client)["kv_cache"], model_of(client)["kv_cache_reason"]) == ("int8", None)
    assert model_of(client)["verified"] is True
    assert daemon.log().count('"kv_scales_measured"') == 1
    assert daemon.end() == 0
    assert [path.suffix for path in (daemon.state_dir / "kv_scales").iterdir()] == [".json"]
    daemon.start()
    second = client.ask(job("second", **ask))
    assert second["token_ids"] == first["token_ids"]
    assert daemon.log().count('"kv_scales_measured"') == 1
    # Commands that judge a package go by what it was published with.
    verified = daemon.command("model", "verify", "--json")
    assert json.loads(verified.stdout)["verified"] is True
    assert daemon.command("model", "pull", str(MODELS / "llama3")).returncode == 0
    assert daemon.end() == 0
    assert len([*(daemon.state_dir / "kv_scales").iterdir()]) == 1


def test_where_it_cannot_be_had_info_says_why(place: Place) -> None:
    daemon = place.daemon(MODEL__KV_CACHE="int8", MODEL__PATH=str(MODELS / "phi3-small")).start()
    client = place.client()
    assert client.ask(job("asked"))["state"] == "succeeded"
    assert model_of(client)["kv_cache"] == "float32"
    assert model_of(client)["kv_cache_reason"].startswith("the graph has SparseAttention")
    assert daemon.log().count('"kv_cache_as_published"') == 1
