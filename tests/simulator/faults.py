"""Faults, drawn from the seed: how often each comes, and what it does. None comes after `until`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from .timeline import DAY, HOUR

if TYPE_CHECKING:
    from .board import Board
    from .senders import Cell
    from .world import World


class Faults:
    """Of one world. Rates are means, in seconds between two of a kind."""

    def __init__(self, world: World, until: float) -> None:
        self.world = world
        self.until = until
        self.chance = random.Random(f"{world.seed}/faults")
        self._backup: dict[str, bytes] = {}
        boards = len(world.boards)
        of_boards: dict[Callable[[], None], float] = {
            self.connection_lost: DAY,
            self.power_cut: 3 * DAY,
            self.killed: 4 * DAY,
            self.card_full: 8 * DAY,
            self.clock_wrong: 8 * DAY,
            self.settings_wrong: 20 * DAY,
        }
        of_all: dict[Callable[[], None], float] = {
            self.partition: 1.5 * DAY,
            self.broker_restarts: 2 * DAY,
            self.broker_forgets: 4 * DAY,
            self.broker_restored: 4 * DAY,
            self.backup: 2 * DAY,
            self.slow_broker: 2 * DAY,
            self.conductor_killed: 6 * HOUR,
            self.conductor_cut_off: 8 * HOUR,
            self.abort: 8 * DAY,
            self.pause: 4 * DAY,
        }
        for fault, mean in of_boards.items():
            self._repeat(fault, mean / boards)
        for fault, mean in of_all.items():
            self._repeat(fault, mean)

    def _repeat(self, fault: Callable[[], None], mean: float) -> None:
        def strike() -> None:
            if self.world.timeline.now < self.until:
                fault()
                self._repeat(fault, mean)

        self.world.timeline.after(self.chance.expovariate(1.0 / mean), strike)

    def _count(self, kind: str) -> None:
        self.world.counts[kind] += 1

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """End a fault; all of them end by `until`."""
        self.world.timeline.at(min(self.world.timeline.now + seconds, self.until), action)

    def _board(self) -> Board:
        return self.chance.choice(self.world.boards)

    def strikes(self, cell: Cell) -> None:
        """Jobs come to a cell: something may befall its boards meanwhile."""
        if self.world.timeline.now >= self.until:
            return
        for board in cell.boards:
            dice, moment = self.chance.random(), self.chance.uniform(0.0, 400.0)
            if dice < 0.05:
                self.world.timeline.after(moment, lambda board=board: self._disconnect(board))  # type: ignore[misc]
            elif dice < 0.10:
                self.world.timeline.after(moment, lambda board=board: self._hold(board))  # type: ignore[misc]
            elif dice < 0.15:
                board.cut_in = self.chance.randint(1, 60)
            elif dice < 0.20:
                self._count("process killed")
                self.world.timeline.after(moment, board.kill)
            elif dice < 0.22:
                self.world.timeline.after(moment, lambda board=board: self._fill(board, 60.0))  # type: ignore[misc]

    def _hold(self, board: Board) -> None:
        """The network is gone for a short time."""
        if board.reachable:
            self._count("cut off for a while")
            board.cut_off()
            self._later(self.chance.uniform(5.0, 300.0), board.join)

    def _disconnect(self, board: Board) -> None:
        if board.session.connected:
            self._count("connection lost")
            self.world.broker.drop(board.session)

    # Of a board

    def connection_lost(self) -> None:
        self._disconnect(self._board())

    def power_cut(self) -> None:
        """At any time; or at a write or a publication that is about to come."""
        board = self._board()
        if not board.powered:
            return
        if self.chance.random() < 0.5:
            self._count("power cut")
            board.power_off(self.chance.choice([5.0, 300.0, 4 * HOUR]))
        else:
            board.cut_in = self.chance.randint(1, 30)

    def begins(self, board: Board) -> None:
        """A rollout goes on at a board: something may hit it in the middle."""
        if self.world.timeline.now >= self.until:
            return
        dice = self.chance.random()
        if dice < 0.06:
            board.cut_in = self.chance.randint(1, 60)
        elif dice < 0.08:
            self._fill(board, self.chance.uniform(1.0, HOUR))
        elif dice < 0.10:
            self._count("process killed")
            self.world.timeline.after(self.chance.uniform(0.0, 900.0), board.kill)

    def killed(self) -> None:
        self._count("process killed")
        self._board().kill()

    def card_full(self) -> None:
        self._fill(self._board(), self.chance.choice([60.0, HOUR, 6 * HOUR]))

    def _fill(self, board: Board, seconds: float) -> None:
        if board.full:
            return
        self._count("card full")
        board.calm_since = self.world.timeline.now
        board.full, board.full_until = True, float("inf")

        def free() -> None:
            board.full, board.full_until = False, self.world.timeline.now
            board.calm_since = self.world.timeline.now

        self._later(seconds, free)

    def clock_wrong(self) -> None:
        """A board without a battery, or one that trusts a wrong server."""
        board = self._board()
        self._count("clock wrong")
        board.host.error = self.chance.choice([-board.host.wall(), -2 * DAY, -HOUR, HOUR, 30 * DAY])
        board.host.disciplined = self.chance.random() < 0.3

        def mend() -> None:
            board.host.error, board.host.disciplined = 0.0, True

        self._later(self.chance.uniform(0.1, 12.0) * HOUR, mend)

    def settings_wrong(self) -> None:
        board = self._board()
        board.settings_wrong = True

        def correct() -> None:
            board.settings_wrong = False

        self._later(self.chance.uniform(0.1, 12.0) * HOUR, correct)

    # Of the network and the broker

    def partition(self) -> None:
        """Some boards lose the network together, perhaps with the conductors."""
        self._count("partition")
        share = self.chance.choice([0.05, 0.3, 0.9])
        boards = [board for board in self.world.boards if board.reachable and self.chance.random() < share]
        for board in boards:
            board.cut_off()

        def end() -> None:
            for board in boards:
                board.join()

        self._later(self.chance.choice([600.0, 3 * HOUR, 30 * HOUR]), end)

    def broker_restarts(self) -> None:
        if self.world.broker.up:
            self._count("broker restarted")
            self.world.jobs.disturbed()
            self.world.broker.stop()
            self._later(self.chance.choice([2.0, 120.0, 2 * HOUR]), self._broker_back)

    def _broker_back(self) -> None:
        self.world.broker.start()
        self.world.jobs.disturbed()

    def broker_forgets(self) -> None:
        """All that it retains, or the desired document alone."""
        self._count("broker forgot")
        self.world.jobs.disturbed()
        broker = self.world.broker
        kept = {} if self.chance.random() < 0.5 else broker.retained
        broker.forget({topic: payload for topic, payload in kept.items() if not topic.endswith("/desired")})

    def backup(self) -> None:
        """Somebody keeps a copy of what the broker has."""
        self._backup = dict(self.world.broker.retained)

    def broker_restored(self) -> None:
        """It is brought up from the last copy."""
        if self._backup:
            self._count("broker restored")
            self.world.jobs.disturbed()
            self.world.broker.forget(self._backup)

    def slow_broker(self) -> None:
        """Messages of different topics overtake each other."""
        self._count("messages out of order")
        self.world.jobs.disturbed()
        broker = self.world.broker
        broker.latest = self.chance.choice([3.0, 30.0, 300.0])

        def end() -> None:
            broker.latest = 0.2
            self.world.jobs.disturbed()

        self._later(self.chance.uniform(0.2, 4.0) * HOUR, end)

    # Of people and their computers

    def conductor_killed(self) -> None:
        conducting = self.world.operator.conducting
        if conducting:
            self._count("conductor killed")
            self.world.operator.kill(self.chance.choice(conducting))

    def conductor_cut_off(self) -> None:
        conducting = self.world.operator.conducting
        if conducting:
            self._count("conductor cut off")
            one = self.chance.choice(conducting)
            one.reachable = False
            if one.session is not None:
                self.world.broker.drop(one.session)

            def join() -> None:
                one.reachable = True

            self._later(self.chance.uniform(30.0, 2 * HOUR), join)

    def abort(self) -> None:
        self._steer("abort")

    def pause(self) -> None:
        self._steer("pause")
        self._later(self.chance.uniform(0.1, 3.0) * HOUR, lambda: self._steer("resume"))

    def _steer(self, word: str) -> None:
        conducting = self.world.operator.conducting
        if conducting:
            self._count(f"person's {word}")
            self.chance.choice(conducting).steer(word)
