"""What must hold of jobs. Truth is what engines run and what reaches the broker.

- lost: each job that a board accepted has a result in the end, and each that was sent is accepted;
- again: no board runs a job after its own result of it has reached the broker;
- given: a board that gave a job away runs it no more while the one that took it is there;
- twice: a job that was sent once runs to its end on one board alone, unless something befell its cell;
- credit: a board takes a job within the time of its offer's credit;
- hops: no job is given on more than three times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edged.sharing.credits import CREDIT_SECONDS
from edged.sharing.messages import MAX_HOPS

from .broker import Message
from .timeline import START

if TYPE_CHECKING:
    from .board import Board
    from .world import World

SLACK = 3.0
"""Seconds that messages take on their way, and a commit that waits for company."""
CALM_SECONDS = 60.0
"""Longer than a member that has a job may be silent (15 s), and a give without an answer (30 s)."""


@dataclass
class _Job:
    """All that is seen of one."""

    sent: float
    copies: int = 0
    again: bool = False
    accepted: set[str] = field(default_factory=set)
    delivered: dict[str, float] = field(default_factory=dict)
    """To which board the broker brought it, and when last."""
    ended: dict[str, float] = field(default_factory=dict)
    """The boards whose results have reached the broker, and when first."""
    ran: set[str] = field(default_factory=set)
    credit: dict[str, str] = field(default_factory=dict)
    """Of the last give to each board."""
    gone: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Who took it from each board that gave it away, and when that heard it."""
    gives: dict[str, str] = field(default_factory=dict)
    """Giver of each give."""


class JobOracles:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._jobs: dict[str, _Job] = {}
        self._offered: dict[str, float] = {}
        """When the offer of each credit reached the broker."""
        self.handed_over: set[str] = set()
        """Gives that were accepted."""
        self._broker_calm_since = START

    def __len__(self) -> int:
        return len(self._jobs)

    def _violated(self, oracle: str, board: str, told: str) -> None:
        self._world.oracles.violated(oracle, board, told)

    def disturbed(self) -> None:
        """The broker is not as it should be."""
        self._broker_calm_since = self._world.timeline.now

    @property
    def _broker_calm(self) -> float:
        """Since when nothing befell the broker."""
        broker = self._world.broker
        return self._broker_calm_since if broker.up and broker.latest < SLACK else float("inf")

    # What senders do

    def sends(self, id: str) -> None:
        self._jobs[id] = _Job(self._world.timeline.now)

    def copies(self, id: str) -> None:
        """One more message with it."""
        self._jobs[id].copies += 1

    def asks_again(self, id: str) -> None:
        self._jobs[id].again = True

    def is_accepted(self, id: str) -> bool:
        return bool(self._jobs[id].accepted)

    # What boards do

    def delivered(self, board: Board, message: Message) -> None:
        """The broker brought a sender's message."""
        self._jobs[json.loads(message.payload)["id"]].delivered[board.name] = self._world.timeline.now

    def runs(self, board: Board, id: str) -> None:
        """It has a row."""
        job, now = self._jobs[id], self._world.timeline.now
        self._world.oracles.note(board.name, "runs", id)
        job.ran.add(board.name)
        if board.name in job.ended:
            self._violated("again", board.name, f"runs {id} after its result")
        if (gone := job.gone.get(board.name)) is not None:
            taker, since = gone
            came = job.delivered.get(board.name, since)
            calm = max(self._world.board(taker).calm, self._broker_calm) <= came - CALM_SECONDS
            if calm and board.calm <= came + SLACK:
                self._violated("given", board.name, f"runs {id}, which {taker} has taken {now - since:.0f} s ago")

    def heard(self, board: Board, kind: str, payload: bytes) -> None:
        """A member hears a message of another one."""
        if kind != "given":
            return
        answer = json.loads(payload)
        job = self._jobs[answer["id"]]
        if answer["answer"] == "accepted" and job.gives.get(answer["give"]) == board.name:
            job.gone.setdefault(board.name, (answer["device"], self._world.timeline.now))

    # What reaches the broker

    def told(self, message: Message) -> None:
        """A message of a member, or of a device about a job."""
        kind, _, rest = message.topic.removeprefix("edged/v1/").partition("/")
        name, _, channel = rest.partition("/")
        what, _, last = channel.partition("/")
        if kind == "device" and what in ("event", "result"):
            self._of_device(name, what, last, json.loads(message.payload))
        elif kind == "group" and message.payload and what in ("offer", "give", "given"):
            self._of_member(what, last, json.loads(message.payload))

    def _of_device(self, board: str, what: str, id: str, document: dict[str, object]) -> None:
        job, now = self._jobs.get(id), self._world.timeline.now
        if job is None:
            return
        if what == "result":
            if document["state"] != "rejected":
                self._ended(job, board, id)
        elif document["event"] == "accepted":
            taken = board not in job.delivered and board not in job.accepted and not document.get("repeat")
            if taken:  # now, and not before a power cut that kept it from saying so
                offered = self._offered.get(job.credit.get(board, ""))
                if offered is not None and now - offered > CREDIT_SECONDS + SLACK:
                    self._violated("credit", board, f"took {id} {now - offered:.0f} s after its offer")
            job.accepted.add(board)

    def _ended(self, job: _Job, board: str, id: str) -> None:
        now = self._world.timeline.now
        first = not job.ended
        self._world.oracles.note(board, "result", id)
        if not first and board not in job.ended and job.copies == 1 and len(job.delivered) <= 1:
            cell = self._world.cell_of(board)
            calm = max([self._broker_calm, *(one.calm for one in cell.boards)])
            if calm < job.sent:
                self._violated("twice", board, f"has a result of {id}, and so has {next(iter(job.ended))}")
        job.ended.setdefault(board, now)

    def _of_member(self, what: str, member: str, document: dict[str, object]) -> None:
        if what == "offer":
            self._offered.setdefault(str(document["credit"]), self._world.timeline.now)
        elif what == "give" and document["kind"] == "job":
            job = self._jobs[str(document["id"])]
            job.credit[member] = str(document["credit"])
            job.gives[str(document["give"])] = str(document["device"])
            path = document["path"]
            assert isinstance(path, list)
            if len(path) > MAX_HOPS:
                self._violated("hops", member, f"{document['id']} has passed {len(path)} boards")
        elif what == "given" and document["answer"] == "accepted":
            self.handed_over.add(str(document["give"]))

    # Once all is over

    def end(self) -> None:
        """Faults ended long ago, and no job was sent since."""
        for id, job in self._jobs.items():
            if not job.accepted:
                self._violated("lost", "-", f"{id}, sent {job.copies} times, was never accepted")
            elif not job.ended:
                boards = ", ".join(sorted(job.accepted))
                self._violated("lost", boards, f"{id} was accepted, and has no result")
