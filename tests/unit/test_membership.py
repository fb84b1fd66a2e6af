"""Which devices take a group's jobs: the decision, and whole groups on a simulated broker that loses and delays."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edged.faults import Fault
from edged.membership import (
    ANSWER_SECONDS,
    ANSWERS_A_SECOND,
    ASK_SECONDS,
    LEAVE_SECONDS,
    RECORD,
    Groups,
    takes_group_jobs,
)
from edged.mqtt.events import GroupPing, GroupPong
from edged.mqtt.groups import Membership
from edged.status import DaemonState, GovernorStatus, ModelStatus, Status

UP = {"jobs": True, "control": True}
SERVING = Status(unready=(), model=ModelStatus("serving", "phi3"), groups={"hall": True}, connected=UP)
BROKEN = replace(SERVING, model=ModelStatus("unavailable", "phi3", "model.onnx is cut"))
LOADING = replace(SERVING, model=ModelStatus("loading", "phi3"))
NO_DISK = replace(SERVING, unready=(Fault("spool_fault", "disk full"),))
STRAINED = replace(SERVING, governor=GovernorStatus(reasons=("power_supply",), sheds_groups=True))
FULL = replace(SERVING, unready=(Fault("spool_full", "1000 jobs wait"),))
DRAINING = replace(BROKEN, state=DaemonState.DRAINING)


def at(status: Status, seconds: float) -> Status:
    return replace(status, monotonic_time=seconds)


@pytest.mark.parametrize(
    ("status", "unserved", "another", "now", "takes"),
    [
        (SERVING, 0.0, True, True, True),
        (BROKEN, LEAVE_SECONDS - 0.1, True, True, True),
        (BROKEN, LEAVE_SECONDS, True, True, False),
        (BROKEN, LEAVE_SECONDS, False, True, True),
        (BROKEN, LEAVE_SECONDS, False, False, True),
        (DRAINING, LEAVE_SECONDS, True, True, True),
        (DRAINING, LEAVE_SECONDS, False, False, False),
    ],
)
def test_only_who_could_not_serve_for_long_leaves_and_only_to_one_that_serves(
    status: Status, unserved: float, another: bool, now: bool, takes: bool
) -> None:
    assert takes_group_jobs(status, unserved, another, now) is takes


class Line:
    """What a device asks of its link."""

    def __init__(self) -> None:
        self.membership = Membership()
        self.pings: list[tuple[str, str]] = []
        self.pongs: list[tuple[str, str]] = []

    def set_membership(self, membership: Membership) -> None:
        self.membership = membership

    def ping(self, group: str, nonce: str) -> None:
        self.pings.append((group, nonce))

    def pong(self, group: str, nonce: str) -> None:
        self.pongs.append((group, nonce))


def left_by(line: Line) -> frozenset[str]:
    return line.membership.left


@pytest.mark.parametrize(
    ("status", "leaves"), [(BROKEN, True), (NO_DISK, True), (STRAINED, True), (LOADING, False), (FULL, False)]
)
def test_a_broken_package_or_disk_and_a_board_at_its_limit_are_left_for_and_a_load_or_a_full_queue_is_not(
    tmp_path: Path, status: Status, leaves: bool
) -> None:
    line = Line()
    groups = Groups(["hall"], line, tmp_path)
    for second in range(int(LEAVE_SECONDS) + 3):
        groups.update(at(status, float(second)))
        if line.pings:
            groups.ponged(GroupPong(*line.pings[-1]))
    assert left_by(line) == (frozenset({"hall"}) if leaves else frozenset())


def test_a_load_in_between_does_not_begin_the_minute_anew(tmp_path: Path) -> None:
    line = Line()
    groups = Groups(["hall"], line, tmp_path)
    groups.update(at(BROKEN, 0.0))
    groups.update(at(LOADING, 30.0))
    groups.update(at(BROKEN, LEAVE_SECONDS))
    assert line.pings


def test_each_group_is_left_for_its_own_devices_and_an_old_answer_is_none(tmp_path: Path) -> None:
    line = Line()
    groups = Groups(["hall", "yard"], line, tmp_path)
    groups.update(at(BROKEN, 0.0))
    groups.update(at(BROKEN, LEAVE_SECONDS))
    (_, first), *_ = line.pings
    assert [group for group, _ in line.pings] == ["hall", "yard"]
    assert line.membership.asking
    assert ANSWER_SECONDS <= LEAVE_SECONDS
    later = LEAVE_SECONDS + ASK_SECONDS
    with capture_logs() as told:
        groups.update(at(BROKEN, later))
        groups.ponged(GroupPong("hall", first))
        groups.ponged(GroupPong("yard", line.pings[-1][1]))
        groups.update(at(BROKEN, later + 1))
    assert left_by(line) == {"yard"}
    assert [(entry["event"], entry.get("group"), entry.get("groups")) for entry in told] == [
        ("group_kept", None, ["hall", "yard"]),
        ("group_left", "yard", None),
    ]
    # It counts from its question on, and what is asked meanwhile has no answer.
    groups.update(at(BROKEN, later + ANSWER_SECONDS - 0.1))
    assert left_by(line) == {"yard"}
    groups.update(at(BROKEN, later + ANSWER_SECONDS))
    assert left_by(line) == frozenset()


def test_who_serves_again_is_back_at_once(tmp_path: Path) -> None:
    line = Line()
    groups = Groups(["hall"], line, tmp_path)
    groups.update(at(BROKEN, 0.0))
    groups.update(at(BROKEN, LEAVE_SECONDS))
    groups.ponged(GroupPong(*line.pings[-1]))
    groups.update(at(BROKEN, LEAVE_SECONDS + 1))
    assert left_by(line) == {"hall"}
    groups.update(at(LOADING, LEAVE_SECONDS + 2))
    assert left_by(line) == {"hall"}
    groups.update(at(SERVING, LEAVE_SECONDS + 3))
    assert line.membership == Membership(frozenset(), "phi3", asking=False)


@pytest.mark.parametrize(
    ("status", "answers"),
    [
        (SERVING, True),
        (FULL, True),
        (BROKEN, False),
        (LOADING, False),
        (NO_DISK, False),
        (replace(SERVING, state=DaemonState.DRAINING), False),
        (replace(SERVING, groups={"hall": False}), False),
        (replace(SERVING, connected={**UP, "jobs": False}), False),
    ],
)
def test_only_who_serves_and_takes_the_jobs_answers(tmp_path: Path, status: Status, answers: bool) -> None:
    line = Line()
    Groups(["hall"], line, tmp_path).pinged(GroupPing("hall", "n"), at(status, 1.0))
    assert line.pongs == ([("hall", "n")] if answers else [])


def test_a_flood_of_questions_has_few_answers_a_second(tmp_path: Path) -> None:
    line = Line()
    groups = Groups(["hall"], line, tmp_path)
    for n in range(1000):
        groups.pinged(GroupPing("hall", f"n{n}"), at(SERVING, n / 100))
    assert len(line.pongs) == 10 * ANSWERS_A_SECOND


def test_the_models_topic_follows_the_model_and_outlives_a_restart(tmp_path: Path) -> None:
    line = Line()
    groups = Groups(["hall"], line, tmp_path)
    models = []
    other = replace(SERVING, model=ModelStatus("serving", "other"))
    spaced = replace(SERVING, model=ModelStatus("serving", "my model"))
    for status in (LOADING, SERVING, LOADING, BROKEN, SERVING, other, spaced, other, DRAINING):
        groups.update(at(status, 1.0))
        models.append(line.membership.model)
    assert models == [None, "phi3", "phi3", None, "phi3", "other", None, "other", "other"]
    assert (tmp_path / RECORD).read_text() == "other"
    restarted = Groups(["hall"], line, tmp_path)
    restarted.update(at(LOADING, 1.0))
    assert line.membership.model == "other"
    restarted.update(at(SERVING, 1.0))
    assert line.membership.model == "phi3"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a/b", b"x" * 10_000])
def test_a_record_that_names_no_model_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    line = Line()
    Groups(["hall"], line, tmp_path).update(at(LOADING, 1.0))
    assert line.membership.model is None


def test_a_record_that_cannot_be_written_is_said_and_the_topic_is_there(tmp_path: Path) -> None:
    line = Line()
    with capture_logs() as told:
        Groups(["hall"], line, tmp_path / "missing").update(at(SERVING, 1.0))
    assert [entry["event"] for entry in told] == ["group_model_not_recorded"]
    assert line.membership.model == "phi3"


def test_without_groups_nothing_is_done(tmp_path: Path) -> None:
    line = Line()
    Groups([], line, tmp_path).update(at(SERVING, 1.0))
    assert (line.membership, list(tmp_path.iterdir())) == (Membership(), [])


class Simulation:
    """Devices of one group, and a broker that delivers their words late, or not at all."""

    def __init__(self, devices: int, seed: int, folder: Path) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        self.devices = [SimulatedDevice(self, number, folder) for number in range(devices)]
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, SimulatedDevice, GroupPing | GroupPong]] = []
        self.lossy = True

    def say(self, sender: SimulatedDevice, word: GroupPing | GroupPong) -> None:
        for device in self.devices:
            if device is not sender and not (self.lossy and self.draw.random() < 0.3):
                late = self.draw.expovariate(1 / 5) if self.lossy else 0.01
                heapq.heappush(self._under_way, (self.now + late, next(self._order), device, word))

    def run(self, seconds: float) -> None:
        """Let time pass; at every moment, some device takes the group's jobs."""
        until = self.now + seconds
        ticks = [(self.now + self.draw.random(), number) for number in range(len(self.devices))]
        heapq.heapify(ticks)
        while self.now < until:
            if self._under_way and self._under_way[0][0] < ticks[0][0]:
                self.now, _, device, word = heapq.heappop(self._under_way)
                device.hear(word)
            else:
                self.now, number = heapq.heappop(ticks)
                self.devices[number].tick()
                heapq.heappush(ticks, (self.now + self.draw.uniform(0.5, 5.0), number))
            assert any(device.subscribed for device in self.devices), f"nobody is left at {self.now}"

    def fate(self) -> None:
        """Something happens to a device."""
        device = self.draw.choice(self.devices)
        device.fate = self.draw.choices((SERVING, BROKEN, NO_DISK, LOADING, FULL, None), (3, 4, 1, 1, 1, 1))[0]
        if device.fate is None:
            device.restart()


