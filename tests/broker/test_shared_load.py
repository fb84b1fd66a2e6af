"""Members of a group that share their load: real daemons and a real broker."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from broker_rig import Peer
from daemon_fixtures import Client5, Daemon, Place, job
from patience import eventually

pytest_plugins = ["daemon_fixtures"]

GROUP = "edged/v1/group/hall/job"


def members(place: Place, *names: str, **settings: str) -> tuple[list[Daemon], list[Client5]]:
    """Devices of the group hall that share its load, started, and a client that hears each."""
    shared = {"DEVICE__GROUPS": "hall", "DEVICE__SHARE_LOAD": "true"} | settings
    clients = [place.client(name) for name in names]
    daemons = [place.daemon(device=name, paced=True, **shared) for name in names]
    for daemon in daemons:
        daemon.start()
    return daemons, clients


def hold(daemon: Daemon, client: Client5) -> None:
    """Give this device a job that does not end, and one behind it; what comes now waits."""
    daemon.pace("hold")
    client.send(job(f"held-{daemon.device}"))
    client.event(f"held-{daemon.device}", "started")
    client.send(job(f"next-{daemon.device}"))  # is prepared, and so cannot be given away
    client.event(f"next-{daemon.device}", "accepted")


def answered(clients: list[Client5], id: str) -> list[dict[str, Any]]:
    """All results of the job so far, of any device."""
    return [json.loads(message.payload) for client in clients for message in client.all(f"result/{id}")]


def runs(clients: list[Client5], id: str) -> int:
    """How often the job has begun. Its result may come twice: after a kill the broker may send again what the giver had
    not acknowledged, which is answered as any repeat.
    """
    return sum(client.events(id).count(kind) for client in clients for kind in ("started", "retrying"))


def until_answered(clients: list[Client5], id: str) -> dict[str, Any]:
    return dict(eventually(lambda: answered(clients, id), f"a result of {id}")[0])


def shared(daemon: Daemon, event: str) -> float:
    return daemon.metric(f'edged_shared_jobs_total{{event="{event}"}}')


def test_jobs_that_wait_at_a_held_member_are_answered_by_another(place: Place) -> None:
    (one, two), clients = members(place, "one", "two")
    hold(one, clients[0])
    clients[0].send(job("kept"))  # for the device itself
    ids = [f"shared-{n}" for n in range(4)]  # two of them come to each
    for id in ids:
        clients[0].send(job(id), to=GROUP)
    assert {until_answered(clients, id)["device"] for id in ids} == {"two"}
    eventually(lambda: (shared(one, "given"), shared(two, "taken")) == (2, 2))
    assert answered(clients, "kept") == []
    one.pace("")
    assert until_answered(clients, "kept")["device"] == "one"
    assert [len(answered(clients, id)) for id in ids] == [1, 1, 1, 1]
    assert [daemon.end() for daemon in (one, two)] == [0, 0]


def give_to_stopped(place: Place, one: Daemon, two: Daemon, clients: list[Client5]) -> tuple[str, str]:
    """A job that waits at one and is on its way to two, which has not read it; and one that two got from the broker."""
    hold(one, clients[0])
    hears = Peer(place.broker.port).subscribe("edged/v1/group/hall/offer/two")
    while not hears.get()[1]:  # an empty one takes an offer back
        pass
    hears.close()
    two.send_signal(signal.SIGSTOP)
    for id in ("x", "y"):
        clients[0].send(job(id), to=GROUP)
    mine = str(eventually(lambda: next((id for id in ("x", "y") if clients[0].events(id)), None)))
    eventually(lambda: one.query("SELECT 1 FROM shared WHERE give IS NOT NULL"), "a give under way")
    return mine, "y" if mine == "x" else "x"


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["taker", "giver", "both"])
def test_a_kill_between_give_and_accepted_loses_nothing_and_each_job_runs_once(place: Place, killed: str) -> None:
    (one, two), clients = members(place, "one", "two")
    mine, other = give_to_stopped(place, one, two, clients)
    if killed in ("giver", "both"):
        one.kill()
    if killed in ("taker", "both"):
        two.kill()
        two.start()
    else:
        two.send_signal(signal.SIGCONT)
    if killed in ("giver", "both"):
        one.start()
    assert until_answered(clients, other)["device"] == "two"
    assert until_answered(clients, mine)["device"] == "two"
    one.pace("")
    assert until_answered(clients, "next-one")["device"] == "one"
    eventually(lambda: one.query("SELECT taker FROM given") == [("two",)])
    assert one.query("SELECT 1 FROM shared") == []
    assert [runs(clients, id) for id in (mine, other)] == [1, 1]
    assert [len({str(result) for result in answered(clients, id)}) for id in (mine, other)] == [1, 1]
    assert [daemon.end() for daemon in (one, two)] == [0, 0]


@pytest.mark.slow
def test_a_repeat_and_a_cancel_that_come_to_the_giver_reach_the_taker(place: Place) -> None:
    settings = {"DEVICE__GROUPS": "hall", "DEVICE__SHARE_LOAD": "true"}
    one, two = (place.daemon(device=name, paced=True, **settings) for name in ("one", "two"))
    clients = [place.client(name) for name in ("one", "two")]
    one.start()
    hold(one, clients[0])
    clients[0].send(job("x", 400), to=GROUP)
    clients[0].event("x", "accepted")
    two.pace(0.2)
    two.start()
    clients[1].event("x", "started")
    eventually(lambda: one.query("SELECT id, taker FROM given") == [("x", "two")])
    # The device's own topic, since the group's would bring it to either.
    clients[0].send(job("x", 400), to="edged/v1/device/one/job", ResponseTopic="edged/v1/reply/me")
    eventually(lambda: "accepted" in clients[1].events("x")[2:], "the repeat is heard by two")
    clients[0].send({"id": "x"}, to="edged/v1/device/one/cancel")
    assert until_answered(clients, "x") == answered(clients[1:], "x")[0]
    assert answered(clients, "x")[0]["state"] == "cancelled"
    reply = json.loads(clients[0].wait("edged/v1/reply/me").payload)
    assert (reply["device"], reply["state"]) == ("two", "cancelled")
    assert shared(one, "forwarded") == 2
    for daemon in (one, two):
        daemon.pace("")
        assert daemon.end() == 0


@pytest.mark.slow
def test_a_member_that_drains_leaves_its_waiting_jobs_to_others(place: Place) -> None:
    settings = {"DEVICE__GROUPS": "hall", "DEVICE__SHARE_LOAD": "true", "DRAIN_SECONDS": "300"}
    one, two = (place.daemon(device=name, paced=True, **settings) for name in ("one", "two"))
    clients = [place.client(name) for name in ("one", "two")]
    one.start()
    hold(one, clients[0])
    for id in ("a", "b"):
        clients[0].send(job(id), to=GROUP)
        clients[0].event(id, "accepted")
    one.send_signal(signal.SIGTERM)
    clients[0].status("draining")
    two.start()
    assert {until_answered(clients, id)["device"] for id in ("a", "b")} == {"two"}
    one.pace("")
    assert [one.wait(), two.end()] == [0, 0]
