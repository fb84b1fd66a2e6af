"""The speed of a board beside its own best: what is compared, what is kept, and what does not count."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edged.engine.own_speed import RECENT_SECONDS, WRITE_SECONDS, OwnSpeed
from edged.engine.steps import StepRecord, StepRow


class Board:
    """A board whose steps take as long as the test says."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "speed.json"
        self.now = 0.0
        self.start()

    def start(self, model: str = "phi-3") -> None:
        self.speed = OwnSpeed(self.file, lambda: self.now)
        self.speed.begin(model)

    def decode(self, seconds: float, steps: int, *, rows: int = 1, past: int = 100, prompt: bool = False) -> None:
        for _ in range(steps):
            began, self.now = self.now, self.now + seconds
            row = StepRow(1, 8 if prompt else 1, prompt, past)
            self.speed.ended(StepRecord(began, self.now, (row,) * rows))
            self.speed.keep()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_board_that_becomes_slow_is_compared_with_its_best(board: Board) -> None:
    assert board.speed.ratio is None
    board.decode(0.2, 110)
    assert board.speed.ratio == pytest.approx(1.0)
    board.now += RECENT_SECONDS + 1
    assert board.speed.ratio is None
    board.decode(0.4, 500)
    assert board.speed.ratio == pytest.approx(2.0)
    board.now += RECENT_SECONDS
    board.decode(0.1, 8000)  # it was slow when the best was measured first
    assert board.speed.ratio == pytest.approx(1.0)


def test_more_rows_longer_contexts_and_prompts_are_not_slower(board: Board) -> None:
    board.decode(0.2, 110)
    board.decode(0.5, 100, rows=8)
    board.decode(0.4, 100, past=3000)
    board.decode(5.0, 100, prompt=True)
    board.now += 1
    assert board.speed.ratio == pytest.approx(1.0)
    board.decode(0.75, 100, rows=8)
    board.decode(0.6, 100, past=2500)
    assert 1.2 < (board.speed.ratio or 0.0) < 1.5


def test_a_burst_is_no_measure(board: Board) -> None:
    for _ in range(5):
        board.decode(0.05, 20)
        board.decode(0.2, 200)
    assert board.speed.ratio == pytest.approx(1.0)


def test_the_best_outlives_a_restart_for_the_same_model(board: Board) -> None:
    board.decode(0.2, 200)
    board.start()
    board.decode(0.4, 100)
    assert board.speed.ratio == pytest.approx(2.0)
    board.start("another model")
    board.decode(0.4, 100)
    assert board.speed.ratio == pytest.approx(1.0)


def test_it_is_written_once_an_hour_at_most_and_only_when_it_changed(board: Board) -> None:
    board.decode(0.2, 200)
    written = board.file.stat().st_mtime_ns
    board.decode(0.1, 2000)
    assert board.file.stat().st_mtime_ns == written
    board.now += WRITE_SECONDS
    board.decode(0.1, 300)
    changed = board.file.stat().st_mtime_ns
    assert changed != written
    board.now += WRITE_SECONDS
    board.decode(0.1, 300)
    assert board.file.stat().st_mtime_ns == changed


def test_what_an_hour_has_not_brought_to_the_card_a_stop_does(board: Board) -> None:
    board.decode(0.2, 200)
    board.decode(0.1, 300)
    board.speed.save()
    written = board.file.stat().st_mtime_ns
    board.start()
    board.decode(0.2, 200)
    assert board.speed.ratio == pytest.approx(2.0)
    board.speed.save()  # nothing has changed
    assert board.file.stat().st_mtime_ns == written


def test_a_few_long_steps_are_no_measure(board: Board) -> None:
    board.decode(2.0, 31)
    assert board.speed.ratio is None
    board.decode(2.0, 1)
    assert board.speed.ratio == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "[]", '{"m": 1}', '{"m": [[1, 2, -3]]}', '{"m": [[1, 2, NaN]]}'])
def test_a_damaged_file_is_said_and_measured_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_text(text)
    with capture_logs() as logged:
        board = Board(tmp_path)
    assert [entry["event"] for entry in logged] == ["speed_refused"]
    board.decode(0.2, 110)
    assert board.speed.ratio == pytest.approx(1.0)


def test_a_disk_that_takes_no_writes_is_said(board: Board) -> None:
    board.file.with_name(".speed.json.new").mkdir()
    with capture_logs() as logged:
        board.decode(0.2, 200)
    assert [entry["event"] for entry in logged] == ["speed_not_kept"]
