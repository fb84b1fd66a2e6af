"""Nothing is lost, doubled or reordered between a real broker and the desk."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Peer, Proxy
from patience import PATIENCE, QUIET, eventually

from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.events import CancelReceived, JobReceived, LinkDown, LinkUp, Published
from edged.mqtt.flow import MAX_UNACKNOWLEDGED, MAX_UNACKNOWLEDGED_BYTES, MAX_UNSENT
from edged.mqtt.session_types import ReceivedMessage, SessionEnd, Subscription
from edged.settings.mqtt import MqttSettings

Make = Callable[..., Any]


def test_a_job_sent_while_the_device_is_off_arrives_after_the_start(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    first: Device = make_device(broker.port, protocol=protocol).up()
    first.link.stop(PATIENCE)
    peer: Peer = make_peer(broker.port)
    peer.send(first.topics.job, b"while off")
    second: Device = make_device(broker.port, protocol=protocol).start()
    job = second.wait_for(JobReceived).message
    assert job.payload == b"while off"


def test_a_job_outlives_device_and_broker_with_persistence(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    first: Device = make_device(broker.port, protocol=protocol).up()
    first.link.stop(PATIENCE)
    make_peer(broker.port).send(first.topics.job, b"kept")
    broker.stop()
    broker.start()
    second: Device = make_device(broker.port, protocol=protocol).start()
    assert second.wait_for(JobReceived).message.payload == b"kept"


def test_a_reconnect_before_the_acknowledgement_brings_the_job_again(
    broker: Mosquitto, make_device: Make, make_peer: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    peer.send(device.topics.job, b"one")
    old = device.wait_for(JobReceived).message
    assert not old.redelivered
    proxy.cut()
    device.wait_for(LinkDown, which="jobs")
    assert not device.link.acknowledge(old.receipt)
    again = device.wait_for(JobReceived).message
    assert again.payload == b"one"
    assert again.redelivered
    assert device.link.acknowledge(again.receipt)
    peer.send(device.topics.job, b"two")
    assert device.wait_for(JobReceived).message.payload == b"two"


def test_an_old_acknowledgement_is_not_sent_on_a_new_connection(
    broker: Mosquitto, make_device: Make, make_peer: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    make_peer(broker.port).send(device.topics.job, b"one")
    old = device.wait_for(JobReceived).message
    proxy.cut()
    device.wait_for(JobReceived, redelivered=True)
    device.wait_for(LinkUp, which="jobs")
    device.link.acknowledge(old.receipt)
    proxy.cut()
    assert device.wait_for(JobReceived).message.payload == b"one"


def test_an_acknowledged_job_does_not_come_again(
    broker: Mosquitto, make_device: Make, make_peer: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    for number in range(5):
        peer.send(device.topics.job, str(number))
    jobs = [device.wait_for(JobReceived).message for _ in range(5)]
    for job in jobs[:3]:
        device.link.acknowledge(job.receipt)
    device.link.close_jobs()
    device.wait_for(LinkDown, which="jobs")
    assert proxy.ended.acquire(timeout=PATIENCE)  # else the new connection may overtake the old one's acknowledgements
    device.link.stop(PATIENCE)
    again: Device = make_device(proxy.port, protocol=protocol).start()
    assert [again.wait_for(JobReceived).message.payload for _ in range(2)] == [b"3", b"4"]
    again.none_of(JobReceived)


@pytest.mark.slow
def test_a_loop_that_stands_still_is_noticed(broker: Mosquitto, make_device: Make, protocol: str) -> None:
    device: Device = make_device(broker.port, protocol=protocol, keep_alive=5).up()
    eventually(
        lambda: device.link.status().stalled_seconds < 2.0
    )  # it turns every 1.25 s, a quarter of keep_alive, at least
    entered, go_on = threading.Event(), threading.Event()

    def stand_still(_event: object) -> None:
        entered.set()
        go_on.wait()

    device.receive = stand_still
    device.say("online")
    assert entered.wait(PATIENCE)
    eventually(lambda: device.link.status().stalled_seconds > 3.0)
    device.receive = device.events.put
    go_on.set()
    eventually(lambda: device.link.status().stalled_seconds < 2.0)


def test_acknowledgements_leave_in_the_order_of_the_calls(
    broker: Mosquitto, make_device: Make, make_peer: Make, make_proxy: Make, protocol: str
) -> None:
    order = PubackRecorder(broker.port)
    device: Device = make_device(order.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    for number in range(20):
        peer.send(device.topics.job, str(number))
    jobs = [device.wait_for(JobReceived).message for _ in range(20)]
    assert [int(job.payload) for job in jobs] == list(range(20))
    for job in jobs:
        device.link.acknowledge(job.receipt)
    assert order.wait_for(20) == [job.receipt.mid for job in jobs]
    order.close()


class PubackRecorder(Proxy):
    """Reads the packet ids of the four-byte PUBACKs that pass towards the broker."""

    def __init__(self, target: int) -> None:
        self._recorded: list[int] = []
        self._arrived = threading.Condition()
        super().__init__(target)

    def forward(self, source: Any, sink: Any) -> None:  # type: ignore[override]
        towards_broker = sink.getpeername()[1] == self._target
        try:
            while data := source.recv(65536):
                if towards_broker:
                    with self._arrived:
                        while data[:2] == b"\x40\x02":
                            self._recorded.append(int.from_bytes(data[2:4], "big"))
                            sink.sendall(data[:4])
                            data = data[4:]
                        self._arrived.notify_all()
                sink.sendall(data)
        except OSError:
            return

    def wait_for(self, count: int) -> list[int]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self._recorded) >= count, PATIENCE)
            return list(self._recorded)


def test_closed_for_jobs_the_device_still_hears_cancels(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    device.link.close_jobs()
    device.wait_for(LinkDown, which="jobs")
    peer.send(device.topics.job, b"later")
    peer.send(device.topics.cancel, b"cancel")
    cancel = device.wait_for(CancelReceived).message
    assert cancel.payload == b"cancel"
    assert device.link.acknowledge(cancel.receipt)
    assert not any(isinstance(event, JobReceived) for event in device.seen)
    device.link.stop(PATIENCE)
    again: Device = make_device(broker.port, protocol=protocol).start()
    assert again.wait_for(JobReceived).message.payload == b"later"


def test_nothing_is_taken_for_publication_while_disconnected(
    broker: Mosquitto, make_device: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, protocol=protocol)
    assert not device.link.publish("t", b"x", qos=1, token=1)
    device.up()
    broker.kill()
    device.down()
    assert not device.link.publish("t", b"x", qos=1, token=2)
    assert device.link.window == 0
    broker.start()
    device.wait_for(LinkUp, which="control")
    assert device.link.publish("t", b"x", qos=1, token=3)
    assert device.wait_for(Published).token == 3


def test_more_than_the_window_is_not_taken(broker: Mosquitto, make_device: Make, protocol: str) -> None:
    device: Device = make_device(broker.port, protocol=protocol).up()
    taken = 0
    window = device.link.window
    for number in range(1000):
        if not device.link.publish("t", bytes(50_000), qos=1, token=number):
            break
        taken += 1
    assert window <= taken < 1000
    for number in range(taken):
        assert device.wait_for(Published).token == number
    assert device.link.window == window


def test_the_window_is_no_larger_than_the_brokers_receive_maximum(make_broker: Make, make_device: Make) -> None:
    broker: Mosquitto = make_broker(lines=["max_inflight_messages 7"]).start()
    assert make_device(broker.port).up().link.window == 7


def test_a_publication_under_way_at_a_cut_is_never_reported_later(
    broker: Mosquitto, make_device: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    proxy.accepting = False
    proxy.cut()
    device.link.publish("t", b"x", qos=1, token="lost")
    device.down()
    told = [event for event in device.seen if isinstance(event, Published)]
    proxy.accepting = True
    device.until_up()
    if not told:
        device.none_of(Published)


@pytest.mark.parametrize("persistence", [True, False])
def test_after_a_broker_restart_every_subscription_works(
    make_broker: Make, make_device: Make, make_peer: Make, protocol: str, persistence: bool
) -> None:
    broker: Mosquitto = make_broker(persistence=persistence).start()
    device: Device = make_device(broker.port, groups=["north", "south"], protocol=protocol).up()
    for _ in range(2):
        broker.kill()
        device.down()
        broker.start()
        device.until_up()
    peer: Peer = make_peer(broker.port)
    root = "edged/v1"
    for topic in (device.topics.job, f"{root}/group/north/job", f"{root}/group/south/job"):
        peer.send(topic, b"x")
        job = device.wait_for(JobReceived).message
        assert job.topic == topic
        device.link.acknowledge(job.receipt)
    for topic in (device.topics.cancel, f"{root}/group/north/cancel", f"{root}/group/south/cancel"):
        peer.send(topic, b"x")
        cancel = device.wait_for(CancelReceived).message
        assert cancel.topic == topic
        device.link.acknowledge(cancel.receipt)
    device.none_of(JobReceived)
    assert device.link.reconnects["control"] == 2


def test_a_broker_absent_at_the_start_is_waited_for(make_broker: Make, make_device: Make, protocol: str) -> None:
    broker: Mosquitto = make_broker()
    device: Device = make_device(broker.port, protocol=protocol).start()
    assert "no broker listens there" in device.down().reason
    assert not device.link.connected("control")
    broker.start()
    device.until_up()
    assert device.link.connected("control")
    assert device.link.connected("jobs")


def test_stop_interrupts_the_back_off(make_broker: Make, make_device: Make) -> None:
    device: Device = make_device(make_broker().port, retry_seconds=(3600.0, 3600.0)).start()
    device.down()
    device.link.stop(0.0)
    assert not any(thread.name in ("mqtt-jobs", "mqtt-control") for thread in threading.enumerate())


def test_stop_first_delivers_what_was_taken(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port).subscribe("last/#")
    for number in range(10):
        assert device.link.publish(f"last/{number}", bytes(10_000), qos=1, token=number)
    device.link.stop(PATIENCE)
    assert [peer.get()[0] for _ in range(10)] == [f"last/{number}" for number in range(10)]
    assert [device.wait_for(Published).token for _ in range(10)] == list(range(10))


def test_publications_of_many_threads_arrive_whole_and_in_each_threads_order(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port).subscribe("many/#")

    def publish(name: int) -> None:
        for number in range(50):
            payload = f"{number}:".encode() + bytes([name]) * 20_000
            while not device.link.publish(f"many/{name}", payload, qos=1):
                threading.Event().wait(0.001)

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    expected = dict.fromkeys(range(4), 0)
    for _ in range(200):
        topic, payload, _ = peer.get()
        name = int(topic.split("/")[1])
        assert payload == f"{expected[name]}:".encode() + bytes([name]) * 20_000
        expected[name] += 1
    for thread in threads:
        thread.join()


def test_the_will_is_retained_when_the_device_dies(
    broker: Mosquitto, make_device: Make, make_peer: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    device.say("online")
    device.wait_for(Published, token="online")
    watcher: Peer = make_peer(broker.port).subscribe(device.topics.status)
    watcher.until(device.topics.status, device.status("online"))
    proxy.accepting = False
    proxy.cut()
    watcher.until(device.topics.status, device.status("offline"))
    late: Peer = make_peer(broker.port).subscribe(device.topics.status)
    assert late.until(device.topics.status, device.status("offline"))


def test_a_retained_job_is_marked_or_not_sent(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    device: Device = make_device(broker.port, protocol=protocol)
    make_peer(broker.port).send(device.topics.job, b"old", retain=True)
    device.up()
    if protocol == "5":
        device.none_of(JobReceived)
    else:
        # On 3.1.1 it may have come before the SUBACK.
        jobs = [event.message for event in device.seen if isinstance(event, JobReceived)]
        assert (jobs or [device.wait_for(JobReceived).message])[0].retained


def test_no_more_than_the_receive_maximum_come_before_the_first_acknowledgement(
    broker: Mosquitto, make_device: Make, make_peer: Make
) -> None:
    device: Device = make_device(broker.port, protocol="5").up()
    peer: Peer = make_peer(broker.port)
    for number in range(200):
        peer.send(device.topics.job, str(number))
    jobs = [device.wait_for(JobReceived).message for _ in range(64)]
    device.none_of(JobReceived)
    # From the first PUBACK on, mosquitto 2.0.11 sends all that is queued, Receive Maximum or not: the spool's own
    # limit has to hold.
    for job in jobs:
        device.link.acknowledge(job.receipt)
    while len(jobs) < 200:
        jobs.append(device.wait_for(JobReceived).message)
        device.link.acknowledge(jobs[-1].receipt)
    assert [int(job.payload) for job in jobs] == list(range(200))


def test_a_flood_waits_in_tcp_while_nothing_is_acknowledged(
    make_broker: Make, make_device: Make, make_peer: Make
) -> None:
    broker: Mosquitto = make_broker(lines=["max_inflight_messages 0", "max_queued_messages 0"]).start()
    device: Device = make_device(broker.port, protocol="3.1.1").up()
    peer: Peer = make_peer(broker.port)
    for number in range(1000):
        peer.send(device.topics.job, str(number))
    jobs = [device.wait_for(JobReceived).message for _ in range(MAX_UNACKNOWLEDGED)]
    device.none_of(JobReceived)
    for job in jobs:
        device.link.acknowledge(job.receipt)
    while len(jobs) < 1000:
        jobs.append(device.wait_for(JobReceived).message)
        device.link.acknowledge(jobs[-1].receipt)
    assert [int(job.payload) for job in jobs] == list(range(1000))


class Hearer:
    """The owner of one connection; acknowledges what came at QoS 0 as if it were QoS 1, as `edged submit` did."""

    def __init__(self) -> None:
        self.is_up = threading.Event()
        self.arrived: queue.SimpleQueue[ReceivedMessage] = queue.SimpleQueue()

    def up(self, *_: object) -> None:
        self.is_up.set()

    def down(self, _end: SessionEnd) -> None: ...

    def received(self, message: ReceivedMessage) -> None:
        if message.receipt.qos == 0:
            assert message.receipt.session.acknowledge(message.receipt)
        self.arrived.put(message)

    def published(self, *_: object) -> None: ...

    def publish_refused(self, *_: object) -> None: ...


def test_messages_of_qos_0_do_not_count_as_acknowledged(make_broker: Make, make_peer: Make) -> None:
    broker: Mosquitto = make_broker(lines=["max_inflight_messages 0", "max_queued_messages 0"]).start()
    hearer = Hearer()
    role = Role("hearer", "hearer", [[Subscription("t", qos=1)]], keep_session=False)
    mqtt = MqttSettings(port=broker.port, protocol="3.1.1")
    connection = Connection(role, mqtt, hearer, Backoff(0.05, 0.2))
    connection.start()
    connection.open()
    try:
        assert hearer.is_up.wait(PATIENCE)
        peer: Peer = make_peer(broker.port)
        for number in range(50):
            peer.send("t", str(number), qos=0)
        assert [hearer.arrived.get(timeout=PATIENCE).receipt.qos for _ in range(50)] == [0] * 50
        for number in range(MAX_UNACKNOWLEDGED + 50):
            peer.send("t", str(number))
        messages = [hearer.arrived.get(timeout=PATIENCE) for _ in range(MAX_UNACKNOWLEDGED)]
        with pytest.raises(queue.Empty):
            hearer.arrived.get(timeout=QUIET)
        for message in messages:
            message.receipt.session.acknowledge(message.receipt)
        assert hearer.arrived.get(timeout=PATIENCE).payload == str(MAX_UNACKNOWLEDGED).encode()
    finally:
        connection.stop(0.0)
        connection.join(PATIENCE)


def test_a_flood_of_large_messages_waits_in_tcp_by_its_bytes(
    make_broker: Make, make_device: Make, make_peer: Make, protocol: str
) -> None:
    broker: Mosquitto = make_broker(lines=["max_inflight_messages 0", "max_queued_messages 0"]).start()
    device: Device = make_device(broker.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    large = bytes(1 << 20)
    for _ in range(40):
        peer.send(device.topics.job, large)
    most = MAX_UNACKNOWLEDGED_BYTES // len(large)
    jobs = [device.wait_for(JobReceived).message for _ in range(most)]
    device.none_of(JobReceived)
    while len(jobs) < 40:
        device.link.acknowledge(jobs[len(jobs) - most].receipt)
        jobs.append(device.wait_for(JobReceived).message)
    assert all(job.receipt.size == len(large) for job in jobs)


def test_pieces_for_which_there_is_no_way_are_dropped_and_not_kept(broker: Mosquitto, make_device: Make) -> None:
    device: Device = make_device(broker.port, keep_alive=60).up()
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    piece = bytes(1 << 16)
    taken = 0
    until = time.monotonic() + PATIENCE
    while taken_at_last := [device.link.publish("edged/v1/x", piece, qos=0) for _ in range(MAX_UNSENT)]:
        taken += sum(taken_at_last)
        if not any(taken_at_last):
            break
        assert time.monotonic() < until
        assert taken < 20 * MAX_UNSENT
        time.sleep(0.02)  # for what the kernel takes
    broker.process.send_signal(signal.SIGCONT)
    while not device.link.publish("edged/v1/x", b"after", qos=0):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_jobs_of_a_group_left_behind_in_the_session_are_taken_once_and_then_not_any_more(
    broker: Mosquitto, make_device: Make, make_peer: Make, protocol: str
) -> None:
    former: Device = make_device(broker.port, groups=["old"], protocol=protocol).up()
    former.link.stop(PATIENCE)
    device: Device = make_device(broker.port, protocol=protocol).up()
    peer: Peer = make_peer(broker.port)
    peer.send("edged/v1/group/old/job", b"stray")
    job = device.wait_for(JobReceived).message
    device.link.acknowledge(job.receipt)
    device.none_of(JobReceived, within=QUIET / 2)
    peer.send("edged/v1/group/old/job", b"not ours")
    device.none_of(JobReceived)
