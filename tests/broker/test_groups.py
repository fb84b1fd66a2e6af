"""A device that cannot serve leaves its groups to those that can, and jobs that name a model go where it is served."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Peer, Proxy
from daemon_fixtures import MODELS, Client5, Daemon, Place, job
from patience import PATIENCE, eventually
from pull_rig import publish
from scripted_broker import HANG_UP, Answer, Subscribe

from edged.mqtt.events import GroupPing, GroupPong, JobReceived, LinkDown, LinkUp
from edged.mqtt.groups import Membership
from edged.mqtt.sender import Sender
from edged.settings.mqtt import MqttSettings

pytest_plugins = ["daemon_fixtures"]

Make = Callable[..., Any]
NEVER = "3600"


def board(place: Place, name: str, model: Path = MODELS / "phi3", **settings: str) -> tuple[Daemon, Client5]:
    """A device of the group hall, which serves if its package is whole, and a client that hears it.

    It leaves after a second in place of a minute.
    """
    daemon = place.daemon(device=name, paced=True, DEVICE__GROUPS="hall", MODEL__PATH=str(model), **settings)
    daemon.env |= {"TEST_LEAVE_SECONDS": "1", "TEST_ANSWER_SECONDS": str(PATIENCE)}
    return daemon, place.client(name)


def broken_package(place: Place, name: str) -> Path:
    """A copy of a package without its graph."""
    folder = place.folder / name / "phi3"
    shutil.copytree(MODELS / "phi3", folder)
    (folder / "model.onnx").rename(folder.parent / "model.onnx")
    return folder


def mend(package: Path) -> None:
    (package.parent / "model.onnx").rename(package / "model.onnx")


def answers(clients: list[Client5], ids: list[str]) -> Counter[tuple[str, str]]:
    """How many of the jobs each device answered, by the state of the result."""
    found: Counter[tuple[str, str]] = Counter()
    for id in ids:
        message = eventually(
            lambda id=id: next((message for client in clients for message in client.all(f"result/{id}")), None), id
        )
        result = json.loads(message.payload)
        found[result["device"], result["state"]] += 1
    return found


def send(client: Client5, prefix: str, number: int, topic: str = "edged/v1/group/hall/job") -> list[str]:
    """Jobs for the group; their ids."""
    ids = [f"{prefix}-{n}" for n in range(number)]
    for id in ids:
        client.send(job(id, 1), to=topic)
    return ids


def warnings(daemon: Daemon) -> list[str]:
    return [warning["code"] for warning in json.loads(daemon.get("/readyz")[1])["warnings"]]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.slow
def test_the_broken_one_of_three_leaves_its_jobs_to_the_others_and_comes_back(place: Place, protocol: str) -> None:
    package = broken_package(place, "third")
    pairs = [
        board(place, "one", MQTT__PROTOCOL=protocol),
        board(place, "two", MQTT__PROTOCOL=protocol),
        board(place, "three", package, MQTT__PROTOCOL=protocol),
    ]
    daemons, clients = [daemon for daemon, _ in pairs], [client for _, client in pairs]
    for daemon in daemons[:2]:
        daemon.start()
    daemons[2].env["TEST_LEAVE_SECONDS"] = NEVER
    daemons[2].start(ready=False)
    daemons[2].until_fault("model unavailable")
    eventually(lambda: daemons[2].metric('edged_mqtt_connected{connection="jobs"}') == 1)
    ten = {("one", "succeeded"): 10, ("two", "succeeded"): 10}
    assert answers(clients, send(clients[0], "before", 30)) == {**ten, ("three", "rejected"): 10}
    assert daemons[2].end() == 0
    daemons[2].env["TEST_LEAVE_SECONDS"] = "1"
    daemons[2].start(ready=False)
    assert clients[2].status("online", groups=[])["warnings"] == ["group_left"]
    assert answers(clients, send(clients[0], "after", 30)) == {("one", "succeeded"): 15, ("two", "succeeded"): 15}
    assert [daemon.metric('edged_group_joined{group="hall"}') for daemon in daemons] == [1, 1, 0]
    assert warnings(daemons[2]) == ["group_left"]
    (told,) = daemons[2].logged("group_left")
    assert (told["level"], told["group"]) == ("warning", "hall")
    assert "model unavailable" in told["reason"]
    mend(package)
    daemons[2].until_ready()
    assert clients[2].status("online", ready=True, groups=["hall"])["warnings"] == []
    assert answers(clients, send(clients[0], "again", 30)) == {**ten, ("three", "succeeded"): 10}
    assert [daemon.end() for daemon in daemons] == [0, 0, 0]


@pytest.mark.slow
def test_the_last_one_stays_whoever_is_broken_and_refuses_what_would_be_lost(place: Place) -> None:
    (whole, whole_client), (left, left_client), (third, third_client) = (
        board(place, "whole"),
        board(place, "left", broken_package(place, "second")),
        board(place, "third", broken_package(place, "third")),
    )
    clients = [whole_client, left_client, third_client]
    for daemon in (left, third):  # neither leaves to the other
        daemon.env["TEST_ANSWER_SECONDS"] = "5"
        daemon.start(ready=False)
        eventually(lambda daemon=daemon: daemon.logged("group_kept"))
        assert daemon.logged("group_left") == []
    found = answers(clients, send(whole_client, "nobody-serves", 6))
    assert found == {("left", "rejected"): 3, ("third", "rejected"): 3}
    whole.start()
    for client in (left_client, third_client):
        client.status("online", groups=[])
    assert whole.end() == 0
    # For want of an answer, the others are back after a while.
    for daemon in (left, third):
        eventually(lambda daemon=daemon: daemon.metric('edged_group_joined{group="hall"}') == 1)
        assert daemon.logged("group_joined")


@pytest.mark.slow
def test_a_restart_leaves_nothing_and_a_drain_neither(place: Place) -> None:
    """With one device: what is sent meanwhile waits for it, since the broker keeps its place in the group."""
    daemon, client = board(place, "only")
    daemon.start()
    daemon.pace("hold")
    client.send(job("running", 20), to="edged/v1/group/hall/job")
    client.event("running", "started")
    daemon.send_signal(15)
    client.status("draining", groups=["hall"])
    sent = send(client, "draining", 3) + send(client, "of-model", 3, "edged/v1/group/hall/model/phi3/job")
    daemon.pace("")
    assert daemon.wait() == 0
    sent += send(client, "off", 3) + send(client, "of-model-off", 3, "edged/v1/group/hall/model/phi3/job")
    daemon.start()
    assert answers([client], ["running", *sent]) == {("only", "succeeded"): 13}
    assert daemon.logged("group_left") == []


def submit(daemon: Daemon, id: str, model: str | None, *arguments: str, **fields: Any) -> Any:
    """`edged submit --group hall` with this job."""
    document = json.dumps(job(id, 1, **({"model": model} if model else {})) | fields)
    return daemon.command("submit", "--group", "hall", "--json", "--job", "-", *arguments, input=document)


@pytest.mark.slow
def test_a_job_that_names_its_model_goes_where_it_is_served_and_nowhere_else(place: Place) -> None:
    (phi, phi_client), (llama, llama_client) = board(place, "phi"), board(place, "llama", MODELS / "llama3")
    for daemon in (phi, llama):
        daemon.start()
    for model, name, client in (("phi3", "phi", phi_client), ("llama3", "llama", llama_client)):
        ids = send(client, name, 4, f"edged/v1/group/hall/model/{model}/job")
        assert answers([phi_client, llama_client], ids) == {(name, "succeeded"): 4}
    done = submit(llama, "submitted", "phi3")
    assert (done.returncode, json.loads(done.stdout)["device"]) == (0, "phi"), done.stderr
    nobody = submit(phi, "other", "other")
    assert (nobody.returncode, nobody.stdout) == (69, "")
    assert nobody.stderr == (
        f"edged: no device takes jobs of the group hall that name the model other, says the broker at "
        f"127.0.0.1:{place.broker.port}; check device.groups and /readyz of its devices, then send the job again\n"
    )
    # With another model after a restart, it leaves what the broker's session still holds.
    assert llama.end() == 0
    llama.env["EDGED_MODEL__PATH"] = str(MODELS / "qwen2")
    llama.start()
    assert submit(phi, "former", "llama3").returncode == 69
    assert json.loads(submit(phi, "present", "qwen2").stdout)["device"] == "llama"
    assert llama_client.all("result/former") == []


@pytest.mark.slow
def test_a_model_that_breaks_is_left_at_once(place: Place) -> None:
    daemon, client = board(place, "only", MODEL__SCRUB_INTERVAL="1")
    daemon.env |= {"TEST_LEAVE_SECONDS": NEVER, "EDGED_MODEL__PATH": ""}
    assert daemon.command("model", "pull", str(publish(place.folder / "stick"))).returncode == 0
    assert daemon.command("model", "use", "phi3").returncode == 0
    daemon.start()
    assert submit(daemon, "whole", "phi3").returncode == 0
    with (daemon.state_dir / "models/phi3/model.onnx.data").open("r+b", buffering=0) as file:
        file.seek(100_000)
        (byte,) = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte ^ 4]))
    daemon.until_fault("the model package is damaged")
    eventually(lambda: submit(daemon, "damaged", "phi3").returncode == 69)
    # Without the model's name it still hears why.
    refused = submit(daemon, "refused", None)
    assert (refused.returncode, "model_unavailable" in refused.stderr) == (1, True)
    assert client.all("result/damaged") == []


@pytest.mark.slow
def test_a_group_without_devices_is_said(place: Place) -> None:
    daemon, _ = board(place, "only")
    done = submit(daemon, "nobody", None)
    assert (done.returncode, done.stdout) == (69, "")
    assert "no device takes jobs of the group hall, says the broker at 127.0.0.1" in done.stderr
    daemon.env["EDGED_MQTT__PROTOCOL"] = "3.1.1"
    done = submit(daemon, "silence", None, "--timeout", "4")
    assert done.returncode == 1
    assert "over MQTT 3.1.1 the broker does not say whether any device takes such jobs" in done.stderr


# The link alone


def test_a_group_is_left_and_joined_on_the_same_connection(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, groups=["hall", "yard"], protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    device.link.set_membership(Membership(frozenset({"hall"}), "phi3"))
    status = device.link.status()
    assert (status.groups, status.left) == ({"hall": False, "yard": True}, ("hall",))
    eventually(lambda: _taken(peer, "edged/v1/group/hall/job") is False)
    eventually(lambda: _taken(peer, "edged/v1/group/yard/model/phi3/job"))
    assert not _taken(peer, "edged/v1/group/hall/model/phi3/job")
    device.link.set_membership(Membership(frozenset(), "other"))
    eventually(lambda: _taken(peer, "edged/v1/group/hall/job"))
    eventually(lambda: _taken(peer, "edged/v1/group/hall/model/other/job"))
    assert not _taken(peer, "edged/v1/group/yard/model/phi3/job")
    assert not any(isinstance(event, LinkDown) for event in device.seen)
    assert device.link.status().warnings == ()


def _taken(peer: Peer, topic: str) -> bool:
    """Whether somebody is subscribed to it."""
    return peer.matched(topic, b"{}")


def test_what_was_left_while_the_line_was_down_is_left_in_the_brokers_session(
    broker: Mosquitto, make_device: Make, make_peer: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, groups=["hall"], protocol=protocol).up()
    device.link.set_membership(Membership(model="phi3"))
    peer: Peer = make_peer(broker.port)
    eventually(lambda: _taken(peer, "edged/v1/group/hall/model/phi3/job"))
    proxy.accepting = False
    proxy.cut()
    device.wait_for(LinkDown, which="jobs")
    device.link.set_membership(Membership(frozenset({"hall"}), "phi3"))
    proxy.accepting = True
    device.until_up()
    eventually(lambda: not _taken(peer, "edged/v1/group/hall/job"))
    eventually(lambda: not _taken(peer, "edged/v1/group/hall/model/phi3/job"))


def test_a_models_topic_that_an_earlier_run_left_in_the_session_is_left_at_its_first_job(
    broker: Mosquitto, make_device: Make, make_peer: Make
) -> None:
    former: Device = make_device(broker.port, groups=["hall"]).up()
    former.link.set_membership(Membership(model="former"))
    peer: Peer = make_peer(broker.port)
    topic = "edged/v1/group/hall/model/former/job"
    eventually(lambda: _taken(peer, topic))
    former.link.stop(PATIENCE)
    device: Device = make_device(broker.port, groups=["hall"]).start()
    device.wait_for(JobReceived, topic=topic)
    eventually(lambda: not _taken(peer, topic))


def test_a_ping_is_heard_by_the_others_and_their_answer_by_who_asks(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    asks: Device = make_device(broker.port, "asks", ["hall"], protocol=protocol).up()
    other: Device = make_device(broker.port, "other", ["hall"], protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    for payload in (b"", b"[]", b"{}", b'{"device": 1, "nonce": 2}', b'{"device": "x", "nonce": "a b"}', b"[" * 2000):
        peer.send("edged/v1/group/hall/ping", payload)
    peer.send("edged/v1/group/hall/ping", json.dumps({"device": "x", "nonce": "n", "padding": "x" * 2000}))
    asks.link.set_membership(Membership(asking=True))
    asks.link.ping("hall", "first")
    assert other.wait_for(GroupPing) == GroupPing("hall", "first")
    other.link.pong("hall", "first")
    assert asks.wait_for(GroupPong) == GroupPong("hall", "first")
    # Who does not ask hears no answers.
    asks.link.pong("hall", "second")
    asks.link.ping("hall", "third")
    assert other.wait_for(GroupPing) == GroupPing("hall", "third")
    assert not any(isinstance(event, GroupPong) for event in other.seen)


NEW = ("/ping", "/pong", "/model/phi3/job")
"""What a role of an earlier provision.py lacks."""


@pytest.mark.parametrize("hang_up", [False, True])
def test_topics_that_an_older_role_refuses_are_warnings_and_the_device_works(
    script: Make, make_device: Make, hang_up: bool, protocol: str
) -> None:
    def judge(packet: Subscribe) -> list[int] | Answer:
        refused = [topic.endswith(NEW) for topic, _ in packet.filters]
        if hang_up and any(refused):
            return HANG_UP
        code = 0x87 if protocol == "5" else 0x80
        return [code if no else qos & 3 for no, (_, qos) in zip(refused, packet.filters, strict=True)]

    broker = script(on_subscribe=judge)
    device: Device = make_device(broker.port, groups=["hall"], protocol=protocol).up()
    device.link.set_membership(Membership(model="phi3", asking=True))
    topics = device.topics
    refused = {topics.group_ping("hall"), topics.group_pong("hall"), topics.group_model_job("hall", "phi3")}

    def named() -> set[str]:
        messages = [warning.message for warning in device.link.status().warnings]
        return {topic for topic in refused if any(f" {topic}: " in message for message in messages)}

    eventually(lambda: named() == refused and device.link.status().connected, lambda: str(device.link.status()))
    # It stays connected, and says nothing on a topic that it may not use.
    device.link.ping("hall", "n")
    device.say("stopped")
    said = []
    while not said or b"stopped" not in said[-1].payload:
        said.append(broker.publishes.get(timeout=PATIENCE))
    assert not refused & {packet.topic for packet in said}
    assert device.link.connected("control")


def test_a_group_that_may_not_be_joined_again_is_named(script: Make, make_device: Make) -> None:
    allowed = threading.Event()
    allowed.set()

    def judge(packet: Subscribe) -> list[int]:
        return [qos & 3 if allowed.is_set() or "hall/job" not in topic else 0x87 for topic, qos in packet.filters]

    broker = script(on_subscribe=judge)
    device: Device = make_device(broker.port, groups=["hall"]).up()
    device.link.set_membership(Membership(frozenset({"hall"})))
    assert broker.unsubscribes.get(timeout=PATIENCE) == device.topics.group_job("hall")
    allowed.clear()
    device.link.set_membership(Membership())
    eventually(lambda: device.link.status().refused == (device.topics.group_job("hall"),))
    status = device.link.status()
    assert (status.connected, status.groups) == (False, {"hall": False})
    device.link.set_membership(Membership(frozenset({"hall"})))
    eventually(lambda: device.link.status().connected)
    assert not any(isinstance(event, (LinkDown, LinkUp)) for event in list(_rest(device)))


def test_a_group_that_may_not_be_left_is_named(script: Make, make_device: Make) -> None:
    device: Device = make_device(script(on_unsubscribe=lambda _filter: 0x87).port, groups=["hall"]).up()
    device.link.set_membership(Membership(frozenset({"hall"})))
    (warning,) = eventually(lambda: device.link.status().warnings)
    assert warning.code == "mqtt_unsubscription_refused"
    assert device.topics.group_job("hall") in warning.message
    device.link.set_membership(Membership())
    eventually(lambda: device.link.status().warnings == ())


def _rest(device: Device) -> Any:
    while True:
        try:
            yield device.events.get_nowait()
        except queue.Empty:
            return


@pytest.mark.slow
def test_a_sender_tries_a_member_that_is_ready_after_the_first_time(place: Place, make_device: Make) -> None:
    for name in ("gone-1", "gone-2"):  # the broker gives their share to them all the same
        make_device(place.broker.port, name, ["hall"]).up().link.stop(0.0)
    daemon, client = board(place, "there")
    daemon.start()
    client.status("online", ready=True, groups=["hall"])
    hears = Peer(place.broker.port).subscribe("edged/v1/group/hall/model/phi3/job")
    hears.subscribe("edged/v1/group/hall/job").subscribe("edged/v1/device/+/job")
    with Sender(MqttSettings(host="127.0.0.1", port=place.broker.port), None, "hall") as sender:
        for n, fields in enumerate(({}, {"model": "phi3"})):
            *_, last = sender.submit(job(f"job-{n}", **fields), PATIENCE)
            assert last.document["device"] == "there"
    topics = [hears.get()[0].removeprefix("edged/v1/") for _ in range(2)]
    hears.close()
    assert topics == ["group/hall/job", "device/there/job"]
