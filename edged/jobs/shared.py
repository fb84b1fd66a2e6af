"""The tables of load sharing: jobs of a group, those that are being given away, and the marks of those that were.

A job that another member has accepted leaves nothing but its mark: id, digest, and who has it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edged.jobs.records import Moment

Read = Callable[[str, tuple[object, ...]], Iterator[tuple[Any, ...]]]


@dataclass(frozen=True)
class Shared:
    """A job of a group. `path`: members that gave it on. `came`: the give that brought it here."""

    number: int
    group: str
    path: tuple[str, ...]
    came: str | None
    give: str | None
    """The give that is under way."""
    taker: str | None
    """The member that it goes to."""


@dataclass(frozen=True)
class Mark:
    """A job that was given away: its content's digest, and the member that accepted it."""

    digest: bytes
    group: str
    taker: str
    came: str | None


class SharedJobs:
    """Rows of the two tables. Writes belong into the caller's transaction and raise sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection, read: Read) -> None:
        """`read` runs a query and raises SpoolError."""
        self._db = db
        self._read = read

    def of(self, number: int) -> Shared | None:
        """What is known of a job; None: it belongs to no group."""
        return next(self._rows("WHERE seq = ?", number), None)

    def leaving(self) -> list[Shared]:
        """The jobs that are being given away."""
        return list(self._rows("WHERE give IS NOT NULL"))

    def _rows(self, which: str, *values: object) -> Iterator[Shared]:
        for number, group, path, *rest in self._read(
            f"SELECT seq, grp, path, came, give, taker FROM shared {which}", values
        ):
            yield Shared(number, group, tuple(path.split("/")[:-1]), *rest)

    def add(self, number: int, group: str, path: Iterable[str] = (), came: str | None = None) -> None:
        """A job of a group, that a sender or a give has brought."""
        names = "".join(f"{name}/" for name in path)
        self._db.execute("INSERT INTO shared (seq, grp, path, came) VALUES (?, ?, ?, ?)", (number, group, names, came))

    def leave(self, number: int, give: str | None, taker: str | None) -> None:
        """The job is being given away from now on; None: not any more."""
        self._db.execute("UPDATE shared SET give = ?, taker = ? WHERE seq = ?", (give, taker, number))

    def remove(self, number: int) -> None:
        """The job is no more."""
        self._db.execute("DELETE FROM shared WHERE seq = ?", (number,))

    def mark(self, id: str, mark: Mark, now: Moment) -> None:
        """The job was given away."""
        values = (id, mark.digest, mark.group, mark.taker, mark.came, now.wall, now.boottime, now.boot_id)
        self._db.execute("INSERT OR REPLACE INTO given VALUES (?, ?, ?, ?, ?, ?, ?, boot_number(?))", values)

    def mark_of(self, id: str) -> Mark | None:
        """The mark of the job that had this id."""
        query = "SELECT digest, grp, taker, came FROM given WHERE id = ?"
        return next((Mark(*row) for row in self._read(query, (id,))), None)

    def marked(self) -> list[str]:
        """The ids of all jobs that were given away."""
        return [row[0] for row in self._read("SELECT id FROM given ORDER BY id", ())]

    def unmark(self, id: str) -> None:
        """Forget that the job was given away."""
        self._db.execute("DELETE FROM given WHERE id = ?", (id,))

    def prune(self, age: float, now: Moment) -> None:
        """Forget marks that are older than `age` seconds."""
        self._db.execute(
            "DELETE FROM given WHERE iif(boot = boot_number(?), boottime < ?, finished < ?)",
            (now.boot_id, now.boottime - age, now.wall - age),
        )
