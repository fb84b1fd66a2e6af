"""What a broker grants is read and said: limits are kept, and promises that do not hold are warnings."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Proxy
from daemon_fixtures import Daemon
from patience import PATIENCE, eventually
from scripted_broker import HANG_UP, Answer, Connect, Publish, ScriptedBroker, Subscribe
from structlog.testing import capture_logs

from edged.faults import Fault
from edged.mqtt.events import LinkDown, LinkUp, Published, PublishRefused
from edged.mqtt.known_sessions import KnownSessions
from edged.mqtt.status_echo import StatusEcho

Make = Callable[..., Any]


Script = Callable[..., ScriptedBroker]


def grants(**properties: Any) -> Callable[[Connect], Answer]:
    return lambda _connect: Answer(properties=properties)


def codes(device: Device) -> set[str]:
    return {warning.code for warning in device.link.status().warnings}


def test_a_broker_that_grants_everything_is_no_warning(broker: Mosquitto, make_device: Make, protocol: str) -> None:
    device: Device = make_device(broker.port, groups=["north"], protocol=protocol).up()
    assert device.link.status().warnings == ()


@pytest.mark.parametrize(
    ("properties", "code", "words"),
    [
        ({"SessionExpiryInterval": 0}, "mqtt_session_expiry_short", "keeps no sessions"),
        ({"SessionExpiryInterval": 3600}, "mqtt_session_expiry_short", "keeps sessions for 3600 s only"),
        ({"MaximumQoS": 0}, "mqtt_qos_0_only", "can be lost on the way"),
        ({"RetainAvailable": 0}, "mqtt_retain_unavailable", "retains no messages"),
        ({"WildcardSubscriptionAvailable": 0}, "mqtt_wildcards_unavailable", "no wildcard subscriptions"),
        ({"MaximumPacketSize": 10_000}, "mqtt_packet_size_small", "10000 bytes at most"),
        ({"AssignedClientIdentifier": "other"}, "mqtt_client_id_replaced", "by 'other'"),
    ],
)
def test_each_limit_is_a_warning_with_code_and_hint(
    script: Script, make_device: Make, properties: dict[str, Any], code: str, words: str
) -> None:
    broker = script(on_connect=grants(**properties))
    with capture_logs() as entries:
        device: Device = make_device(broker.port).up()
    assert codes(device) == {code}
    warning = device.link.status().warnings[0]
    assert words in warning.message
    assert warning.hint
    logged = [entry for entry in entries if entry["event"] == "mqtt_promise_broken"]
    assert {entry["code"] for entry in logged} == {code}
    assert [(entry["log_level"], entry["connection"]) for entry in logged] == [
        ("warning", "control"),
        ("warning", "jobs"),
    ]
    assert logged[0]["hint"] == warning.hint


def test_a_warning_is_not_logged_again_at_each_reconnect(script: Script, make_device: Make) -> None:
    broker = script(on_connect=grants(RetainAvailable=0))
    device: Device = make_device(broker.port).up()
    with capture_logs() as entries:
        broker.drop()
        device.until_up()
    told = [entry["code"] for entry in entries if entry["event"] == "mqtt_promise_broken"]
    assert told == ["mqtt_session_lost", "mqtt_session_lost"]  # of both connections: the scripted broker keeps none
    assert "mqtt_retain_unavailable" in codes(device)


def test_limits_that_break_no_promise_are_none(script: Script, make_device: Make) -> None:
    limits = {"ReceiveMaximum": 5, "ServerKeepAlive": 20, "SessionExpiryInterval": 7 * 24 * 3600, "MaximumQoS": 1}
    device: Device = make_device(script(on_connect=grants(**limits)).port).up()
    assert device.link.status().warnings == ()
    assert device.link.window == 5


@pytest.mark.slow
def test_the_brokers_keep_alive_is_kept(script: Script, make_device: Make) -> None:
    broker = script(on_connect=grants(ServerKeepAlive=2))
    device: Device = make_device(broker.port, keep_alive=3600).up()  # by that, no ping would come while a test waits
    pings = [broker.pings.get(timeout=PATIENCE)[0] for _ in range(8)]
    assert set(pings) == {"board", "board-ctl"}
    assert not any(isinstance(event, LinkDown) for event in device.seen)


def test_without_retain_and_qos_1_the_broker_gets_neither(script: Script, make_device: Make) -> None:
    broker = script(on_connect=grants(RetainAvailable=0, MaximumQoS=0))
    device: Device = make_device(broker.port).up()
    assert device.link.publish("t", b"x", qos=1, retain=True, token="status")
    device.wait_for(Published, token="status")
    published = broker.publishes.get(timeout=PATIENCE)
    assert (published.qos, published.retain) == (0, False)


@pytest.mark.parametrize(("code", "allowed"), [(0x9A, (1, False)), (0x9B, (0, True))])
def test_a_will_that_the_broker_refuses_is_lowered(
    script: Script, make_device: Make, code: int, allowed: tuple[int, bool]
) -> None:
    def judge(connect: Connect) -> Answer:
        refused = connect.has_will and (connect.will_qos, connect.will_retain) != allowed
        return Answer(code if refused else 0)

    broker = script(on_connect=judge)
    make_device(broker.port, retry_seconds=(3600.0, 3600.0)).up()
    first, second = (broker.connects.get(timeout=PATIENCE) for _ in range(2))
    assert (first.will_qos, first.will_retain) == (1, True)
    assert (second.will_qos, second.will_retain) == allowed


@pytest.mark.parametrize("line", ["retain_available false", "max_qos 0"])
def test_a_broker_that_hangs_up_on_the_will_in_3_1_1_is_said(make_broker: Make, make_device: Make, line: str) -> None:
    broker: Mosquitto = make_broker(lines=[line]).start()
    fault = make_device(broker.port, protocol="3.1.1").start().down().fault
    assert (fault.code, "last will" in fault.message) == ("mqtt_no_connack", True)


def test_groups_without_shared_subscriptions_are_refused_and_named(script: Script, make_device: Make) -> None:
    broker = script(on_connect=grants(SharedSubscriptionAvailable=0))
    device: Device = make_device(broker.port, groups=["north"]).start()
    assert device.wait_for(LinkUp, which="jobs").refused == (device.topics.group_job("north"),)
    assert codes(device) == {"mqtt_subscription_refused"}
    assert "shared subscriptions not supported" in device.link.status().warnings[0].message


def test_a_status_that_comes_back_on_another_topic_is_a_fault(script: Script, make_device: Make, protocol: str) -> None:
    broker = script(echo=lambda topic: topic.replace(".", "/"))  # as RabbitMQ does
    device: Device = make_device(broker.port, device="board.1", protocol=protocol).up()
    device.say("online")
    fault = eventually(lambda: device.link.status().delivery_fault)
    assert fault.code == "mqtt_topic_changed"
    assert "board.1/status on 'edged/v1/device/board/1/status'" in fault.message


@pytest.mark.parametrize("echo_seconds", [0.0, PATIENCE])
def test_a_status_that_comes_back_no_more_is_a_fault(script: Script, make_device: Make, echo_seconds: float) -> None:
    broker = script()
    heard = threading.Event()

    def echo(topic: str) -> str:
        heard.set()
        return topic

    broker.echo = echo
    device: Device = make_device(broker.port, echo_seconds=echo_seconds, keep_alive=5).up()
    device.say("online")
    assert heard.wait(PATIENCE)
    device.wait_for(Published)
    broker.echo = lambda topic: None

    def missed() -> Fault | None:
        device.say("online")  # again: the first echo may come after the second status was handed over
        device.wait_for(Published)
        return device.link.status().delivery_fault

    if echo_seconds:
        assert missed() is None
        return
    fault = eventually(missed)
    assert (fault.code, device.topics.status in fault.message) == ("mqtt_status_not_delivered", True)
    broker.echo = echo
    device.say("online")
    eventually(lambda: device.link.status().delivery_fault is None)


def test_a_status_that_the_broker_has_not_acknowledged_is_not_missed(script: Script, make_device: Make) -> None:
    asked, answer = threading.Event(), threading.Event()

    def judge(publish: Publish) -> Answer:
        if publish.payload == b"late":
            asked.set()
            answer.wait(PATIENCE)
        return Answer()

    device: Device = make_device(script(on_publish=judge, echo=lambda topic: None).port, echo_seconds=0.0).up()
    assert device.link.publish(device.topics.status, b"late", qos=1, token="late")
    assert asked.wait(PATIENCE)
    status = device.link.status()
    assert (status.delivery_fault, status.delivery_warning) == (None, None)
    answer.set()
    eventually(lambda: device.link.status().delivery_warning)


def echo_of_a_heard_status() -> StatusEcho:
    echo = StatusEcho("own/status", echo_seconds=30.0)
    echo.connected(subscribed=True)
    echo.heard("own/status")
    return echo


def test_the_echo_may_come_before_the_acknowledgement() -> None:
    echo = echo_of_a_heard_status()
    echo.sent(1)
    echo.heard("own/status")
    echo.acknowledged(1, 100.0)
    assert echo.fault(1000.0) is None


def test_a_status_is_missed_only_once_everything_was_read_that_came_in_time() -> None:
    echo = echo_of_a_heard_status()
    echo.sent(1)
    assert echo.fault(1000.0) is None  # not acknowledged
    echo.acknowledged(2, 50.0)  # not a status
    echo.acknowledged(1, 100.0)
    assert echo.fault(130.0) is None  # the loop has not turned since, whatever the clock says
    assert (fault := echo.fault(130.1)) is not None
    assert fault.code == "mqtt_status_not_delivered"
    echo.disconnected()
    assert echo.fault(1000.0) is None


def test_a_status_that_was_not_taken_or_refused_is_not_missed() -> None:
    echo = echo_of_a_heard_status()
    echo.sent(1)
    echo.withdrawn(1)
    echo.acknowledged(1, 100.0)
    assert echo.fault(1000.0) is None


def test_a_status_whose_subscription_is_refused_is_not_expected_back(script: Script, make_device: Make) -> None:
    def judge(packet: Subscribe) -> list[int]:
        return [0x87 if topic.endswith("/status") else qos & 3 for topic, qos in packet.filters]

    device: Device = make_device(script(on_subscribe=judge, echo=lambda topic: None).port, echo_seconds=0.0).up()
    device.say("online")
    device.wait_for(Published)
    assert device.link.status().delivery_fault is None


def test_groups_that_are_granted_and_not_delivered_are_a_fault(
    script: Script, make_device: Make, protocol: str
) -> None:
    broker = script()  # routes no messages
    device: Device = make_device(broker.port, groups=["north"], protocol=protocol, silent_seconds=0.5).up()
    fault = eventually(lambda: device.link.status().delivery_fault)
    assert (fault.code, "north" in fault.message) == ("mqtt_group_not_delivered", True)
    assert not any(isinstance(event, LinkDown) for event in device.seen)


def test_groups_that_are_delivered_are_no_fault(broker: Mosquitto, make_device: Make, protocol: str) -> None:
    with capture_logs() as entries:
        device: Device = make_device(broker.port, groups=["north"], protocol=protocol, silent_seconds=PATIENCE).up()
        connected = ("mqtt_disconnected", "check")
        eventually(lambda: connected in [(entry["event"], entry.get("connection")) for entry in entries])
    assert device.link.status().delivery_fault is None


@pytest.mark.parametrize("hang_up", [True, False])
def test_a_broker_that_allows_no_trial_of_groups_is_no_fault(script: Script, make_device: Make, hang_up: bool) -> None:
    refused = threading.Event()

    def judge(packet: Subscribe) -> list[int] | Answer:
        if not packet.filters[0][0].endswith("/check"):
            return [qos & 3 for _, qos in packet.filters]
        refused.set()
        return HANG_UP if hang_up else [0x87]

    with capture_logs() as entries:
        device: Device = make_device(script(on_subscribe=judge).port, groups=["north"], silent_seconds=0.0).up()
        assert refused.wait(PATIENCE)
        device.none_of(LinkDown)
        eventually(lambda: "mqtt_group_check_inconclusive" in [entry["event"] for entry in entries])
    assert {entry["log_level"] for entry in entries} == {"info"}
    assert device.link.status().delivery_fault is None


def test_a_lower_qos_in_suback_is_named(script: Script, make_device: Make, protocol: str) -> None:
    broker = script(on_subscribe=lambda packet: [0] * len(packet.filters))
    device: Device = make_device(broker.port, protocol=protocol).up()
    assert codes(device) == {"mqtt_subscription_qos_lowered"}
    assert {warning.message.split()[3] for warning in device.link.status().warnings} == {
        device.topics.job,
        device.topics.cancel,
        device.topics.desired,
        device.topics.command("+", "+"),
    }


def test_the_brokers_words_in_suback_and_puback_are_passed_on(script: Script, make_device: Make) -> None:
    words = {"ReasonString": "only on weekdays"}
    broker = script(
        on_subscribe=lambda packet: Answer(0x87 if "cancel" in packet.filters[0][0] else 0x01, properties=words),
        on_publish=lambda _publish: Answer(0x97, properties=words),
    )
    device: Device = make_device(broker.port).up()
    (warning,) = [warning for warning in device.link.status().warnings if device.topics.cancel in warning.message]
    assert "not authorized" in warning.message
    assert "only on weekdays" in warning.message
    device.link.publish(device.topics.result("1"), b"x", qos=1, token="result")
    refused = device.wait_for(PublishRefused)
    assert "quota exceeded ('only on weekdays')" in refused.reason


def test_a_refused_status_is_a_warning(script: Script, make_device: Make) -> None:
    broker = script(on_publish=lambda _publish: Answer(0x87))
    device: Device = make_device(broker.port).up()
    with capture_logs() as entries:
        for _ in range(2):
            device.link.publish(device.topics.status, b"{}", qos=1, retain=True)
        device.link.publish(device.topics.result("1"), b"x", qos=1, token="after")
        device.wait_for(PublishRefused, token="after")
    (warning,) = device.link.status().warnings
    assert (warning.code, device.topics.status in warning.message) == ("mqtt_document_refused", True)
    assert len([entry for entry in entries if entry["event"] == "mqtt_promise_broken"]) == 1


def test_the_brokers_words_at_a_refused_connect_and_the_other_server_are_named(
    script: Script, make_device: Make
) -> None:
    words = {"ReasonString": "moved \x1b[31m", "ServerReference": "two.example:1883"}
    broker = script(on_connect=lambda _connect: Answer(0x9D, properties=words))
    fault = make_device(broker.port).start().down().fault
    assert fault.message == (
        "the broker refused the connection: server moved ('moved \\x1b[31m'; it refers to the server "
        "'two.example:1883')"
    )
    assert "mqtt.host" in fault.hint


def test_the_brokers_words_at_a_disconnect_are_named(script: Script, make_device: Make) -> None:
    broker = script()
    device: Device = make_device(broker.port).up()
    broker.disconnect(0x8B, ReasonString="back at noon")
    assert device.down().reason == "the broker closed the connection: server shutting down ('back at noon')"


def test_a_hang_up_at_a_subscription_names_its_topics(script: Script, make_device: Make, protocol: str) -> None:
    broker = script(on_subscribe=lambda packet: HANG_UP if "/cancel" in packet.filters[0][0] else [0])
    device: Device = make_device(broker.port, protocol=protocol).start()
    fault = device.down().fault
    assert (fault.code, device.topics.cancel in fault.message) == ("mqtt_lost_at_subscribe", True)


def test_a_hang_up_at_a_publication_names_its_topic(script: Script, make_device: Make, protocol: str) -> None:
    def judge(publish: Publish) -> Answer:
        return HANG_UP if "result" in publish.topic else Answer()

    device: Device = make_device(script(on_publish=judge).port, protocol=protocol).up()
    device.link.publish(device.topics.result("7"), b"x", qos=1, token="result")
    fault = device.down().fault
    assert (fault.code, device.topics.result("7") in fault.message) == ("mqtt_lost_at_publish", True)


def test_a_hang_up_after_a_refused_publication_names_its_topic(script: Script, make_device: Make) -> None:
    broker = script(on_publish=lambda publish: Answer(0x87 if "result" in publish.topic else 0))
    device: Device = make_device(broker.port, protocol="5").up()
    device.link.publish(device.topics.result("7"), b"x", qos=1, token="result")
    device.wait_for(PublishRefused)
    broker.drop()
    fault = device.down().fault
    assert (fault.code, device.topics.result("7") in fault.message) == ("mqtt_lost_at_publish", True)


def test_a_broker_that_forgot_the_session_is_named(make_broker: Make, make_device: Make, protocol: str) -> None:
    broker: Mosquitto = make_broker(persistence=False).start()
    device: Device = make_device(broker.port, protocol=protocol).up()
    assert device.link.status().warnings == ()
    broker.kill()
    device.down()
    broker.start()
    device.until_up()
    assert codes(device) == {"mqtt_session_lost"}


def test_a_session_that_was_forgotten_while_the_device_was_off_is_named(
    make_broker: Make, make_device: Make, protocol: str, tmp_path: Path
) -> None:
    broker: Mosquitto = make_broker(persistence=False).start()

    def started() -> Device:
        return make_device(broker.port, protocol=protocol, sessions=KnownSessions(tmp_path / "sessions")).up()

    first = started()
    assert codes(first) == set()  # the first time at a broker, there is nothing that it could have forgotten
    first.link.stop(PATIENCE)
    second = started()
    assert codes(second) == set()
    second.link.stop(PATIENCE)
    broker.kill()
    broker.start()
    assert codes(started()) == {"mqtt_session_lost"}


def test_sessions_in_a_file_that_is_not_ours_are_not_known(tmp_path: Path) -> None:
    for content in (b"", b"[1", b"7", b'[["a"]]', b"\xff", b'{"a": 1}'):
        (tmp_path / "sessions").write_bytes(content)
        assert not KnownSessions(tmp_path / "sessions").has("a", "1")


def test_a_known_session_is_written_once(tmp_path: Path) -> None:
    file = tmp_path / "sessions"
    KnownSessions(file).add("broker:1883", "board")
    first = file.stat()
    known = KnownSessions(file)
    known.add("broker:1883", "board")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    for number in range(100):
        known.add(f"broker:{number}", "board")
    assert not KnownSessions(file).has("broker:1883", "board")  # the list is bounded
    assert KnownSessions(file).has("broker:99", "board")


def test_without_the_file_the_sessions_of_this_run_are_known(tmp_path: Path) -> None:
    known = KnownSessions(tmp_path / "no folder" / "sessions")
    known.add("broker:1883", "board")
    assert known.has("broker:1883", "board")


def test_a_reconnect_to_the_same_session_is_no_warning(
    broker: Mosquitto, make_device: Make, make_proxy: Make, protocol: str
) -> None:
    proxy: Proxy = make_proxy(broker.port)
    device: Device = make_device(proxy.port, protocol=protocol).up()
    proxy.cut()
    device.until_up()
    assert device.link.status().warnings == ()


def test_no_subscribe_holds_more_than_eight_filters(script: Script, make_device: Make, protocol: str) -> None:
    groups = [f"group-{number}" for number in range(20)]
    broker = script()
    device: Device = make_device(broker.port, groups=groups, protocol=protocol).up()
    sent: list[Subscribe] = []
    while True:
        try:
            sent.append(broker.subscribes.get_nowait())
        except queue.Empty:
            break
    jobs = [topic for packet in sent if packet.client_id == "board" for topic, _ in packet.filters]
    assert jobs == [device.topics.job, *(device.topics.group_job(group) for group in groups)]
    assert max(len(packet.filters) for packet in sent) == 8


def test_a_topic_that_a_role_refuses_and_that_carries_no_jobs_is_a_warning(script: Script, make_device: Make) -> None:
    def judge(packet: Subscribe) -> list[int]:
        return [0x87 if "/group/" in topic and topic.endswith("/cancel") else qos & 3 for topic, qos in packet.filters]

    device: Device = make_device(script(on_subscribe=judge).port, groups=["north"]).up()
    assert device.link.connected("control")
    assert device.link.connected("jobs")
    (warning,) = device.link.status().warnings
    assert device.topics.group_cancel("north") in warning.message


def test_status_readyz_and_doctor_name_a_broken_promise_and_the_device_is_ready(script: Script, tmp_path: Path) -> None:
    broker = script(on_connect=grants(RetainAvailable=0))
    with contextlib.closing(Daemon(tmp_path, broker.port, heartbeat_seconds="1").start()) as daemon:
        documents: dict[str, Any] = {}
        while "health" not in documents or not documents.get("status", {}).get("ready"):
            published = broker.publishes.get(timeout=PATIENCE)
            documents[published.topic.rpartition("/")[2]] = json.loads(published.payload)
        status, health = documents["status"], documents["health"]
        assert (status["device"], health["device"]) == ("board", "board")
        assert (status["reason"], status["faults"], status["warnings"]) == (None, [], ["mqtt_retain_unavailable"])
        # A field that has no value is null, not missing.
        assert {"temperature_celsius", "power_watts", "tokens_per_second"} <= health.keys()
        assert health["tokens_per_second"] is None
        code, body = daemon.get("/readyz")
        assert code == 200
        (warning,) = json.loads(body)["warnings"]
        assert warning["code"] == "mqtt_retain_unavailable"
        found = json.loads(daemon.command("doctor", "--json").stdout)
        told = [finding for finding in found if finding["check"] == "broker" and finding["state"] == "warn"]
        assert [warning["message"] in finding["message"] for finding in told] == [True]


@pytest.mark.parametrize(
    ("settings", "echo", "code"),
    [
        ({"device": "board.1"}, lambda topic: topic.replace(".", "/"), "mqtt_topic_changed"),
        pytest.param(  # the scripted broker takes $share/... for the name of a topic: nothing comes there
            {"DEVICE__GROUPS": "north"}, lambda topic: topic, "mqtt_group_not_delivered", marks=pytest.mark.slow
        ),
    ],
)
def test_log_readyz_and_status_name_what_the_broker_does_not_deliver(
    script: Script, tmp_path: Path, settings: dict[str, str], echo: Callable[[str], str], code: str
) -> None:
    broker = script(echo=echo)
    with contextlib.closing(Daemon(tmp_path, broker.port, **settings).start(ready=False)) as daemon:
        status: dict[str, Any] = {"faults": []}
        while code not in status["faults"]:
            published = broker.publishes.get(timeout=PATIENCE)
            if published.topic.endswith("/status"):
                status = json.loads(published.payload)
        assert status["ready"] is False
        http_status, body = daemon.get("/readyz")
        (fault,) = [fault for fault in json.loads(body)["faults"] if fault["code"] == code]
        assert (http_status, fault["message"] in status["reason"]) == (503, True)
        logged = [json.loads(line) for line in daemon.log().splitlines() if '"mqtt_not_delivered"' in line]
        assert [(line["level"], line["code"], line["reason"]) for line in logged] == [("error", code, fault["message"])]
        assert logged[0]["hint"]


def test_a_sender_wants_the_pieces_of_an_answer_at_qos_0_and_all_else_at_1(script: Script, tmp_path: Path) -> None:
    broker = script()
    process = Daemon(tmp_path, broker.port).background("submit", "x", "--device", "hall")
    with process:
        packet = broker.subscribes.get(timeout=PATIENCE)
        process.kill()
    wanted = {topic.removeprefix("edged/v1/device/hall/"): options & 3 for topic, options in packet.filters}
    assert wanted == {"event/+": 1, "stream/+": 0, "result/+": 1}
