"""The daemon and a broker that is away, refuses it, or comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable

import pytest
from broker_rig import Proxy
from daemon_fixtures import REFERENCE, Place, job, reference_job
from patience import PATIENCE, eventually

pytest_plugins = ["daemon_fixtures"]


def test_a_broker_that_is_absent_at_the_start_is_waited_for(place: Place) -> None:
    place.broker.stop()
    daemon = place.daemon().start(ready=False)
    fault = daemon.until_fault("not connected")
    eventually(lambda: "refused" in " ".join(daemon.faults() or []), fault)
    assert f"127.0.0.1:{place.broker.port}" in fault
    place.broker.start()
    daemon.until_ready()
    assert place.client().ask(reference_job("late"))["token_ids"] == REFERENCE[0]["output_ids"]


@pytest.mark.slow
def test_results_wait_for_a_broker_that_was_killed(place: Place, make_proxy: Callable[[int], Proxy]) -> None:
    proxy = make_proxy(place.broker.port)
    daemon, client = place.daemon(paced=True, MQTT__PORT=str(proxy.port)).start(), place.client()
    daemon.pace("hold")
    ids = [f"waits-{n}" for n in range(40)]  # more than a window of publications
    for id in ids:
        client.send(job(id))
    client.event(ids[-1], "accepted")
    proxy.accepting = False  # so that the client is back before the daemon is, and misses nothing
    place.broker.kill()
    daemon.until_fault("not connected")
    daemon.pace("")
    eventually(lambda: daemon.query("SELECT count(*) FROM result") == [(40,)])
    assert daemon.query("SELECT count(*) FROM delivered") == [(0,)]
    client.subscribed.clear()
    place.broker.start()
    assert client.subscribed.wait(PATIENCE)
    proxy.accepting = True
    daemon.until_ready()
    for id in ids:
        assert client.result(id)["state"] == "succeeded"
    order = [m.topic.rpartition("/")[2] for m in client.messages if "/result/" in m.topic]
    assert list(dict.fromkeys(order)) == ids
    for id in ids:
        assert len({m.payload for m in client.all(f"result/{id}")}) == 1
    assert daemon.log().count('"job_succeeded"') == 40
    eventually(lambda: daemon.query("SELECT count(*) FROM delivered") == [(40,)])


@pytest.mark.slow
def test_results_that_no_broker_confirmed_are_sent_after_the_restart(place: Place) -> None:
    daemon, client = place.daemon(paced=True).start(), place.client()
    daemon.pace("hold")
    client.send(job("unsent"), ResponseTopic="edged/v1/reply/unsent", CorrelationData=b"u")
    client.event("unsent", "started")
    place.broker.kill()
    daemon.pace("")
    eventually(lambda: daemon.query("SELECT count(*) FROM result") == [(1,)])
    (kept,) = daemon.query("SELECT document FROM result")[0]
    assert daemon.end() == 0
    client.subscribed.clear()
    place.broker.start()
    assert client.subscribed.wait(PATIENCE)
    daemon.start()
    assert client.wait("result/unsent").payload == kept
    reply = client.wait("edged/v1/reply/unsent")
    assert (reply.payload, reply.properties.CorrelationData) == (kept, b"u")
    assert daemon.log().count('"job_succeeded"') == 1


def test_a_wrong_password_is_said_in_readyz_and_in_no_log(place: Place) -> None:
    tool = shutil.which("mosquitto_passwd")
    assert tool
    users = place.folder / "users"
    subprocess.run([tool, "-b", "-c", str(users), "edged", "right-password"], check=True, capture_output=True)
    users.chmod(0o644)
    place.broker.stop()
    place.broker.configure(lines=["allow_anonymous false", f"password_file {users}"])
    place.broker.start()
    login = {"MQTT__USERNAME": "edged", "MQTT__PASSWORD": "wrong-password"}
    daemon = place.daemon(**login).start(ready=False)
    fault = eventually(lambda: next((f for f in daemon.faults() or [] if "password" in f), None))
    assert "not connected" in fault
    eventually(lambda: "model_serving" in daemon.log(), "the model is loaded")
    assert "wrong-password" not in daemon.log() + fault
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_full_spool_leaves_jobs_at_the_broker_and_answers_them_all(place: Place) -> None:
    daemon, client = place.daemon(paced=True, JOBS__MAX_QUEUED="3").start(), place.client()
    daemon.pace("hold")
    ids = [f"many-{n}" for n in range(12)]
    for id in ids:
        client.send(job(id))
    assert "max_queued" in daemon.until_fault("spool full")
    eventually(lambda: any("spool full" in (json.loads(one.payload)["reason"] or "") for one in client.all("status")))
    assert daemon.query("SELECT count(*) FROM job") == [(3,)]
    assert not client.all("event/many-3")
    client.send({"id": "many-2"}, to="cancel")  # the other connection is not held up
    assert client.result("many-2")["state"] == "cancelled"
    daemon.pace("")
    for id in ids:
        if id != "many-2":
            assert client.result(id)["state"] == "succeeded"
    daemon.until_ready()
    assert all(len(client.all(f"result/{id}")) == 1 for id in ids)


@pytest.mark.slow
def test_a_full_spool_keeps_its_jobs_at_the_broker_over_a_crash(place: Place) -> None:
    daemon, client = place.daemon(paced=True, JOBS__MAX_QUEUED="1").start(), place.client()
    daemon.pace("hold")
    for n in range(4):
        client.send(job(f"over-{n}"))
    daemon.until_fault("spool full")
    daemon.kill()
    daemon.pace("")
    daemon.start()
    for n in range(4):
        assert client.result(f"over-{n}")["state"] == "succeeded"


def test_a_group_of_two_shares_its_jobs_and_each_hears_a_cancel(place: Place) -> None:
    daemons = [place.daemon(device=f"d{n}", paced=True, DEVICE__GROUPS="hall").start() for n in (1, 2)]
    clients = [place.client(f"d{n}") for n in (1, 2)]
    for daemon in daemons:
        daemon.pace("hold")
    for id in ("one", "two"):
        clients[0].send(job(id), to="edged/v1/group/hall/job")
    place_of = {
        id: eventually(lambda id=id: next((c for c in clients if c.all(f"event/{id}")), None)) for id in ("one", "two")
    }
    clients[0].send({"id": "one"}, to="edged/v1/group/hall/cancel")
    clients[0].send({"id": ""}, to="edged/v1/group/hall/cancel")
    for client in clients:
        eventually(lambda client=client: any("/result/invalid-" in m.topic for m in client.messages))
    for daemon in daemons:
        daemon.pace("")
    assert place_of["one"].result("one")["state"] == "cancelled"
    assert place_of["two"].result("two")["state"] == "succeeded"
