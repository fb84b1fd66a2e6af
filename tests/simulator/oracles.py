"""What must hold whatever happens. Oracles look at what boards load and publish, and at nothing inside edged.

- serving: each start finds a whole package, and a board with power serves again soon after one that failed;
- percent: a board runs a rollout's package only where its place lies below a percent that was published;
- sequence: no board follows an older document than before, nor one that it has reported as aborted;
- trial: no bad package is reported as SUCCEEDED, and none is tried more than three times;
- end: once faults end, all boards serve the last rollout's package.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.rollout.desired import within
from edged.rollout.execution import MOST_FAILURES

from .broker import Message
from .packages import Kind, Package
from .timeline import START

if TYPE_CHECKING:
    from .board import Board
    from .world import World

_WRITES_AGAIN = 90.0
"""Pauses of edged after a write that failed, and before a second try to reload."""


@dataclass
class Violation:
    """What did not hold, where and when."""

    oracle: str
    board: str
    day: float
    told: str

    def line(self) -> str:
        return f"day {self.day:.4f}  {self.oracle:<9} {self.board:<10} {self.told}"


@dataclass
class _Seen:
    """What a board has reported."""

    sequence: int = 0
    canceled: set[str] = field(default_factory=set)


class Oracles:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self.percents: dict[str, float] = {}
        """The highest percent of each rollout that reached the broker."""
        self.ran: dict[str, set[str]] = {}
        """The boards that have begun to load each package, by digest."""
        self._seen: dict[str, _Seen] = {}
        self._trace = hashlib.sha256()
        self.rollouts: set[str] = set()

    @property
    def trace(self) -> str:
        """Of everything that was seen: two runs with the same one did the same."""
        return self._trace.hexdigest()[:16]

    @property
    def worst(self) -> float:
        """Share of the boards that have run the bad package which came farthest."""
        bad = {package.digest for package in self._world.packages if package.kind is not Kind.GOOD}
        return max((len(boards) for digest, boards in self.ran.items() if digest in bad), default=0) / max(
            1, len(self._world.boards)
        )

    def note(self, *told: object) -> None:
        """Add to the trace."""
        self._trace.update(f"{self._world.timeline.now!r} {told!r}\n".encode())

    def violated(self, oracle: str, board: str, told: str) -> None:
        """Something does not hold."""
        day = (self._world.timeline.now - START) / 86400.0
        self.violations.append(Violation(oracle, board, day, told))

    # What boards do

    def starts(self, board: Board, path: Path, digest: str | None) -> None:
        """A process has chosen its package."""
        if digest is None:
            self.violated("serving", board.name, f"a start found no whole package at {path}")

    def loads(self, board: Board, package: Package | None) -> None:
        """A process begins to load it."""
        if package is None:
            return
        self.note(board.name, "loads", package.number)
        ran = self.ran.setdefault(package.digest, set())
        ran.add(board.name)
        if board.name in self._world.owners.get(package.digest, ()):
            return
        for desired in self._world.wanting.get(package.digest, ()):
            if within(desired.place(board.name), self.percents.get(desired.rollout, 0.0)):
                return
        kind = package.kind.value
        self.violated("percent", board.name, f"runs package {package.number} ({kind}), and is in no wave of it")

    def loaded(self, board: Board, package: Package | None) -> None:
        """It serves now; None: nothing is served."""
        now = self._world.timeline.now
        self.note(board.name, "serves", None if package is None else package.number)
        if package is None:
            board.dark_since = board.dark_since if board.dark_since is not None else now
            return
        if board.dark_since is not None and board.full_until < board.dark_since:
            dark, longest = now - board.dark_since, self._longest_dark(board)
            if dark > longest:
                told = f"nothing was served for {dark:.0f} s, longer than {longest:.0f} s"
                self.violated("serving", board.name, told)
        board.dark_since = None

    def _longest_dark(self, board: Board) -> float:
        """A load that fails, a drain, and a load of the package before, each with a start."""
        slowest = max(package.load_seconds for package in self._world.packages) * board.factor
        return 2 * slowest + 3 * 25.0 * board.factor + 2 * 30.0 + 60.0 + _WRITES_AGAIN + board.excused

    # What reaches the broker

    def told(self, message: Message) -> None:
        """A message has reached the broker."""
        kind, _, rest = message.topic.removeprefix("edged/v1/").partition("/")
        name, _, channel = rest.partition("/")
        if channel == "desired" and message.payload:
            self._desired(json.loads(message.payload))
        elif kind == "device" and channel == "reported":
            self._reported(name, json.loads(message.payload))

    def _desired(self, document: dict[str, Any]) -> None:
        rollout, percent = document["rollout"], float(document.get("percent", 100.0))
        self.note("desired", rollout, percent, document.get("abort"))
        self.percents[rollout] = max(percent, self.percents.get(rollout, 0.0))
        self.rollouts.add(rollout)

    def _reported(self, name: str, report: dict[str, Any]) -> None:
        seen = self._seen.setdefault(name, _Seen())
        rollout, sequence, state = report["rollout"], report["sequence"], report["state"]
        self.note(name, rollout, state, report["step"])
        if rollout is None:
            return
        if sequence < seen.sequence:
            self.violated("sequence", name, f"follows {rollout}, sequence {sequence}, after {seen.sequence}")
        seen.sequence = max(seen.sequence, sequence)
        if state == "CANCELED":
            seen.canceled.add(rollout)
        elif rollout in seen.canceled:
            self.violated("sequence", name, f"{state} in {rollout}, which it has reported as aborted")
        if report["failures"] > MOST_FAILURES:
            self.violated("trial", name, f"{report['failures']} failures in {rollout}")
        if state == "SUCCEEDED":
            package = self._world.by_digest(report["desired"]["model"]["digest"])
            if package is not None and package.kind is not Kind.GOOD:
                self.violated("trial", name, f"SUCCEEDED with package {package.number}: {package.kind.value}")

    # Once all is over

    def end(self, wanted: Package | None) -> None:
        """Faults ended long ago. `wanted`: the package of the last rollout."""
        for board in self._world.boards:
            process = board.process
            if process is None or process.status.model.state != "serving":
                self.violated("serving", board.name, "serves nothing at the end")
            elif wanted is not None and process.status.model.facts is not None:
                digest = process.status.model.facts.digest
                if digest != wanted.digest:
                    served = self._world.by_digest(digest)
                    number = None if served is None else served.number
                    told = f"serves package {number} at the end, not {wanted.number}: {process.rollout.state}"
                    self.violated("end", board.name, told)
        for number, verdict in self._world.operator.verdicts.items():
            kind = self._world.packages[number].kind
            if verdict == "SUCCEEDED" and kind is not Kind.GOOD:
                self.violated("trial", "conductor", f"SUCCEEDED with package {number}: {kind.value}")
