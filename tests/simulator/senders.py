"""Who sends jobs: to a cell of boards, in bursts, and again until one of them says `accepted`."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from .timeline import HOUR

if TYPE_CHECKING:
    from .board import Board
    from .world import World

AWAKE_SECONDS = 30.0
"""For how long a cell is looked at after something went on."""
RESEND_SECONDS = 45.0


class Cell:
    """Boards that share the jobs of one group."""

    def __init__(self, world: World, name: str, boards: list[Board]) -> None:
        self.name, self.boards = name, boards
        self._world = world
        self._awake_until = 0.0

    def awake(self, now: float) -> bool:
        """Whether jobs may be under way."""
        return now < self._awake_until

    def wake(self, now: float) -> None:
        """Let all its boards tick."""
        asleep = not self.awake(now)
        self._awake_until = now + AWAKE_SECONDS
        if asleep:
            for board in self.boards:
                if board.process is not None and board.process.life is not None:
                    board.process.life.wake()


class Senders:
    """Of all cells."""

    def __init__(self, world: World, mean: float) -> None:
        """`mean`: seconds between two bursts in a cell."""
        self.world = world
        self.mean = mean
        self.chance = random.Random(f"{world.seed}/senders")
        self.sent = 0

    def plan(self, cell: Cell, until: float) -> None:
        """Burst after burst until then."""
        moment = self.world.timeline.now + self.chance.uniform(0.5, 2.0) * HOUR
        while moment < until:
            self.world.timeline.at(moment, lambda: self.burst(cell))
            moment += self.chance.expovariate(1.0 / self.mean)

    def burst(self, cell: Cell) -> None:
        """Several jobs within some minutes, and with them perhaps a fault."""
        for _ in range(self.chance.randint(10, 30)):
            self.world.timeline.after(self.chance.uniform(0.0, 60.0), lambda: self.send(cell))
        self.world.faults.strikes(cell)

    def send(self, cell: Cell) -> None:
        """One job."""
        self.sent += 1
        id = f"job-{self.sent}"
        document = {"id": id, "prompt": "say something", "max_tokens": self.chance.choice([50, 100, 200, 400])}
        payload = json.dumps(document).encode()
        self.world.jobs.sends(id)
        self._publish(cell, id, payload)
        if self.chance.random() < 0.1:  # somebody asks for it again, whatever came of it
            self.world.jobs.asks_again(id)
            self.world.timeline.after(self.chance.uniform(60.0, 1800.0), lambda: self._once(cell, id, payload))

    def _publish(self, cell: Cell, id: str, payload: bytes) -> None:
        if self.world.jobs.is_accepted(id):
            return
        self._once(cell, id, payload)
        again = self.chance.uniform(1.0, 4.0) * RESEND_SECONDS
        self.world.timeline.after(again, lambda: self._publish(cell, id, payload))

    def _once(self, cell: Cell, id: str, payload: bytes) -> None:
        if self.world.broker.up:
            self.world.jobs.copies(id)
            self.world.broker.share(f"edged/v1/group/{cell.name}/job", payload)
