"""The governor: what it decides, that it does not oscillate, and what it does on a simulated Raspberry Pi 5."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from simulated_board import PLOTS, Pi5, drawn, hour, swing
from structlog.testing import capture_logs

from edged.engine.steps import EngineLimit
from edged.governor import LEAST_DUTY, Governor, Hold, Strain, govern
from edged.machine.board import detect
from edged.machine.sensors.limits import thermal_limits
from edged.machine.sensors.quantities import PRESSURE, TEMPERATURE, THROTTLED
from edged.machine.sensors.readings import Reading, Readings

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
CALM = Strain(heat_margin=30.0, watts=3.0, memory_stall=0.0)


def decide(strains: Sequence[Strain], hold: Hold | None = None, *, budget: float | None = None, rows: int = 8) -> Hold:
    hold = hold or Hold()
    for strain in strains:
        hold = govern(hold, strain, 1.0, budget=budget, most_rows=rows)
    return hold


def test_a_calm_board_is_not_held_back() -> None:
    assert decide([CALM] * 100) == Hold(watts=3.0)
    assert decide([Strain()] * 100) == Hold()  # one that tells nothing


def test_heat_makes_pauses_until_the_zone_is_clear_of_its_limit() -> None:
    hot = decide([Strain(heat_margin=0.0)] * 10)
    assert (hot.duty, hot.reasons) == (pytest.approx(0.98**17), {"heat"})
    assert decide([Strain(heat_margin=-2.0)] * 10).duty < hot.duty
    near = decide([Strain(heat_margin=0.7)] * 50, hot)
    assert (near.duty, near.reasons) == (pytest.approx(hot.duty, abs=0.05), {"heat"})  # neither less nor more
    clear = decide([Strain(heat_margin=2.5)] * 20, near)
    assert (clear.duty, clear.reasons) == (pytest.approx(near.duty + 20 * 0.005 + 0.06 * 1.8), {"heat"})
    assert decide([Strain(heat_margin=2.5)] * 100, near) == Hold()


def test_one_step_of_a_coarse_sensor_is_no_speed_of_warming_and_several_are() -> None:
    swinging = decide([Strain(heat_margin=2.0 - n // 5 % 2) for n in range(100)])
    assert (swinging.duty, swinging.reasons) == (1.0, set())
    warming = decide([Strain(heat_margin=9.0 - n // 5) for n in range(35)])
    assert warming.duty < 0.9
    assert decide([Strain(heat_margin=3.0)] * 60, warming).duty > warming.duty  # it warms up no more


def test_jobs_go_on_in_any_heat() -> None:
    assert decide([Strain(heat_margin=-10.0)] * 1000).duty == LEAST_DUTY


def test_a_budget_of_watts_is_kept_on_average_and_not_by_swinging() -> None:
    """The board draws 3 W and 5 W more while it computes."""
    hold, drawn, duties = Hold(), [], []
    for _ in range(1200):
        drawn.append(3.0 + 5.0 * hold.duty)
        duties.append(hold.duty)
        hold = decide([Strain(watts=drawn[-1])], hold, budget=6.0)
    assert sum(drawn[120:]) / len(drawn[120:]) <= 6.0
    assert hold.duty > 0.5
    assert max(duties[120:]) - min(duties[120:]) < 0.1
    assert hold.reasons == {"power_budget"}
    assert decide([Strain(watts=3.0)] * 100, hold, budget=6.0).reasons == set()


def test_a_weak_supply_leaves_groups_to_others_and_computes_on() -> None:
    short = decide([Strain(weak_supply=True)] * 9)
    assert (short.duty, short.sheds_groups, short.reasons) == (1.0, False, {"power_supply"})
    weak = decide([Strain(weak_supply=True)] * 300)
    assert (weak.duty, weak.sheds_groups) == (1.0, True)
    later = decide([CALM] * 50, weak)
    assert (later.sheds_groups, later.reasons) == (True, {"power_supply"})
    assert decide([CALM] * 20, later) == Hold(watts=3.0)


def test_a_board_that_must_pause_much_leaves_groups_to_others() -> None:
    assert decide([Strain(heat_margin=0.0)] * 30).sheds_groups
    little = decide([*[Strain(heat_margin=0.0)] * 4, *[Strain(heat_margin=0.7)] * 100])
    assert (little.sheds_groups, little.reasons) == (False, {"heat"})


def test_rows_are_lowered_for_memory_alone_and_come_back_slowly() -> None:
    assert decide([Strain(heat_margin=0.0, weak_supply=True, watts=99.0)] * 100, budget=5.0).rows is None
    starved = decide([Strain(memory_stall=0.5)] * 25)
    assert (starved.rows, starved.reasons, starved.duty) == (5, {"memory"}, 1.0)
    assert decide([Strain(memory_stall=0.5)] * 1000).rows == 1
    assert decide([Strain(memory_stall=0.1)] * 1000, starved).rows == 5
    fed = decide([Strain(memory_stall=0.0)] * 60, starved)
    assert fed.rows == 6
    assert decide([Strain(memory_stall=0.0)] * 200, fed) == Hold(row_pause=0.0)


# Wired


def readings(
    celsius: float, *, stall: float = 0.0, total: float | None = None, reasons: Sequence[str] = ()
) -> Readings:
    at = time.monotonic() + 3600  # as fresh as the test lets time pass
    return Readings(
        {
            TEMPERATURE: {("cpu-thermal",): Reading(celsius, at), ("nvme",): Reading(90.0, at)},
            PRESSURE: {("memory", "some"): Reading(stall, at)},
            THROTTLED: {(reason,): Reading(1.0, at) for reason in reasons},
        }
    )


@dataclass
class Wired:
    """A governor of a Pi 5 and what it told the engine."""

    now: Readings
    duty: float = 1.0
    rows: int | None = None

    def __post_init__(self) -> None:
        self.governor = Governor(lambda: self.now, thermal_limits(detect(BOARDS / "pi5")), self.apply)
        self.at = time.monotonic()

    def apply(self, limit: EngineLimit) -> None:
        self.duty, self.rows = limit.duty, limit.rows

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.governor.update(self.at, most_rows=4, running=True)
            self.at += 1.0


def test_it_reads_the_zones_that_have_a_limit() -> None:
    wired = Wired(readings(84.8))
    wired.run(30)
    assert wired.duty < 0.6
    status = wired.governor.status
    assert (status.duty, status.reasons, status.rows) == (wired.duty, ("heat",), None)
    wired.now = readings(60.0)
    wired.run(25)
    assert wired.duty == pytest.approx(status.duty + 25 * 0.005 + 0.06 * 2.3)


def test_it_reads_memory_and_the_supply() -> None:
    wired = Wired(readings(50.0, stall=0.6, reasons=["under_voltage", "frequency_capped"]))
    wired.run(12)
    assert (wired.rows, wired.duty) == (2, 1.0)
    assert wired.governor.status.reasons == ("memory", "power_supply")
    assert wired.governor.status.sheds_groups


def test_a_budget_is_kept_by_configured_watts_where_there_is_no_sensor() -> None:
    duties: list[float] = []
    governor = Governor(
        Readings, {}, lambda limit: duties.append(limit.duty), budget=4.0, configured=lambda duty: 3.0 + 4.0 * duty
    )
    for second in range(300):
        governor.update(float(second), most_rows=1, running=True)
    assert duties[-1] == pytest.approx(0.25, abs=0.05)


def test_a_budget_that_nothing_measures_is_said_not_to_be_kept() -> None:
    governor = Governor(Readings, {}, lambda _limit: None, budget=4.0)
    free = Governor(Readings, {}, lambda _limit: None)
    with capture_logs() as logged:
        for second in range(300):
            governor.update(float(second), most_rows=1, running=True)
            free.update(float(second), most_rows=1, running=True)
    assert [entry["event"] for entry in logged] == ["power_budget_not_kept"]


def test_limits_of_the_boards(tmp_path: Path) -> None:
    assert thermal_limits(detect(BOARDS / "pi4")) == {"cpu-thermal": 85.0}
    assert thermal_limits(detect(BOARDS / "pc")) == {}
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    for name, text in {
        "type": "bigcore0-thermal",
        "trip_point_0_type": "passive",
        "trip_point_0_temp": "85000",
        "trip_point_1_type": "critical",
        "trip_point_1_temp": "115000",
    }.items():
        (zone / name).write_text(text)
    assert thermal_limits(detect(tmp_path)) == {"bigcore0-thermal": 105.0}
    (zone / "trip_point_1_temp").write_text("0")
    assert thermal_limits(detect(tmp_path)) == {}


@pytest.mark.parametrize("fan", [False, True], ids=["bare", "fan"])
@pytest.mark.parametrize("ambient", [15, 25, 35, 45, 50, 55, 60])
def test_a_simulated_pi_5_stays_below_its_hard_limit(ambient: float, fan: bool) -> None:
    """Within its rated 50 °C the board makes as many tokens as without the governor, or more; beyond, it stays cool."""
    free, held = hour(Pi5(ambient, fan), governed=False), hour(Pi5(ambient, fan), governed=True)
    assert held.hottest < 85.0
    assert ambient > 50 or held.tokens >= free.tokens


@pytest.mark.parametrize("joules_per_kelvin", [10, 22, 60])
@pytest.mark.parametrize("ambient", [35, 45, 55])
def test_a_board_that_nothing_else_cools_settles_and_does_not_swing(ambient: float, joules_per_kelvin: float) -> None:
    """Of the heat capacity of a bare chip, of a Pi, and of one in a metal case."""
    held = hour(Pi5(ambient, fan=False, lowers=False, joules_per_kelvin=joules_per_kelvin), governed=True)
    assert swing(held) < 0.1
    assert held.hottest < 85.0


@pytest.mark.parametrize("step", [0.55, 1.0])
@pytest.mark.parametrize("grid", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("joules_per_kelvin", [10, 22, 60])
@pytest.mark.parametrize("ambient", [45, 55])
def test_a_sensor_with_steps_makes_the_duty_swing_little(
    ambient: float, joules_per_kelvin: float, grid: float, step: float
) -> None:
    """A Pi's has steps of 0.55 K, many boards' of a kelvin. What the board says stays within a step of its limit."""
    lone, pi = (
        hour(Pi5(air, False, lowers=lowers, joules_per_kelvin=joules_per_kelvin), True, step=step, grid=step * grid)
        for air, lowers in ((ambient, False), (ambient + 5, True))
    )
    assert max(swing(lone), swing(pi)) < 0.15
    assert max(lone.hottest, pi.hottest) < 85.0 + 2 * step


def test_the_docs_have_the_plots_of_this_governor() -> None:
    """`make show-governor` draws them."""
    assert PLOTS.read_text(encoding="utf-8") == drawn()
