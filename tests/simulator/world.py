"""A fleet, its broker and its people, from a seed; run() lets the days pass and gives what the oracles saw."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from edged.rollout.desired import Desired

from . import process  # noqa: F401  (imported before its modules' time is replaced)
from .board import Board
from .broker import Broker, Message
from .disk import Disk
from .faults import Faults
from .job_oracles import JobOracles
from .operators import Operator
from .oracles import Oracles, Violation
from .packages import Kind, Package, make_package
from .senders import Cell, Senders
from .timeline import DAY, HOUR, START, HostTime, Timeline, virtual_time

MEMORY = Path("/dev/shm")
SETTLE_DAYS = 1.5
"""Without faults at the end; the last rollout begins in the middle of them."""
CELL_BOARDS = 5
"""Boards that share the jobs of a group."""
MOST_WITH_JOBS = 20
"""Boards with jobs: with more of these a run takes longer and shows nothing else."""


@dataclass(frozen=True)
class Outcome:
    """One run."""

    seed: int
    boards: int
    days: float
    events: int
    faults: Mapping[str, int]
    rollouts: Mapping[str, int]
    """How many ended how."""
    jobs: int
    handed_over: int
    worst: float
    """Share of the boards that have run the bad package which came farthest."""
    violations: tuple[Violation, ...]
    trace: str


class World:
    """Everything of one run."""

    def __init__(self, seed: int, boards: int, days: float, folder: Path, jobs: bool = True) -> None:
        self.seed, self.days, self.folder = seed, days, folder
        self.chance = random.Random(f"{seed}/world")
        self.timeline = Timeline()
        self.hosts = HostTime()
        self.disk = Disk()
        self.counts: Counter[str] = Counter()
        self.packages: list[Package] = []
        self._by_digest: dict[str, Package] = {}
        self._by_source: dict[str, Package] = {}
        self.wanting: dict[str, list[Desired]] = {}
        """The rollouts that want each package, by digest."""
        self.owners: dict[str, set[str]] = {}
        """The boards that served each package before any rollout."""
        self.oracles = Oracles(self)
        self.broker = Broker(self.timeline, random.Random(f"{seed}/broker"), self.counts, self._told)
        self.boards: list[Board] = []
        first = self.make_package(Kind.GOOD)
        self.jobs = JobOracles(self)
        self.cells: dict[str, Cell] = {}
        for number in range(boards):
            factor = self.chance.choice([0.5, 1.0, 1.0, 1.0, 2.0, 8.0])
            cell = f"cell-{number // CELL_BOARDS}" if jobs and number < MOST_WITH_JOBS else None
            self.boards.append(Board(self, f"board-{number:03}", factor, first, cell))
        self._by_name = {board.name: board for board in self.boards}
        for name in dict.fromkeys(board.cell for board in self.boards if board.cell is not None):
            self.cells[name] = Cell(self, name, [board for board in self.boards if board.cell == name])
        self.senders = Senders(self, mean=max(8.0, 9.0 * len(self.cells)) * HOUR)
        self.owners[first.digest] = {board.name for board in self.boards}
        self.conductor_look_seconds = max(20.0, 1.6 * boards)
        """Between two looks of a conductor, which looks each second: enough that it sees each wave end."""
        self.operator = Operator(self)
        self.last_faults = START + max(0.3 * days, days - SETTLE_DAYS) * DAY
        self.faults = Faults(self, self.last_faults)

    def run(self) -> Outcome:
        """Let the days pass."""
        end = START + self.days * DAY
        last = (self.last_faults + end) / 2
        for board in self.boards:
            board.power_on()
        self.operator.plan(self.last_faults)
        for cell in self.cells.values():
            self.senders.plan(cell, self.last_faults)
        wanted: list[Package] = []

        def finish() -> None:
            for one in list(self.operator.conducting):
                one.end()
            self.operator.conducting.clear()
            wanted.append(self.operator.release(Kind.GOOD, plain=True))

        self.timeline.at(last, finish)
        with virtual_time(self.hosts), self.disk.watched():
            self.timeline.run(end)
        self.oracles.end(wanted[0])
        self.jobs.end()
        return Outcome(
            self.seed,
            len(self.boards),
            self.days,
            self.timeline.events,
            dict(self.counts),
            Counter(self.operator.verdicts.values()),
            len(self.jobs),
            len(self.jobs.handed_over),
            self.oracles.worst,
            tuple(self.oracles.violations),
            self.oracles.trace,
        )

    # What parts of it ask

    def make_package(self, kind: Kind) -> Package:
        """A package that nobody has yet."""
        chance = self.chance
        name = chance.choice(["small", "large"])
        package = make_package(
            len(self.packages),
            name,
            kind,
            pull_seconds=chance.uniform(60.0, 1200.0),
            load_seconds=chance.uniform(2.0, 20.0),
            step_seconds=chance.uniform(0.09, 0.11),
        )
        self.packages.append(package)
        self._by_digest[package.digest] = package
        self._by_source[package.source] = package
        return package

    def by_digest(self, digest: str | None) -> Package | None:
        """The package with this digest."""
        return None if digest is None else self._by_digest.get(digest)

    def by_source(self, source: str) -> Package:
        """The package that a source has."""
        return self._by_source[source]

    def faulty(self, board: Board, kind: str, likely: float) -> bool:
        """Whether a fault of this kind happens now."""
        found = self.timeline.now < self.last_faults and board.chance.random() < likely
        if found:
            self.counts[kind] += 1
        return found

    def board(self, name: str) -> Board:
        """By its name."""
        return self._by_name[name]

    def cell_of(self, name: str) -> Cell:
        """The cell of a board that has jobs."""
        cell = self._by_name[name].cell
        assert cell is not None
        return self.cells[cell]

    def _told(self, message: Message) -> None:
        self.oracles.told(message)
        self.jobs.told(message)


def simulate(seed: int, boards: int, days: float, jobs: bool = True) -> Outcome:
    """Run one world in a folder in memory. `jobs`: whether boards have some, beside rollouts."""
    folder = Path(tempfile.mkdtemp(prefix="edged-simulator-", dir=MEMORY if MEMORY.is_dir() else None))
    before = structlog.get_config()
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    try:
        return World(seed, boards, days, folder, jobs).run()
    finally:
        structlog.configure(**before)
        shutil.rmtree(folder, ignore_errors=True)


def _drop(*_: object) -> None:
    raise structlog.DropEvent
