"""A package on trial: the bench of edged's own beside jobs, and what speaks for and against the package."""

from __future__ import annotations

import queue

import pytest
from engine_rig import MODELS, Steps, load, reference, request
from patience import PATIENCE
from rollout_rig import DIGEST, known, now
from structlog.testing import capture_logs

from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.self_bench import ANSWER, KEY, SelfBench
from edged.engine.sequence import Request
from edged.engine.steps import StepObservers, StepRecord, StepRow
from edged.rollout.execution import Baseline, Execution, Package
from edged.rollout.trial import BENCH_PAUSE, BENCH_SECONDS, MOST_PASSED, SLOW_BENCHES, STRAIN_SECONDS, Trial
from edged.status import GovernorStatus, ModelFacts, ModelStatus, Status


def test_the_bench_runs_alone_beside_jobs_and_changes_none_of_their_tokens() -> None:
    events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    bench, steps = SelfBench(events.put), Steps()
    loaded = load(MODELS / "phi3", rows=3)
    engine = Engine(lambda: loaded, lambda: "", bench.deliver, lambda _keys: None, StepObservers(bench, steps))
    references = reference("phi3")[:2]
    for key, one in enumerate(references, 1):
        engine.submit(request(key, one["prompt_ids"], len(one["output_ids"])))
    engine.submit(bench.begin(loaded.context))
    engine.start()
    ended: dict[int, Finished] = {}
    while len(ended) < 3:
        event = events.get(timeout=PATIENCE)
        assert not isinstance(event, Ended)
        if isinstance(event, Finished):
            ended[event.key] = event
    engine.stop()
    assert [list(ended[key].tokens) for key in (1, 2)] == [one["output_ids"] for one in references]
    shared = [step.rows for step in steps.records if len(step.rows) > 1]
    assert shared
    assert not [rows for rows in shared if any(row.key == KEY for row in rows)]
    own = [s for s in steps.records if s.rows[0].key == KEY and not s.rows[0].prompt]
    assert len(own) == ANSWER - 1
    times = sorted(step.ended - step.began for step in own)
    assert bench.seconds is not None
    assert times[0] <= bench.seconds <= times[len(times) // 2]
    assert (bench.answered, bench.failed) == (2, 0)


def test_the_bench_fits_the_smallest_context() -> None:
    small = SelfBench(lambda _event: None).begin(16)
    assert len(small.prompt) + small.max_tokens == 16
    assert not small.store


FACTS = ModelFacts(
    architecture="phi3",
    execution_provider="CPUExecutionProvider",
    execution_provider_reason="",
    threads=1,
    planned_bytes=0,
    verified=True,
    digest=DIGEST,
    lone_rows_padded=False,
    same_ids_in_any_company=True,
    logits="wanted",
    logits_reason=None,
    response_formats=("text",),
    response_formats_reason=None,
    kv_cache="float32",
    kv_cache_reason=None,
    speculation=False,
    speculation_reason=None,
    split_tokens=1,
    chat=None,
    load_seconds=1.0,
    rows=1,
    context=512,
    prefix_bytes=0,
)


class Board:
    """A board on which a bench takes as long as the test says, and time passes as it says."""

    def __init__(self, comparable: bool = True) -> None:
        self.at = 1000.0
        self.bench = SelfBench(lambda _event: None)
        self.asked: list[Request] = []
        self.cancelled: list[int] = []
        self.trial = Trial(self.bench, self.asked.append, self.cancelled.append, comparable)

    def answer(self, step: float) -> None:
        """The bench that was asked for last ends."""
        assert self.asked
        for index in range(8):
            row = StepRow(KEY, 1, prompt=False, past=32 + index)
            self.bench.ended(StepRecord(self.at, self.at + step, (row,)))
        self.bench.deliver(finished(KEY))

    def status(self, *reasons: str, running: int = 1) -> Status:
        model = ModelStatus("serving", "phi3", facts=FACTS)
        return Status(model=model, running=running, governor=GovernorStatus(reasons=reasons))

    def look(self, execution: Execution, *reasons: str, running: int = 1, seconds: float = 1.0) -> Execution:
        """A second passes; a fault of the package is raised as AssertionError."""
        self.at += seconds
        execution = execution.serves(now(self.at - 1000.0))
        status = self.status(*reasons, running=running)
        execution = self.trial.measure(execution, status, self.at)
        fault = self.trial.fault(execution, status, self.at)
        assert fault is None, fault.message
        return execution


def finished(key: int) -> Finished:
    return Finished(key, "", (1,), "length", 1, 0, 0.0, (0.0,), 0.0)


def on_trial(before: float | None = 0.1, strains: tuple[str, ...] = (), **proving: object) -> Execution:
    begun = Execution(known(proving=proving)).advance(now())
    loading = begun.pulled("x", Baseline(before, strains), now()).starting(now())
    return loading.loaded(Package("phi3", DIGEST), True, now()).serves(now())


def before(board: Board, **proving: object) -> Baseline | None:
    return board.trial.baseline(Execution(known(proving=proving)).advance(now()), board.status(), board.at)


def test_the_speed_of_the_package_before_is_measured_and_what_strained_the_board_is_noted() -> None:
    board = Board()
    board.trial.watch(board.status("heat", "power_budget"))
    board.trial.watch(board.status())
    assert before(board) is None
    board.answer(0.25)
    assert before(board) == Baseline(pytest.approx(0.25), ("heat",))
    assert len(board.asked) == 1


def test_nothing_is_compared_with_the_demo_model_or_where_any_speed_will_do() -> None:
    assert before(Board(comparable=False)) == before(Board(), speed=0) == Baseline()


@pytest.mark.parametrize("ends", ["never", "failed"])
def test_where_the_speed_before_cannot_be_measured_that_is_said(ends: str) -> None:
    board = Board()
    assert before(board) is None
    if ends == "failed":
        board.bench.deliver(Ended(KEY, failure="the model failed at a step"))
    else:
        board.at += BENCH_SECONDS
    with capture_logs() as logged:
        assert before(board) == Baseline()
    assert [entry["event"] for entry in logged] == ["rollout_speed_not_compared"]
    assert board.cancelled == [KEY]


def test_a_package_that_is_fast_enough_is_measured_at_the_start_and_at_the_end() -> None:
    board, execution = Board(), on_trial(seconds=100, speed=0.5)
    execution = board.look(execution)
    board.answer(0.19)
    execution = board.look(execution)
    assert execution.speed == pytest.approx(0.526, abs=0.001)
    for _ in range(90):
        execution = board.look(execution)
    assert len(board.asked) == 1
    assert not board.trial.proved(execution)
    for _ in range(10):
        execution = board.look(execution)
    assert (len(board.asked), board.trial.proved(execution)) == (2, False)
    board.answer(0.15)
    assert board.trial.proved(board.look(execution))


def test_a_trial_of_no_time_is_one_bench() -> None:
    board, execution = Board(), on_trial(seconds=0)
    execution = board.look(execution)
    board.answer(0.1)
    assert board.trial.proved(board.look(execution))
    assert board.trial.proved(on_trial(before=None, seconds=0))


def test_a_package_is_too_slow_after_three_benches_in_a_row() -> None:
    board, execution = Board(), on_trial(seconds=60, speed=0.5)

    def bench(step: float) -> None:
        nonlocal execution
        asked = len(board.asked)
        while len(board.asked) == asked:
            execution = board.look(execution)
        board.answer(step)

    for step in (0.3, 0.3, 0.1, 0.3, 0.3, 0.3):
        bench(step)
        if len(board.asked) < 6:
            execution = board.look(execution)
    assert board.at - 1000.0 > 2 * BENCH_PAUSE + 60
    with pytest.raises(AssertionError, match=r"decodes 3\.33 tokens a second, 0\.33 times .* at least 0\.5 times"):
        board.look(execution)
    assert len(board.asked) == 3 + SLOW_BENCHES


def test_a_bench_that_the_engine_fails_at_is_none_that_was_fast_enough() -> None:
    board, execution = Board(), on_trial(seconds=0)
    for _ in range(SLOW_BENCHES - 1):
        execution = board.look(execution, seconds=BENCH_PAUSE)
        board.bench.deliver(Ended(KEY, failure="NaN"))
        execution = board.look(execution)
        assert execution.speed == 0.0
    execution = board.look(execution, seconds=BENCH_PAUSE)
    board.bench.deliver(Ended(KEY, failure="NaN"))
    with pytest.raises(AssertionError, match="decodes 0 tokens a second"):
        board.look(execution)


def test_a_bench_that_never_ends_is_asked_for_again() -> None:
    board, execution = Board(), on_trial(seconds=0)
    execution = board.look(execution)
    execution = board.look(execution, seconds=BENCH_SECONDS)
    board.look(execution)
    assert (len(board.asked), board.cancelled) == (2, [KEY])


def test_jobs_at_which_the_engine_fails_are_the_packages_fault_and_few_of_many_are_not() -> None:
    board, execution = Board(), on_trial(before=None)
    for key in range(1, 41):
        board.bench.deliver(finished(key))
    for key in range(41, 45):
        board.bench.deliver(Ended(key, failure="NaN"))
        board.bench.deliver(Ended(key))
        execution = board.look(execution)
    board.bench.deliver(Ended(45, failure="NaN"))
    with pytest.raises(AssertionError, match="the engine failed at 5 of 45 jobs"):
        board.look(execution)


def test_a_board_that_is_held_back_for_a_new_reason_while_jobs_run_is_the_packages_fault() -> None:
    board, execution = Board(), on_trial(before=None, strains=("memory",))
    for _ in range(int(STRAIN_SECONDS)):
        execution = board.look(execution, "memory", "power_budget")
        execution = board.look(execution, "heat", running=0)
    execution = board.look(execution, "heat", seconds=10 * MOST_PASSED)  # the loop stood still
    for _ in range(int(STRAIN_SECONDS - MOST_PASSED) - 1):
        execution = board.look(execution, "heat")
        execution = board.look(execution)
    with pytest.raises(AssertionError, match="because of heat, which it was not"):
        board.look(execution, "heat")
