"""A few hundred malformed messages, and single ones that are made to hurt. `make test-faults` sends 10,000."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_fixtures import MODELS, Client5, Daemon, Place, job
from hostile import Hostile, connect, packet, publish, subscribe, text, user_properties
from hostile_run import send_and_judge
from patience import PATIENCE, eventually

pytest_plugins = ["daemon_fixtures"]
JOB_TOPIC = b"edged/v1/device/board/job"


def raw(port: int, *packets: bytes) -> socket.socket:
    """A sender of bytes as they are, with a small buffer for what it never reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(connect(b"raw"))
    assert connection.recv(2)[0] == 0x20
    for each in packets:
        connection.sendall(each)
    return connection


@pytest.mark.slow
def test_hundreds_of_malformed_messages_are_refused_or_ignored(place: Place) -> None:
    daemon = place.daemon(MODEL__ROWS="4").start()
    send_and_judge(daemon, place.broker.port, Hostile(seed=20_27), 400)


@pytest.mark.slow
def test_a_megabyte_of_user_properties_holds_nobody_up(place: Place) -> None:
    daemon, client = place.daemon().start(), place.client()
    client.ask(job("before"))
    document = json.dumps(job("laden")).encode()
    with raw(place.broker.port, publish(JOB_TOPIC, document, user_properties(1 << 20), number=1)):
        assert client.result("laden")["state"] == "succeeded"
    assert daemon.faults() == []


@pytest.mark.slow
def test_a_sender_that_never_reads_its_replies_holds_nobody_up(place: Place) -> None:
    place.daemon(MODEL__ROWS="8").start()
    client = place.client()
    jobs = []
    for n in range(80):
        properties = b"\x08" + text(b"edged/v1/reply/deaf") + b"\x09" + text(b"c" * 20)
        document = json.dumps(job(f"deaf-{n}", 1, metadata={"x": "y" * 2000})).encode()
        jobs.append(publish(JOB_TOPIC, document, bytes([len(properties)]) + properties, number=n + 1))
    with raw(place.broker.port, subscribe(b"edged/v1/#"), *jobs):
        for n in range(80):
            assert client.result(f"deaf-{n}")["state"] == "succeeded"
        assert client.ask(job("heard"))["state"] == "succeeded"


def test_a_packet_that_breaks_the_protocol_reaches_nobody(place: Place) -> None:
    daemon, client = place.daemon().start(), place.client()
    for broken in (
        packet(0x32, b"\0\4a/b"),
        packet(0x32, text(JOB_TOPIC) + b"\0\1" + b"\xff\xff\xff\xff\xff"),
        packet(0x32, text(b"edged/v1/device/board/\xff\xfe") + b"\0\1\0{}"),
        packet(0x32, text(b"edged/v1/device/+/job") + b"\0\1\0{}"),
        publish(JOB_TOPIC, b"{}", b"\x03\x7f\0\0", number=1),
    ):
        raw(place.broker.port, broken).close()
    assert client.ask(job("after"))["state"] == "succeeded"
    assert daemon.faults() == []


@pytest.mark.slow
def test_a_flood_of_retained_messages_is_one_message_a_topic(place: Place) -> None:
    """Live they are jobs like any other; after that the broker has the last of each topic, and that is old."""
    daemon, client = place.daemon(MQTT__PROTOCOL="3.1.1", MODEL__ROWS="8").start(), place.client()
    for n in range(80):
        client.send(job(f"live-{n}", 1), retain=True)
        client.send({"id": f"none-{n}"}, to="cancel", retain=True)
    for n in range(80):
        assert client.result(f"live-{n}")["state"] == "succeeded"
    since = len(client.messages)
    daemon.end()
    daemon.start()
    eventually(lambda: daemon.log().count("retained_job_ignored") == 1)
    eventually(lambda: daemon.log().count("retained_cancel_ignored") == 1)
    client.ask(job("after"))
    assert not [m for m in client.messages[since:] if "/event/live-" in m.topic]


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def bombed(place: Place, template: str, seconds: float = 2 * PATIENCE, **options: Any) -> tuple[Daemon, Client5]:
    """A daemon with this chat template, and how long that may take: longer than a test waits for anything else."""
    package: Path = place.folder / "phi3"
    shutil.copytree(MODELS / "phi3", package)
    (package / "chat_template.jinja").write_text(template)
    daemon = place.daemon(paced=True, MODEL__PATH=str(package), **options)
    daemon.env["TEST_RENDER_SECONDS"] = str(seconds)
    return daemon.start(), place.client()