class SimulatedDevice:
    """`subscribed`: what the broker's session holds, over restarts too. `fate` None: it is off."""

    def __init__(self, world: Simulation, number: int, folder: Path) -> None:
        self._world, self._folder = world, folder / str(number)
        self._folder.mkdir()
        self.fate: Status | None = SERVING
        self.subscribed = True
        self.restart()

    def restart(self) -> None:
        self._groups = Groups(["hall"], self, self._folder)

    def _status(self) -> Status | None:
        return self.fate and replace(self.fate, monotonic_time=self._world.now, groups={"hall": self.subscribed})

    def tick(self) -> None:
        if (status := self._status()) is not None:
            self._groups.update(status)

    def hear(self, word: GroupPing | GroupPong) -> None:
        if (status := self._status()) is None:
            return
        if isinstance(word, GroupPing):
            self._groups.pinged(word, status)
        else:
            self._groups.ponged(word)

    def set_membership(self, membership: Membership) -> None:
        self.subscribed = "hall" not in membership.left

    def ping(self, group: str, nonce: str) -> None:
        self._world.say(self, GroupPing(group, nonce))

    def pong(self, group: str, nonce: str) -> None:
        self._world.say(self, GroupPong(group, nonce))


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_whatever_happens_one_device_stays_and_the_broken_ones_leave_to_it(tmp_path: Path, devices: int) -> None:
    world = Simulation(devices, seed=devices, folder=tmp_path)
    left = 0
    with capture_logs():
        for _ in range(100):
            world.fate()
            world.run(world.draw.choice((1.0, 20.0, 60.0, 130.0)))
            left += sum(not device.subscribed for device in world.devices)
        assert left > 0 or devices == 1
        world.lossy = False
        for device in world.devices:
            device.fate = BROKEN
        world.run(3 * LEAVE_SECONDS)
        assert all(device.subscribed for device in world.devices)
        world.devices[0].fate = SERVING
        world.run(3 * LEAVE_SECONDS)
        assert [device.subscribed for device in world.devices] == [True] + [False] * (devices - 1)
