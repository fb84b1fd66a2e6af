"""The life of jobs under every order of events, with a real spool, and a link and an engine that the test drives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import tracemalloc
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import PATIENCE
from structlog.testing import capture_logs
from test_spool import ANY, MOMENT

from edged.engine.events import Ended, Finished, ModelChanged, Piece, Started
from edged.engine.sequence import Request
from edged.engine.steps import StepRecord, StepRow
from edged.jobs import admission as admission_module
from edged.jobs import committer as committer_module
from edged.jobs import intake as intake_module
from edged.jobs import outbox as outbox_module
from edged.jobs import recent
from edged.jobs.crash import LastEnd
from edged.jobs.document import Code, JobError, State
from edged.jobs.energy import EnergyLedger, FixedPower
from edged.jobs.manager import JobManager
from edged.jobs.preparer import Prepared
from edged.jobs.queue import JobQueue
from edged.jobs.records import Moment, Queued
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.machine.board import detect
from edged.machine.clock import Clock
from edged.machine.sensors.readings import Readings
from edged.mqtt.connection_faults import PACKET_TOO_LARGE
from edged.mqtt.events import CancelReceived, JobReceived, LinkUp, Published, PublishRefused, ReceivedMessage
from edged.mqtt.topics import Topics
from edged.report.metrics import Metrics
from edged.status import LatestStatus

TOPICS = Topics("edged/v1", "board")


class Preparation:
    """A preparer that prepares at once."""

    number = None

    def __init__(self, world: World) -> None:
        self._world = world

    def submit(self, *job: Any) -> None:
        self._world.prepare(*job)

    def pin(self, *pinned: Any) -> None:
        self._world.pinned.append(pinned)


class World:
    """Link, preparer and engine in one: `said` is everything that left for the broker, in its order."""

    def __init__(self, folder: Path, device: str = "board", **options: Any) -> None:
        self.device = device
        self.said: list[tuple[Any, ...]] = []
        self.tokens: list[Hashable] = []
        self.submitted: list[int] = []
        self.recalled: list[int] = []
        self.in_engine: list[int] = []
        self.arrived = 0
        self.loaded: Any = None
        self.pinned: list[tuple[Any, ...]] = []
        """(texts, loaded, given up) of each pin()."""
        self.asked: list[tuple[Any, ...]] | None = None
        """What was to be prepared, where the test gives it out itself."""
        self.outcome: Callable[..., Any] = lambda job, key, id, serving, received: Request(
            key, (1,), job.max_tokens, priority=job.priority, received=received
        )
        self.spool = Spool(folder / "spool.db")
        self.committed: Callable[[str], bool] = lambda id: not self.spool.writing and self.spool.find(id) is not None
        states = [state.value for state in State]
        self.metrics = Metrics(detect(folder), Readings, LatestStatus(), states)
        self.energy = EnergyLedger(options.pop("power", None))
        last_end = options.pop("last_end", LastEnd(None, ()))
        self.jobs = JobManager(
            device=device,
            topics=Topics("edged/v1", device),
            spool=self.spool,
            link=self,
            engine=self,
            preparer=Preparation(self),
            ledger=SimpleNamespace(last_end=last_end),  # type: ignore[arg-type]
            clock=Clock(),
            metrics=self.metrics,
            energy=self.energy,
            **{"max_queued": 1000, "max_bytes": 1 << 20, "retention": 1e6, "pieces_per_second": 1, "allow_pin": False}
            | options,
        )
        self.jobs.control_changed(LinkUp("control", True, "5"))

    # The link.

    def publish(self, topic: str, payload: bytes, *, qos: int, token: Hashable | None = None, **_: Any) -> bool:
        channel, _, id = topic.removeprefix(f"edged/v1/device/{self.device}/").partition("/")
        document = json.loads(payload)
        if channel == "event" and document["event"] == "accepted":
            assert self.committed(id)
        self.said.append((channel, id, document))
        self.tokens.append(token)
        return True

    def acknowledge(self, receipt: Any) -> bool:
        assert not self.spool.writing
        self.said.append(("puback", receipt.mid))
        return True

    # The preparer.

    def prepare(self, job: Any, key: int, id: str, serving: Any, received: float) -> None:
        if self.asked is not None:
            self.asked.append((job, key, id, serving, received))
            return
        self.ready(job, key, id, serving, received)

    def ready(self, job: Any, key: int, id: str, serving: Any, received: float) -> None:
        self.jobs.prepared(Prepared(key, serving, self.outcome(job, key, id, serving, received)))

    # The engine.

    def submit(self, request: Request) -> None:
        self.submitted.append(request.key)
        self.in_engine.append(request.key)

    def cancel(self, key: int) -> None:
        self.recalled.append(key)

    # What a test does.

    def serve(self, rows: int = 1) -> World:
        serving = self.loaded = SimpleNamespace(rows=rows, package=SimpleNamespace(name="m"))
        self.jobs.engine_event(ModelChanged("serving", loaded=serving))  # type: ignore[arg-type]
        return self

    def arrive(self, *documents: object, reply: str | None = None, qos: int = 1, **changes: Any) -> None:
        for document in documents:
            payload = document if isinstance(document, bytes) else json.dumps(document).encode()
            fields = {
                "receipt": SimpleNamespace(mid=self.arrived, qos=qos, size=len(payload)),
                "topic": TOPICS.job,
                "payload": payload,
                "retained": False,
                "response_topic": reply,
                "correlation": None,
                "expiry_seconds": None,
                "redelivered": False,
            }
            self.arrived += 1
            self.jobs.job_received(JobReceived(ReceivedMessage(**fields | changes)))

    def cancelled(self, id: str) -> None:
        self.cancel_message(json.dumps({"id": id}).encode())

    def cancel_message(self, payload: bytes, mid: int = 0) -> None:
        receipt: Any = SimpleNamespace(mid=mid, qos=1)
        message = ReceivedMessage(receipt, TOPICS.cancel, payload, False, False, None, None, None)
        self.jobs.cancel_received(CancelReceived(message))

    def finish(self, key: int) -> None:
        if key in self.in_engine:
            self.in_engine.remove(key)
        self.jobs.engine_event(Finished(key, "text", (1,), "length", 1, 0, 1.0, (2.0,), 3.0))

    def run(self) -> None:
        """Let everything run to its end."""
        for _ in range(1000):
            self.jobs.flush()
            active = [key for key in self.in_engine if key not in self.recalled]
            if not active:
                break
            self.jobs.engine_event(Started(active[0]))
            self.finish(active[0])

    def confirm(self) -> None:
        for token in self.tokens:
            self.jobs.published(Published(token))
        self.tokens.clear()

    def kinds(self, id: str) -> list[str]:
        return [said[2].get("event", said[0]) for said in self.said if said[0] != "puback" and said[1] == id]


@pytest.fixture(autouse=True)
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "GATHER_SECONDS", 0.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def job(id: str, **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": "x", **fields}


def test_accepted_follows_the_commit_and_puback_follows_accepted(world: World) -> None:
    world.arrive(job("a"), job("b"))
    assert world.said == []
    world.jobs.flush()
    pubacks = [n for n, said in enumerate(world.said) if said[0] == "puback"]
    assert [said[1] for said in world.said if said[0] == "puback"] == [0, 1]  # in the order of receipt
    assert world.spool.find("a")
    assert world.spool.find("b")
    assert len(pubacks) == 2


def test_nothing_is_told_of_a_commit_that_failed_and_all_of_it_once_it_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve().arrive(job("good"), b"bad", job("good"), {**job("good"), "max_tokens": 3})
    transaction = world.spool.transaction

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        with transaction():
            yield
            raise SpoolError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(world.spool, "transaction", full)
        for _ in range(3):
            world.jobs.flush()
    assert (world.said, world.jobs.status().fault and world.jobs.status().fault.message, world.submitted) == (
        [],
        "disk full",
        [],
    )
    world.jobs.flush()
    assert world.jobs.status().fault is None
    assert world.kinds("good") == ["accepted", "accepted", "id_conflict"]
    assert sum(said[0] == "puback" for said in world.said) == 4
    assert sum(said[0] == "result" for said in world.said) == 1


def test_more_arrivals_than_one_commit_takes_do_not_wait_for_the_next_event(world: World) -> None:
    world.arrive(*[b"bad"] * (intake_module.BATCH + 5))
    world.jobs.flush()
    assert world.jobs.due_in <= 0.0
    world.jobs.flush()
    assert world.jobs.due_in == math.inf
    assert sum(said[0] == "puback" for said in world.said) == intake_module.BATCH + 5


def test_commits_wait_for_company_and_a_job_alone_does_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: now[0])
    now = [time.monotonic()]
    monkeypatch.setattr(committer_module, "time", clock)
    monkeypatch.setattr(committer_module, "GATHER_SECONDS", 0.05)
    world.serve(rows=2).arrive(job("a"))
    world.jobs.flush()
    assert world.kinds("a") == ["accepted"]  # nothing else is under way
    world.jobs.engine_event(Started(1))
    world.arrive(job("b"))
    world.jobs.flush()
    assert world.kinds("b") == []
    assert 0.0 < world.jobs.due_in < 0.051
    now[0] += 0.04
    world.arrive(job("c"))
    world.jobs.flush()
    assert (world.kinds("b"), world.kinds("c")) == ([], [])
    now[0] += 0.011  # counted from the first of them
    assert world.jobs.due_in <= 0.0
    world.jobs.flush()
    assert (world.kinds("b"), world.kinds("c")) == (["accepted"], ["accepted"])
    assert world.jobs.due_in == math.inf


def test_it_is_full_as_long_as_jobs_wait_at_the_broker(tmp_path: Path) -> None:
    world = World(tmp_path, max_queued=2).serve()
    world.arrive(job("a"))
    world.jobs.flush()
    assert not world.jobs.status().full
    world.arrive(job("b"), job("c"), job("d"))
    world.jobs.flush()
    assert world.jobs.status().full
    for key in (1, 2):
        world.jobs.engine_event(Started(key))
        world.finish(key)
        assert world.jobs.status().full  # though there is room for a moment
        world.jobs.flush()
    assert world.kinds("d")[0] == "accepted"
    assert world.jobs.status().full
    world.jobs.engine_event(Started(3))
    world.finish(3)
    world.jobs.flush()
    assert not world.jobs.status().full


def test_the_last_jobs_are_told_with_their_states_and_times(world: World) -> None:
    world.serve().arrive(job("done"), job("runs"), job("waits"), b"bad", {**job("wrong"), "max_tokens": 0})
    world.jobs.flush()
    world.cancelled("waits")
    world.jobs.engine_event(Started(1))
    world.finish(1)
    world.jobs.flush()
    world.jobs.engine_event(Started(2))
    told = world.jobs.status().recent
    assert [(one.state, one.code, one.completion_tokens) for one in told] == [
        ("running", "", None),
        ("succeeded", "", 1),
        ("cancelled", "cancelled", None),
        ("rejected", "invalid_job", None),
        ("rejected", "invalid_job", None),
    ]
    assert [one.id for one in told[:4]] == ["runs", "done", "waits", "wrong"]
    runs, done = told[:2]
    assert runs.finished is None
    assert runs.queued_seconds is not None
    assert done.finished is not None
    assert done.queued_seconds is not None
    assert time.time() - PATIENCE < done.received <= done.finished <= time.time()
    assert world.jobs.status().ended == {"succeeded": 1, "cancelled": 1, "rejected": 2}


def test_of_many_jobs_the_last_are_told(world: World) -> None:
    world.arrive(*[b"bad"] * (recent.KEPT + 5))
    world.jobs.flush()
    assert len(world.jobs.status().recent) == recent.KEPT


def shown(world: World) -> list[tuple[str | None, str]]:
    return [(one.id, one.state) for one in world.jobs.status().recent]


def test_the_last_jobs_have_no_id_of_a_job_that_is_not_to_be_stored(world: World) -> None:
    world.serve().arrive(job("done", store=False), job("waits", store=False), job("other", store=False, model="x"))
    world.arrive(job("kept"))
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    assert shown(world)[0] == (None, "running")
    world.finish(1)
    world.cancelled("waits")
    world.jobs.flush()
    world.run()
    assert sorted(shown(world), key=str) == sorted(
        [(None, "succeeded"), (None, "cancelled"), (None, "rejected"), ("kept", "succeeded")], key=str
    )


def test_the_last_jobs_are_those_that_no_other_process_has_forgotten(world: World, tmp_path: Path) -> None:
    world.serve().arrive(*(job(id) for id in ("forgotten", "kept", "forgotten-while-it-runs")))
    world.jobs.flush()
    for key in (1, 2):
        world.jobs.engine_event(Started(key))
        world.finish(key)
        world.jobs.flush()
    world.jobs.engine_event(Started(3))
    with contextlib.closing(Spool(tmp_path / "spool.db")) as beside, beside.transaction():
        for number in (1, 3):
            beside.remove(number)
    world.jobs.tick()
    world.finish(3)
    world.jobs.flush()
    assert shown(world) == [("kept", "succeeded")]
    assert world.jobs.status().ended == {"succeeded": 3}


def test_the_last_jobs_are_younger_than_the_retention(tmp_path: Path) -> None:
    world = World(tmp_path, retention=0.01).serve()
    world.arrive(job("old"), b"bad")
    world.run()
    world.confirm()
    world.jobs.flush()
    assert len(shown(world)) == 2
    time.sleep(0.02)  # the retention itself
    world.jobs.tick()
    assert shown(world) == []


def test_a_job_that_ends_when_it_is_handed_over_is_answered_at_once(world: World) -> None:
    world.outcome = lambda *_: JobError(Code.INTERNAL, "it cannot be prepared")
    world.serve().arrive(job("a"), job("b"))
    world.jobs.flush()
    assert world.jobs.due_in <= 0.0
    world.jobs.flush()
    assert [world.kinds(id) for id in ("a", "b")] == [["accepted", "result"]] * 2


def preparing(world: World, *documents: object) -> list[tuple[Any, ...]]:
    """Let `documents` arrive while nothing that is to be prepared comes out; what was to be prepared, as it grows."""
    asked: list[tuple[Any, ...]] = []
    world.asked = asked
    world.arrive(*documents)
    world.jobs.flush()
    return asked


def test_a_result_says_what_energy_the_job_took_where_the_power_is_known(tmp_path: Path) -> None:
    world = World(tmp_path, power=FixedPower(idle=2.0, busy=6.0)).serve()
    world.arrive(job("a"), job("b"))
    world.jobs.flush()
    for at, key in enumerate((1, 2, 2, 2)):
        world.energy.ended(StepRecord(at, at + 0.25, (StepRow(key, 1, False),)))
    world.run()
    usage = {said[1]: said[2]["usage"] for said in world.said if said[0] == "result"}
    assert {id: (found["energy_joules"], found["energy_source"]) for id, found in usage.items()} == {
        "a": (1.0, "configured"),
        "b": (3.0, "configured"),
    }
    assert world.energy.take(1) is None


def test_a_result_says_nothing_of_energy_that_is_not_known(world: World) -> None:
    world.serve().arrive(job("a"))
    world.energy.ended(StepRecord(0.0, 0.25, (StepRow(1, 1, False),)))
    world.run()
    (usage,) = [said[2]["usage"] for said in world.said if said[0] == "result"]
    assert "energy_joules" not in usage


def test_energy_of_jobs_without_an_answer_is_forgotten(tmp_path: Path) -> None:
    world = World(tmp_path, power=FixedPower(idle=2.0, busy=6.0)).serve()
    world.arrive(job("a"))
    world.jobs.flush()
    for key in (1, -1):
        world.energy.ended(StepRecord(0.0, 0.25, (StepRow(key, 1, True),)))
    world.jobs.engine_event(Ended(1, failure="it failed"))
    world.jobs.engine_event(Ended(-1))
    assert (world.energy.take(1), world.energy.take(-1)) == (None, None)
    assert world.energy.status().joules["prefill"] == 2.0


@pytest.mark.slow
def test_a_thousand_jobs_add_no_series(tmp_path: Path) -> None:
    """Answered, failed, cancelled and rejected ones, each with an id of its own."""
    world = World(tmp_path, power=FixedPower(idle=2.0, busy=6.0)).serve()

    def series() -> set[str]:
        lines = world.metrics.text().decode().splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def batch(first: int) -> None:
        for n in range(first, first + 100):
            world.arrive(job(f"job-{n}", max_tokens=-1) if n % 5 == 0 else job(f"job-{n}", prompt=f"text {n}"))
        for n in range(first, first + 100, 7):
            world.cancelled(f"job-{n}")
        world.run()
        world.said.clear()
        world.confirm()

    batch(0)
    before = series()
    for first in range(100, 1_000, 100):
        batch(first)
    assert series() == before
    counts = dict(line.split(" ") for line in world.metrics.text().decode().splitlines() if "jobs_total{" in line)
    assert sum(map(float, counts.values())) == 1_000


def test_one_job_is_prepared_at_a_time_and_the_most_urgent_is_next(world: World) -> None:
    asked = preparing(world.serve(rows=4), job("bomb"), job("later"))
    world.arrive(job("urgent", priority=9))
    world.jobs.flush()
    assert [id for _, _, id, *_ in asked] == ["bomb"]
    world.jobs.prepared(Prepared(1, asked[0][3], JobError(Code.INTERNAL, "it did not finish")))
    world.jobs.flush()
    assert [id for _, _, id, *_ in asked] == ["bomb", "urgent"]
    assert world.kinds("bomb")[-1] == "result"


def test_a_cancel_of_a_job_that_is_prepared_is_answered_at_once_and_what_comes_of_it_is_dropped(world: World) -> None:
    asked = preparing(world.serve(), job("bomb"), job("next"))
    world.cancelled("bomb")
    world.jobs.flush()
    assert world.said[-1][2]["state"] == "cancelled"
    assert len(asked) == 1  # the thread is still busy with it
    world.ready(*asked[0])
    world.jobs.flush()
    assert (world.submitted, [id for _, _, id, *_ in asked]) == ([], ["bomb", "next"])
    assert world.kinds("bomb") == ["accepted", "result"]


def test_a_job_prepared_for_a_model_that_is_gone_waits_for_the_next(world: World) -> None:
    asked = preparing(world.serve(), job("a"))
    world.jobs.engine_event(ModelChanged("loading"))
    error = JobError(Code.INTERNAL, "the chat template broke the process that renders it")
    world.jobs.prepared(Prepared(1, asked[0][3], error))
    world.jobs.flush()
    assert (world.jobs.status().queued, len(asked)) == (1, 1)
    world.serve()
    world.jobs.flush()
    world.ready(*asked[1])
    assert world.submitted == [1]
    assert world.kinds("a") == ["accepted"]


def test_a_drain_does_not_wait_for_what_is_prepared(world: World) -> None:
    asked = preparing(world.serve(), job("a"))
    world.jobs.drain()
    assert world.jobs.settled
    world.ready(*asked[0])
    world.jobs.flush()
    assert (world.jobs.status().queued, world.submitted, world.recalled) == (1, [], [])


def test_the_result_of_a_cancel_goes_before_thousands_that_are_due(world: World, monkeypatch: Any) -> None:
    world.serve().arrive(*[job(f"j{n}") for n in range(20)])
    with monkeypatch.context() as patch:
        patch.setattr(world.jobs.outbox, "pump", lambda: None)
        world.run()
        world.arrive(job("c"))
        world.jobs.flush()
        world.cancelled("c")
        world.jobs.flush()
    world.jobs.flush()
    results = [said[1] for said in world.said if said[0] == "result"]
    assert results == ["c", *(f"j{n}" for n in range(20))]


def test_a_repeat_in_the_same_commit_as_the_end_answers_its_waiter_once(world: World) -> None:
    world.serve().arrive(job("a"), reply="edged/v1/reply/first")
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    world.finish(1)
    world.arrive(job("a"), reply="edged/v1/reply/second")
    world.jobs.flush()
    told = [said[0] + said[1] for said in world.said if said[2:] and said[2].get("state") == "succeeded"]
    assert told.count("edgedv1/reply/first") == told.count("edgedv1/reply/second") == 1


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_repeat_right_after_an_answer_is_answered_again(world: World, confirmed: bool) -> None:
    world.serve().arrive(job("a"))
    world.run()
    world.confirm()
    for repeat in range(1, 4):
        world.arrive(job("a"))
        world.jobs.flush()
        assert world.kinds("a").count("result") == 1 + repeat
        if confirmed:
            world.confirm()  # and not yet written down
    assert world.kinds("a").count("accepted") == 4


def test_a_repeat_of_a_job_that_is_erased_in_the_same_commit_hears_that_nothing_is_kept(world: World) -> None:
    world.serve().arrive(job("a", store=False))
    world.run()
    world.confirm()
    world.arrive(job("a", store=False))
    world.jobs.flush()
    assert world.said[-1][2].items() >= {"event": "accepted", "repeat": True, "kept": False}.items()
    assert world.kinds("a").count("result") == 1


def test_repeats_of_an_answer_that_still_waits_for_a_place_wait_for_the_same(world: World, monkeypatch: Any) -> None:
    world.serve().arrive(job("a"))
    world.run()
    world.confirm()
    with monkeypatch.context() as patch:
        patch.setattr(world.jobs.outbox, "pump", lambda: None)
        for _ in range(3):
            world.arrive(job("a"))
            world.jobs.flush()
    world.jobs.flush()
    assert world.kinds("a").count("result") == 2


def test_a_more_urgent_job_takes_the_place_of_the_one_that_is_ready(world: World) -> None:
    world.serve().arrive(job("runs"), job("low", priority=1))
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    world.arrive(job("high", priority=9))
    world.jobs.flush()
    assert (world.submitted, world.recalled) == ([1, 2, 3], [2])
    world.jobs.engine_event(Ended(2))  # the engine gives it back
    world.jobs.flush()
    assert world.submitted == [1, 2, 3]
    world.recalled.clear()
    world.run()
    assert world.submitted == [1, 2, 3, 2]
    assert [world.kinds(id)[-1] for id in ("runs", "low", "high")] == ["result"] * 3


def test_a_recalled_job_that_had_started_meanwhile_just_goes_on(world: World) -> None:
    world.serve().arrive(job("runs"), job("low", priority=1))
    world.jobs.flush()
    world.arrive(job("high", priority=9))
    world.jobs.flush()
    world.jobs.engine_event(Started(2))
    world.finish(2)
    world.jobs.engine_event(Ended(2))
    world.recalled.clear()
    world.run()
    assert world.kinds("low") == ["accepted", "started", "result"]


def test_a_cancel_of_a_ready_job_does_not_wait_for_the_engine(world: World) -> None:
    world.serve().arrive(job("runs"), job("ready"))
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    world.cancelled("ready")
    world.jobs.flush()
    assert world.said[-1][2]["state"] == "cancelled"
    for late in (Started(2), Piece(2, "x"), Ended(2)):
        world.jobs.engine_event(late)
    world.finish(2)
    world.run()
    assert world.kinds("ready") == ["accepted", "result"]


@pytest.fixture
def streaming(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """One job that streams and has made three pieces at once; the clock stands still."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    world.serve().arrive(job("a", stream=True))
    world.jobs.flush()
    for event in (Started(1), Piece(1, "one "), Piece(1, "two "), Piece(1, "three")):
        world.jobs.engine_event(event)
    world.jobs.flush()
    return world