@pytest.mark.slow
def test_messages_that_blow_up_in_the_template_end_and_take_bounded_memory(place: Place) -> None:
    swells = "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    told = "{% set c = messages[0]['content'] %}"
    template = f"{told}{{% if c == 'loop' %}}{LOOPS}{{% elif c == 'swell' %}}{swells}{{% endif %}}{{{{ c }}}}"
    daemon, client = bombed(place, template, seconds=5)
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    for content in ("loop", "swell"):
        document = {"id": content, "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        error = client.ask(document)["error"]
        assert error["code"] == "internal"
        assert "chat template" in error["message"]
    assert sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) < 600 << 20
    assert client.ask({"id": "fine", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2})["text"]


@pytest.mark.slow
def test_while_a_bomb_blows_up_in_the_template_everything_else_goes_on(place: Place) -> None:
    template = f"{{% if messages[0]['content'] == 'loop' %}}{LOOPS}{{% endif %}}{{{{ messages[0]['content'] }}}}"
    daemon, client = bombed(place, template, MODEL__ROWS="2", HEARTBEAT_SECONDS="1")
    daemon.pace(0.1)
    client.send(job("runs", 480, stream=True))
    client.event("runs", "started")
    client.send({"id": "bomb", "messages": [{"role": "user", "content": "loop"}], "max_tokens": 2})
    client.send(job("waits", priority=0))
    client.event("waits", "accepted")
    since = len(client.messages)
    for id in ("waits", "bomb-that-is-none", "runs"):
        client.send({"id": id}, to="cancel")
        if id != "bomb-that-is-none":
            assert client.result(id)["state"] == "cancelled"
    client.wait("health", 4, since)
    assert not client.all("result/bomb")
    client.send({"id": "bomb"}, to="cancel")
    assert client.result("bomb")["state"] == "cancelled"
    assert client.ask(job("after"))["state"] == "succeeded"


@pytest.mark.slow
def test_a_bomb_itself_can_be_cancelled_and_holds_up_no_stop(place: Place) -> None:
    template = f"{{% if messages[0]['content'] == 'loop' %}}{LOOPS}{{% endif %}}{{{{ messages[0]['content'] }}}}"
    daemon, client = bombed(place, template)
    bomb = {"messages": [{"role": "user", "content": "loop"}], "max_tokens": 2}
    client.send({"id": "cancelled", **bomb})
    client.event("cancelled", "accepted")
    client.send({"id": "cancelled"}, to="cancel")
    assert client.result("cancelled")["state"] == "cancelled"
    client.send({"id": "stopped", **bomb})
    client.event("stopped", "accepted")
    assert daemon.end() == 0
    assert daemon.query("SELECT count(*) FROM result JOIN job USING (seq) WHERE id = 'stopped'") == [(0,)]


@pytest.mark.slow
def test_schema_bombs_are_refused_one_after_another_and_leave_nothing_behind(place: Place) -> None:
    daemon, client = place.daemon(JOBS__MAX_BYTES=str(1 << 20)).start(), place.client()
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    client.ask(job("before"))
    before = process.memory_info().rss
    wide, deep = "[" + "{}, " * 250_000 + "{}]", '{"items": ' * 80_000 + "{}" + "}" * 80_000
    for n in range(20):
        for kind, schema in (("wide", wide), ("deep", deep), ("ref", '{"$ref": "#"}')):
            form = f'{{"type": "json_schema", "json_schema": {{"name": "n", "schema": {schema}}}}}'
            payload = f'{{"id": "{kind}-{n}", "prompt": "x", "response_format": {form}}}'.encode()
            if kind == "deep":
                assert client.refusal(payload)["error"]["code"] == "invalid_job"
            else:
                client.send(payload)
                assert client.result(f"{kind}-{n}")["error"]["code"] == "invalid_job"
    assert process.memory_info().rss - before < 48 << 20
    assert client.ask(job("after"))["state"] == "succeeded"
