"""Leading tokens that jobs share, as a sender and an operator see them."""

from __future__ import annotations

import json
import re
import signal

import pytest
from daemon_fixtures import REFERENCE, Daemon, Place, reference_job
from patience import eventually

from edged.engine.prefix_cache import BLOCK_TOKENS

pytest_plugins = ["daemon_fixtures"]

INSTRUCTION = "You watch the pumps of a water works and answer in one short line, whatever is asked of you. " * 4


def ask(id: str, question: str, **fields: object) -> dict[str, object]:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
    return {"id": id, "messages": messages, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True, **fields}


def on_disk(daemon: Daemon) -> float:
    found = re.search(r'^edged_prefix_cache_bytes\{tier="disk"\} (\S+)', daemon.get("/metrics")[1], flags=re.M)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
def test_a_pinned_instruction_is_warm_at_the_start_and_after_a_kill(place: Place) -> None:
    daemon = place.daemon(CACHE__PINNED=json.dumps([INSTRUCTION])).start()
    eventually(lambda: on_disk(daemon))
    client = place.client()
    client.send(ask("first", "Is pump 3 on?"))  # type: ignore[arg-type]
    first = client.result("first")
    assert first["usage"]["cached_tokens"] >= 64
    blocks = first["usage"]["cached_tokens"] // BLOCK_TOKENS
    eventually(lambda: len(list((daemon.state_dir / "prefixes").glob("*.kv"))) == blocks)
    daemon.end(signal.SIGKILL)
    for path in (daemon.state_dir / "prefixes").glob("*.kv"):
        assert b"pumps" not in path.read_bytes()
    daemon.env["EDGED_CACHE__PINNED"] = "[]"  # so that only the disk can know it
    daemon.start()
    assert on_disk(daemon) > 0
    client.send(ask("second", "Is pump 3 on?"))  # type: ignore[arg-type]
    second = client.result("second")
    assert second["usage"]["cached_tokens"] == first["usage"]["cached_tokens"]
    assert second["token_ids"] == first["token_ids"]


@pytest.mark.slow
def test_a_damaged_prefix_file_changes_no_answer_and_is_counted(place: Place) -> None:
    daemon = place.daemon(CACHE__PINNED=json.dumps([INSTRUCTION])).start()
    eventually(lambda: on_disk(daemon))
    client = place.client()
    client.send(ask("before", "Is pump 3 on?"))  # type: ignore[arg-type]
    right = client.result("before")["token_ids"]
    daemon.end(signal.SIGKILL)
    daemon.env["EDGED_CACHE__PINNED"] = "[]"
    for path in (daemon.state_dir / "prefixes").glob("*.kv"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    daemon.start()
    client.send(ask("after", "Is pump 3 on?"))  # type: ignore[arg-type]
    after = client.result("after")
    assert after["token_ids"] == right
    assert after["usage"]["cached_tokens"] == 0
    assert "edged_prefix_cache_refused_files_total 1.0" in daemon.get("/metrics")[1]
    assert "prefix_file_refused" in daemon.log()


@pytest.mark.slow
def test_a_job_may_pin_its_prefix_only_where_the_device_says_so(place: Place) -> None:
    daemon, client = place.daemon().start(), place.client()
    client.send(ask("refused", "Is pump 3 on?", cache={"pin": True}))  # type: ignore[arg-type]
    error = client.result("refused")["error"]
    assert error["code"] == "unsupported"
    assert "cache.allow_pin" in error["message"]
    daemon.end(signal.SIGTERM)
    daemon.env["EDGED_CACHE__ALLOW_PIN"] = "true"
    daemon.start()
    client.send(ask("pinned", "Is pump 3 on?", cache={"pin": True}))  # type: ignore[arg-type]
    assert client.result("pinned")["state"] == "succeeded"
    assert eventually(lambda: on_disk(daemon))
    assert daemon.command("forget", "--all").returncode == 0
    assert not list((daemon.state_dir / "prefixes").glob("*.kv"))


def test_jobs_sent_together_are_answered_together(place: Place) -> None:
    """Rows that nobody set are as many as memory allows: jobs share the steps, and each has its own right answer."""
    daemon = place.daemon()
    del daemon.env["EDGED_MODEL__ROWS"]
    daemon.start()
    client = place.client()
    # The first info may be of before the load: ready is told over HTTP a moment earlier than over MQTT.
    eventually(lambda: any(json.loads(info.payload)["limits"]["rows"] == 8 for info in client.all("info")), "8 rows")
    for n in range(40):
        client.send(reference_job(f"job-{n}", n % 5))
    for n in range(40):
        assert client.result(f"job-{n}")["token_ids"] == REFERENCE[n % 5]["output_ids"]
