"""The table of waiters: every place, beside the job's own result topic, that wants a job's result.

A row's number `n` is made of the job's number and a place among its waiters, so that the rows of a job are found
without an index. An edged that knows schema 2 or less numbers its rows in another way and keeps the first waiter in the
job's own row; adopt() brings both into this form.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterator

from edged.jobs.checksums import columns, is_whole, row_crc

PLACES = 128
"""Rows that a job can have; more than are ever kept, so that rows of an older edged find room."""
Row = tuple[int, int, str | None, bytes | None]
"""(n, number of the job, topic, correlation data); topic None is the job's result topic."""


class Waiters:
    """Rows of the table, within the caller's transactions. Raises sqlite3.Error, and what `damaged` makes."""

    def __init__(self, db: sqlite3.Connection, damaged: Callable[[str], Exception]) -> None:
        """`damaged` makes the error for a row that is not what was written."""
        self._db = db
        self._damaged = damaged

    def of(self, number: int) -> list[Row]:
        """The waiters of a job, in the order in which they asked."""
        places = (number * PLACES, (number + 1) * PLACES)
        return [row for row in self._rows("WHERE n >= ? AND n < ? ORDER BY n", *places) if row[1] == number]

    def all(self) -> Iterator[Row]:
        """Every waiter, job by job."""
        return self._rows("ORDER BY n")

    def _rows(self, which: str, *values: int) -> Iterator[Row]:
        rows = self._db.execute(f"SELECT {columns('waiter')} FROM waiter {which}", values)
        for n, seq, topic, correlation, crc in rows:
            if not is_whole("waiter", (n, seq, topic, correlation), crc):
                raise self._damaged("where a result is to go is not what was written down")
            yield n, seq, topic, correlation

    def add(self, number: int, topic: str | None, correlation: bytes | None, told: Container[int] = ()) -> int | None:
        """Remember a place. None where it is remembered already by a row that is not in `told`, and for the 129th."""
        rows = self.of(number)
        if any(row[2:] == (topic, correlation) and row[0] not in told for row in rows):
            return None
        used = {row[0] for row in rows}
        n = next((n for n in range(number * PLACES, (number + 1) * PLACES) if n not in used), None)
        if n is not None:
            values = (n, number, topic, correlation)
            insert = "INSERT INTO waiter (n, seq, topic, correlation, row_crc) VALUES (?, ?, ?, ?, ?)"
            self._db.execute(insert, (*values, row_crc("waiter", values)))
        return n

    def answered(self, n: int) -> None:
        """Forget a waiter that has its answer."""
        self._db.execute("DELETE FROM waiter WHERE n = ?", (n,))

    def remove(self, number: int) -> None:
        """Forget all waiters of a job."""
        self._db.execute("DELETE FROM waiter WHERE n >= ? AND n < ?", (number * PLACES, (number + 1) * PLACES))

    def adopt(self) -> None:
        """Bring the rows of an older edged into this form."""
        # A delivered job's first waiter has its answer. The job table is read by its keys: documents stay unread.
        undelivered = "seq IN (SELECT seq FROM job EXCEPT SELECT seq FROM delivered) AND reply_topic IS NOT NULL"
        first = self._db.execute(f"SELECT seq, reply_topic, correlation FROM job WHERE {undelivered}").fetchall()
        delete = f"DELETE FROM waiter WHERE n / {PLACES} != seq RETURNING n, seq, topic, correlation, row_crc"
        further = sorted(self._db.execute(delete).fetchall())
        if any(row[4] is not None for row in further):
            raise self._damaged("where a result is to go is not what was written down")
        if first:
            self._db.execute(f"UPDATE job SET reply_topic = NULL, correlation = NULL WHERE {undelivered}")
        for number, topic, correlation in [*first, *(row[1:4] for row in further)]:
            self.add(number, topic, correlation)
