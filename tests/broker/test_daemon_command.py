"""Commands on the real daemon: what an operator asks over MQTT, and what the board answers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from daemon_fixtures import Client5, Daemon, Place, reference_job
from patience import eventually

from edged.commands.document import check_command
from edged.commands.signing import sign
from edged.machine.clock import format_time

pytest_plugins = ["daemon_fixtures"]

OWN = "edged/v1/device/board/cmd"
GROUP = "edged/v1/group/hall/cmd"
ALL = {"FLEET__COMMANDS": "restart,reload,bench,doctor,logs,forget", "DEVICE__GROUPS": "hall"}


def document(**fields: Any) -> dict[str, Any]:
    return {"status": "init", "expires": format_time(time.time() + 3600), **fields}


def answers(client: Client5, command: str) -> list[dict[str, Any]]:
    """What the device said on this command's topic, `name/id`, one after the other."""
    said = [message.payload for message in client.all(f"cmd/{command}") if b'"device"' in message.payload]
    return [json.loads(payload) for payload in said]


def ended(client: Client5, command: str, count: int = 1) -> dict[str, Any]:
    """Wait for the `count`th answer that the command has ended."""

    def heard() -> dict[str, Any] | None:
        ends = [one for one in answers(client, command) if one["status"] != "executing"]
        return ends[count - 1] if len(ends) >= count else None

    return dict(eventually(heard, lambda: f"an end of {command}; heard {answers(client, command)}"))


def ask(client: Client5, command: str, **fields: Any) -> dict[str, Any]:
    client.send(document(**fields), to=f"{OWN}/{command}", retain=True)
    return ended(client, command)


def runs(daemon: Daemon, command: str) -> int:
    """How often a command began."""
    return sum(f"{one['command']}/{one['id']}" == command for one in daemon.logged("command_begins"))


def test_commands_are_answered_and_an_id_never_runs_again(place: Place) -> None:
    daemon, client = place.daemon(**ALL).start(), place.client()
    client.ask(reference_job("job-1"))
    told = ask(client, "logs/l1", lines=50, level="info")
    assert told["status"] == "successful"
    events = [line["event"] for line in told["result"]["lines"]]
    assert {"starting", "job_succeeded"} <= set(events)
    assert "messages" not in json.dumps(told)
    assert [one["level"] for one in ask(client, "logs/l2", lines=3, level="error")["result"]["lines"]] == []
    # To the group: answered on the device's own topic; the document of the group stays as it is.
    client.send(document(lines=1), to=f"{GROUP}/logs/g1", retain=True)
    assert len(ended(client, "logs/g1")["result"]["lines"]) == 1
    findings = ask(client, "doctor/d1")["result"]["findings"]
    assert {"board", "broker", "model"} <= {one["check"] for one in findings}
    assert [one["status"] for one in answers(client, "doctor/d1")] == ["executing", "successful"]
    erased = {"jobs": 1, "marks": 0, "given_to": [], "prefix_blocks": 0, "damaged_spools": 0}
    assert ask(client, "forget/f1", job="job-1")["result"] == erased
    assert not daemon.query("select 1 from job where id = 'job-1'")
    assert "no job" in ask(client, "forget/f2", job="job-1")["reason"]
    # A repeated id is answered with its end, without a run; so it is after a restart.
    client.send(document(), to=f"{OWN}/logs/l1", retain=True)
    assert ended(client, "logs/l1", 2)["status"] == "successful"
    assert "result" not in ended(client, "logs/l1", 2)
    assert daemon.end() == 0
    daemon.start()
    client.send(document(), to=f"{OWN}/doctor/d1", retain=True)
    assert ended(client, "doctor/d1", 2)["status"] == "successful"
    assert [runs(daemon, one) for one in ("logs/l1", "logs/g1", "doctor/d1")] == [1, 1, 1]
    assert daemon.end() == 0


