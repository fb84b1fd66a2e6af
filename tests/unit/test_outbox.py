"""The outbox: at least once, in order, never more than the link takes."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edged.faults import Fault
from edged.jobs import outbox as outbox_module
from edged.jobs.document import State, result_document
from edged.jobs.outbox import Outbox
from edged.jobs.poison import SMALL_BYTES
from edged.jobs.publisher import Notice
from edged.jobs.records import Delivery, Moment
from edged.jobs.results import too_large
from edged.jobs.spool import Spool
from edged.machine.clock import Clock
from edged.mqtt.connection_faults import PACKET_TOO_LARGE, QUOTA_EXCEEDED
from edged.mqtt.events import Blame, LinkDown, LinkUp
from edged.mqtt.topics import Topics

TOPICS = Topics("edged/v1", "board")


class FakeLink:
    """Takes `window` publications and keeps what was handed over."""

    def __init__(self, window: int = 32) -> None:
        self.window = window
        self.taken: list[tuple[str, bytes, Hashable]] = []
        self.under_way: list[Hashable] = []
        self.alone: Hashable = None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        token: Hashable | None = None,
        correlation: bytes | None = None,
        alone: bool = False,
    ) -> bool:
        assert qos == 1
        assert retain == topic.endswith(("/status", "/info", "/config"))
        if self.alone in self.under_way or len(self.under_way) >= (1 if alone else self.window):
            return False
        self.alone = token if alone else None
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

    def delivered(self, seq: int) -> bool:
        return False


UP = LinkUp("control", True, "5")
LOST = Fault("mqtt_connection_lost", "the connection was lost")


class Time:
    """CLOCK_MONOTONIC as the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(count: int, window: int = 32, time: Time | None = None) -> tuple[Outbox, FakeLink, Stub]:
    link, stub = FakeLink(window), Stub({seq: b"r%d" % seq for seq in range(count)})
    outbox = Outbox(stub, link, TOPICS, "board", Clock(), time or Time())  # type: ignore[arg-type]
    outbox.connected(UP)
    return outbox, link, stub


def drop(outbox: Outbox, link: FakeLink, blame: Blame = Blame.NONE) -> None:
    """Lose the connection, and have a new one."""
    outbox.disconnected(LinkDown("control", LOST, blame))
    link.under_way.clear()
    outbox.connected(UP)


def confirm(outbox: Outbox, link: FakeLink) -> None:
    """The broker acknowledges everything, and what it lets go next, to the end."""
    while link.under_way:
        outbox.confirmed(link.under_way.pop(0))
        outbox.pump()


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
    drop(outbox, link)
    outbox.confirmed(first[1][2])  # too late: of the old connection
    outbox.pump()
    confirm(outbox, link)
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
    with capture_logs() as logs:
        for n in range(30):
            outbox.notify(Notice("event/x", b"%d" % n))
    assert [(entry["event"], entry["topic"]) for entry in logs] == [("notice_dropped", "event/x")] * 10
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
    drop(outbox, link)
    outbox.pump()
    assert link.results == ["j0", "j1", "j0"]


def test_a_refused_result_is_a_warning_until_the_broker_takes_it() -> None:
    outbox, link, _ = make(2)
    outbox.pump()
    first, second = link.under_way
    for token in (first, second):
        outbox.refused(token, "not authorized", 0x87)
    (warning,) = outbox.warnings
    assert (warning.code, "job j0" in warning.message, "not authorized" in warning.message) == (
        "mqtt_result_refused",
        True,
        True,
    )
    drop(outbox, link)
    outbox.pump()
    assert outbox.warnings == (warning,)
    first, second = link.under_way
    outbox.confirmed(first)
    assert "job j1" in outbox.warnings[0].message
    outbox.confirmed(second)
    assert outbox.warnings == ()


def test_every_refusal_is_logged_with_a_hint() -> None:
    outbox, link, _ = make(2)
    outbox.add([Delivery(0, "j0", "reply", None)])
    outbox.notify(Notice("event/x", b""))
    outbox.pump()
    with capture_logs() as logs:
        for token, code in zip(link.under_way, (None, None, 0x83, None), strict=True):
            outbox.refused(token, "no", code)
    assert [line["event"] for line in logs] == [
        "notice_refused",
        "result_refused",
        "publication_deferred",
        "reply_refused",
    ]
    assert all(line["hint"] for line in logs)


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
    outbox = Outbox(spool, link, TOPICS, "board", Clock())
    outbox.connected(UP)
    outbox.pump()
    assert [(topic, payload) for topic, payload, _ in link.taken] == [
        ("edged/v1/device/board/result/a", b"bytes"),
        ("edged/v1/reply/r", b"bytes"),
    ]
    spool.close()