def pieces(world: World) -> list[dict[str, Any]]:
    return [said[2] for said in world.said if said[0] == "stream"]


def test_the_first_piece_leaves_at_once_and_those_that_come_too_fast_are_joined(
    streaming: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert streaming.kinds("a") == ["accepted", "started", "stream"]
    assert pieces(streaming) == [{"seq": 0, "text": "one "}]
    assert streaming.jobs.due_in == pytest.approx(1)
    later = time.monotonic() + 1.001
    monkeypatch.setattr(time, "monotonic", lambda: later)
    streaming.jobs.flush()
    assert pieces(streaming)[1:] == [{"seq": 1, "text": "two three"}]
    assert streaming.jobs.due_in == math.inf


def test_the_last_piece_leaves_before_the_result(streaming: World) -> None:
    streaming.finish(1)
    streaming.jobs.flush()
    assert streaming.kinds("a") == ["accepted", "started", "stream", "stream", "result"]
    assert pieces(streaming)[1:] == [{"seq": 1, "text": "two three"}]
    assert streaming.jobs.due_in == math.inf


def test_the_last_piece_leaves_before_the_end_of_a_cancelled_job(streaming: World) -> None:
    streaming.cancelled("a")
    streaming.jobs.engine_event(Ended(1, tokens=3))
    streaming.jobs.flush()
    assert streaming.kinds("a") == ["accepted", "started", "stream", "stream", "result"]
    assert pieces(streaming)[1:] == [{"seq": 1, "text": "two three"}]


def test_the_last_piece_of_an_abandoned_job_leaves(streaming: World) -> None:
    assert streaming.jobs.abandon() == ["a"]
    assert pieces(streaming)[1:] == [{"seq": 1, "text": "two three"}]


def test_a_remembered_cancel_is_forgotten_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cancelled("a")
    later = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    world.serve().arrive(job("a"))
    world.run()
    assert world.said[-1][2]["state"] == "succeeded"


def test_what_the_engine_started_before_it_says_so_is_not_lost_at_a_drain(world: World) -> None:
    world.serve().arrive(job("a"), job("b"))
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    world.jobs.drain()
    assert world.recalled == [2]
    world.jobs.engine_event(Ended(2))
    world.finish(1)
    world.jobs.flush()
    assert world.jobs.settled
    assert (world.jobs.status().queued, world.submitted) == (1, [1, 2])


def test_the_old_holder_of_an_id_does_not_take_the_new_ones_cancel_along(world: World) -> None:
    world.serve().arrive(job("a"))
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    with world.spool.transaction():
        world.spool.remove(1)  # edged forget
    world.arrive(job("a", priority=1))
    world.jobs.flush()
    world.finish(1)
    world.jobs.flush()
    world.cancelled("a")
    world.jobs.flush()
    assert world.said[-1][2]["state"] == "cancelled"


def test_a_spool_that_cannot_be_read_loses_no_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_: int) -> bytes:
        raise SpoolError("input/output error")

    world.arrive(job("a"))
    world.jobs.flush()
    with monkeypatch.context() as patch:
        patch.setattr(world.spool, "document", unreadable)
        world.serve()
        with pytest.raises(SpoolError):
            world.jobs.flush()
    world.run()
    assert world.kinds("a")[-1] == "result"


