"""Jobs that members of a group give to each other: real spools and job managers, messages and clock by the test."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Hashable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_manager import World, job
from typer.testing import CliRunner

from edged.cli.app import command_line
from edged.cli.forget import erase
from edged.engine.events import Ended, Finished, Started
from edged.jobs import committer, forwarding, giving, sharing
from edged.jobs.crash import LastEnd
from edged.jobs.giving import GIVE_UP_SECONDS
from edged.jobs.records import Moment
from edged.jobs.sharing import DRAIN_SECONDS
from edged.jobs.spool import Spool
from edged.machine.clock import Clock
from edged.mqtt.events import LinkDown, LinkUp, ReceivedMessage, ShareReceived
from edged.mqtt.session_types import LOST
from edged.settings import Settings
from edged.sharing.faster import LOOK_SECONDS, RECENT_SECONDS, REMEMBERED_SECONDS
from edged.sharing.messages import Give, Offer, read_handed

GROUP = "edged/v1/group/hall/"
REPLY = "edged/v1/reply/me"


class Board(World):
    """A member of the group hall; what it says there goes to the hall."""

    def __init__(self, hall: Hall, name: str, last_end: LastEnd | None = None) -> None:
        self.hall = hall
        super().__init__(hall.folder(name), name, share_groups=["hall"], last_end=last_end or LastEnd(None, ()))

    def publish(self, topic: str, payload: bytes, *, qos: int, token: Hashable | None = None, **more: Any) -> bool:
        if topic.startswith(GROUP):
            self.hall.said.append((self.device, topic.removeprefix(GROUP), payload))
            return True
        if topic.startswith("edged/v1/reply/"):
            self.hall.replies.append((topic, json.loads(payload), more.get("correlation")))
            self.tokens.append(token)
            return True
        self.hall.heard.append((self.device, topic, json.loads(payload)))
        return super().publish(topic, payload, qos=qos, token=token, **more)

    def job(self, document: dict[str, Any], reply: str | None = None) -> None:
        """A sender's job for the group comes to this member."""
        self.arrive(document, reply=reply, topic=f"{GROUP}job")
        self.jobs.flush()

    def tick(self, sheds: bool = False) -> None:
        self.jobs.tick(sheds)
        self.jobs.flush()

    def hear(self, channel: str, payload: bytes) -> None:
        kind, member = channel.split("/")
        receipt: Any = SimpleNamespace(mid=0, qos=1)
        message = ReceivedMessage(receipt, GROUP + channel, payload, False, False, None, None, None)
        self.jobs.received(ShareReceived(kind, "hall", member, message))  # type: ignore[arg-type]
        self.jobs.flush()

    def ids(self) -> list[str]:
        """Of the jobs that have no result here."""
        return [queued.id for queued in self.spool.queued()]

    def work(self) -> None:
        """Let all jobs here that may start run to their end."""
        for key in set(self.in_engine) & set(self.recalled):  # for a more urgent one
            self.in_engine.remove(key)
            self.recalled.remove(key)
            self.jobs.engine_event(Ended(key))
        self.run()
        self.confirm()
        self.jobs.flush()


