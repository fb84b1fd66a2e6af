"""Two ejabberd nodes in one cluster: a device at one, a sender at the other, and each node killed and back.

Topics of the device only: ejabberd has no shared subscriptions.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import PASSWORD, Ejabberd
from daemon_fixtures import REFERENCE, Daemon, job, reference_job, temporary_folder
from paho.mqtt.enums import MQTTProtocolVersion
from patience import PATIENCE, eventually
from pull_rig import publish, serving
from rollout_client import OPEN, desired, digest_of
from sender import DEVICE, Sender

LONG = 10 * 60.0
"""Seconds until a test gives up what takes a restart of a node, a load, or the device's trial of its first broker."""


class Cluster:
    """Nodes a and b, a device whose first broker is b, and a sender at a."""

    def __init__(self, folder: Path) -> None:
        for name in ("a", "b", "device"):
            (folder / name).mkdir()
        self.folder = folder
        self.a, self.b = Ejabberd(folder / "a"), Ejabberd(folder / "b")
        self.a.start()
        self.b.start()
        self.b.join(self.a)
        self.together()
        login = {"mqtt__username": str(self.b.username), "mqtt__password": PASSWORD}
        self.device = Daemon(
            folder / "device", self.b.port, paced=True,
            mqtt__host="127.0.0.1", mqtt__fallbacks=json.dumps([f"127.0.0.1:{self.a.port}"]), **login, **OPEN,
        )  # fmt: skip
        self.sender = Sender(self.a, MQTTProtocolVersion.MQTTv5, "sender-a")

    def together(self) -> None:
        """Wait until each node sees both."""
        both = {self.a.node, self.b.node}
        eventually(lambda: self.a.members() == self.b.members() == both, lambda: f"both: {self.a.members()}", LONG)

    def broker_of_device(self) -> int | None:
        """The port of the node that the device says it uses."""
        said = [json.loads(one.payload) for one in self.sender.all(f"{DEVICE}/status") if one.payload]
        online = [one for one in said if one["state"] == "online" and one["ready"]]
        return int(str(online[-1]["broker"]).rpartition(":")[2]) if online else None

    def at(self, node: Ejabberd) -> None:
        """Wait until the device serves at this node."""
        eventually(
            lambda: self.broker_of_device() == node.port, lambda: f"at {node.port}: {self.device.faults()}", LONG
        )

    def reported(self, **fields: Any) -> dict[str, Any]:
        told = self.sender.wait(f"{DEVICE}/reported", lambda one: fields.items() <= one.items(), seconds=LONG)
        return dict(json.loads(told.payload))

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self.sender.close()
        with contextlib.suppress(AttributeError):
            self.device.close()
        self.a.close()
        self.b.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.closing(Cluster(temporary_folder())) as cluster:
        yield cluster


def submit(sender: Sender, document: dict[str, Any], event: str = "accepted") -> None:
    """Send a job again until it is accepted, as the contract says, and wait for this event."""
    topic = f"{DEVICE}/event/{document['id']}"

    def accepted() -> bool:
        sender.send(document)
        with contextlib.suppress(AssertionError):
            sender.wait(topic, lambda one: one["event"] == "accepted")
            return True
        return False

    eventually(accepted, f"{document['id']} accepted", LONG)
    sender.wait(topic, lambda one: one["event"] == event, seconds=PATIENCE)


def answered(sender: Sender, document: dict[str, Any]) -> dict[str, Any]:
    """Ask again until the result is there, as after a lost connection; it is the same whenever it comes."""

    def result() -> dict[str, Any] | None:
        with contextlib.suppress(AssertionError):
            return sender.result(document["id"])
        sender.send(document)
        return None

    told = dict(eventually(result, f"a result of {document['id']}", LONG))
    assert len({one.payload for one in sender.all(f"{DEVICE}/result/{document['id']}")}) == 1
    return told


def right(sender: Sender, id: str) -> None:
    document = reference_job(id)
    submit(sender, document)
    assert answered(sender, document)["token_ids"] == REFERENCE[0]["output_ids"]


def test_jobs_and_a_rollout_outlive_each_node(cluster: Cluster) -> None:
    device, sender, held = cluster.device, cluster.sender, threading.Event()
    package = publish(cluster.folder / "web", pad=1)
    with serving(package.parent) as server:

        def hold(handler: Any) -> bool:
            if handler.path.endswith("model.onnx.data") and handler.command == "GET":
                held.wait(LONG)
            return False

        server.answer = hold
        device.start()
        cluster.at(cluster.b)
        first = job("first")
        submit(sender, first)
        assert answered(sender, first)["state"] == "succeeded"

        device.pace("hold")
        waiting = [job(f"before-{n}") for n in range(4)]
        for document, event in zip(waiting, ("started", *["accepted"] * 3), strict=True):
            submit(sender, document, event)
        wanted = desired(package, f"{server.url}/phi3/SHA256SUMS")
        sender.send(wanted, to=f"{DEVICE}/desired", retain=True)
        cluster.reported(step="downloading")
        cluster.b.kill()
        cluster.at(cluster.a)
        later = [job(f"while-{n}") for n in range(4)]
        for document in later:
            submit(sender, document)
        device.pace("")
        held.set()
        assert {answered(sender, document)["state"] for document in (*waiting, *later)} == {"succeeded"}
        done = cluster.reported(state="SUCCEEDED")
        assert done["model"] == {"name": "phi3", "digest": digest_of(package)}

    cluster.b.start()
    cluster.together()
    cluster.at(cluster.b)
    right(sender, "b-is-back")

    device.pace("hold")
    during = job("during")
    submit(sender, during, "started")
    cluster.a.kill()
    with contextlib.closing(Sender(cluster.b, MQTTProtocolVersion.MQTTv5, "sender-b")) as other:
        device.pace("")
        assert answered(other, during)["state"] == "succeeded"
        right(other, "a-is-away")
    sender.forget()
    cluster.a.start()
    cluster.together()
    assert sender.subscribed()
    right(sender, "a-is-back")
    with contextlib.closing(Sender(cluster.a, MQTTProtocolVersion.MQTTv5, "late")) as late:
        assert late.wait(f"{DEVICE}/status", lambda one: one["state"] == "online").retain
        assert late.wait(f"{DEVICE}/reported", lambda one: one["state"] == "SUCCEEDED").retain
    assert device.end() == 0
    assert "Traceback" not in device.log()