NEWER = [{"grammar": "root ::= x"}, {"response_format": {"type": "structural_tag", "format": {}}}, {"logprobs": 3}]
"""Fields that a newer edged may accept and this one does not serve."""


def stored(world: World, id: str, **fields: Any) -> None:
    """A job that another version of edged accepted."""
    document = json.dumps(job(id, **fields)).encode()
    with world.spool.transaction():
        world.spool.add_job(id, hashlib.sha256(document).digest(), document, MOMENT, **ANY)


def test_a_restart_loses_no_field_of_a_job(world: World, tmp_path: Path) -> None:
    chat = [{"role": "assistant", "content": [{"type": "text", "text": "On?"}]}]
    chat_fields = {"chat_template_kwargs": {"enable_thinking": False}, "continue_final_message": True}
    fields = chat_fields | {"min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1}
    world.arrive({"id": "a", "messages": chat, "logit_bias": {"5": -100}, **fields})
    world.jobs.flush()
    world.spool.close()
    again = World(tmp_path)
    again.asked = []
    again.serve()
    again.jobs.flush()
    job = again.asked[0][0]
    assert {name: getattr(job, name) for name in fields} == fields
    assert (job.biases, job.messages[0].text) == (((5, -100.0),), "On?")


@pytest.mark.parametrize("fields", NEWER)
def test_a_job_of_a_newer_edged_waits_for_it_and_the_others_run(
    world: World, tmp_path: Path, fields: dict[str, Any]
) -> None:
    stored(world, "newer", **fields)
    stored(world, "plain")
    again = World(tmp_path).serve()
    with capture_logs() as logs:
        again.run()
    assert (again.kinds("newer"), again.kinds("plain")[-1]) == ([], "result")
    assert again.jobs.status().queued == 1
    [line] = [line for line in logs if line["event"] == "job_of_newer_version"]
    assert (line["job"], next(iter(fields)) in line["reason"]) == ("newer", True)
    again.cancelled("newer")
    again.jobs.flush()
    assert again.said[-1][2]["state"] == "cancelled"
    assert again.jobs.status().queued == 0


def test_a_job_that_cannot_be_handed_over_costs_itself_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: World, job: Any, key: int, id: str, *rest: Any) -> None:
        if id == "bad":
            raise RuntimeError("secret-word")
        prepare(self, job, key, id, *rest)

    prepare = World.prepare
    monkeypatch.setattr(World, "prepare", broken)
    world.serve().arrive(job("bad", metadata={"n": 1}), job("good"))
    world.run()
    result = next(said[2] for said in world.said if said[:2] == ("result", "bad"))
    assert (result["state"], result["error"]["code"], result["metadata"]) == ("failed", "internal", {"n": 1})
    assert "secret-word" not in result["error"]["message"]
    assert world.kinds("good")[-1] == "result"


