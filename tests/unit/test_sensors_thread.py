"""The thread that reads sensors: what is due, what a slow or broken sensor costs, and how old a reading is."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edged.machine.board import detect
from edged.machine.sensors import find_sensors, power_meter
from edged.machine.sensors.power import Power
from edged.machine.sensors.quantities import (
    POWER,
    QUANTITIES,
    TEMPERATURE,
    THROTTLED,
    UPTIME,
    Quantity,
    Sensor,
    Values,
)
from edged.machine.sensors.readings import STALE, Readings
from edged.machine.sensors.sampler import BUSY_SECONDS, Sampler

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
Read = Callable[[], Values]


class World:
    """A clock that sensors move on, and what they were asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[tuple[str, float]] = []
        self.watts: float | None = 4.0
        self.taken: list[tuple[float, float, float]] = []
        self.busy = False

    def sensor(self, zone: str, read: Read | None = None, *, takes: float = 0.0, of: Quantity = TEMPERATURE) -> Sensor:
        def asked() -> Values:
            self.asked.append((zone, self.now))
            self.now += takes
            return read() if read is not None else {(zone,): 40.0}

        return Sensor(of, asked)

    def read(self) -> Power:
        """The world is its own power meter."""
        self.asked.append(("power", self.now))
        return Power({}) if self.watts is None else Power({"VIN": self.watts}, self.watts, "VIN")

    def sampler(self, *sensors: Sensor) -> Sampler:
        def take(began: float, ended: float, watts: float, source: str) -> None:
            assert source == "VIN"
            self.taken.append((began, ended, watts))

        return Sampler(sensors, self, busy=lambda: self.busy, take_power=take, now=lambda: self.now)

    def run(self, sampler: Sampler, seconds: float) -> None:
        """Let time pass and the sampler do what its thread does."""
        until = self.now + seconds
        while (pause := sampler.sample()) + self.now <= until:
            self.now += max(pause, 1e-6)
        self.now = max(until, self.now)

    def count(self, zone: str) -> int:
        return sum(name == zone for name, _ in self.asked)


@pytest.fixture
def world() -> World:
    return World()


def zones(readings: Readings, now: float) -> Mapping[str, float]:
    return readings.by_name(TEMPERATURE, now)


def test_each_sensor_is_read_every_five_seconds(world: World) -> None:
    sampler = world.sampler(world.sensor("a"), world.sensor("b"))
    world.run(sampler, 60)
    assert 12 <= world.count("a") <= 13
    assert zones(sampler.readings, world.now) == {"a": 40.0, "b": 40.0}


@pytest.mark.parametrize("fault", [OSError("off"), ValueError("n/a"), KeyError("cpu"), RuntimeError("edged's own")])
def test_a_broken_sensor_costs_its_own_value_and_comes_back(world: World, fault: Exception) -> None:
    broken = True

    def read() -> Values:
        if broken:
            raise fault
        return {("a",): 41.0}

    sampler = world.sampler(world.sensor("a", read), world.sensor("b"))
    world.run(sampler, 6)
    assert (zones(sampler.readings, world.now), sampler.readings.broken) == ({"b": 40.0}, 1)
    broken = False
    world.run(sampler, 6)
    assert (zones(sampler.readings, world.now), sampler.readings.broken) == ({"a": 41.0, "b": 40.0}, 0)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENODATA, errno.ENOENT, errno.EACCES])
def test_a_sensor_that_is_off_or_closed_has_no_value_and_is_not_broken(world: World, code: int) -> None:
    def read() -> Values:
        raise OSError(code, "")

    sampler = world.sampler(world.sensor("a", read), world.sensor("b"))
    world.run(sampler, 6)
    assert (zones(sampler.readings, world.now), sampler.readings.broken) == ({"b": 40.0}, 0)


@pytest.mark.parametrize("lie", [float("nan"), float("inf"), -273.0, 1e9])
def test_a_value_that_cannot_be_true_is_none(world: World, lie: float) -> None:
    sampler = world.sampler(world.sensor("a", lambda: {("a",): lie}), world.sensor("b"))
    world.run(sampler, 6)
    assert zones(sampler.readings, world.now) == {"b": 40.0}


def test_thirty_sensors_of_100_ms_each_keep_nobody_waiting(world: World) -> None:
    """They take turns of 3 s, and power is read all the same, at most one of them later."""
    world.busy = True
    slow = [world.sensor(f"slow-{n}", takes=0.1) for n in range(30)]
    sampler = world.sampler(*slow, world.sensor("fast"))
    world.run(sampler, 60)
    times = [at for name, at in world.asked if name == "power"]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= BUSY_SECONDS + 0.11
    assert all(world.count(f"slow-{n}") >= 10 for n in range(30))
    assert len(zones(sampler.readings, world.now)) == 31


def test_readings_appear_though_something_is_always_due(world: World) -> None:
    seen: list[int] = []
    often = threading.Event()

    def read() -> Values:
        seen.append(len(zones(sampler.readings, world.now)))
        if len(seen) == 20:
            often.set()
        return {("last",): 1.0}

    sampler = world.sampler(*(world.sensor(f"slow-{n}", takes=1.0) for n in range(30)), world.sensor("last", read))
    sampler.start()
    assert often.wait(60)
    sampler.stop()
    assert seen[-1] > 25


