"""A result that the broker does not take: it is found out and answered, and the others leave meanwhile."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from limiting_proxy import LimitingProxy
from patience import eventually

pytest_plugins = ["daemon_fixtures"]

LIMIT = 8000
LARGE = {"metadata": {"note": "x" * 20_000}}
"""Of a job whose result the broker does not take."""


pytestmark = pytest.mark.slow
"""A publication goes again only after the connection has stood far longer than it was under way."""


@pytest.fixture
def limiting(place: Place) -> Iterator[LimitingProxy]:
    proxy = LimitingProxy(place.broker.port)
    yield proxy
    proxy.close()


def start(place: Place, port: int, protocol: str, **settings: Any) -> Daemon:
    daemon = place.daemon(mqtt__protocol=protocol, **settings)
    daemon.env["EDGED_MQTT__PORT"] = str(port)
    return daemon.start()


def check_replaced(client: Client5, daemon: Daemon, id: str) -> bytes:
    """The large result is a small one now, named and counted; its bytes."""
    message = client.wait(f"result/{id}")
    result = json.loads(message.payload)
    assert (result["id"], result["state"], result["error"]["code"]) == (id, "failed", "result_too_large")
    assert len(message.payload) < 1024
    assert daemon.metric("edged_results_too_large_total") == 1
    (named,) = daemon.logged("result_too_large")
    assert (named["job"], named["bytes"] > 20_000) == (id, True)
    return bytes(message.payload)


@pytest.mark.parametrize(("place_in_queue", "whole"), [(0, False), (3, True), (5, False)])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_one_of_a_queue_that_the_broker_hangs_up_on_is_answered_and_the_others_too(
    place: Place, limiting: LimitingProxy, protocol: str, place_in_queue: int, whole: bool
) -> None:
    limiting.whole = whole
    daemon, client = start(place, limiting.port, protocol, paced=True), place.client()
    daemon.pace("hold")
    ids = [f"job-{n}" for n in range(6)]
    large = job(ids[place_in_queue], **LARGE)
    for id in ids:
        client.send(large if id == large["id"] else job(id))
        client.event(id, "accepted")
    limiting.accepting, limiting.limit = False, LIMIT
    limiting.cut()
    daemon.pace("")
    eventually(lambda: daemon.metric("edged_outbox_results") == 6)
    limiting.accepting = True
    small = check_replaced(client, daemon, large["id"])
    for id in ids:
        if id != large["id"]:
            assert client.result(id)["state"] == "succeeded"
    order = [message.topic.rpartition("/")[2] for message in client.messages if "/result/" in message.topic]
    assert order[-1] == large["id"]
    assert len(limiting.hung_up) >= 3
    eventually(lambda: daemon.metric("edged_outbox_results") == 0)
    # The replacement outlives the process, and a repeat gets the same bytes.
    assert daemon.end() == 0
    daemon.start()
    client.send(large)
    assert bytes(client.wait(f"result/{large['id']}", count=2).payload) == small
    assert client.ask(job("healthy"))["state"] == "succeeded"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_during_the_search_loses_nothing_and_sets_aside_only_that_one(
    place: Place, limiting: LimitingProxy, end: int
) -> None:
    daemon, client = start(place, limiting.port, "5", paced=True), place.client()
    daemon.pace("hold")
    large, ids = job("large", **LARGE), [f"job-{n}" for n in range(4)]
    for sent in (large, *map(job, ids)):
        client.send(sent)
        client.event(sent["id"], "accepted")
    limiting.accepting, limiting.limit = False, LIMIT
    limiting.cut()
    daemon.pace("")
    eventually(lambda: daemon.metric("edged_outbox_results") == 5)
    limiting.accepting = True
    eventually(lambda: len(limiting.hung_up) >= 2)  # once in company, and once alone: not convicted yet
    daemon.end(end)
    assert not daemon.logged("result_too_large")
    before = len(limiting.hung_up)
    daemon.start()
    check_replaced(client, daemon, "large")
    assert len(limiting.hung_up) - before >= 3  # what an earlier run saw convicts none
    for id in ids:
        assert client.result(id)["state"] == "succeeded"
    eventually(lambda: daemon.query("SELECT count(*) FROM delivered") == [(5,)])


def test_a_result_above_the_announced_limit_is_answered_at_once(place: Place) -> None:
    place.broker.stop()
    place.broker.configure(lines=["max_packet_size 30000"])
    place.broker.start()
    daemon, client = start(place, place.broker.port, "5"), place.client()
    client.send(job("large", metadata={"note": "x" * 29_600}))
    assert client.result("large")["error"]["code"] == "result_too_large"
    assert daemon.metric('edged_mqtt_reconnects_total{connection="control"}') == 0


def test_a_small_result_above_a_very_small_announced_limit_is_answered_too(place: Place) -> None:
    place.broker.stop()
    place.broker.configure(lines=["max_packet_size 700"])
    place.broker.start()
    daemon, client = start(place, place.broker.port, "5"), place.client()
    client.send(job("small", metadata={"note": "x" * 300}))
    assert client.result("small")["error"]["code"] == "result_too_large"
    eventually(lambda: daemon.metric("edged_outbox_results") == 0)


@pytest.mark.parametrize("queue", [0, 1000])
def test_a_result_above_mosquittos_message_size_limit_is_answered_at_once(place: Place, queue: int) -> None:
    place.broker.stop()
    place.broker.configure(lines=["message_size_limit 20200", f"max_queued_messages {queue}"])
    place.broker.start()
    daemon, client = start(place, place.broker.port, "5"), place.client()
    client.send(job("large", **LARGE))
    check_replaced(client, daemon, "large")
    assert client.ask(job("small"))["state"] == "succeeded"


def test_mosquittos_own_hang_up_on_3_1_1_is_found_out(place: Place) -> None:
    place.broker.stop()
    place.broker.configure(lines=["max_packet_size 20200"])
    place.broker.start()
    client = place.client()
    daemon = start(place, place.broker.port, "3.1.1")
    client.send(job("large", metadata={"note": "x" * 20_000}))
    check_replaced(client, daemon, "large")


def test_an_info_document_that_the_broker_hangs_up_on_is_cut_and_named(place: Place, limiting: LimitingProxy) -> None:
    limiting.limit = 700
    daemon, client = start(place, limiting.port, "3.1.1"), place.client()
    info = json.loads(client.wait("info").payload)
    assert info["device"] == "board"
    status = client.status("online", warnings=["mqtt_document_cut"])
    assert status["ready"]
    warnings = json.loads(daemon.get("/readyz")[1])["warnings"]
    assert ["info" in warning["message"] for warning in warnings if warning["code"] == "mqtt_document_cut"] == [True]
    assert client.ask(job("small"))["state"] == "succeeded"


def test_a_line_that_flaps_all_the_time_sets_nothing_aside(place: Place, limiting: LimitingProxy) -> None:
    daemon, client = start(place, limiting.port, "5", paced=True), place.client()
    daemon.pace("hold")
    ids = [f"job-{n}" for n in range(12)]
    for id in ids:
        client.send(job(id, **LARGE))
        client.event(id, "accepted")
    daemon.pace(0.02)
    cuts = 0
    while not all(client.all(f"result/{id}") for id in ids) and cuts < 20:
        before = daemon.metric('edged_mqtt_reconnects_total{connection="control"}')
        limiting.cut()
        cuts += 1
        eventually(lambda: daemon.metric('edged_mqtt_reconnects_total{connection="control"}') > before)  # noqa: B023
    for id in ids:
        assert client.result(id)["state"] == "succeeded"
    assert daemon.metric("edged_results_too_large_total") == 0