def test_arrivals_at_qos_0_that_a_disconnect_loses_are_logged(world: World) -> None:
    world.arrive(job("a"), job("b"), qos=0)
    world.arrive(job("c"))
    with capture_logs() as logs:
        world.jobs.jobs_disconnected()
    [line] = logs
    assert (line["event"], line["log_level"], line["jobs"]) == ("jobs_dropped", "warning", 2)
    with capture_logs() as logs:
        world.jobs.jobs_disconnected()
    assert logs == []


def test_cancelled_jobs_leave_no_heap_behind() -> None:
    queue = JobQueue(lambda queued: queued.priority)
    for n in range(3000):
        queued = Queued(n, f"j{n}", 5, True, Moment(0.0, 0.0, "b", True), None, None)
        queue.put(queued)
        queue.remove(queued)
    assert queue.entries < 1300
    assert (len(queue), queue.first()) == (0, None)


def test_unkeepable_messages_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "HELD_BYTES", 10 * (intake_module.ARRIVAL_BYTES + 100_000))
    world = World(tmp_path)

    def flood() -> int:
        """How many warnings there are after 30 more large jobs."""
        world.arrive(*[job(f"a{world.arrived}-{n}", metadata={"x": "y" * 99_000}) for n in range(30)], qos=0)
        return sum(line["event"] in ("job_dropped", "jobs_dropped") for line in lines)

    with capture_logs() as lines:
        assert flood() == 20
        world.jobs.flush()
        assert world.jobs.status().queued == 10
        assert flood() == 40  # those that were written down take no memory any more
        world.jobs.jobs_disconnected()
        assert flood() == 61  # nor do those that are lost, for which there is one line