@given(st.lists(st.sampled_from(["pump", "confirm", "confirm_last", "refuse", "drop", "write", "notice"]), max_size=60))
def test_whatever_happens_every_result_is_confirmed_in_the_end(steps: list[str]) -> None:
    time = Time()
    outbox, link, _ = make(6, window=3, time=time)
    written: set[int] = set()

    def write() -> None:
        written.update(outbox.confirmations()[1])
        outbox.committed()

    for step in [*steps, "drop", *["pump", "confirm", "confirm", "confirm"] * 20, "write"]:
        if step == "pump":
            time.now += 10.0
            outbox.pump()
        elif step == "drop":
            drop(outbox, link)
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


STATUS = {"device": "board", "state": "online", "reason": "x" * 600}


def with_status(outbox: Outbox) -> None:
    assert outbox.announce(TOPICS.status, STATUS)


def test_after_a_drop_publications_go_one_at_a_time_the_smallest_first() -> None:
    outbox, link, stub = make(4, window=3)
    stub.results |= {0: bytes(3000), 1: bytes(1000), 2: bytes(2000)}
    outbox.pump()
    drop(outbox, link)
    outbox.pump()
    assert [len(link.under_way), link.results[3:]] == [1, ["j1"]]
    confirm(outbox, link)
    assert link.results[3:] == ["j1", "j2", "j0", "j3"]


def test_a_result_that_the_broker_closes_on_three_times_is_replaced_and_the_others_leave_meanwhile() -> None:
    time = Time()
    outbox, link, stub = make(6, window=3, time=time)
    stub.results[1] = bytes(5000)
    outbox.pump()
    drop(outbox, link, Blame.POSSIBLE)
    attempts = 0
    with capture_logs() as logs:
        while not outbox.too_large():
            with_status(outbox)
            outbox.pump()
            while link.under_way and link.taken[-1][0] != TOPICS.result("j1"):
                outbox.confirmed(link.under_way.pop(0))
                outbox.pump()
            if link.under_way:
                attempts += 1
                time.now += 0.001
                drop(outbox, link, Blame.POSSIBLE)
                assert len(outbox) == 1 or attempts == 1
            time.now += 1.0
            assert attempts <= 5
            assert time.now < 1100.0
    assert outbox.too_large() == [1]
    assert [(entry["job"], entry["bytes"]) for entry in logs if entry["event"] == "result_too_large"] == [("j1", 5000)]
    assert attempts >= 3
    outbox.pump()
    assert not any(topic == TOPICS.result("j1") for topic, _, token in link.taken if token in link.under_way)
    stub.results[1] = b"small"
    outbox.committed()
    outbox.pump()
    confirm(outbox, link)
    assert link.taken[-1][:2] == (TOPICS.result("j1"), b"small")
    assert len(outbox) == 0


def test_a_result_that_the_broker_says_is_too_large_is_replaced_at_once_for_all_its_places() -> None:
    outbox, link, stub = make(2)
    stub.results[0] = bytes(5000)
    outbox.add([Delivery(0, "j0", "reply", b"c", 3)])
    outbox.pump()
    result, other, reply = link.under_way
    outbox.refused(result, "packet too large", PACKET_TOO_LARGE)
    assert outbox.too_large() == []  # its copy may yet be taken
    outbox.refused(reply, "packet too large", PACKET_TOO_LARGE)
    link.under_way[:] = [other]
    assert outbox.too_large() == [0]
    assert outbox.uncommitted
    stub.results[0] = b"small"
    outbox.committed()
    outbox.pump()
    confirm(outbox, link)
    assert sorted((topic, payload) for topic, payload, _ in link.taken[-2:]) == [
        (TOPICS.result("j0"), b"small"),
        ("reply", b"small"),
    ]
    assert outbox.confirmations() == ([3], [1, 0])


