"""Single messages: their properties, their size, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker_rig import Device, Mosquitto, Peer
from patience import PATIENCE

from edged.mqtt.events import JobReceived, LinkDown, Published, PublishRefused

Make = Callable[..., Any]


def test_the_properties_of_a_job_reach_the_daemon(broker: Mosquitto, make_device: Make, make_peer: Make) -> None:
    device: Device = make_device(broker.port).up()
    make_peer(broker.port).send(
        device.topics.job,
        b"{}",
        ResponseTopic="edged/v1/reply/me",
        CorrelationData=b"\x00\x01",
        MessageExpiryInterval=3600,
    )
    job = device.wait_for(JobReceived).message
    assert (job.response_topic, job.correlation) == ("edged/v1/reply/me", b"\x00\x01")
    assert job.expiry_seconds is not None
    assert 3600 - PATIENCE <= job.expiry_seconds <= 3600


def test_a_property_that_paho_refuses_does_not_cost_the_connection(
    broker: Mosquitto, make_device: Make, make_peer: Make
) -> None:
    device: Device = make_device(broker.port).up()
    peer: Peer = make_peer(broker.port)
    peer.send(device.topics.job, b"marked", UserProperty=("name", "\ufeffvalue"))
    job = device.wait_for(JobReceived).message
    assert job.payload == b"marked"
    device.link.acknowledge(job.receipt)
    peer.send(device.topics.job, b"plain")
    assert device.wait_for(JobReceived).message.payload == b"plain"
    assert not any(isinstance(event, LinkDown) for event in device.seen)


def test_a_large_job_comes_whole_and_one_above_the_packet_size_is_dropped(
    broker: Mosquitto, make_device: Make, make_peer: Make
) -> None:
    device: Device = make_device(broker.port).up()
    peer: Peer = make_peer(broker.port)
    peer.send(device.topics.job, bytes(1_000_000))
    assert len(device.wait_for(JobReceived).message.payload) == 1_000_000
    peer.send(device.topics.job, bytes(10_000_000))
    peer.send(device.topics.job, b"after")
    assert device.wait_for(JobReceived).message.payload == b"after"


def test_correlation_data_is_published(broker: Mosquitto, make_device: Make) -> None:
    device: Device = make_device(broker.port).up()
    answers: Device = make_device(broker.port, device="asker").up()
    device.link.publish(answers.topics.job, b"{}", qos=1, correlation=b"abc")
    assert answers.wait_for(JobReceived).message.correlation == b"abc"


def test_a_topic_with_a_wildcard_is_refused_and_others_go_on(broker: Mosquitto, make_device: Make) -> None:
    device: Device = make_device(broker.port).up()
    device.link.publish("a/#", b"x", qos=1, token="bad")
    device.link.publish("a/b", b"x", qos=1, token="good")
    assert device.wait_for(PublishRefused).token == "bad"
    assert device.wait_for(Published).token == "good"


def test_a_publication_above_the_brokers_packet_size_is_refused_and_others_go_on(
    make_broker: Make, make_device: Make
) -> None:
    broker: Mosquitto = make_broker(lines=["max_packet_size 2000"]).start()
    device: Device = make_device(broker.port).up()
    device.link.publish("t", bytes(3000), qos=1, token="large")
    device.link.publish("t", bytes(300), qos=1, token="small")
    assert "at most 2000" in device.wait_for(PublishRefused, token="large").reason
    device.wait_for(Published, token="small")
    assert device.link.reconnects["control"] == 0