@pytest.mark.slow
def test_floods_of_refused_jobs_repeats_and_cancels_take_no_more_memory_than_there_is_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "publish", lambda *_, **__: False)  # a broker that takes nothing
    monkeypatch.setattr(outbox_module, "NOTICES", 100)
    world = World(tmp_path)
    tracemalloc.start()
    world.serve().arrive(job("waited-for"))
    world.jobs.flush()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(300):
        bad = {"id": f"bad-{n}", "nonsense": "x" * 50_000, **{f"field-{m}": 1 for m in range(20)}}
        world.arrive(bad, reply="edged/v1/reply/" + "r" * 400, correlation=b"%d" % n * 10)
        world.arrive(job("waited-for"), reply="edged/v1/reply/r", correlation=b"%d" % n * 100)
        world.arrive(bad, reply="edged/v1/reply/r", correlation=bytes(60_000))
        world.cancelled(f"unknown-{n}")
        world.jobs.flush()
    assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
    tracemalloc.stop()
    assert len(world.spool.waiters.of(1)) == admission_module.MAX_WAITERS
    assert world.jobs.status().queued == 0


def test_no_more_cancels_of_unknown_jobs_are_remembered_than_there_is_room_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "CANCEL_MEMORY", 5)
    for n in range(20):
        world.cancelled(f"j{n}")
    world.serve().arrive(job("j14"), job("j15"), job("j19"))
    world.jobs.flush()
    world.jobs.flush()
    states = {said[1]: said[2].get("state") for said in world.said if said[0] == "result"}
    assert states == {"j15": "cancelled", "j19": "cancelled"}