def test_a_result_that_was_heard_in_one_place_is_not_replaced() -> None:
    outbox, link, stub = make(1)
    stub.results[0] = bytes(5000)
    outbox.add([Delivery(0, "j0", "reply", b"c", 3)])
    outbox.pump()
    result, reply = link.under_way
    outbox.refused(reply, "packet too large", PACKET_TOO_LARGE)
    outbox.confirmed(result)
    assert outbox.too_large() == []
    assert outbox.confirmations() == ([3], [0])
    assert len(outbox) == 0


def small_result(text: str) -> bytes:
    return result_document("j0", "board", State.SUCCEEDED, model="phi3", text=text)


def test_a_small_result_is_replaced_where_the_broker_says_so_and_that_is_of_use() -> None:
    long, short = small_result("x" * 500), small_result("x")
    for document, replaced in ((long, [0]), (short, []), (too_large(long), [])):
        outbox, link, stub = make(1)
        stub.results[0] = document
        assert len(document) < SMALL_BYTES
        outbox.pump()
        outbox.refused(link.under_way.pop(), "packet too large", PACKET_TOO_LARGE)
        assert outbox.too_large() == replaced
        assert len(outbox) == 1


def test_a_transient_refusal_is_tried_again_with_growing_pauses_and_holds_up_no_other() -> None:
    time = Time()
    outbox, link, _ = make(2, time=time)
    outbox.pump()
    first, second = link.under_way
    link.under_way.clear()
    outbox.refused(first, "unspecified error", 0x80)
    outbox.confirmed(second)
    sent = []
    for _ in range(40):
        time.now += 0.5
        outbox.pump()
        if link.under_way:
            sent.append(time.now - 1000.0)
            outbox.refused(link.under_way.pop(), "unspecified error", 0x80)
    assert sent == [1.0, 3.0, 7.0, 15.0]
    time.now += 60.0
    outbox.pump()
    confirm(outbox, link)
    assert len(outbox) == 0


def test_a_document_that_was_refused_for_the_moment_is_not_settled() -> None:
    time = Time()
    outbox, link, _ = make(0, time=time)
    with_status(outbox)
    outbox.pump()
    outbox.refused(link.under_way.pop(), "unspecified error", 0x80)
    assert outbox.unsettled
    time.now += 1.0
    outbox.pump()
    confirm(outbox, link)
    assert not outbox.unsettled


def test_a_quota_that_is_used_up_stops_results_for_a_while() -> None:
    time = Time()
    outbox, link, _ = make(40, window=3, time=time)
    outbox.pump()
    for token in list(link.under_way):
        outbox.refused(token, "quota exceeded", QUOTA_EXCEEDED)
    link.under_way.clear()
    outbox.pump()
    assert len(link.taken) == 3
    time.now += 1.0
    outbox.pump()
    confirm(outbox, link)
    time.now += 1.0
    outbox.pump()
    confirm(outbox, link)
    assert len(outbox) == 0


def test_a_document_that_the_broker_takes_at_no_size_is_cut_and_named() -> None:
    outbox, link, _ = make(0)
    with_status(outbox)
    outbox.pump()
    limit = 200
    while link.under_way:
        token, payload = link.under_way.pop(), link.taken[-1][1]
        if len(payload) > limit:
            outbox.refused(token, "packet too large", PACKET_TOO_LARGE)
        else:
            outbox.confirmed(token)
        outbox.pump()
    document = json.loads(link.taken[-1][1])
    assert document == {"device": "board", "state": "online", "reason": document["reason"]}
    assert STATUS["reason"].startswith(document["reason"][:-1])
    (warning,) = outbox.warnings
    assert (warning.code, "cut: reason" in warning.message) == ("mqtt_document_cut", True)


def test_a_document_with_nothing_left_to_cut_is_named_and_holds_up_no_other() -> None:
    outbox, link, _ = make(1)
    with_status(outbox)
    outbox.pump()
    while link.under_way:
        token = link.under_way.pop(0)
        if link.taken[token - 1][0] == TOPICS.status:  # tokens count what was taken
            outbox.refused(token, "packet too large", PACKET_TOO_LARGE)
        else:
            outbox.confirmed(token)
        outbox.pump()
    assert len(outbox) == 0
    (warning,) = outbox.warnings
    assert warning.code == "mqtt_document_refused"
    outbox.committed()
    assert not outbox.unsettled


