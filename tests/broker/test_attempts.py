"""Back-off and choice of the protocol version, without a broker."""

from __future__ import annotations

import random

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edged.mqtt import connection_faults
from edged.mqtt.attempts import Backoff, ProtocolChoice
from edged.mqtt.identity import MAX_SILENT_CHECKS, DeviceIdWatch, InstanceStatus, KnownInstances, read_status
from edged.mqtt.session_types import Established
from edged.mqtt.topics import Channel, Topics, is_id
from edged.settings.mqtt import MqttSettings


class Highest(random.Random):
    """Draws the upper end, so that the ceiling can be seen."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0
        return b


def test_the_back_off_doubles_up_to_its_limit_and_begins_anew() -> None:
    backoff = Backoff(draw=Highest())
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next() == 1


def test_the_back_off_is_spread_over_its_whole_range() -> None:
    delays = []
    for seed in range(400):
        backoff = Backoff(draw=random.Random(seed))
        for _ in range(6):
            backoff.next()
        delays.append(backoff.next())
    assert min(delays) < 6
    assert max(delays) > 54
    assert 25 < sum(delays) / len(delays) < 35


def test_3_1_1_is_tried_at_once_when_the_broker_refuses_5() -> None:
    choice = ProtocolChoice("auto")
    assert choice.current == "5"
    assert choice.refused()
    assert choice.current == "3.1.1"


def test_one_silent_close_does_not_change_the_version_and_two_do() -> None:
    choice = ProtocolChoice("auto")
    assert not choice.closed_silently()
    choice.failed_otherwise()
    assert not choice.closed_silently()
    assert choice.current == "5"
    assert choice.closed_silently()
    assert choice.current == "3.1.1"


def test_after_a_connection_5_is_tried_again() -> None:
    choice = ProtocolChoice("auto")
    choice.refused()
    choice.new_series()
    assert choice.current == "5"


def test_a_broker_that_spoke_5_is_not_guessed_to_be_an_old_one() -> None:
    choice = ProtocolChoice("auto")
    choice.connected()
    choice.new_series()
    assert not any(choice.closed_silently() for _ in range(10))
    assert not choice.unanswered()
    assert choice.current == "5"
    assert choice.refused()
    assert choice.current == "3.1.1"


def test_a_guess_is_checked_again_after_pauses_that_double() -> None:
    choice = ProtocolChoice("auto")
    pauses = []
    for _ in range(3):
        assert choice.unanswered()
        choice.connected()
        pauses.append(choice.recheck_seconds)
        choice.new_series()
        assert choice.current == "5"
    assert pauses == [600.0, 1200.0, 2400.0]
    choice.refused()
    assert choice.recheck_seconds is None


def test_a_version_that_is_set_stays() -> None:
    choice = ProtocolChoice("3.1.1")
    assert not choice.refused()
    choice.new_series()
    assert choice.current == "3.1.1"


def test_a_predecessor_is_no_stranger_and_a_later_one_is() -> None:
    instances = KnownInstances("me")
    assert not instances.is_unexpected(InstanceStatus("before", "online"), "a:1883")
    instances.connected("a:1883")
    assert not instances.is_unexpected(InstanceStatus("me", "offline"), "a:1883")
    assert not instances.is_unexpected(InstanceStatus("before", "offline"), "a:1883")
    assert instances.is_unexpected(InstanceStatus("other", "online"), "a:1883")


def test_what_a_run_before_left_at_another_broker_is_no_stranger() -> None:
    instances = KnownInstances("me")
    instances.connected("a:1883")
    assert not instances.is_unexpected(InstanceStatus("before", "online"), "b:1883")
    instances.connected("b:1883")
    assert instances.is_unexpected(InstanceStatus("other", "online"), "b:1883")


def test_a_status_that_nobody_stands_behind_is_not_waited_for_for_ever() -> None:
    watch = DeviceIdWatch(MqttSettings(), TOPICS, "me")
    watch.up(Established(session_present=False, protocol="5"))
    watch._status = InstanceStatus("other", "online")
    assert [watch.is_free() for _ in range(MAX_SILENT_CHECKS)] == [False] * (MAX_SILENT_CHECKS - 1) + [True]


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"state": 1, "instance": "a"}', b"\xff", b"[" * 50_000, b" " * 100_000]
)
def test_what_is_no_status_document_is_passed_over(payload: bytes) -> None:
    assert read_status(payload) is None


@pytest.mark.parametrize("code", [0x86, 0x87])
def test_a_wrong_password_names_the_user_and_not_the_password(code: int) -> None:
    mqtt = MqttSettings(username="board", password="secret")
    fault = connection_faults.connack_refused(ReasonCode(PacketTypes.CONNACK, identifier=code), None, mqtt)
    assert fault.message == "the broker refused user 'board': bad user name or password"


TOPICS = Topics("edged/v1", "board")


def test_topics() -> None:
    assert TOPICS.job == "edged/v1/device/board/job"
    assert TOPICS.result("7") == "edged/v1/device/board/result/7"
    assert TOPICS.group_job("north") == "$share/north/edged/v1/group/north/job"
    assert TOPICS.group_model_job("north", "phi3") == "$share/north/edged/v1/group/north/model/phi3/job"
    for kind, topic_filter in (
        ("job", TOPICS.group_job("north")),
        ("job", TOPICS.group_model_job("north", "phi3")),
        ("cancel", TOPICS.group_cancel("north")),
        ("ping", TOPICS.group_ping("north")),
        ("pong", TOPICS.group_pong("north")),
    ):
        topic = topic_filter.removeprefix("$share/north/")
        assert TOPICS.channel(topic) == Channel(kind, topic_filter, "north")  # type: ignore[arg-type]
    assert TOPICS.channel("edged/v1/group/north/model/phi3") is None
    assert TOPICS.channel("edged/v1/device/other/job") is None


@pytest.mark.parametrize("text", ["a", "A-b_c.9", "x" * 64])
def test_ids(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize("text", ["", "a/b", "#", "+", "x" * 65, "ä", "a\n", "a b", "\0"])
def test_no_ids(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("rest", ["me", "a/b", "é", "x" * 490])
def test_reply_topics(rest: str) -> None:
    assert TOPICS.reply_refusal(f"edged/v1/reply/{rest}") is None


@pytest.mark.parametrize(
    ("topic", "names"),
    [
        ("elsewhere", "must lie under edged/v1/reply/"),
        ("edged/v1/reply", "must lie under"),
        ("edged/v1/reply/", "needs a name"),
        ("edged/v1/reply/#", "wildcards"),
        ("edged/v1/reply/a/+/b", "wildcards"),
        ("edged/v1/reply/a\0", "NUL"),
        ("edged/v1/reply/\ud800", "UTF-8"),
        ("edged/v1/reply/" + "é" * 300, "at most 512"),
    ],
)
def test_refused_reply_topics_say_why(topic: str, names: str) -> None:
    refusal = TOPICS.reply_refusal(topic)
    assert refusal is not None
    assert names in refusal
    assert refusal.isascii()