def test_suspects_run_alone_and_the_others_after_them(world: World, tmp_path: Path) -> None:
    world.arrive(*[job(f"j{n}") for n in range(4)])
    world.jobs.flush()
    again = World(tmp_path, last_end=LastEnd("Fatal", (1, 2))).serve(rows=3)
    again.jobs.flush()
    for alone in (1, 2):
        assert again.submitted[-1] == alone
        again.jobs.engine_event(Started(alone))
        again.finish(alone)
        again.jobs.flush()
    assert again.submitted == [1, 2, 3, 4]


def test_confirmations_are_written_with_the_next_commit_or_after_a_moment(world: World) -> None:
    world.serve().arrive(job("a"))
    world.run()
    world.confirm()
    world.jobs.flush()
    assert world.jobs.busy
    world.arrive(job("b"))
    world.jobs.flush()
    assert [delivery.id for delivery in world.spool.due()] == []


def test_retention_is_kept_to_the_second_where_it_is_short(tmp_path: Path, world: World) -> None:
    short = World(tmp_path, retention=0).serve()
    short.arrive(job("a"))
    short.run()
    short.confirm()
    short.jobs.drain()
    short.jobs.flush()
    short.jobs.tick()
    assert short.spool.find("a") is None


def pin(world: World, *numbers: int) -> None:
    """The preparer hands out pinned prompts of the model that is served."""
    for number in numbers:
        request = Request(number, (1,), 1, priority=9, pin=True)
        world.jobs.prepared(Prepared(number, world.loaded, request))
    world.jobs.flush()