def test_an_announced_limit_cuts_a_document_before_it_leaves() -> None:
    outbox, link, _ = make(0)
    outbox.connected(LinkUp("control", True, "5", maximum_packet_size=300))
    with_status(outbox)
    outbox.pump()
    topic, payload, _ = link.taken[0]
    assert 100 < len(payload) <= 300 - len(topic)


def test_while_a_document_is_under_way_its_newest_version_waits_unless_the_connection_ends() -> None:
    outbox, link, _ = make(1)
    for n in range(3):
        assert outbox.announce(TOPICS.status, {"n": n})
        outbox.pump()
    assert [payload for _, payload, _ in link.taken] == [b'{"n": 0}', b"r0"]  # and it holds up no result
    confirm(outbox, link)
    assert [json.loads(payload) for topic, payload, _ in link.taken if topic == TOPICS.status] == [{"n": 0}, {"n": 2}]
    assert outbox.announce(TOPICS.status, {"n": 3})
    outbox.pump()
    assert outbox.announce_last(TOPICS.status, {"n": 4})
    assert [json.loads(payload)["n"] for _, payload, _ in link.taken[-2:]] == [3, 4]
    link.window = 0
    assert not outbox.announce_last(TOPICS.status, {"n": 5})


def test_the_probe_is_a_small_status_and_the_whole_one_follows() -> None:
    outbox, link, _ = make(1)
    outbox.pump()
    drop(outbox, link)
    assert outbox.announce(TOPICS.status, {**STATUS, "reason": "x" * 5000})
    outbox.pump()
    assert [(topic, len(payload) <= 512) for topic, payload, _ in link.taken[1:]] == [(TOPICS.status, True)]
    confirm(outbox, link)
    assert [topic for topic, _, _ in link.taken[1:]] == [TOPICS.status, TOPICS.result("j0"), TOPICS.status]
    assert json.loads(link.taken[-1][1])["reason"] == "x" * 5000


def answer_documents(outbox: Outbox, link: FakeLink, limit: int) -> None:
    """A broker that says that documents above `limit` bytes are too large."""
    while link.under_way:
        token = link.under_way.pop(0)
        if len(link.taken[token - 1][1]) > limit:  # tokens count what was taken
            outbox.refused(token, "packet too large", PACKET_TOO_LARGE)
        else:
            outbox.confirmed(token)
        outbox.pump()


def test_a_document_that_was_cut_is_tried_as_a_whole_again_after_an_hour_then_less_and_less_often() -> None:
    time = Time()
    outbox, link, _ = make(0, time=time)
    with_status(outbox)
    outbox.pump()
    answer_documents(outbox, link, 200)
    cut = link.taken[-1][1]
    whole = []
    for minute in range(8 * 60):
        time.now += 60.0
        before = len(link.taken)
        outbox.pump()
        answer_documents(outbox, link, 200)
        if len(link.taken) > before:
            assert len(link.taken[before][1]) > 600
            assert link.taken[-1][1] == cut  # at once what it took before
            assert outbox.warnings[0].code == "mqtt_document_cut"
            whole.append(minute + 1)
    assert whole == [60, 180, 420]


@pytest.mark.parametrize("mended", ["broker", "another broker", "another limit"])
def test_a_document_that_was_cut_is_whole_again_where_the_limit_is_gone(mended: str) -> None:
    time = Time()
    outbox, link, _ = make(0, time=time)
    with_status(outbox)
    outbox.pump()
    answer_documents(outbox, link, 200)
    assert outbox.warnings
    if mended == "broker":
        time.now += 3600.0
    else:
        outbox.disconnected(LinkDown("control", LOST))
        other = {"broker": "two:1883"} if mended == "another broker" else {"maximum_packet_size": 10_000}
        outbox.connected(LinkUp("control", True, "5", **other))  # type: ignore[arg-type]
        with_status(outbox)
    outbox.pump()
    answer_documents(outbox, link, 10_000)
    assert json.loads(link.taken[-1][1]) == STATUS
    assert outbox.warnings == ()
    time.now += 24 * 3600.0
    before = len(link.taken)
    outbox.pump()
    assert len(link.taken) == before