def test_a_sensor_that_takes_seconds_is_read_seldom(world: World) -> None:
    sampler = world.sampler(world.sensor("a", takes=2.0))
    world.run(sampler, 400)
    assert 8 <= world.count("a") <= 11


def test_the_power_is_read_often_while_the_engine_computes(world: World) -> None:
    sampler = world.sampler()
    world.run(sampler, 20)
    assert world.count("power") <= 5
    world.busy = True
    sampler.wake()
    world.run(sampler, 10)
    assert 38 <= world.count("power") <= 46


def test_the_mean_between_two_readings_is_told_and_a_gap_is_not_bridged(world: World) -> None:
    sampler = world.sampler()
    world.run(sampler, 1)
    world.watts = 8.0
    world.run(sampler, 5)
    world.watts = None
    world.run(sampler, 5)
    world.watts = 2.0
    world.run(sampler, 10)
    assert [watts for _, _, watts in world.taken] == [6.0, 2.0]
    (began, ended, _), (later, last, _) = world.taken
    assert (ended - began, last - later) == (pytest.approx(5), pytest.approx(5))
    assert later - ended == pytest.approx(10)


def test_a_reading_that_the_engine_asks_for_is_no_part_of_the_idle_time_before(world: World) -> None:
    sampler = world.sampler()
    world.run(sampler, 4)
    world.watts = 8.0
    sampler.wake()
    world.run(sampler, 1)
    assert [watts for _, _, watts in world.taken] == [4.0]


def test_a_counters_mean_is_taken_as_it_is(world: World) -> None:
    watts = iter([None, 4.0, 9.0])

    class Counter:
        def read(self) -> Power:
            value = next(watts)
            return Power({}, mean=True) if value is None else Power({"psys": value}, value, "psys", mean=True)

    taken: list[float] = []
    sampler = Sampler([], Counter(), take_power=lambda *power: taken.append(power[2]), now=lambda: world.now)
    for _ in range(3):
        sampler.sample()
        world.now += 5
    assert taken == [9.0]


def test_a_reading_of_a_sensor_that_hangs_grows_old_and_is_dropped(world: World) -> None:
    sampler = world.sampler(world.sensor("a"))
    world.run(sampler, 1)
    assert sampler.readings.age(TEMPERATURE, world.now + 20) == pytest.approx(21)
    assert zones(sampler.readings, world.now + STALE * 5 - 2) == {"a": 40.0}
    assert zones(sampler.readings, world.now + STALE * 5 + 1) == {}
    assert sampler.readings.age(UPTIME, world.now) is None


def test_readings_of_a_moment_stay_as_they_are(world: World) -> None:
    hot = 40.0
    sampler = world.sampler(world.sensor("a", lambda: {("a",): hot}))
    world.run(sampler, 1)
    then = sampler.readings
    hot = 80.0
    world.run(sampler, 6)
    assert (zones(then, world.now), zones(sampler.readings, world.now)) == ({"a": 40.0}, {"a": 80.0})


def test_throttling_is_told_by_its_reasons(world: World) -> None:
    values = {("throttled",): 1.0, ("under_voltage",): 0.0}
    sampler = world.sampler(world.sensor("t", lambda: values, of=THROTTLED))
    world.run(sampler, 1)
    assert sampler.readings.throttled(world.now) == ["throttled"]


def test_the_thread_reads_at_its_start_and_when_it_is_woken_and_ends(world: World) -> None:
    read = threading.Semaphore(0)

    class Meter:
        def read(self) -> Power:
            read.release()
            return Power({"VIN": 3.0}, 3.0, "VIN")

    sampler = Sampler([world.sensor("a")], Meter())
    sampler.start()
    assert read.acquire(timeout=60)
    sampler.wake()
    assert read.acquire(timeout=60)
    sampler.stop()
    assert sampler.readings.by_name(POWER, time.monotonic()) == {"VIN": 3.0}


def test_a_hanging_sensor_does_not_keep_the_daemon_from_stopping() -> None:
    hangs, release = threading.Event(), threading.Event()

    def read() -> Values:
        hangs.set()
        release.wait(60)
        return {}

    sampler = Sampler([Sensor(TEMPERATURE, read)], power_meter(detect(Path("/nowhere"))))
    sampler.start()
    assert hangs.wait(60)
    sampler.stop()
    release.set()


@pytest.mark.parametrize("name", ["pi4", "pi5", "jetson-orin", "jetson-thor", "pc", "rk3588"])
def test_each_boards_sensors_are_sampled(name: str) -> None:
    board = detect(BOARDS / name)
    sampler = Sampler(find_sensors(board, BOARDS), power_meter(board))
    sampler.sample()
    found = {quantity for quantity in QUANTITIES if sampler.readings.of(quantity, time.monotonic())}
    assert {TEMPERATURE, UPTIME} <= found