def test_each_model_reads_the_pinned_prompts(tmp_path: Path) -> None:
    world = World(tmp_path, pinned=("one", "two")).serve()
    assert world.pinned == [(("one", "two"), world.loaded, frozenset())]
    pin(world, -7, -8)
    assert world.submitted == [-7, -8]


def test_a_job_that_ran_beside_a_pinned_prompt_in_a_crash_did_not_run_alone(world: World, tmp_path: Path) -> None:
    world.arrive(job("a"), job("b"))
    world.jobs.flush()
    for crash in range(4):
        again = World(tmp_path, last_end=LastEnd("Fatal", (1, -7)))
        (first, _) = again.spool.queued()
        assert (first.crashes, first.suspect, first.starts) == (0, True, crash + 1)
        assert again.jobs.status().queued == 2
    again.serve(rows=3)
    pin(again, -7, -8)
    assert again.submitted == [-7]  # alone, whether it is to blame or not
    again.finish(-7)
    again.jobs.flush()
    assert again.submitted == [-7, -8]
    again.finish(-8)
    again.jobs.flush()
    assert again.submitted == [-7, -8, 1]  # a suspect too
    again.run()
    assert [again.kinds(id)[-1] for id in "ab"] == ["result", "result"]


def test_a_pinned_prompt_that_crashes_alone_three_times_is_given_up(world: World, tmp_path: Path) -> None:
    for crash in range(1, 4):
        again = World(tmp_path, last_end=LastEnd("Fatal", (-7,)), pinned=("one",)).serve()
        assert again.pinned[0][2] == (frozenset({-7}) if crash == 3 else frozenset())
    killed = World(tmp_path, last_end=LastEnd(None, (-8,)), pinned=("one",)).serve()  # by the power
    pin(killed, -8)
    killed.arrive(job("a"))
    killed.jobs.flush()
    assert killed.submitted == [-8, 1]  # in company