def convict(outbox: Outbox, link: FakeLink, time: Time, topic: str, blame: Blame) -> None:
    """Close the connection on each publication to this topic until that one goes no more for a while."""
    for _ in range(20):
        with_status(outbox)
        outbox.pump()
        while link.under_way:
            token = link.under_way[0]
            if link.taken[int(str(token)) - 1][0] == topic:
                time.now += 0.001
                drop(outbox, link, blame)
                break
            outbox.confirmed(link.under_way.pop(0))
            outbox.pump()
        time.now += 2.0


@pytest.mark.parametrize(("blame", "size"), [(Blame.TOPIC, 5000), (Blame.TOPIC, 10), (Blame.POSSIBLE, 900)])
def test_a_result_whose_topic_the_broker_does_not_allow_is_kept_whole_and_tried_again_after_an_hour(
    blame: Blame, size: int
) -> None:
    time = Time()
    outbox, link, stub = make(2, time=time)
    stub.results[1] = bytes(size)
    with capture_logs() as logs:
        convict(outbox, link, time, TOPICS.result("j1"), blame)
    assert outbox.too_large() == []
    assert len(outbox) == 1
    assert [(line["job"], line["log_level"]) for line in logs if line["event"] == "result_refused"] == [("j1", "error")]
    tried = link.results.count("j1")
    time.now += 3500.0
    outbox.pump()
    assert link.results.count("j1") == tried  # it costs the connection at each attempt
    time.now += 100.0
    outbox.pump()
    confirm(outbox, link)
    assert len(outbox) == 0
    assert link.taken[-1][1] == bytes(size)


def test_a_result_that_was_put_off_goes_to_another_broker_at_once() -> None:
    time = Time()
    outbox, link, _ = make(2, time=time)
    convict(outbox, link, time, TOPICS.result("j1"), Blame.TOPIC)
    outbox.disconnected(LinkDown("control", LOST))
    outbox.connected(LinkUp("control", True, "5", broker="two:1883"))
    outbox.pump()
    confirm(outbox, link)
    assert len(outbox) == 0


def test_a_broker_that_closes_for_the_rate_convicts_none_and_gets_results_after_a_pause() -> None:
    time = Time()
    outbox, link, stub = make(3, time=time)
    stub.results[1] = bytes(5000)
    convict(outbox, link, time, TOPICS.result("j1"), Blame.RATE)
    assert outbox.too_large() == []
    drop(outbox, link, Blame.RATE)
    outbox.add([Delivery(2, "j2", "reply", None)])
    outbox.pump()
    assert not [topic for topic, _, token in link.taken if topic == "reply"]
    time.now += 60.0
    outbox.pump()
    confirm(outbox, link)
    assert [topic for topic, _, token in link.taken if topic == "reply"]


def test_pauses_grow_while_the_broker_closes_for_the_rate_and_hold_up_suspects_too() -> None:
    time = Time()
    outbox, link, _ = make(3, time=time)
    outbox.pump()
    for pause in (1.0, 2.0, 4.0, 8.0):
        drop(outbox, link, Blame.RATE)
        with_status(outbox)
        before = len(link.results)
        outbox.pump()
        confirm(outbox, link)  # the status: it tells nothing of the rate of results
        time.now += pause - 0.1
        outbox.pump()
        confirm(outbox, link)
        assert len(link.results) == before, pause
        time.now += 0.2
        outbox.pump()
        assert len(link.results) == before + 1, pause


def test_a_result_that_was_put_off_is_tried_at_once_where_the_announced_limit_has_changed() -> None:
    time = Time()
    outbox, link, _ = make(2, time=time)
    convict(outbox, link, time, TOPICS.result("j1"), Blame.TOPIC)
    outbox.disconnected(LinkDown("control", LOST))
    outbox.connected(LinkUp("control", True, "5", maximum_packet_size=1_000_000))
    outbox.pump()
    confirm(outbox, link)
    assert len(outbox) == 0


def test_pauses_grow_while_the_quota_is_used_up_whatever_documents_the_broker_takes() -> None:
    time = Time()
    outbox, link, _ = make(4, window=1, time=time)
    outbox.pump()
    for number, pause in enumerate((1.0, 2.0, 4.0), 1):
        outbox.refused(link.under_way.pop(), "quota exceeded", QUOTA_EXCEEDED)
        with_status(outbox)
        outbox.pump()
        outbox.confirmed(link.under_way.pop())
        time.now += pause - 0.1
        outbox.pump()
        assert len(link.results) == number
        time.now += 0.2
        outbox.pump()
        assert len(link.results) == number + 1
