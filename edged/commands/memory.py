"""What a device remembers of commands over restarts: which ids came, and what became of them (pure, and one file).

An id that was taken never runs again. It is remembered until its document has expired by a synchronised clock; that
time is remembered too (`floor`), and nothing that expires before it is taken, whatever the clock says later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from edged.checked_json import expect_format, form_expected, read_checked, write_checked
from edged.commands.document import Code, Failure

FILE = "commands.json"
"""In state_dir."""
MOST_ENTRIES = 256
"""Commands that are remembered; further ones are refused until some have expired."""
_FORMAT = 1
_MOST_BYTES = 16 << 20
_RESTARTING = ("restart", "reload")


class Status(Enum):
    """thin-edge.io's names."""

    EXECUTING = "executing"
    SUCCESSFUL = "successful"
    FAILED = "failed"


class TransitionError(RuntimeError):
    """A command that has ended cannot end again."""


@dataclass(frozen=True)
class Entry:
    """A command that was taken. `told`: the broker has the answer; its `result` is kept until then.

    `cleared`: its document was removed while it ran, so that none is to be published when it ends.

    `expires`: seconds since the epoch.
    """

    name: str
    id: str
    expires: float
    status: Status
    result: Mapping[str, Any] | None = None
    failure: Failure | None = None
    told: bool = False
    cleared: bool = False

    @property
    def key(self) -> str:
        """Names it on this device: the end of its topic."""
        return f"{self.name}/{self.id}"

    @property
    def ended(self) -> bool:
        return self.status is not Status.EXECUTING

    def succeed(self, result: Mapping[str, Any]) -> Entry:
        """It has done what it should."""
        return self._end(Status.SUCCESSFUL, result, None)

    def fail(self, failure: Failure) -> Entry:
        """It could not."""
        return self._end(Status.FAILED, None, failure)

    def begun_anew(self) -> Entry:
        """A new process finds it executing: that was the aim of a restart, and the end of all else."""
        if self.name in _RESTARTING:
            return self.succeed({})
        reason = "edged ended while it ran"
        return self.fail(Failure(Code.INTERRUPTED, reason, "send it again under another id"))

    def as_told(self) -> Entry:
        """The broker has the answer."""
        return replace(self, told=True, result=None) if self.ended else replace(self, told=True)

    def clear(self) -> Entry:
        """Its document was removed: publish none in its place."""
        return replace(self.as_told(), cleared=True)

    def asked_again(self) -> Entry:
        """Somebody published a document for it anew: answer as it stands by now."""
        return replace(self, told=False, cleared=False)

    def _end(self, status: Status, result: Mapping[str, Any] | None, failure: Failure | None) -> Entry:
        if self.ended:
            raise TransitionError(f"{self.key} has ended as {self.status.value}")
        ended = replace(self, status=status, result=result, failure=failure, told=False)
        return ended.as_told() if self.cleared else ended


@dataclass(frozen=True)
class Memory:
    """By key; no id whose document expires at `floor` or before is taken (seconds since the epoch)."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    floor: float = 0.0

    @property
    def full(self) -> bool:
        return len(self.entries) >= MOST_ENTRIES

    def put(self, entry: Entry) -> Memory:
        """Remember this state of the command."""
        return replace(self, entries={**self.entries, entry.key: entry})

    def past(self, now: float) -> Memory:
        """It is `now` or later, by a synchronised clock: forget what has expired and is over."""
        floor = max(self.floor, now)
        over = {key for key, one in self.entries.items() if one.expires <= floor and one.ended and one.told}
        if not over:  # nothing depends on the floor
            return self
        return Memory({key: one for key, one in self.entries.items() if key not in over}, floor)

    def begun_anew(self) -> Memory:
        """What a new process makes of it."""
        entries = {key: one if one.ended else one.begun_anew() for key, one in self.entries.items()}
        return replace(self, entries=entries)


def write_memory(path: Path, memory: Memory) -> None:
    """Replace the file durably. Raises OSError."""
    entries = [{**asdict(one), "status": one.status.value, **_failure_fields(one)} for one in memory.entries.values()]
    write_checked(path, {"format": _FORMAT, "floor": memory.floor, "entries": entries})


def read_memory(path: Path) -> Memory:
    """Read the file; an empty memory where there is none. Raises DamagedError, and OSError as open does."""
    fields = read_checked(path, _MOST_BYTES)
    if fields is None:
        return Memory()
    with form_expected():
        expect_format(fields, _FORMAT)
        entries = [_entry(one) for one in fields["entries"]]
        return Memory({entry.key: entry for entry in entries}, fields["floor"])


def _failure_fields(entry: Entry) -> dict[str, Any]:
    failure = entry.failure
    return {"failure": None if failure is None else {**asdict(failure), "code": failure.code.value}}


def _entry(fields: dict[str, Any]) -> Entry:
    failure = fields["failure"]
    if failure is not None:
        failure = Failure(Code(failure["code"]), failure["reason"], failure["hint"])
    return Entry(**{**fields, "status": Status(fields["status"]), "failure": failure})