def test_a_pinned_prompt_that_was_read_after_a_crash_is_no_suspect_any_more(world: World, tmp_path: Path) -> None:
    for _ in range(4):
        again = World(tmp_path, last_end=LastEnd("Fatal", (-7,))).serve()
        pin(again, -7)
        assert again.submitted == [-7]
        again.finish(-7)
    assert World(tmp_path).spool.pinned_attempts() == {}


def test_a_snapshot_of_all_jobs(world: World) -> None:
    world.serve().arrive(job("a"), job("b"))
    before = world.jobs.status()
    assert (world.jobs.busy, world.jobs.settled) == (True, True)
    world.jobs.flush()
    world.jobs.engine_event(Started(1))
    assert not world.jobs.settled
    after = world.jobs.status()
    assert (before.queued, before.running) == (0, 0)
    assert (after.queued, after.running, after.fault, after.full) == (0, 1, None, False)
    assert before.spool_bytes > 0
    world.finish(1)
    world.jobs.flush()
    assert dict(world.jobs.status().speed) == {"prefill": 1.0}
    assert world.jobs.status().outbox == 1


def test_a_result_that_the_broker_does_not_take_is_replaced_in_one_commit_for_repeats_too(
    world: World,
) -> None:
    world.serve()
    large = job("large", metadata={"m": "x" * 5000})
    world.arrive(large)
    world.run()
    world.jobs.published(PublishRefused(world.tokens[-1], "packet too large", PACKET_TOO_LARGE))
    assert world.jobs.busy
    world.jobs.drain()  # else the commit waits for company
    world.jobs.flush()
    (known, replaced) = [said[2] for said in world.said if said[:2] == ("result", "large")]
    assert known["state"] == "succeeded"
    assert (replaced["state"], replaced["error"]["code"]) == ("failed", "result_too_large")
    assert "5" in replaced["error"]["message"]
    assert "metadata" not in replaced
    assert world.spool.find("large").state == "failed"  # type: ignore[union-attr]
    world.confirm()
    world.arrive(large)
    world.jobs.flush()
    assert [said[2] for said in world.said if said[:2] == ("result", "large")][2:] == [replaced]
