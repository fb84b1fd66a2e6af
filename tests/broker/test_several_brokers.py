"""Several brokers in order of preference: which one is used, what moves with the device, and when it goes back."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Peer, Proxy, free_port
from daemon_fixtures import Client5, Place, job
from patience import eventually
from structlog.testing import capture_logs

from edged.mqtt.attempts import Brokers
from edged.mqtt.events import JobReceived, LinkDown, LinkUp, StatusOutdated
from edged.mqtt.preferred import LONGEST_STEADY_SECONDS, SteadyTime
from edged.settings.mqtt import MqttSettings

pytest_plugins = ["daemon_fixtures"]
Make = Callable[..., Any]


@pytest.fixture
def pair(make_broker: Make) -> tuple[Mosquitto, Mosquitto]:
    """The preferred broker and another, which share no topics: what arrives at one was sent there."""
    return make_broker().start(), make_broker().start()


def address(broker: Mosquitto | Proxy) -> str:
    return f"127.0.0.1:{broker.port}"


def codes(device: Device) -> list[str]:
    return [warning.code for warning in device.link.status().warnings]


def moved(device: Device, broker: Mosquitto) -> None:
    """Wait until both connections stand there."""
    for which in ("control", "jobs"):
        device.wait_for(LinkUp, which=which, broker=address(broker))


def test_the_second_serves_while_the_first_is_away_and_the_first_again_when_it_is_back(
    pair: tuple[Mosquitto, Mosquitto], make_device: Make, make_peer: Make, protocol: str
) -> None:
    first, second = pair
    fallbacks = [address(second), f"127.0.0.1:{free_port()}"]
    device: Device = make_device(
        first.port, fallbacks=fallbacks, groups=["north"], protocol=protocol, steady_seconds=0.5
    ).start()
    moved(device, first)
    assert (device.link.status().broker, codes(device)) == (address(first), [])
    with capture_logs() as entries:
        first.kill()
        moved(device, second)
    assert device.link.status().broker == address(second)
    assert codes(device) == ["mqtt_fallback"]  # and not: the session is lost
    (told,) = [entry for entry in entries if entry["event"] == "mqtt_fallback"]
    assert (told["log_level"], address(first) in told["reason"]) == ("warning", True)
    make_peer(second.port).send(device.topics.job, b"at the second")
    assert device.wait_for(JobReceived).message.payload == b"at the second"
    first.start()
    moved(device, first)
    assert (device.link.status().broker, codes(device)) == (address(first), [])
    peer: Peer = make_peer(first.port)
    peer.send(device.topics.job, b"at the first")
    assert device.wait_for(JobReceived).message.payload == b"at the first"
    assert {event.broker for event in device.seen if isinstance(event, LinkDown)} == {address(first), address(second)}


def test_a_broker_that_refuses_the_device_is_passed_over(
    make_broker: Make, broker: Mosquitto, make_device: Make, protocol: str
) -> None:
    closed: Mosquitto = make_broker(lines=["allow_anonymous false"]).start()
    device: Device = make_device(closed.port, fallbacks=[address(broker)], protocol=protocol).start()
    down = device.wait_for(LinkDown)
    assert (down.broker, down.fault.code) == (address(closed), "mqtt_not_authorized")
    moved(device, broker)


class OneOfTwo(Proxy):
    """Knows which of the connections is that for control."""

    control: socket.socket | None = None

    def passes(self, source: socket.socket, data: bytes) -> None:
        if b"board-ctl" in data and self.control is None:
            self.control = source


def test_the_job_connection_follows_the_other_one(
    pair: tuple[Mosquitto, Mosquitto], make_device: Make, protocol: str
) -> None:
    first, second = pair
    proxy = OneOfTwo(first.port)
    device: Device = make_device(proxy.port, fallbacks=[address(second)], protocol=protocol).up()
    assert proxy.control is not None
    proxy.accepting = False
    proxy.control.shutdown(socket.SHUT_RDWR)
    down = device.wait_for(LinkDown, which="jobs")
    assert (down.broker, down.fault.code) == (address(proxy), "mqtt_closed")
    device.wait_for(LinkUp, which="jobs", broker=address(second))
    assert device.link.status().broker == address(second)
    proxy.close()


def test_a_status_that_an_earlier_run_left_at_the_second_is_no_other_device(
    pair: tuple[Mosquitto, Mosquitto], make_device: Make, make_peer: Make, protocol: str
) -> None:
    first, second = pair
    device: Device = make_device(first.port, fallbacks=[address(second)], protocol=protocol).up()
    left = json.dumps({"state": "online", "instance": "an earlier run"})
    make_peer(second.port).send(device.topics.status, left, retain=True)
    first.kill()
    moved(device, second)
    assert device.link.connected("control")


def test_a_last_will_that_comes_late_is_told(broker: Mosquitto, make_device: Make, make_peer: Make) -> None:
    device: Device = make_device(broker.port).up()
    peer: Peer = make_peer(broker.port)
    peer.send(device.topics.status, device.status("draining"), retain=True)
    peer.send(device.topics.status, device.status("offline"), retain=True)
    device.wait_for(StatusOutdated)
    assert [type(event) for event in device.seen].count(StatusOutdated) == 1


@pytest.mark.slow
def test_the_daemon_serves_at_the_second_and_sends_there_what_the_first_did_not_confirm(
    place: Place, make_broker: Make, make_peer: Make
) -> None:
    first, second = place.broker, make_broker().start()
    daemon, client = place.daemon(paced=True, MQTT__FALLBACKS=address(second)).start(), place.client()
    daemon.pace("hold")
    for id in ("one", "two"):
        client.send(job(id))
        client.event(id, "accepted")
    assert first.process is not None
    first.process.send_signal(signal.SIGSTOP)  # it takes what is sent, and confirms nothing
    daemon.pace("")
    eventually(lambda: daemon.query("SELECT count(*) FROM result") == [(2,)])
    with contextlib.closing(Client5(second.port)) as there:
        first.kill()
        assert {there.result(id)["state"] for id in ("one", "two")} == {"succeeded"}
        status = there.status("online", ready=True)
        assert (status["broker"], status["warnings"]) == (address(second), ["mqtt_fallback"])
        assert there.ask(job("three"))["state"] == "succeeded"
        for broker, in_use in ((first, 0.0), (second, 1.0)):
            assert daemon.metric(f'edged_mqtt_broker{{broker="{address(broker)}"}}') == in_use
        assert [entry["level"] for entry in daemon.logged("mqtt_fallback")] == ["warning"]
        # A last will of the first broker that a bridge brings late does not stand.
        late = {**status, "state": "offline", "ready": False}
        make_peer(second.port).send(f"{there.topics}/status", json.dumps(late), retain=True)
        states = eventually(lambda: (found := there.states())[-2:] == ["offline", "online"] and found)
        assert states.count("offline") == 1
    second.kill()
    both = eventually(lambda: len(faults := daemon.faults() or []) == 2 and faults)
    assert all(any(address(broker) in fault for fault in both) for broker in (first, second))


@pytest.mark.slow
def test_submit_hears_the_answer_at_the_second_broker(place: Place, make_broker: Make) -> None:
    second = make_broker().start()
    daemon = place.daemon(MQTT__FALLBACKS=address(second)).start()
    place.broker.kill()
    eventually(lambda: daemon.logged("mqtt_fallback"))
    done = daemon.command("submit", "hello", "--json", "--device", "board")
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert done.stderr.startswith(f"edged: {address(place.broker)} not connected: ")
    port = str(place.broker.port)
    gone = daemon.command("submit", "hello", "--device", "board", "--mqtt-port", port, "--timeout", "1")
    assert (gone.returncode, f"{address(place.broker)} not connected" in gone.stderr) == (1, True)


def test_the_brokers_are_tried_in_order_and_the_first_after_a_connection_that_lasted() -> None:
    brokers = Brokers(MqttSettings(host="a", fallbacks=["b:1884", "::1"]))
    tried = []
    for _ in range(4):
        tried.append((brokers.current.mqtt.address, brokers.failed()))
    assert tried == [("a:1883", True), ("b:1884", True), ("[::1]:1883", False), ("a:1883", True)]
    brokers.start_over()
    assert brokers.current.mqtt.address == "a:1883"


def test_a_broker_that_comes_and_goes_takes_the_device_along_less_and_less_often() -> None:
    steady, waits = SteadyTime(60.0), []
    for _ in range(8):
        waits.append(steady.seconds)
        steady.returned()
        steady.left(50.0)
    assert waits == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, LONGEST_STEADY_SECONDS, LONGEST_STEADY_SECONDS]
    steady.left(LONGEST_STEADY_SECONDS)
    assert steady.seconds == 60.0
