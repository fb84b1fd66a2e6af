"""The energy of the last 24 hours: what is counted, what outlives a restart, and how the governor makes it last."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edged.energy_day import DAY, MOST_SLICES, SLICE, EnergyDay
from edged.engine.steps import EngineLimit
from edged.governor import LEAST_DAY_DUTY, REGAINED, SPENT, Governor, Hold, Strain, govern, limited
from edged.machine.clock import Clock
from edged.machine.sensors.readings import Readings
from edged.status import EnergyStatus

BUDGET, IDLE, WORK = 350_000.0, 2.7, 4.5
"""Joules a day; watts of a Pi 5 while idle, and those above that at full work."""
LEFT = BUDGET - IDLE * DAY


@dataclass
class Board(Clock):
    """A board with its clocks and an energy ledger, whose time the test lets pass."""

    folder: Path
    boot: str = "first"
    booted: float = 1_800_000_000.0
    now: float = 1_800_000_100.0
    idle: float = 0.0
    work: float = 0.0
    source: str = "VIN"
    history: list[float] = field(default_factory=list)
    """Joules of each minute."""

    def wall(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now - self.booted

    def boot_id(self) -> str:
        return self.boot

    def measured(self) -> EnergyStatus:
        idle_watts = IDLE if self.source else None
        return EnergyStatus(self.source, {"decode": self.work, "idle": self.idle}, {}, idle_watts)

    def start(self, budget: float = BUDGET) -> EnergyDay:
        """A process begins: the ledger counts from 0."""
        self.idle = self.work = 0.0
        return EnergyDay(budget, self.folder / "energy.json", self, self.measured)

    def reboot(self, seconds: float) -> None:
        self.now += seconds
        self.boot, self.booted = self.boot + "+", self.now

    def spend(self, day: EnergyDay, seconds: float, duty: float = 1.0) -> None:
        self.now += seconds
        self.idle += IDLE * seconds
        self.work += WORK * duty * seconds
        day.update()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_it_counts_the_last_day(board: Board) -> None:
    day = board.start()
    for _ in range(48):
        board.spend(day, 1800.0)
    assert day.joules == pytest.approx(DAY * (IDLE + WORK))
    assert day.share == pytest.approx(WORK * DAY / LEFT)
    for _ in range(50):
        board.spend(day, 1800.0, duty=0.0)
    assert (day.joules, day.share) == (pytest.approx(DAY * IDLE, rel=0.03), pytest.approx(0.0))


def test_it_outlives_restarts_and_reboots_and_time_without_power_takes_nothing(board: Board) -> None:
    day = board.start()
    board.spend(day, 1000.0)
    day.save()
    board.now += 50.0
    day = board.start()
    board.spend(day, 10.0)
    assert day.joules == pytest.approx(1010.0 * (IDLE + WORK), rel=0.001)
    day.save()
    board.reboot(DAY - 2000.0)
    day = board.start()
    day.update()
    assert day.joules == pytest.approx(1010.0 * (IDLE + WORK), rel=0.001)
    day.save()
    board.reboot(3000.0)
    day = board.start()
    day.update()
    assert day.joules == 0.0


def test_what_a_killed_process_loses_is_a_quarter_of_an_hour(board: Board) -> None:
    day = board.start()
    for _ in range(100):
        board.spend(day, 60.0)
    day = board.start()
    day.update()
    assert (6000.0 - SLICE) * (IDLE + WORK) <= (day.joules or 0.0) <= 6000.0 * (IDLE + WORK)


def test_a_clock_that_went_back_forgets_nothing(board: Board) -> None:
    day = board.start()
    board.spend(day, 1000.0)
    day.save()
    board.reboot(-1e6)
    day = board.start()
    day.update()
    assert day.joules == pytest.approx(1000.0 * (IDLE + WORK), rel=0.001)


def test_the_file_does_not_grow_with_restarts(board: Board) -> None:
    many = [[1.0, 100.0, 50.0]] * (MOST_SLICES - 1)
    times = {"boot_id": board.boot, "boottime": board.boottime(), "wall": board.wall()}
    (board.folder / "energy.json").write_text(json.dumps({**times, "slices": many}))
    for _ in range(4):
        day = board.start()
        board.spend(day, 10.0)
        day.save()
    assert day.joules == pytest.approx((MOST_SLICES - 1) * 100.0 + 4 * 10.0 * (IDLE + WORK), rel=0.001)
    assert len(json.loads((board.folder / "energy.json").read_text())["slices"]) == MOST_SLICES


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"boot_id": "first", "boottime": NaN, "wall": 0, "slices": []}'])
def test_a_damaged_file_is_said_and_the_count_begins_anew(board: Board, text: str) -> None:
    (board.folder / "energy.json").write_text(text)
    with capture_logs() as logged:
        day = board.start()
    assert [entry["event"] for entry in logged] == ["energy_day_refused"]
    board.spend(day, 10.0)
    assert day.joules == pytest.approx(10.0 * (IDLE + WORK))


def test_a_disk_that_takes_no_writes_is_said_once(board: Board) -> None:
    day = board.start()
    (board.folder / ".energy.json.new").mkdir()
    with capture_logs() as logged:
        day.save()
        day.save()
    assert [entry["event"] for entry in logged] == ["energy_day_not_kept"]


def test_without_a_known_power_there_is_no_number(board: Board) -> None:
    board.source = ""
    day = board.start()
    day.update()
    assert (day.joules, day.share) == (None, None)


# The governor


def test_of_a_days_energy_the_last_part_is_spent_ever_more_slowly_and_comes_back_with_hysteresis() -> None:
    def decide(hold: Hold, share: float | None) -> Hold:
        return govern(hold, Strain(day_share=share), 1.0, budget=None, most_rows=8)

    assert decide(Hold(), 0.79) == Hold()
    begun = decide(Hold(), SPENT + 0.01)
    assert (begun.share, begun.reasons) == (pytest.approx(14 / 15), {"energy_budget"})
    more = decide(begun, 0.85)
    assert (more.share, more.duty) == (pytest.approx(0.5), 1.0)
    assert decide(more, 1.2).share == LEAST_DAY_DUTY
    assert decide(more, REGAINED + 0.01).reasons == {"energy_budget"}
    assert decide(more, REGAINED) == Hold()
    assert decide(more, None).reasons == set()


def test_a_board_with_little_energy_left_leaves_groups_to_others() -> None:
    hold = Hold()
    for _ in range(20):
        hold = govern(hold, Strain(day_share=0.9), 1.0, budget=None, most_rows=8)
    assert hold.sheds_groups


def test_over_a_week_of_jobs_no_24_hours_take_more_than_the_budget(board: Board) -> None:
    """Jobs wait at all times; each night the board is without power for two hours, and the process starts anew."""
    limits: list[EngineLimit] = []

    def wired() -> Governor:
        return Governor(Readings, {}, limits.append, day=board.start())

    governor = wired()
    steps: list[float] = []
    changes, reasons = 0, set[str]()
    for minute in range(0, 7 * 1440, 5):
        if minute % 1440 == 1435:
            governor.close()
            board.reboot(7200.0)
            steps.extend([0.0] * 24)
            governor = wired()
        duty = limits[-1].duty if limits else 1.0
        board.now += 300.0
        board.idle += IDLE * 300
        board.work += WORK * duty * 300
        steps.append((IDLE + WORK * duty) * 300)
        before = governor.status.reasons
        governor.update(float(minute) * 60, most_rows=4, running=True)
        changes += governor.status.reasons != before
        reasons.update(governor.status.reasons)
    days = [sum(steps[at : at + 288]) for at in range(len(steps) - 288)]
    print(f"24 hours take {min(days) / BUDGET:.3f} to {max(days) / BUDGET:.3f} of the budget, {changes} changes")
    assert max(days) <= BUDGET
    assert sorted(days)[len(days) // 2] > 0.85 * BUDGET
    assert reasons == {"energy_budget"}
    assert changes < 40


def test_a_budget_that_the_idle_board_takes_alone_is_said_not_to_be_kept(board: Board) -> None:
    day = board.start(budget=IDLE * DAY * 0.9)
    governor = Governor(Readings, {}, lambda _limit: None, day=day)
    with capture_logs() as logged:
        for second in range(100):
            board.spend(day, 1.0)
            governor.update(float(second), most_rows=1, running=True)
    assert day.share == math.inf
    said = [entry for entry in logged if entry["event"] == "power_budget_not_kept"]
    assert [("the idle board alone" in entry["hint"]) for entry in said] == [True]
    assert "power.budget_joules_per_day" in limited(governor.status)[0].hint
