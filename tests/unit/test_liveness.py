"""Which threads make no progress: decided from values, so without threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.liveness import LOAD_SECONDS, SCALES_SECONDS, SLOWEST_CARD, EndedThread, Task, find_failure, load_limit

NOW = 1000.0


def task(seconds: float | None, jobs: tuple[int, ...] | None = ()) -> Task:
    """A task that runs for so many seconds, of 120; None: none runs."""
    return Task("step_hung", "a step of the model", None if seconds is None else NOW - seconds, 120.0, jobs)


@pytest.mark.parametrize("seconds", [None, 0.0, 119.0])
def test_a_task_within_its_limit_is_no_failure(seconds: float | None) -> None:
    assert find_failure([task(seconds)], [], NOW) is None


@pytest.mark.parametrize("jobs", [None, (), (7,)])
def test_a_task_over_its_limit_names_itself_and_the_jobs_to_blame(jobs: tuple[int, ...] | None) -> None:
    failure = find_failure([task(5.0), task(121.0, jobs)], [], NOW)
    assert failure is not None
    assert (failure.fault.code, failure.jobs) == ("step_hung", jobs)
    assert failure.reason == "a step of the model hung for 121 s"


def test_the_fault_of_a_hung_task_stays_the_same_while_time_passes() -> None:
    first, second = (find_failure([task(seconds)], [], NOW) for seconds in (121.0, 150.0))
    assert first is not None
    assert second is not None
    assert first.fault == second.fault


def test_a_thread_that_has_ended_is_a_failure_though_nothing_hangs() -> None:
    failure = find_failure([task(None)], [EndedThread("engine", "MemoryError", jobs=None)], NOW)
    assert failure is not None
    assert (failure.fault.code, failure.jobs) == ("thread_ended", None)
    assert failure.reason == "the engine thread has ended: MemoryError"


def test_a_load_may_take_longer_the_more_bytes_it_reads(tmp_path: Path) -> None:
    assert load_limit(tmp_path / "absent") == LOAD_SECONDS
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(bytes(20_000_000))
    (tmp_path / "gone.json").symlink_to("nowhere")
    # Once for the checksums and once for onnxruntime.
    assert load_limit(tmp_path) == pytest.approx(LOAD_SECONDS + 2 * 20_000_000 / SLOWEST_CARD)
    # Once more for the published graph, which reads a text.
    whole = LOAD_SECONDS + SCALES_SECONDS + 3 * 20_000_000 / SLOWEST_CARD
    assert load_limit(tmp_path, int8=True) == pytest.approx(whole)
