"""The outbox: at least once, in order, never more than the link takes."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.jobs import outbox as outbox_module
from edged.jobs.outbox import Notice, Outbox
from edged.jobs.records import Delivery, Moment
from edged.jobs.spool import Spool
from edged.machine.clock import Clock
from edged.mqtt.topics import Topics

TOPICS = Topics("edged/v1", "board")


class FakeLink:
    """Takes `window` publications and keeps what was handed over."""

    def __init__(self, window: int = 32) -> None:
        self.window = window
        self.taken: list[tuple[str, bytes, Hashable]] = []
        self.under_way: list[Hashable] = []

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        token: Hashable | None = None,
        correlation: bytes | None = None,
    ) -> bool:
        assert qos == 1
        assert not retain
        if len(self.under_way) >= self.window:
            return False
        self.taken.append((topic, payload, token))
        self.under_way.append(token)
        return True

    @property
    def results(self) -> list[str]:
        return [topic.rpartition("/")[2] for topic, _, _ in self.taken if "/result/" in topic]


class Stub:
    """The part of the spool that the outbox reads."""

    def __init__(self, results: dict[int, bytes]) -> None:
        self.results = results

    def due(self) -> list[Delivery]:
        return [Delivery(seq, f"j{seq}", None, None) for seq in self.results]

    def result(self, seq: int) -> bytes | None:
        return self.results.get(seq)


def make(count: int, window: int = 32) -> tuple[Outbox, FakeLink, Stub]:
    link, stub = FakeLink(window), Stub({seq: b"r%d" % seq for seq in range(count)})
    return Outbox(stub, link, TOPICS, "board", Clock()), link, stub  # type: ignore[arg-type]


def test_what_goes_ahead_keeps_its_own_order() -> None:
    outbox, link, stub = make(2)
    stub.results |= {7: b"r7", 8: b"r8"}
    outbox.add([Delivery(7, "j7", None, None), Delivery(8, "j8", None, None)], ahead=True)
    outbox.pump()
    assert link.results == ["j7", "j8", "j0", "j1"]


def test_deliveries_of_separate_commits_that_go_ahead_keep_their_order() -> None:
    outbox, link, stub = make(2, window=1)
    stub.results |= {7: b"r7", 8: b"r8", 9: b"r9"}
    outbox.pump()
    for seq in (7, 8, 9):
        outbox.add([Delivery(seq, f"j{seq}", None, None)], ahead=True)
    for _ in range(5):
        outbox.confirmed(link.under_way.pop(0))
        outbox.pump()
    assert link.results == ["j0", "j7", "j8", "j9", "j1"]


def test_results_go_out_in_order_and_no_more_than_the_link_takes() -> None:
    outbox, link, _ = make(5, window=2)
    outbox.pump()
    assert link.results == ["j0", "j1"]
    outbox.confirmed(link.under_way.pop(0))
    outbox.pump()
    assert link.results == ["j0", "j1", "j2"]
    assert len(outbox) == 4


def test_what_was_under_way_when_the_connection_died_goes_out_again_first_and_unchanged() -> None:
    outbox, link, _ = make(4, window=3)
    outbox.pump()
    first = list(link.taken)
    outbox.confirmed(link.under_way[0])
    outbox.disconnected()
    link.under_way.clear()
    outbox.confirmed(first[1][2])  # too late: of the old connection
    outbox.connected()
    outbox.pump()
    assert link.results == ["j0", "j1", "j2", "j1", "j2", "j3"]
    assert [payload for _, payload, _ in link.taken[3:5]] == [payload for _, payload, _ in first[1:3]]


def test_a_notice_goes_before_results_and_keeps_its_order() -> None:
    outbox, link, _ = make(2, window=2)
    for name in ("accepted", "started", "third"):
        outbox.notify(Notice(f"event/{name}", b"{}"))
    outbox.pump()
    link.under_way.clear()
    outbox.pump()
    assert [topic.rpartition("/")[2] for topic, _, _ in link.taken] == ["accepted", "started", "third", "j0"]


def test_notices_do_not_grow_without_end_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "NOTICES", 20)
    outbox, link, _ = make(0, window=0)
    for n in range(30):
        outbox.notify(Notice("event/x", b"%d" % n))
    assert outbox.unsettled
    link.window = 100
    outbox.pump()
    assert [payload for _, payload, _ in link.taken] == [b"%d" % n for n in range(10, 30)]


def test_a_job_is_delivered_once_all_its_places_have_it() -> None:
    outbox, link, stub = make(1)
    outbox.add([Delivery(0, "j0", "reply", b"c"), Delivery(0, "j0", "late", None, 7)])
    outbox.pump()
    tokens = list(link.under_way)
    outbox.confirmed(tokens[0])
    outbox.confirmed(tokens[2])
    assert outbox.confirmations() == ([7], [])
    outbox.committed()
    outbox.confirmed(tokens[1])
    assert outbox.confirmations() == ([], [0])
    assert outbox.uncommitted
    outbox.committed()
    assert not outbox.unsettled
    assert outbox.confirmations() == ([], [])
    assert stub.results


def test_confirmations_are_told_until_they_are_committed() -> None:
    outbox, link, _ = make(1)
    outbox.pump()
    outbox.confirmed(link.under_way[0])
    assert outbox.confirmations() == outbox.confirmations() == ([], [0])


def test_a_refused_reply_ends_and_a_refused_result_waits_for_the_next_connection() -> None:
    outbox, link, _ = make(2)
    outbox.add([Delivery(0, "j0", "reply", None)])
    outbox.pump()
    result, other, reply = link.under_way
    outbox.refused(reply, "not authorised")
    outbox.refused(result, "not authorised")
    outbox.confirmed(other)
    assert outbox.confirmations() == ([], [1])
    assert len(outbox) == 1
    outbox.pump()
    assert link.results == ["j0", "j1"]  # not again at once
    outbox.disconnected()
    outbox.connected()
    outbox.pump()
    assert link.results == ["j0", "j1", "j0"]


def test_what_was_forgotten_blocks_nobody() -> None:
    outbox, link, stub = make(3)
    del stub.results[1]
    outbox.pump()
    assert link.results == ["j0", "j2"]
    assert outbox.confirmations() == ([], [1])


def test_a_new_outbox_finds_what_is_due_in_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db")
    with spool.transaction():
        moment = Moment(0.0, 0.0, "b", False)
        queued = spool.add_job("a", b"", b"{}", moment, priority=5, store=True, ttl=None, deadline=None)
        spool.waiters.add(queued.number, "edged/v1/reply/r", b"c")
        spool.add_result(queued.number, "succeeded", b"bytes", moment)
    link = FakeLink()
    Outbox(spool, link, TOPICS, "board", Clock()).pump()
    assert [(topic, payload) for topic, payload, _ in link.taken] == [
        ("edged/v1/device/board/result/a", b"bytes"),
        ("edged/v1/reply/r", b"bytes"),
    ]
    spool.close()


@given(st.lists(st.sampled_from(["pump", "confirm", "confirm_last", "refuse", "drop", "write", "notice"]), max_size=60))
def test_whatever_happens_every_result_is_confirmed_in_the_end(steps: list[str]) -> None:
    outbox, link, _ = make(6, window=3)
    written: set[int] = set()

    def write() -> None:
        written.update(outbox.confirmations()[1])
        outbox.committed()

    for step in [*steps, "drop", *["pump", "confirm", "confirm", "confirm"] * 12, "write"]:
        if step == "pump":
            outbox.pump()
        elif step == "drop":
            outbox.disconnected()
            link.under_way.clear()
            outbox.connected()
        elif step == "write":
            write()
        elif step == "notice":
            outbox.notify(Notice("event/x", b""))
        elif link.under_way:
            token = link.under_way.pop(-1 if step == "confirm_last" else 0)
            (outbox.refused(token, "no") if step == "refuse" else outbox.confirmed(token))
        assert len(link.under_way) <= 3
    assert written == set(range(6))
    assert not outbox.unsettled
    first = list(dict.fromkeys(link.results))
    assert first == sorted(first)