@pytest.mark.slow
def test_what_is_not_allowed_is_answered_with_what_is(place: Place) -> None:
    client = place.client()
    client.send(document(), to=f"{OWN}/restart/r1", retain=True)
    client.send(document(), to=f"{GROUP}/doctor/r2", retain=True)
    daemon = place.daemon(paced=True, FLEET__COMMANDS="logs", DEVICE__GROUPS="hall")
    daemon.env["TEST_SYNCHRONISED"] = "1"
    daemon.start()
    for command in ("restart/r1", "doctor/r2"):
        failed = ended(client, command)
        assert (failed["status"], failed["code"]) == ("failed", "not_allowed")
        assert "allowed: logs" in failed["reason"]
        assert "fleet.commands" in failed["hint"]
    unknown = ask(client, "reboot/r3")
    assert (unknown["code"], "restart" in unknown["hint"]) == ("unknown", True)
    client.send(b"{", to=f"{OWN}/logs/r4", retain=True)
    assert "not JSON" in ended(client, "logs/r4")["reason"]
    assert ask(client, "logs/r5", expires="2020-01-01T00:00:00Z")["code"] == "expired"
    assert daemon.end() == 0
    # Once refused, an id stays refused, though it is allowed now.
    daemon = place.daemon(folder=daemon.folder, **ALL).start()
    assert ask(client, "logs/after")["status"] == "successful"
    assert runs(daemon, "doctor/r2") == 0
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_removed_document_stays_removed(place: Place) -> None:
    daemon, client = place.daemon(**ALL).start(), place.client()
    ask(client, "logs/l1")
    client.send(b"", to=f"{OWN}/logs/l1", retain=True)
    ask(client, "logs/l2")
    assert daemon.end() == 0
    daemon.start()
    ask(client, "logs/l3")
    late = place.client()
    eventually(lambda: late.all("cmd/logs/l3"))
    assert not late.all("cmd/logs/l1")
    assert len(answers(late, "logs/l2")) == 1
    assert daemon.end() == 0


@pytest.mark.slow
def test_restart_and_reload_answer_before_and_after(place: Place) -> None:
    daemon, client = place.daemon(**ALL).start(), place.client()
    for name in ("reload", "restart"):
        assert ask(client, f"{name}/x1")["status"] == "successful"
        assert [one["status"] for one in answers(client, f"{name}/x1")] == ["executing", "successful"]
        daemon.until_ready()
    assert len(daemon.logged("starting")) == 3
    client.send(document(), to=f"{GROUP}/restart/x1", retain=True)  # the same id, retained for every reconnect
    ask(client, "logs/after")
    assert [runs(daemon, "restart/x1"), runs(daemon, "reload/x1")] == [1, 1]
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_kill_while_a_command_runs_is_told_and_it_does_not_run_again(place: Place) -> None:
    daemon, client = place.daemon(**ALL).start(), place.client()
    client.send(document(rows=8), to=f"{GROUP}/bench/b1", retain=True)
    eventually(lambda: answers(client, "bench/b1"))
    daemon.kill()
    daemon.start()
    failed = ended(client, "bench/b1")
    assert (failed["status"], failed["code"]) == ("failed", "interrupted")
    ask(client, "logs/after")
    assert runs(daemon, "bench/b1") == 1
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_bench_runs_beside_jobs_which_go_on(place: Place) -> None:
    daemon, client = place.daemon(**ALL).start(), place.client()
    client.send(document(rows=2), to=f"{OWN}/bench/b1", retain=True)
    eventually(lambda: answers(client, "bench/b1"))
    assert client.ask(reference_job("beside"))["state"] == "succeeded"
    done = ended(client, "bench/b1")
    assert done["status"] == "successful", done
    assert [row["rows"] for row in done["result"]["rows"]] == [2]
    assert daemon.end() == 0


def test_with_keys_only_signed_commands_run(place: Place) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().splitlines()[1]
    daemon = place.daemon(paced=True, **ALL, FLEET__TRUSTED_KEYS=public)
    daemon.env["TEST_SYNCHRONISED"] = "1"
    daemon.start()
    client = place.client()
    assert ask(client, "logs/u1")["code"] == "unsigned"
    plain = document(lines=1)
    topic = f"{OWN}/logs/s1"
    good = {**plain, "signature": sign(check_command("logs", "s1", plain), topic, key)}
    client.send(good, to=f"{OWN}/logs/s2", retain=True)  # on another topic than it was signed for
    assert ended(client, "logs/s2")["code"] == "signature_wrong"
    client.send(good, to=f"{OWN}/logs/s1", retain=True)
    assert ended(client, "logs/s1")["status"] == "successful"
    assert daemon.end() == 0
