"""Energy: what jobs are charged for on made and on recorded power, and that nothing is lost or made up."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edged.engine.steps import StepRecord, StepRow
from edged.jobs.energy import CONFIGURED, LOST_SECONDS, EnergyLedger, FixedPower, JobEnergy
from edged.machine.sensors.power import Power
from edged.machine.sensors.sampler import Sampler

RECORDED = Path(__file__).parents[1] / "fixtures/energy"
IDLE, BUSY = 2.0, 6.0
EVERY = 0.25
Rows = Sequence[tuple[int, int, bool]]
"""Key, tokens, whether they are of the prompt."""


class Bench:
    """A ledger, and a board whose power and steps are made: time passes by idle() and step()."""

    def __init__(self, watts: Callable[[bool], float] = lambda busy: BUSY if busy else IDLE) -> None:
        """`watts`: what the board draws, by whether a step runs."""
        self.now = 100.0
        self.read_at = self.now
        self.joules = self.integral = 0.0
        self.woken = 0
        self.loading = False
        self.watts = watts
        self.every = EVERY
        self.ledger = EnergyLedger(wake=self.wake, loading=lambda: self.loading, now=lambda: self.now)

    def wake(self) -> None:
        self.woken += 1

    def known(self, seconds: float = 10.0) -> Bench:
        """After a load, and an idle time by which the idle power is known."""
        self.idle(self.every + seconds)
        return self

    def idle(self, seconds: float) -> None:
        self._pass(seconds, busy=False)

    def step(self, seconds: float, *rows: tuple[int, int, bool]) -> None:
        began = self.now
        self.ledger.began(began)
        self._pass(seconds, busy=True)
        self.ledger.ended(StepRecord(began, self.now, tuple(StepRow(*row) for row in rows)))

    def _pass(self, seconds: float, busy: bool) -> None:
        until = self.now + seconds
        while self.now < until:
            end = min(until, self.read_at + self.every)
            self.joules += self.watts(busy) * (end - self.now)
            self.now = end
            if end >= self.read_at + self.every - 1e-9:
                self.ledger.add_power(self.read_at, end, self.joules / (end - self.read_at), "VIN")
                self.integral += self.joules
                self.read_at, self.joules = end, 0.0

    def job(self, key: int, company: int = 0, prompt: int = 64, answer: int = 40) -> None:
        """A job, with `company` others in each step of its answer, each of which makes the step longer."""
        self.step(prompt * 0.01, (key, prompt, True))
        for _ in range(answer):
            others = [(1000 + n, 1, False) for n in range(company)]
            self.step(0.05 * (1 + company), (key, 1, False), *others)

    def joules_of(self, key: int) -> float:
        found = self.ledger.take(key)
        assert found is not None
        return found.joules

    def total(self) -> float:
        return sum(self.ledger.status().joules.values())


def test_a_job_takes_its_seconds_times_the_power_above_idle() -> None:
    bench = Bench().known()
    bench.job(1, prompt=100, answer=40)
    bench.idle(2.0)
    found = bench.ledger.take(1)
    assert found is not None
    assert (found.prefill, found.decode) == (pytest.approx(4.0, rel=0.05), pytest.approx(8.0, rel=0.05))
    assert (found.source, found.joules) == ("VIN", found.prefill + found.decode)
    status = bench.ledger.status()
    assert status.idle_watts == pytest.approx(IDLE)
    assert status.tokens == {"prefill": 100, "decode": 40}
    assert status.joules["prefill"] == pytest.approx(found.prefill)


@pytest.mark.parametrize("every", [0.1, 0.25, 1.0])
def test_equal_jobs_take_equal_joules_whatever_their_company(every: float) -> None:
    """Alone, with one to seven others, after a pause or without, on constant power and with steps by the row."""
    constant = Bench(lambda _busy: BUSY if busy_now else IDLE)
    constant.every = every
    busy_now = False
    constant.known()
    busy_now = True
    taken = []
    for key, company in enumerate((0, 7, 0, 3, 1, 0, 7)):
        constant.job(key, company)
        taken.append(constant.joules_of(key))
        constant.idle((0.0, 0.02, 0.2, 0.07, 0.4, 0.0, 0.0)[key])
    assert max(taken) <= 1.05 * min(taken)
    assert taken[0] == pytest.approx((BUSY - IDLE) * (0.64 + 40 * 0.05), rel=0.05)


def test_rows_of_a_step_share_it_by_their_tokens() -> None:
    bench = Bench().known()
    for _ in range(100):
        bench.step(0.1, (1, 30, True), (2, 10, True), (3, 10, False))
    bench.idle(2.0)
    one, two, three = (bench.joules_of(key) for key in (1, 2, 3))
    assert one == pytest.approx(3 * two)
    assert two == pytest.approx(three)
    assert one + two + three == pytest.approx(40.0, rel=0.02)


def test_a_job_that_ends_between_two_readings_is_charged_at_once() -> None:
    bench = Bench().known()
    bench.job(1)
    assert bench.joules_of(1) == pytest.approx((BUSY - IDLE) * 2.64, rel=0.05)


def test_the_edges_of_a_job_are_charged_at_the_power_of_steps() -> None:
    """Short jobs with pauses as long as the time between two readings."""
    bench = Bench().known()
    for _ in range(40):
        bench.step(0.05, (0, 1, False))
    for key in range(1, 60):
        bench.step(0.1, (key, 1, False))
        bench.idle(0.03 * (key % 9))
    taken = [bench.joules_of(key) for key in range(1, 60)]
    assert min(taken) == pytest.approx(0.4, rel=0.05)
    assert max(taken) == pytest.approx(0.4, rel=0.05)


def test_nothing_is_lost_and_nothing_is_made_up() -> None:
    chance = random.Random(1)
    bench = Bench(lambda busy: (BUSY if busy else IDLE) * chance.uniform(0.8, 1.2)).known()
    for key in range(200):
        bench.job(key, chance.randrange(4), chance.randint(2, 300), chance.randint(1, 30))
        bench.idle(chance.choice((0.0, 0.1, 2.0)))
    bench.idle(2.0)
    assert bench.total() == pytest.approx(bench.integral, rel=1e-6)


def test_a_load_and_the_time_before_idle_is_known_are_kept_apart() -> None:
    bench = Bench()
    bench.loading = True
    bench.idle(5.0)
    bench.loading = False
    bench.idle(1.0)
    bench.job(1)
    assert bench.ledger.take(1) is None
    status = bench.ledger.status()
    assert status.joules["other"] > 15.0
    assert status.joules["prefill"] == status.joules["decode"] == 0
    assert status.idle_watts is None
    bench.idle(5.0)
    bench.job(2)
    assert bench.joules_of(2) > 0
    assert bench.total() == pytest.approx(bench.integral)


def test_idle_power_follows_the_board_and_not_the_seconds_after_a_step() -> None:
    warm = IDLE
    bench = Bench(lambda busy: BUSY if busy else warm).known()
    warm = 3.0
    bench.idle(300.0)
    assert bench.ledger.status().idle_watts == pytest.approx(3.0, rel=0.02)


def test_a_gap_in_the_readings_leaves_the_job_without_energy() -> None:
    bench = Bench().known()
    bench.step(0.5, (1, 1, False))
    bench.now += 1.0  # a step that no reading covers
    bench.ledger.ended(StepRecord(bench.now - 1.0, bench.now, (StepRow(1, 1, False),)))
    bench.read_at, bench.joules = bench.now, 0.0
    bench.idle(1.0)
    assert bench.ledger.take(1) is None
    bench.job(2)
    assert bench.ledger.take(2) is not None


def test_a_sensor_that_falls_silent_gives_no_energy_and_keeps_no_steps() -> None:
    bench = Bench().known()
    bench.job(5000)
    bench.idle(1.0)
    tokens = bench.ledger.status().tokens
    for n in range(100):
        bench.ledger.began(bench.now)
        bench.now += 1.0
        bench.ledger.ended(StepRecord(bench.now - 1.0, bench.now, (StepRow(n, 1, False),)))
        bench.ledger.status()
    assert all(bench.ledger.take(n) is None for n in range(100 - int(LOST_SECONDS) - 1))
    assert bench.ledger.take(99) is not None  # not for long yet
    assert bench.ledger.status().tokens == tokens


def test_a_long_step_waits_for_its_end() -> None:
    bench = Bench().known()
    bench.step(30.0, (1, 500, True))
    assert bench.joules_of(1) == pytest.approx(120.0, rel=0.02)


def test_without_a_sensor_no_number_is_invented() -> None:
    ledger = EnergyLedger(now=lambda: 0.0)
    ledger.began(1.0)
    ledger.ended(StepRecord(1.0, 2.0, (StepRow(1, 5, True),)))
    assert ledger.take(1) is None
    assert ledger.take(2) is None
    assert (ledger.status().source, sum(ledger.status().joules.values())) == ("", 0.0)


def test_configured_watts_stand_in_and_say_so() -> None:
    now = 0.0
    ledger = EnergyLedger(FixedPower(idle=3.0, busy=8.0), now=lambda: now)
    for n in range(10):
        ledger.began(float(n))
        ledger.ended(StepRecord(float(n), n + 0.5, (StepRow(1, 1, False), StepRow(2, 3, True))))
    now = 10.0
    assert ledger.take(1) == JobEnergy(0.0, pytest.approx(6.25), CONFIGURED)
    assert ledger.take(2) == JobEnergy(pytest.approx(18.75), 0.0, CONFIGURED)
    assert ledger.status().joules == pytest.approx({"prefill": 18.75, "decode": 6.25, "idle": 30.0, "other": 0.0})


def test_totals_never_fall() -> None:
    chance = random.Random(2)
    bench = Bench(lambda busy: (2.1 if busy else IDLE) + chance.gauss(0, 0.5)).known()
    before = bench.ledger.status().joules
    for key in range(100):
        bench.job(key, answer=3, prompt=3)
        after = bench.ledger.status().joules
        assert all(after[phase] >= joules for phase, joules in before.items())
        before = after


def test_a_first_step_after_a_pause_asks_for_a_reading() -> None:
    bench = Bench().known()
    assert (bench.woken, bench.ledger.busy()) == (0, False)
    bench.step(0.1, (1, 1, False))
    bench.step(0.1, (1, 1, False))
    assert (bench.woken, bench.ledger.busy()) == (1, True)
    bench.idle(5.0)
    assert not bench.ledger.busy()
    bench.step(0.1, (1, 1, False))
    assert bench.woken == 2


def test_steps_and_readings_on_threads_of_their_own_lose_nothing() -> None:
    ledger = EnergyLedger(now=lambda: 1000.0)
    ledger.add_power(0.0, 0.5, IDLE, "VIN")
    for n in range(40):
        ledger.add_power(0.5 + n, 1.5 + n, IDLE, "VIN")
    start = 1000.0

    def engine() -> None:
        for n in range(2000):
            at = start + n * 0.01
            ledger.began(at)
            ledger.ended(StepRecord(at, at + 0.01, (StepRow(n // 10, 1, False),)))

    thread = threading.Thread(target=engine)
    thread.start()
    thread.join()
    for n in range(80):
        ledger.add_power(start + n * 0.25, start + (n + 1) * 0.25, BUSY, "VIN")
    taken = [ledger.take(key) for key in range(200)]
    assert sum(found.joules for found in taken if found is not None) == pytest.approx(20 * (BUSY - IDLE), rel=1e-3)
    assert None not in taken


# A recorded trace


def recorded() -> tuple[list[tuple[float, float]], list[StepRecord]]:
    power = [tuple(map(float, line.split(","))) for line in (RECORDED / "power.csv").read_text().splitlines()]
    steps = []
    for line in (RECORDED / "steps.csv").read_text().splitlines():
        began, ended, rows = line.split(",")
        fields = [row.split(":") for row in rows.split()]
        steps.append(
            StepRecord(
                float(began),
                float(ended),
                tuple(StepRow(int(key), int(tokens), prompt == "1") for key, tokens, prompt in fields),
            )
        )
    return [(at, watts) for at, watts in power], steps


class Recorded:
    """The recorded power as a meter, on the clock of the record."""

    def __init__(self, power: Sequence[tuple[float, float]]) -> None:
        self.at = [at for at, _ in power]
        self.watts = [watts for _, watts in power]
        self.now = self.at[0]

    def read(self) -> Power:
        watts = float(np.interp(self.now, self.at, self.watts))
        return Power({"gpu": watts}, watts, "gpu")


@pytest.mark.parametrize("slow", [0.0, 0.1])
def test_jobs_and_idle_add_up_to_the_integral_of_a_recorded_trace(slow: float) -> None:
    """The sampler reads it as it would on a board, also where a reading takes 100 ms."""
    power, steps = recorded()
    meter = Recorded(power)

    def take(began: float, ended: float, watts: float, source: str) -> None:
        ledger.add_power(began, ended, watts, source)

    ledger = EnergyLedger(wake=lambda: sampler.wake(), now=lambda: meter.now)
    sampler = Sampler([], meter, busy=ledger.busy, take_power=take, now=lambda: meter.now)
    ledger.add_power(meter.now - 0.1, meter.now, 0.0, "gpu")  # a start, which counts as loading
    ends = {row.key: step.ended for step in steps for row in step.rows}
    taken: list[float] = []
    due = meter.now
    # What happens when: a step begins, ends, or the record is over.
    events = sorted(
        [(step.began, 1, step) for step in steps] + [(step.ended, 0, step) for step in steps], key=lambda e: e[:2]
    )
    for at, begins, step in [*events, (power[-1][0], 0, None)]:
        while due <= at:
            meter.now = max(meter.now, due)
            due = meter.now + max(0.001, sampler.sample()) + slow
        meter.now = at
        if step is None:
            break
        if begins:
            ledger.began(step.began)
            due = meter.now
            continue
        ledger.ended(step)
        for row in step.rows:
            if ends[row.key] == step.ended:
                found = ledger.take(row.key)
                assert found is not None
                taken.append(found.joules)
    sampler.wake()
    sampler.sample()
    integral = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(power))
    joules = ledger.status().joules
    print(f"{len(taken)} jobs {sum(taken):.0f} J, {joules}, integral {integral:.0f} J, a reading takes {slow} s")
    assert len(taken) == 56
    assert sum(joules.values()) == pytest.approx(integral, rel=0.01)
    assert sum(taken) + joules["idle"] + joules["other"] == pytest.approx(integral, rel=0.01)
