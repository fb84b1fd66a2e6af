"""Publications that a broker does not take: what the link tells of a refusal, and of a connection that ends."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker_rig import Device, Mosquitto
from limiting_proxy import LimitingProxy
from patience import PATIENCE
from scripted_broker import HANG_UP, Answer, Publish, ScriptedBroker

from edged.mqtt import connection as connection_module
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.connection_faults import PACKET_TOO_LARGE
from edged.mqtt.events import LinkDown, Published, PublishRefused
from edged.mqtt.session_types import Publication, SessionEnd
from edged.settings.model import MqttSettings

Make = Callable[..., Any]


@pytest.fixture
def limiting(broker: Mosquitto) -> Iterator[LimitingProxy]:
    proxy = LimitingProxy(broker.port, 2000)
    yield proxy
    proxy.close()


def test_mosquittos_message_size_limit_refuses_and_does_not_cost_the_connection(
    make_broker: Make, make_device: Make
) -> None:
    # With an endless queue (0, as elsewhere in these tests) mosquitto 2.0.11 closes the connection after its PUBACK.
    broker: Mosquitto = make_broker(lines=["message_size_limit 2000", "max_queued_messages 1000"]).start()
    device: Device = make_device(broker.port, protocol="5").up()
    device.link.publish("t", bytes(5000), qos=1, token="large")
    refused = device.wait_for(PublishRefused)
    assert (refused.token, refused.code) == ("large", PACKET_TOO_LARGE)
    assert "packet too large" in refused.reason
    device.link.publish("t", bytes(50), qos=1, token="small")
    device.wait_for(Published, token="small")
    assert not any(isinstance(event, LinkDown) for event in device.seen)


@pytest.mark.parametrize("beyond", [0, 1])
def test_an_announced_limit_is_kept_to_the_byte(
    make_broker: Make, make_device: Make, beyond: int, correlation: bytes = b"c" * 200
) -> None:
    broker: Mosquitto = make_broker(lines=["max_packet_size 2000"]).start()
    device: Device = make_device(broker.port, protocol="5").up()
    for extra, overhead in ((None, 9), (correlation, 213)):
        device.link.publish("t", bytes(2000 - overhead + beyond), qos=1, token=overhead, correlation=extra)
        told = device.wait_for(PublishRefused if beyond else Published, token=overhead)
        assert beyond == 0 or told.code == PACKET_TOO_LARGE
    assert not any(isinstance(event, LinkDown) for event in device.seen)


def test_a_broker_that_hangs_up_on_a_large_packet_closed_the_connection(make_broker: Make, make_device: Make) -> None:
    broker: Mosquitto = make_broker(lines=["max_packet_size 2000"]).start()
    device: Device = make_device(broker.port, protocol="3.1.1").up()
    device.link.publish("t", bytes(300_000), qos=1, token="large")
    assert device.down().blame.counts


@pytest.mark.parametrize("size", [3000, 3_000_000])
def test_a_reset_in_the_middle_of_a_packet_is_the_brokers(
    limiting: LimitingProxy, make_device: Make, protocol: str, size: int
) -> None:
    device: Device = make_device(limiting.port, protocol=protocol).up()
    device.link.publish("t", bytes(size), qos=1, token="large")
    assert device.down().blame.counts
    assert len(limiting.hung_up) == 1


@pytest.mark.parametrize(("code", "blamed"), [(0x95, True), (0x82, True), (0x8B, False), (0x8E, False), (0x00, False)])
def test_a_disconnect_blames_a_publication_or_the_broker_itself(make_device: Make, code: int, blamed: bool) -> None:
    broker = ScriptedBroker()
    device: Device = make_device(broker.port).up()
    broker.disconnect(code)
    down = device.down()
    assert down.blame.counts == blamed
    assert (down.fault.code == "mqtt_packet_too_large") == (code == 0x95)
    broker.close()


@pytest.mark.slow
def test_a_broker_that_no_longer_answers_did_not_close_the_connection(
    broker: Mosquitto, make_device: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, protocol=protocol, keep_alive=5).up()
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    device.link.publish("t", b"x", qos=1, token="unanswered")
    down = device.down()
    assert (down.fault.code, down.blame.counts) == ("mqtt_keep_alive_timeout", False)


def test_a_publication_that_is_to_go_alone_does(make_device: Make, protocol: str) -> None:
    answered = threading.Event()

    def answer(_publish: Publish) -> Answer:
        answered.wait(PATIENCE)
        return Answer()

    broker = ScriptedBroker(on_publish=answer)
    device: Device = make_device(broker.port, protocol=protocol).up()
    publish = device.link.publish
    assert publish("t", b"first", qos=1, token=1)
    assert not publish("t", b"alone", qos=1, token=2, alone=True)
    answered.set()
    device.wait_for(Published, token=1)
    answered.clear()
    assert publish("t", b"alone", qos=1, token=2, alone=True)
    assert not publish("t", b"beside", qos=1, token=3)
    assert not publish("t", b"beside", qos=0)
    answered.set()
    device.wait_for(Published, token=2)
    assert publish("t", b"after", qos=1, token=3)
    device.wait_for(Published, token=3)
    broker.close()


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_hang_up_on_what_went_alone_resets_the_back_off(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    monkeypatch.setattr(connection_module, "LASTED_ALONE_SECONDS", 0.0)
    broker = ScriptedBroker(on_publish=lambda _publish: HANG_UP)
    backoff, owner = CountingBackoff(), Owner()
    mqtt = MqttSettings(host="127.0.0.1", port=broker.port, protocol="5")
    connection = Connection(Role("control", "board-ctl", []), mqtt, owner, backoff)
    connection.start()
    connection.open()
    assert owner.is_up.wait(PATIENCE)
    assert connection.publish(Publication("t", b"x", 1, False, "token", None, alone))
    assert (owner.ended.get(timeout=PATIENCE).alone_seconds is not None) == alone
    connection.stop(0.0)
    connection.join(PATIENCE)
    assert backoff.resets == alone
    broker.close()


class CountingBackoff(Backoff):
    resets = 0

    def reset(self) -> None:
        self.resets += 1
        super().reset()


class Owner:
    def __init__(self) -> None:
        self.is_up = threading.Event()
        self.ended: queue.SimpleQueue[SessionEnd] = queue.SimpleQueue()

    def up(self, *_: object) -> None:
        self.is_up.set()

    def down(self, end: SessionEnd) -> None:
        self.ended.put(end)

    def received(self, *_: object) -> None: ...

    def published(self, *_: object) -> None: ...

    def publish_refused(self, *_: object) -> None: ...
