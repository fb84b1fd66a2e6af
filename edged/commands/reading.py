"""What a message on a command's topic asks of the device, given what it remembers (pure)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

from edged.commands.document import MOST_SECONDS, Code, Command, Failure, RefusedError, read_command, read_document
from edged.commands.memory import Entry, Memory, Status
from edged.commands.signing import check_allowed, check_signature
from edged.machine.clock import format_time
from edged.settings.fleet import FleetSettings

MOST_ANSWER_BYTES = 65_536
"""Above any answer of this device, which the broker sends back to it."""


class Action(Enum):
    """What is to be done about a message."""

    NOTHING = auto()
    RUN = auto()
    REFUSE = auto()
    """Answer, and remember that it failed."""
    ANSWER = auto()
    """Answer with `failure`, but remember nothing: who sent it is not known, or it cannot be read."""
    REPEAT = auto()
    """Answer as the command stands by now."""
    CLEAR = auto()
    """The document was removed: publish none in its place."""


@dataclass(frozen=True)
class Now:
    """`wall`: seconds since the epoch, by a clock that is `synchronised` or not."""

    wall: float
    synchronised: bool


@dataclass(frozen=True)
class Message:
    """A message: command and id by its topic; `own`: the topic is the device's, not a group's."""

    topic: str
    name: str
    id: str
    own: bool
    payload: bytes

    @property
    def key(self) -> str:
        return f"{self.name}/{self.id}"


@dataclass(frozen=True)
class Decision:
    """What is to be done, with the command where it could be read, and the failure where it is refused."""

    action: Action
    command: Command | None = None
    failure: Failure | None = None


def decide(message: Message, memory: Memory, waiting: Collection[str], fleet: FleetSettings, now: Now) -> Decision:
    """What to do about a message. `waiting`: keys of commands that were taken and have not begun."""
    known = message.key in memory.entries or message.key in waiting
    if not message.payload:
        return Decision(Action.CLEAR if message.own else Action.NOTHING)
    if message.own and (status := _answered(message.payload)) is not None:
        if status is Status.EXECUTING and not known:
            lost = Failure(Code.INTERRUPTED, "the device does not remember it", "send it again under another id")
            return Decision(Action.ANSWER, failure=lost)
        return Decision(Action.NOTHING)  # the broker sends the device's own answer back
    if known:
        return Decision(Action.REPEAT if message.own and message.key in memory.entries else Action.NOTHING)
    try:
        command = read_command(message.name, message.id, message.payload)
        check_signature(command, message.topic, fleet)
        _check_expires(command, memory, now)
    except RefusedError as error:
        return Decision(Action.ANSWER, failure=error.failure)
    try:
        check_allowed(command, fleet)
        if fleet.trusted_keys and not now.synchronised:
            reason, hint = "the clock is not synchronised, so whether it has expired is not known", _CLOCK_HINT
            raise RefusedError(Code.NO_CLOCK, reason, hint)
    except RefusedError as error:
        return Decision(Action.REFUSE, command, error.failure)
    return Decision(Action.RUN, command)


def refused(command: Command, failure: Failure) -> Entry:
    """What is remembered of a command that does not run."""
    return Entry(command.name, command.id, command.expires, Status.FAILED, failure=failure)


def taken(command: Command) -> Entry:
    """What is remembered of a command before it runs."""
    return Entry(command.name, command.id, command.expires, Status.EXECUTING)


def _answered(payload: bytes) -> Status | None:
    """The status of an answer; None for what is none."""
    if len(payload) > MOST_ANSWER_BYTES:
        return None
    try:
        return Status(read_document(payload).get("status"))
    except (RefusedError, ValueError):
        return None


def _check_expires(command: Command, memory: Memory, now: Now) -> None:
    """Raise RefusedError for a document that has expired, or that would have to be remembered for too long."""
    hint = "publish it anew, with a later time, under another id"
    if command.expires <= memory.floor or (now.synchronised and command.expires <= now.wall):
        raise RefusedError(Code.EXPIRED, f"it expired at {command.asked.expires}", hint)
    if now.synchronised and command.expires > now.wall + MOST_SECONDS:
        latest = format_time(now.wall + MOST_SECONDS)
        raise RefusedError(Code.INVALID, f"expires must be within {MOST_SECONDS // 86400} days: by {latest}", hint)


_CLOCK_HINT = "let the board reach a time server: timedatectl timesync-status"
