"""A broker that speaks MQTT 3.1.1 only."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqtt.broker import Broker
from broker_rig import Device, Mosquitto, Peer, free_port
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from patience import PATIENCE
from scripted_broker import HANG_UP, Answer, Connect, ScriptedBroker

from edged.demo.broker import DemoBroker
from edged.mqtt import attempts, session
from edged.mqtt.events import CancelReceived, JobReceived, LinkUp, Published

Make = Callable[..., Any]


@pytest.fixture
def amqtt_port() -> Iterator[int]:
    """amqtt in a thread of this process."""
    port = free_port()
    loop = asyncio.new_event_loop()
    started = threading.Event()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def serve() -> Broker:
        broker = Broker(config, loop)
        await broker.start()
        started.set()
        return broker

    task = loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    yield port
    asyncio.run_coroutine_threadsafe(task.result().shutdown(), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)


@pytest.fixture
def demo_port() -> Iterator[int]:
    """The broker of `edged demo`."""
    broker = DemoBroker()
    broker.start()
    yield broker.port
    broker.stop()


def test_the_demos_broker_refuses_mqtt_5_at_once(
    demo_port: int, make_device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CONNECT_SECONDS", 2 * PATIENCE)  # so that no silence leads to another version
    device: Device = make_device(demo_port).start()
    assert device.wait_for(LinkUp, which="control").protocol == "3.1.1"
    for version, taken in (("5", False), ("311", True)):
        command = [
            "mosquitto_pub",
            "-p",
            str(demo_port),
            "-V",
            version,
            "-q",
            "1",
            "-t",
            device.topics.job,
            "-m",
            "job",
        ]
        assert (subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 0) is taken
    assert device.wait_for(JobReceived).message.payload == b"job"


def test_the_demos_broker_sends_retained_messages_to_their_subscribers_alone(demo_port: int) -> None:
    def listen(topic: str) -> Client:
        client, heard = Client(CallbackAPIVersion.VERSION2), threading.Event()
        client.on_subscribe = lambda *_: heard.set()
        client.on_message = lambda _client, _data, message: arrived.put((topic, message.topic, message.retain))
        client.connect("127.0.0.1", demo_port)
        client.loop_start()
        client.subscribe(topic, qos=1)
        assert heard.wait(PATIENCE)
        return client

    arrived: queue.SimpleQueue[tuple[str, str, bool]] = queue.SimpleQueue()
    first = listen("a/status")
    first.publish("a/status", b"online", qos=1, retain=True).wait_for_publish(PATIENCE)
    assert arrived.get(timeout=PATIENCE) == ("a/status", "a/status", False)
    second = listen("b")
    first.publish("b", b"last", qos=1)
    assert arrived.get(timeout=PATIENCE) == ("b", "b", False)  # and nothing of another topic before it
    third = listen("a/+")
    assert arrived.get(timeout=PATIENCE) == ("a/+", "a/status", True)
    for client in (first, second, third):
        client.disconnect()
        client.loop_stop()
    assert arrived.empty()


def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(
    amqtt_port: int, make_device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # amqtt 0.12.1 takes the properties of a CONNECT in MQTT 5 for the length of the client id and waits for more.
    monkeypatch.setattr(session, "CONNECT_SECONDS", 1.0)
    device: Device = make_device(amqtt_port).start()
    assert device.wait_for(LinkUp, which="control").protocol == "3.1.1"
    assert device.wait_for(LinkUp, which="jobs").protocol == "3.1.1"
    device.link.publish(device.topics.job, b"job", qos=1)
    job = device.wait_for(JobReceived).message
    assert job.payload == b"job"
    assert device.link.acknowledge(job.receipt)
    device.link.publish(device.topics.cancel, b"cancel", qos=1)
    assert device.link.acknowledge(device.wait_for(CancelReceived).message.receipt)
    device.link.publish(device.topics.result("1"), b"result", qos=1, token="result")
    device.wait_for(Published, token="result")


class Refusing:
    """Answers each CONNECT of MQTT 5 in the way that it is told, and counts the versions tried."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.versions: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, contextlib.suppress(OSError):
                    packet = client.recv(4096)
                    version = packet[packet.index(b"MQTT") + 4]
                    self.versions.put(version)
                    client.sendall(self._answer if version == 5 else b"\x20\x02\x00\x03")

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"])
def test_a_broker_that_refuses_version_5_is_asked_in_3_1_1_at_once(make_device: Make, answer: bytes) -> None:
    broker = Refusing(answer)
    make_device(broker.port, retry_seconds=(3600.0, 3600.0)).start()
    assert [broker.versions.get(timeout=PATIENCE) for _ in range(2)] == [5, 4]
    broker.close()


def test_a_broker_that_hangs_up_twice_is_asked_in_3_1_1(make_device: Make) -> None:
    broker = Refusing(b"")
    make_device(broker.port).start()
    assert [broker.versions.get(timeout=PATIENCE) for _ in range(3)] == [5, 5, 4]
    broker.close()


def test_a_broker_that_spoke_5_stays_on_5_when_a_few_connects_fail(make_device: Make) -> None:
    left = 0

    def hang_up_sometimes(connect: Connect) -> Answer:
        nonlocal left
        if connect.client_id == "board-ctl" and left:
            left -= 1
            return HANG_UP
        return Answer()

    broker = ScriptedBroker(on_connect=hang_up_sometimes)
    device: Device = make_device(broker.port).up()
    left = 3
    broker.drop()
    assert device.wait_for(LinkUp, which="control").protocol == "5"
    assert left == 0
    broker.close()


def test_a_guess_of_3_1_1_is_checked_and_both_connections_go_back_to_5(
    make_device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "RECHECK_SECONDS", 0.5)
    left = 2

    def hang_up_at_first(connect: Connect) -> Answer:
        nonlocal left
        if connect.version == 5 and left:
            left -= 1
            return HANG_UP
        return Answer()

    broker = ScriptedBroker(on_connect=hang_up_at_first)
    device: Device = make_device(broker.port).start()
    assert device.wait_for(LinkUp, which="control").protocol == "3.1.1"
    assert device.wait_for(LinkUp, which="control").protocol == "5"
    assert device.wait_for(LinkUp, which="jobs", protocol="5")
    assert device.link.connected("jobs")
    broker.close()


def test_a_setting_decides_the_version(broker: Mosquitto, make_device: Make) -> None:
    device: Device = make_device(broker.port, protocol="3.1.1").start()
    assert device.wait_for(LinkUp, which="jobs").protocol == "3.1.1"


def test_mqtt_5_is_used_where_the_broker_speaks_it(broker: Mosquitto, make_device: Make) -> None:
    device: Device = make_device(broker.port).start()
    assert device.wait_for(LinkUp, which="control").protocol == "5"
    assert device.wait_for(LinkUp, which="jobs").protocol == "5"


def test_a_session_begun_in_3_1_1_goes_on_in_5(broker: Mosquitto, make_device: Make, make_peer: Make) -> None:
    before: Device = make_device(broker.port, protocol="3.1.1").up()
    before.link.stop(PATIENCE)
    peer: Peer = make_peer(broker.port)
    peer.send(before.topics.job, b"between")
    after: Device = make_device(broker.port, protocol="5").start()
    assert after.wait_for(JobReceived).message.payload == b"between"