class Hall:
    """A group of members, and the messages between them that have not arrived."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str = "ab") -> None:
        self.now = 1000.0
        for module in (giving, forwarding, sharing):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(committer, "GATHER_SECONDS", 0.0)
        self.tmp_path = tmp_path
        self.said: list[tuple[str, str, bytes]] = []
        """Sender, channel and payload."""
        self.heard: list[tuple[str, str, dict[str, Any]]] = []
        self.replies: list[tuple[str, dict[str, Any], bytes | None]] = []
        self.boards = {name: Board(self, name).serve() for name in names}

    def folder(self, name: str) -> Path:
        folder = self.tmp_path / name
        folder.mkdir(exist_ok=True)
        return folder

    def __getattr__(self, name: str) -> Board:
        return self.boards[name]

    def kill(self, name: str) -> None:
        """The process dies, and what it has not said is not said; it starts anew."""
        self.said = [one for one in self.said if one[0] != name or one[1].startswith("give/")]
        self.boards[name].spool.close()
        self.boards[name] = Board(self, name).serve()

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        for board in list(self.boards.values()):
            board.tick()

    def deliver_all(self) -> None:
        """Bring all messages, and those that come of them, to those whom they concern."""
        for _ in range(10):
            self.deliver(lambda *_: True)

    def deliver(self, wanted: Callable[[str, str], bool]) -> None:
        """Bring all messages of this kind, by sender and channel, to those whom they concern."""
        said, self.said = self.said, []
        for sender, channel, payload in said:
            if not wanted(sender, channel):
                self.said.append((sender, channel, payload))
                continue
            kind, member = channel.split("/")
            for board in list(self.boards.values()):
                if kind == "offer" or board.device == member:
                    board.hear(channel, payload)

    def settle(self, seconds: int = 6) -> None:
        for _ in range(seconds):
            self.tick()
            self.deliver_all()

    def results(self, id: str) -> list[str]:
        """The devices that published a result of the job."""
        return [device for device, topic, _ in self.heard if topic.endswith(f"/result/{id}")]

    def gives(self) -> list[Give]:
        handed = [read_handed(payload) for _, channel, payload in self.said if channel.startswith("give/")]
        return [message for message in handed if isinstance(message, Give)]


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hall:
    return Hall(tmp_path, monkeypatch)


def give_away(hall: Hall, document: dict[str, Any], reply: str | None = None) -> None:
    """The job comes to a, which is busy, and a has said so to b."""
    hall.a.job(job("busy"))
    hall.a.job(job("next"))
    hall.now += LOOK_SECONDS
    hall.a.jobs.flush()  # prepared behind it
    hall.a.job(document, reply)
    hall.tick()
    hall.deliver(lambda _, channel: channel.startswith("offer/"))
    assert [give.id for give in hall.gives()] == [document["id"]]


def test_a_waiting_job_is_answered_by_a_member_with_a_free_row(hall: Hall) -> None:
    give_away(hall, job("x", store=False, prompt="nobody else may know this"), REPLY)
    assert "x" in hall.a.ids()
    hall.deliver_all()
    assert hall.b.ids() == ["x"]
    assert hall.a.ids() == ["busy", "next"]
    hall.a.spool.scrub()
    assert not any(b"nobody else" in file.read_bytes() for file in hall.folder("a").glob("spool.db*"))
    hall.b.work()
    assert hall.results("x") == ["b"]
    assert [(topic, document["device"]) for topic, document, _ in hall.replies] == [(REPLY, "b")]
    told = [(device, document["event"]) for device, topic, document in hall.heard if topic.endswith("event/x")]
    assert told == [("a", "accepted"), ("b", "accepted"), ("b", "started")]
    hall.a.work()
    assert hall.results("busy") == hall.results("next") == ["a"]
    assert metric(hall.a, "given") == metric(hall.b, "taken") == 1


def metric(board: Board, event: str) -> float:
    name = f'edged_shared_jobs_total{{event="{event}"}} '
    (line,) = [line for line in board.metrics.text().decode().splitlines() if line.startswith(name)]
    return float(line.rsplit(" ", 1)[1])


def test_what_travels(hall: Hall) -> None:
    give_away(hall, job("x", ttl=100, priority=3, stream=True), REPLY)
    (give,) = hall.gives()
    before = next(queued for queued in hall.a.spool.queued() if queued.id == "x")
    assert give.document.encode() == hall.a.spool.document(before.number)
    hall.deliver_all()
    (after,) = hall.b.spool.queued()
    assert (after.id, after.priority, after.starts) == ("x", 3, 0)
    assert hall.b.spool.document(after.number) == give.document.encode()
    assert after.ttl == pytest.approx(100, abs=5)
    assert after.received.boottime == pytest.approx(before.received.boottime, abs=5)


def test_the_job_of_a_taker_that_dies_before_it_has_it_stays_at_the_giver(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.said.clear()  # the broker has it no more, or b never comes back
    del hall.boards["b"]
    hall.a.work()
    assert hall.results("x") == []  # nobody knows yet whether b has it
    hall.tick(GIVE_UP_SECONDS)
    hall.a.work()
    assert hall.results("x") == ["a"]


def test_a_member_that_was_silent_is_given_the_job_once_it_offers_again(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.said.clear()
    hall.kill("b")
    hall.now += GIVE_UP_SECONDS
    hall.a.tick()
    hall.said.clear()  # b has not heard that either
    hall.settle()
    assert (hall.a.ids(), hall.b.ids()) == (["busy", "next"], ["x"])


def test_a_taker_that_dies_after_its_commit_runs_the_job_once(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver(lambda _, channel: channel.startswith("give/"))
    assert hall.b.ids() == ["x"]
    hall.kill("b")
    assert not [channel for _, channel, _ in hall.said if channel.startswith("given/")]
    hall.settle()
    assert hall.a.ids() == ["busy", "next"]
    hall.b.work()
    hall.a.work()
    assert hall.results("x") == ["b"]


def test_a_giver_that_dies_before_the_answer_does_not_run_the_job_itself(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver(lambda _, channel: channel.startswith("give/"))
    hall.said.clear()  # the answer finds nobody
    hall.kill("a")
    hall.a.work()
    assert hall.results("x") == []
    assert hall.results("busy") == hall.results("next") == ["a"]
    hall.settle()
    hall.b.work()
    assert (hall.results("x"), hall.a.ids()) == (["b"], [])


def test_a_giver_that_dies_before_the_give_leaves_runs_the_job_itself(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.said.clear()
    hall.kill("a")
    hall.settle()  # b does not know it and has no such credit
    hall.a.work()
    assert (hall.results("x"), metric(hall.a, "refused")) == (["a"], 1)


def test_repeats_and_cancels_that_come_to_the_giver_reach_the_taker(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver_all()
    hall.a.job(job("x"), f"{REPLY}/again")
    hall.deliver_all()
    hall.b.work()
    assert [(topic, document["device"]) for topic, document, _ in hall.replies] == [(f"{REPLY}/again", "b")]
    hall.a.job(job("x"), f"{REPLY}/late")
    hall.deliver_all()
    hall.b.work()
    assert [topic for topic, _, _ in hall.replies] == [f"{REPLY}/again", f"{REPLY}/late"]
    assert hall.results("x") == ["b", "b"]  # the same bytes again, as for any repeat
    assert metric(hall.a, "forwarded") == 2
    hall.settle(20)
    assert hall.a.ids() == ["busy", "next"]


def test_a_cancel_that_comes_to_the_giver_ends_the_job_at_the_taker(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver_all()
    hall.a.cancelled("x")
    hall.a.jobs.flush()
    hall.deliver_all()
    hall.b.work()
    results = [document["state"] for _, topic, document in hall.heard if topic.endswith("result/x")]
    assert (results, hall.results("x")) == (["cancelled"], ["b"])


def test_a_cancel_while_the_job_is_on_its_way_ends_it_wherever_it_is(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.a.cancelled("x")
    hall.a.jobs.flush()
    hall.settle()
    hall.b.work()
    states = {document["state"] for _, topic, document in hall.heard if topic.endswith("result/x")}
    assert (states, "x" in hall.a.ids(), hall.b.ids()) == ({"cancelled"}, False, [])


def test_a_place_that_asks_while_the_job_is_on_its_way_hears_the_taker(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.a.job(job("x"), REPLY)
    hall.settle()
    hall.b.work()
    hall.a.work()
    assert [(topic, document["device"]) for topic, document, _ in hall.replies] == [(REPLY, "b")]
    assert hall.results("x")[0] == "b"
    assert "a" not in hall.results("x")


@pytest.mark.parametrize("lost", ["unknown", "silent"])
def test_a_job_that_the_taker_lost_is_taken_anew_by_a_repeat(hall: Hall, lost: str) -> None:
    give_away(hall, job("x", store=False), REPLY)
    hall.deliver_all()
    hall.b.spool.close()
    del hall.boards["b"]
    for file in hall.folder("b").glob("spool.db*"):
        file.unlink()
    hall.a.work()
    if lost == "unknown":
        hall.boards["b"] = Board(hall, "b").serve()
    hall.a.job(job("x", store=False), REPLY)
    hall.settle(20)
    hall.a.work()
    hall.settle()
    hall.a.work()
    assert hall.results("x") == ["a"]
    assert [(topic, document["device"]) for topic, document, _ in hall.replies] == [(REPLY, "a")]


def test_other_content_under_the_id_of_a_given_job_is_a_conflict(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver_all()
    hall.a.job(job("x", prompt="other"))
    assert hall.a.kinds("x")[-1] == "id_conflict"
    assert not hall.gives()


def test_a_taker_that_has_another_job_of_that_id_leaves_it_at_the_giver(hall: Hall) -> None:
    hall.b.job(job("x", prompt="other"))
    hall.b.work()
    give_away(hall, job("x"))
    hall.settle()
    assert hall.a.ids() == ["busy", "next", "x"]
    hall.a.work()
    assert "a" in hall.results("x")
    assert metric(hall.a, "refused") == 1  # once: that member is not asked again


def test_a_member_that_drains_gives_what_waits_and_waits_for_the_answers(hall: Hall) -> None:
    hall.a.job(job("runs"))
    hall.a.jobs.engine_event(Started(1))
    hall.a.job(job("x"))
    hall.a.jobs.drain()
    hall.a.jobs.engine_event(Ended(2))  # it was prepared
    hall.tick()
    assert not hall.a.jobs.settled
    hall.settle()
    hall.a.finish(1)
    hall.a.jobs.flush()
    assert hall.a.jobs.settled
    assert (hall.a.ids(), hall.b.ids()) == ([], ["x"])


@pytest.mark.parametrize("others", [True, False])
def test_a_member_that_drains_goes_on_waiting_for_others_that_are_full(hall: Hall, others: bool) -> None:
    if others:
        offer_to_a(hall, 1.0)
        offer_to_a(hall, None)
    hall.a.job(job("x"))
    hall.a.job(job("y"))
    hall.a.jobs.drain()
    hall.a.jobs.engine_event(Ended(1))  # it was prepared
    hall.a.tick()
    hall.now += 2 * DRAIN_SECONDS
    hall.a.tick()
    assert hall.a.jobs.settled is not others


def test_a_member_that_drains_goes_on_after_a_refusal(hall: Hall) -> None:
    hall.a.job(job("x"))
    hall.a.job(job("y"))
    hall.a.jobs.drain()
    hall.a.jobs.engine_event(Ended(1))
    hall.a.tick()
    for _ in range(2):
        offer_to_a(hall, 1.0)  # b knows of no such credit
        hall.a.jobs.flush()
        hall.deliver(lambda _, channel: channel != "offer/b")
        hall.deliver(lambda _, channel: channel.startswith("given/"))
        assert metric(hall.a, "refused") > 0
        assert not hall.a.jobs.settled


def test_a_member_that_drains_withdraws_its_offer_at_once(hall: Hall) -> None:
    hall.tick()
    hall.b.jobs.drain()
    offers = [payload for sender, channel, payload in hall.said if (sender, channel) == ("b", "offer/b")]
    assert offers[0]
    assert offers[1:] == [b""]


def test_a_member_whose_board_is_too_hot_gives_all_that_waits_and_offers_nothing(hall: Hall) -> None:
    hall.boards["a"] = hall.a
    hall.a.job(job("busy"))
    hall.a.job(job("x"))
    hall.now += LOOK_SECONDS
    hall.a.jobs.flush()
    hall.a.tick(sheds=True)
    assert hall.a.jobs.status().backlog is False  # what is prepared is not taken back
    hall.a.job(job("y"))
    hall.a.tick(sheds=True)
    hall.b.tick()
    assert [channel for sender, channel, payload in hall.said if sender == "a" and payload] == []
    hall.deliver(lambda _, channel: channel.startswith("offer/"))
    assert [(give.id, give.speed) for give in hall.gives()] == [("y", None)]


def test_documents_of_jobs_that_wait_are_read_once(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(6):
        hall.a.job(job(f"job-{n}"))
    read, original = [], Spool.document
    monkeypatch.setattr(Spool, "document", lambda self, number: read.append(number) or original(self, number))
    for _ in range(20):
        hall.a.tick()
    assert hall.a.jobs.status().backlog
    assert len(read) == len(set(read))


def test_jobs_for_the_device_itself_and_suspects_stay(hall: Hall) -> None:
    hall.a.job(job("busy"))
    hall.a.job(job("next"))
    hall.a.arrive(job("mine"))
    hall.a.jobs.flush()
    hall.a.job(job("suspect"))
    number = hall.a.spool.find("suspect").number  # type: ignore[union-attr]
    with hall.a.spool.transaction():
        hall.a.spool.note_interrupted(number, crashed_alone=False, suspect=True)
    hall.kill("a")
    hall.settle()
    assert sorted(hall.a.ids()) == ["busy", "mine", "suspect"]
    assert hall.b.ids() == ["next"]


def test_a_broker_that_is_away_delays_gives_and_loses_none(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.said.clear()
    hall.a.jobs.control_changed(LinkDown("control", LOST))
    hall.tick(10 * GIVE_UP_SECONDS)
    hall.said.clear()
    assert "x" in hall.a.ids()
    hall.a.jobs.control_changed(LinkUp("control", True, "5"))
    hall.settle()
    hall.a.work()
    hall.b.work()
    assert len(hall.results("x")) == 1  # the credit is too old by now: a keeps it


def test_marks_are_forgotten_after_the_retention(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver_all()
    spool, now = hall.a.spool, Moment.now(Clock())
    with spool.transaction():
        spool.prune(3600, now, 10)
    assert spool.shared.mark_of("x") is not None
    later = Moment(now.wall + 3601, now.boottime + 3601, now.boot_id, now.synchronised)
    with spool.transaction():
        spool.prune(3600, later, 10)
    assert spool.shared.mark_of("x") is None


def slow_member(hall: Hall) -> None:
    """a has answered a job with one token a second, and has heard of a member that is ten times faster."""
    hall.a.job(job("own"))
    hall.a.jobs.engine_event(Started(1))
    hall.a.in_engine.remove(1)
    hall.a.jobs.engine_event(Finished(1, "text", (1,) * 4, "length", 1, 0, 1.0, (2.0, 3.0, 4.0, 5.0), 5.0))
    hall.a.work()
    offer_to_a(hall, 10.0)


def offer_to_a(hall: Hall, speed: float | None) -> None:
    """From b; None: it has no free row any more."""
    offer = Offer(device="b", model="m", speed=speed, credit="c").payload() if speed is not None else b""
    hall.a.hear("offer/b", offer)


def test_a_slow_member_gives_away_at_once_what_it_could_start(hall: Hall) -> None:
    slow_member(hall)
    hall.a.job(job("x"))
    hall.a.jobs.flush()
    assert [(give.id, give.speed) for give in hall.gives()] == [("x", 2.0)]  # to twice its speed at least
    hall.a.work()
    assert (hall.results("x"), hall.a.jobs.status().backlog) == ([], True)  # goes on listening


def test_a_job_behind_the_rows_goes_to_a_member_with_a_free_one_before_it_is_prepared(hall: Hall) -> None:
    hall.a.job(job("busy"))
    offer_to_a(hall, 1.0)
    hall.a.job(job("x"))
    hall.a.jobs.flush()
    assert [give.id for give in hall.gives()] == ["x"]
    hall.a.job(job("y"))
    assert len(hall.a.submitted) == 1
    hall.now += LOOK_SECONDS
    hall.a.jobs.flush()
    assert len(hall.a.submitted) == 2  # nobody has taken it


def test_a_slow_member_waits_for_a_fast_one_that_had_a_free_row_lately(hall: Hall) -> None:
    slow_member(hall)
    offer_to_a(hall, None)
    hall.a.job(job("x"))
    hall.a.arrive(job("mine"))  # is not held up by the other
    for _ in range(int(RECENT_SECONDS) - 1):
        hall.tick()
        hall.a.work()
    assert (hall.results("x"), hall.results("mine")) == ([], ["a"])
    hall.tick()
    hall.a.work()
    assert hall.results("x") == ["a"]


def test_a_member_that_was_slow_looks_for_fast_ones_before_it_starts_a_job(hall: Hall) -> None:
    slow_member(hall)
    offer_to_a(hall, None)
    hall.tick(5 * RECENT_SECONDS)
    assert not hall.a.jobs.status().backlog
    hall.a.job(job("x"))
    assert hall.a.jobs.status().backlog  # it listens: the broker has retained what is offered
    offer_to_a(hall, 10.0)
    hall.a.jobs.flush()
    assert [give.id for give in hall.gives()] == ["x"]
    hall.said.clear()
    hall.tick(GIVE_UP_SECONDS)
    hall.tick(5 * RECENT_SECONDS)
    hall.a.work()
    hall.a.job(job("y"))
    hall.tick(LOOK_SECONDS)
    hall.a.work()
    assert hall.results("x") == hall.results("y") == ["a"]


def test_members_that_are_not_much_faster_are_not_waited_for(hall: Hall) -> None:
    slow_member(hall)
    hall.tick(REMEMBERED_SECONDS)
    offer_to_a(hall, 1.9)
    hall.a.job(job("x"))
    hall.a.work()
    assert (hall.results("x"), hall.gives()) == (["a"], [])


def forget(board: Board, *words: str) -> str:
    """What `edged forget` says beside the running daemon."""
    config = board.hall.folder(board.device) / "edged.toml"
    config.write_text(f'state_dir = "{config.parent}"\n')
    said = CliRunner().invoke(command_line(["forget"]), ["forget", *words, "--config", str(config)])
    return f"{said.exit_code}: {said.output}"


def test_forget_erases_the_mark_of_a_given_job_and_says_where_the_job_is(hall: Hall) -> None:
    give_away(hall, job("x"))
    on_its_way = hall.folder("a") / "copy"
    on_its_way.mkdir()
    with sqlite3.connect(on_its_way / "spool.db") as copy, sqlite3.connect(hall.a.spool.path) as spool:
        spool.backup(copy)
    hall.deliver_all()
    digest = hall.a.spool.shared.mark_of("x").digest  # type: ignore[union-attr]
    there = "run edged forget there, or edged fleet command DEVICE forget --job x"
    assert forget(hall.a, "x") == (
        "0: erased 0 jobs and 1 mark of jobs that were given away\n"
        f"given away to b, where nothing was erased: {there}\n"
    )
    assert hall.a.spool.shared.mark_of("x") is None
    assert not any(digest in file.read_bytes() for file in hall.folder("a").glob("spool.db*"))
    assert forget(hall.a, "x").startswith("1: edged: no job 'x' is stored")
    assert hall.b.ids() == ["x"]  # what another device has is its own
    assert forget(hall.b, "x") == "0: erased 1 job\n"
    hall.a.job(job("x", prompt="anew"))  # its id is free
    assert hall.a.kinds("x")[-1] == "accepted"
    erased = erase(Settings(state_dir=on_its_way), "x")
    assert (erased.jobs, erased.marks, erased.given_to) == (1, 0, ["b"])


def test_forget_of_everything_erases_the_marks_of_given_jobs(hall: Hall) -> None:
    give_away(hall, job("x"))
    hall.deliver_all()
    said = forget(hall.a, "--all")
    assert said.startswith("0: erased 2 jobs and 1 mark of jobs that were given away\ngiven away to b,")
    assert said.endswith("edged fleet command DEVICE forget --all\n")
    assert (hall.a.spool.ids(), hall.a.spool.shared.marked()) == ([], [])


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 4))])
def test_no_job_is_lost_whatever_is_lost_late_or_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    for seed in range(6):
        chance = random.Random(100 * block + seed)
        faults = seed % 2 == 1
        folder = tmp_path / str(seed)
        folder.mkdir()
        walk(Hall(folder, monkeypatch, "abc"), chance, faults)


def walk(hall: Hall, chance: random.Random, faults: bool) -> None:
    """Jobs come to one member, or to any, while messages are lost, doubled and late, and members die."""
    sent: dict[str, str] = {}
    for _ in range(40):
        board = hall.boards[chance.choice("aab")]
        step = chance.choice(
            ["job", "job", "tick", "deliver", "work", "repeat", *(["lose", "double", "kill"] * faults)]
        )
        if step == "job":
            id = f"job-{len(sent)}"
            sent[id] = board.device
            board.job(job(id))
        elif step == "tick":
            hall.tick(chance.choice([1.0, 1.0, 6.0, *([20.0, 40.0] * faults)]))
        elif step == "deliver":
            some = chance.random()
            hall.deliver(lambda *_, some=some: chance.random() < some)  # type: ignore[misc]
        elif step == "work":
            board.work()
        elif step == "repeat" and sent:
            id = chance.choice(list(sent))
            hall.boards[sent[id]].job(job(id))
        elif step == "lose" and hall.said:
            del hall.said[chance.randrange(len(hall.said))]
        elif step == "double" and hall.said:
            hall.said.append(chance.choice(hall.said))
        elif step == "kill":
            hall.kill(board.device)
    for _ in range(60):  # faults end
        hall.settle(1)
        for board in hall.boards.values():
            board.work()
    answered = {id: set(hall.results(id)) for id in sent}
    assert all(answered.values())
    assert faults or all(len(devices) == 1 for devices in answered.values())
    assert [board.ids() for board in hall.boards.values()] == [[], [], []]
