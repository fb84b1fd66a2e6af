"""A broker that answers with any code, with half an answer, with none, or hangs up: nothing of it is silent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from broker_rig import Device
from patience import eventually
from scripted_broker import HANG_UP, NO_ANSWER, Answer, Publish, ScriptedBroker, Subscribe
from structlog.testing import capture_logs

from edged.mqtt import session
from edged.mqtt.events import Blame, LinkDown, LinkUp, Published, PublishRefused

Make = Callable[..., Any]
Script = Callable[..., ScriptedBroker]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker must answer a packet at once."""
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    [
        (0x03, "mqtt_connack_refused", "server unavailable"),
        (0x07, "mqtt_connack_refused", "code 0x07"),
        (0x8B, "mqtt_connack_refused", "server shutting down"),
        (0x99, "mqtt_connack_refused", "payload format invalid"),
        (0xFF, "mqtt_connack_refused", "code 0xff"),
    ],
)
def test_any_code_of_connack_is_named(script: Script, make_device: Make, code: int, fault: str, words: str) -> None:
    broker = script(on_connect=lambda _connect: Answer(code))
    down = make_device(broker.port, protocol="5").start().down()
    assert (down.fault.code, down.reason) == (fault, f"the broker refused the connection: {words}")


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    [(1, "mqtt_protocol_unsupported", "does not speak this version"), (9, "mqtt_connack_refused", "return code 9")],
)
def test_any_return_code_of_connack_is_named(
    script: Script, make_device: Make, code: int, fault: str, words: str
) -> None:
    broker = script(on_connect=lambda _connect: Answer(code))
    down = make_device(broker.port, protocol="3.1.1").start().down()
    assert (down.fault.code, words in down.reason) == (fault, True)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0x03, "code 0x03"), (0x80, "unspecified error"), (0x95, "packet too large"), (0xFF, "code 0xff")],
)
def test_any_code_of_suback_refuses_that_topic_alone(
    script: Script, make_device: Make, protocol: str, code: int, words: str
) -> None:
    def judge(packet: Subscribe) -> list[int]:
        return [code if topic.endswith("/cancel") else qos & 3 for topic, qos in packet.filters]

    device: Device = make_device(script(on_subscribe=judge).port, protocol=protocol).up()
    (warning,) = device.link.status().warnings
    assert (warning.code, words in warning.message) == ("mqtt_subscription_refused", True)
    assert device.topics.cancel in warning.message


def test_a_suback_with_too_few_codes_refuses_the_rest(script: Script, make_device: Make, protocol: str) -> None:
    def judge(packet: Subscribe) -> list[int]:
        return [qos & 3 for _, qos in packet.filters][:1]

    device: Device = make_device(script(on_subscribe=judge).port, groups=["north"], protocol=protocol).start()
    up = device.wait_for(LinkUp, which="jobs")
    assert up.refused == (device.topics.group_job("north"),)


@pytest.mark.parametrize(("code", "words"), [(0x84, "unsupported protocol version"), (0xEE, "code 0xee")])
def test_any_code_of_puback_refuses_that_publication_alone(
    script: Script, make_device: Make, code: int, words: str
) -> None:
    def judge(publish: Publish) -> Answer:
        return Answer(code if "result" in publish.topic else 0)

    device: Device = make_device(script(on_publish=judge).port, protocol="5").up()
    device.link.publish(device.topics.result("1"), b"x", qos=1, token="result")
    refused = device.wait_for(PublishRefused)
    assert (refused.code, words in refused.reason) == (code, True)
    device.link.publish(device.topics.event("1"), b"x", qos=1, token="event")
    device.wait_for(Published, token="event")
    assert not any(isinstance(event, LinkDown) for event in device.seen)


@pytest.mark.parametrize(
    ("code", "blame", "fault"),
    [
        (0x87, Blame.TOPIC, "mqtt_lost_at_publish"),
        (0x90, Blame.TOPIC, "mqtt_lost_at_publish"),
        (0x95, Blame.SIZE, "mqtt_packet_too_large"),
        (0x96, Blame.RATE, "mqtt_disconnected"),
        (0x97, Blame.RATE, "mqtt_disconnected"),
        (0x80, Blame.POSSIBLE, "mqtt_lost_at_publish"),
        (0x8B, Blame.NONE, "mqtt_disconnected"),
        (0xFF, Blame.NONE, "mqtt_disconnected"),
    ],
)
def test_a_disconnect_at_a_publication_says_what_it_is_about_and_names_it_then(
    script: Script, make_device: Make, code: int, blame: Blame, fault: str
) -> None:
    def judge(publish: Publish) -> Answer:
        if "result" in publish.topic:
            broker.disconnect(code)
        return Answer()

    broker = script(on_publish=judge)
    device: Device = make_device(broker.port, protocol="5").up()
    with capture_logs() as logs:
        device.link.publish(device.topics.result("7"), b"x", qos=1, token="result")
        down = device.down()
    assert (down.blame, down.fault.code) == (blame, fault)
    named = blame in (Blame.TOPIC, Blame.SIZE, Blame.POSSIBLE)
    assert (device.topics.result("7") in down.reason) == named
    (line,) = [line for line in logs if line["event"] == "mqtt_disconnected" and line["connection"] == "control"]
    assert line["log_level"] == ("warning" if named else "info")


