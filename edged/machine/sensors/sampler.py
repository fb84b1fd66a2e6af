"""The one thread that reads sensors: all others take its last readings, and no slow sensor keeps them waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from edged.machine.sensors.power import Power, PowerMeter
from edged.machine.sensors.quantities import BROKEN, EACH, POWER, SELDOM, Labels, Quantity, Sensor, is_off
from edged.machine.sensors.readings import Reading, Readings, read_sensor

log = structlog.get_logger(__name__)

BUSY_SECONDS = 0.25
"""Time between two readings of the power while the engine computes."""
PUBLISH_SECONDS = 1.0
"""Longest time between two publications of the readings while the thread is busy."""
SHARE = 20
"""A sensor gets at most a twentieth of the thread's time, so that a slow one delays the others little."""


@dataclass(eq=False)
class _Task:
    """Something that is read again and again."""

    every: float
    read: Callable[[], None]
    due: float = float("-inf")
    failed: bool = False
    """A fault of edged's in it has been logged."""


@dataclass(eq=False)
class _Watched:
    """A sensor with its last values."""

    sensor: Sensor
    values: dict[Labels, Reading] = field(default_factory=dict)
    broken: bool = False


class Sampler:
    """Reads sensors until stop(); `readings` are replaced as a whole, so any thread may take them."""

    def __init__(
        self,
        sensors: Iterable[Sensor],
        meter: PowerMeter,
        facts: Callable[[], Mapping[str, str]] = dict,
        *,
        busy: Callable[[], bool] = lambda: False,
        take_power: Callable[[float, float, float, str], None] = lambda _began, _ended, _watts, _source: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`busy`: whether the engine computes, so that the power is read often.

        `take_power` gets the CLOCK_MONOTONIC seconds of two readings, the mean watts between them and what measured
        them, on this thread.
        """
        self._meter = meter
        self._facts = facts
        self._busy = busy
        self._take_power = take_power
        self._now = now
        self._watched = [_Watched(sensor) for sensor in sensors]
        self._power = Power({})
        self._power_at = float("-inf")
        self._power_task = _Task(EACH, self._read_power)
        self._tasks = [self._power_task, _Task(SELDOM, self._read_facts)]
        self._tasks += [_Task(one.sensor.quantity.every, partial(self._read, one)) for one in self._watched]
        self._names: Mapping[str, str] = {}
        self._wake = threading.Event()
        self._woken = self._stopping = False
        self._published = float("-inf")
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        self.readings = Readings()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that hangs in a sensor ends with the process."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def wake(self) -> None:
        """Read the power now, since the engine begins to compute. For any thread; it returns at once."""
        self._woken = True
        self._power_task.due = float("-inf")
        self._wake.set()

    def sample(self) -> float:
        """Read what is due, the power first; returns the seconds until more is due."""
        while not self._stopping:
            now = self._now()
            due = [task for task in self._tasks if task.due <= now]
            if not due:
                break
            task = min(due, key=lambda task: (task is not self._power_task, task.due))
            task.due = float("inf")  # wake() may change it from here on
            self._do(task)
            ended = self._now()
            task.due = min(task.due, ended + max(self._pause(task), SHARE * (ended - now)))
            if ended - self._published > PUBLISH_SECONDS:  # slow sensors may keep it busy for ever
                self._publish()
        self._publish()
        return min(task.due for task in self._tasks) - self._now()

    def _do(self, task: _Task) -> None:
        try:
            task.read()
        except Exception:  # a fault of edged; the other sensors go on
            if not task.failed:
                log.exception("sensor_failed")
            task.failed = True

    def _pause(self, task: _Task) -> float:
        often = task is self._power_task and self._power.total is not None and self._busy()
        return BUSY_SECONDS if often else task.every

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(max(0.0, self.sample()))
            self._wake.clear()

    def _read(self, one: _Watched) -> None:
        one.values, one.broken = {}, True
        try:
            values, at = read_sensor(one.sensor), self._now()
            one.values = {labels: Reading(value, at) for labels, value in values.items()}
            one.broken = False
        except BROKEN as error:
            one.broken = not is_off(error)

    def _read_power(self) -> None:
        before, began = self._power, self._power_at
        self._power, self._power_at = Power({}), float("-inf")
        power, at = self._meter.read(), self._now()
        self._power, self._power_at = power, at
        woken, self._woken = self._woken, False
        if power.total is not None and before.total is not None and power.source == before.source:
            # A reading that the engine woke it for is of the power from now on, not of the idle time before.
            mean = before.total if woken else (before.total + power.total) / 2
            self._take_power(began, at, power.total if power.mean else mean, power.source)

    def _read_facts(self) -> None:
        self._names = self._facts()

    def _publish(self) -> None:
        self._published = self._now()
        values: dict[Quantity, dict[Labels, Reading]] = {}
        for one in self._watched:
            values.setdefault(one.sensor.quantity, {}).update(one.values)
        power, at = self._power, self._power_at
        values[POWER] = {(rail,): Reading(watts, at) for rail, watts in power.rails.items()}
        broken = sum(one.broken for one in self._watched)
        self.readings = Readings(values, self._names, power.total, power.source, broken)
