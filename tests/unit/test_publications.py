"""What one connection has published: for how long the broker leaves it unanswered, and what it may have hung up on."""

from __future__ import annotations

from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edged.mqtt.grants import Grants
from edged.mqtt.publications import Publications
from edged.mqtt.reason_codes import SUCCESS
from edged.mqtt.session_types import Publication

STREAM = "edged/v1/device/a/stream/1"


class Listener:
    """Hears nothing of use here."""

    def published(self, token: object, matched: bool) -> None: ...
    def publish_refused(self, token: object, reason: str, code: int | None) -> None: ...
    def document_refused(self, topic: str, reason: str) -> None: ...


class Mid(Client):
    """A client that is not connected: it gives packet ids all the same."""

    mid = 0

    def publish(self, *arguments: Any, **options: Any) -> MQTTMessageInfo:
        info = super().publish(*arguments, **options)
        self.mid = info.mid
        return info


class Rig:
    """The publications of one client."""

    def __init__(self) -> None:
        self.publications = Publications("5", Listener(), frozenset(), lambda _qos: None)  # type: ignore[arg-type]
        self._client = Mid(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)

    def send(self, topic: str, now: float, qos: int = 1) -> int:
        """The packet id."""
        self.publications.send(self._client, Publication(topic, b"x", qos, False, None, None), now)
        return self._client.mid

    def answer(self, mid: int, now: float) -> None:
        self.publications.answered(mid, SUCCESS, None, now)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_oldest_is_overdue_whatever_else_is_answered(rig: Rig) -> None:
    rig.send("oldest", 0.0)
    for now in (1.0, 2.0, 3.0):
        rig.answer(rig.send("other", now), now + 0.5)
    assert rig.publications.waits_since == 0.0
    assert rig.publications.overdue(4.9, 5.0) is None
    assert rig.publications.overdue(5.0, 5.0) == "oldest"


def test_each_is_waited_for_from_the_answer_to_the_one_before(rig: Rig) -> None:
    first = rig.send("first", 0.0)
    rig.send("second", 0.0)
    rig.answer(first, 4.0)
    assert rig.publications.overdue(8.9, 5.0) is None
    assert rig.publications.overdue(9.0, 5.0) == "second"


def test_nothing_is_overdue_where_all_is_answered(rig: Rig) -> None:
    rig.answer(rig.send("only", 0.0), 1.0)
    assert (rig.publications.waits_since, rig.publications.overdue(99.0, 5.0)) == (None, None)


def test_an_end_soon_after_the_first_of_qos_0_may_be_because_of_it(rig: Rig) -> None:
    rig.send(STREAM, 0.0, qos=0)
    assert rig.publications.begun(2.0) == "edged/v1/device/a/stream"
    assert rig.publications.begun(2.1) is None


@pytest.mark.parametrize(("maximum_qos", "begun"), [(1, None), (0, "edged/v1/device/a/stream")])
def test_an_answer_shows_that_what_went_before_was_taken_and_a_write_does_not(
    rig: Rig, maximum_qos: int, begun: str | None
) -> None:
    rig.publications.grants = Grants(maximum_qos=maximum_qos)
    rig.send(STREAM, 0.0, qos=0)
    rig.answer(rig.send("result", 0.1), 0.2)
    assert rig.publications.begun(0.3) == begun