def test_a_disconnect_at_a_subscription_names_its_topics(script: Script, make_device: Make) -> None:
    def judge(packet: Subscribe) -> Answer | list[int]:
        if not packet.filters[0][0].endswith("/cancel"):
            return [0]
        broker.disconnect(0x87, ReasonString="by policy 4")
        return HANG_UP

    broker = script(on_subscribe=judge)
    device: Device = make_device(broker.port, protocol="5").start()
    fault = device.down().fault
    assert fault.code == "mqtt_lost_at_subscribe"
    assert "asked to subscribe edged/v1/device/board/cancel: not authorized ('by policy 4')" in fault.message


def test_a_publication_that_the_broker_leaves_unanswered_is_named_and_ends_the_connection(
    script: Script, make_device: Make, protocol: str, impatient: None
) -> None:
    def judge(publish: Publish) -> Answer:
        return NO_ANSWER if "large" in publish.topic else Answer()

    device: Device = make_device(script(on_publish=judge).port, protocol=protocol, keep_alive=3600).up()
    for id in ("small", "large", "other"):
        device.link.publish(device.topics.result(id), b"x", qos=1, token=id)
    device.wait_for(Published, token="other")
    down = device.down()
    assert (down.fault.code, down.blame) == ("mqtt_unanswered", Blame.UNANSWERED)
    assert device.topics.result("large") in down.reason
    device.wait_for(LinkUp, which="control")


def test_answers_that_come_one_after_another_are_waited_for_one_by_one(
    script: Script, make_device: Make, impatient: None
) -> None:
    answer = threading.Semaphore(0)

    def judge(_publish: Publish) -> Answer:
        answer.acquire(timeout=0.35)
        return Answer()

    device: Device = make_device(script(on_publish=judge).port, protocol="5", keep_alive=5).up()
    for number in range(5):  # the last is answered after three times the limit
        device.link.publish(device.topics.result("1"), b"x", qos=1, token=number)
    device.wait_for(Published, token=4)
    assert not any(isinstance(event, LinkDown) for event in device.seen)


def test_a_subscription_that_the_broker_leaves_unanswered_is_named_and_left_out_at_last(
    script: Script, make_device: Make, protocol: str, impatient: None
) -> None:
    def judge(packet: Subscribe) -> Answer | list[int]:
        return NO_ANSWER if packet.filters[0][0].endswith("/cancel") else [qos & 3 for _, qos in packet.filters]

    device: Device = make_device(script(on_subscribe=judge).port, protocol=protocol, keep_alive=5).start()
    fault = device.down().fault
    assert (fault.code, device.topics.cancel in fault.message) == ("mqtt_unanswered", True)
    device.wait_for(LinkUp, which="control")
    assert [device.topics.cancel in warning.message for warning in device.link.status().warnings] == [True]


def test_a_topic_of_qos_0_on_which_the_broker_hangs_up_is_named_and_left_out(
    script: Script, make_device: Make, protocol: str
) -> None:
    def judge(publish: Publish) -> Answer:
        return HANG_UP if "/stream/" in publish.topic else Answer()

    device: Device = make_device(script(on_publish=judge).port, protocol=protocol).up()
    for number in range(3):
        assert device.link.publish(device.topics.stream(f"job-{number}"), b"x", qos=0)
        fault = device.down().fault
        assert (fault.code, "edged/v1/device/board/stream" in fault.message) == ("mqtt_lost_at_publish", True)
        device.wait_for(LinkUp, which="control")
    for number in range(3):
        assert device.link.publish(device.topics.stream(f"job-{number}"), b"x", qos=0)
    warning = eventually(lambda: [one for one in device.link.status().warnings if "stream" in one.message])[0]
    assert (warning.code, "closes the connection" in warning.message) == ("mqtt_document_refused", True)
    device.link.publish(device.topics.result("1"), b"x", qos=1, token="result")
    device.wait_for(Published, token="result")


def test_a_topic_of_qos_0_that_the_broker_took_before_is_not_left_out(
    script: Script, make_device: Make, protocol: str
) -> None:
    broker = script()
    device: Device = make_device(broker.port, protocol=protocol).up()
    for _ in range(4):
        device.link.publish(device.topics.health, b"x", qos=0)
        device.link.publish(device.topics.result("1"), b"x", qos=1, token="result")
        device.wait_for(Published, token="result")
        broker.drop()
        assert device.down().fault.code == "mqtt_connection_lost"
        device.wait_for(LinkUp, which="control")
    before = broker.publishes.qsize()
    device.link.publish(device.topics.health, b"x", qos=0)
    eventually(lambda: broker.publishes.qsize() > before)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x7f\0", id="an unknown property"),
        pytest.param(b"\x21\0", id="half a property"),
        pytest.param(b"\x21\0\0", id="a Receive Maximum of 0"),
        pytest.param(b"\x27\0\0\0\0", id="a Maximum Packet Size of 0"),
    ],
)
def test_a_malformed_packet_is_named(script: Script, make_device: Make, raw: bytes) -> None:
    device: Device = make_device(script(on_connect=lambda _connect: Answer(raw=raw)).port, protocol="5").start()
    assert device.down().fault.code == "mqtt_packet_malformed"
