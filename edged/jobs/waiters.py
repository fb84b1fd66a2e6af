"""The table of waiters: every place, beside the job's own result topic, that wants a job's result.

A row's number `n` is made of the job's number and a place among its waiters, so that the rows of a job are found
without an index. An edged that knows schema 2 or less numbers its rows in another way and keeps the first waiter in the
job's own row; adopt() brings both into this form.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterator

PLACES = 128
"""Rows that a job can have; more than are ever kept, so that rows of an older edged find room."""
Row = tuple[int, int, str | None, bytes | None]
"""(n, number of the job, topic, correlation data); topic None is the job's result topic."""


class Waiters:
    """Rows of the table, within the caller's transactions. Raises sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def of(self, number: int) -> list[Row]:
        """The waiters of a job, in the order in which they asked."""
        query = "SELECT n, seq, topic, correlation FROM waiter WHERE n >= ? AND n < ? AND seq = ? ORDER BY n"
        return self._db.execute(query, (number * PLACES, (number + 1) * PLACES, number)).fetchall()

    def all(self) -> Iterator[Row]:
        """Every waiter, job by job."""
        return self._db.execute("SELECT n, seq, topic, correlation FROM waiter ORDER BY n")

    def add(self, number: int, topic: str | None, correlation: bytes | None, told: Container[int] = ()) -> int | None:
        """Remember a place. None where it is remembered already by a row that is not in `told`, and for the 129th."""
        rows = self.of(number)
        if any(row[2:] == (topic, correlation) and row[0] not in told for row in rows):
            return None
        used = {row[0] for row in rows}
        n = next((n for n in range(number * PLACES, (number + 1) * PLACES) if n not in used), None)
        if n is not None:
            values = (n, number, topic, correlation)
            self._db.execute("INSERT INTO waiter (n, seq, topic, correlation) VALUES (?, ?, ?, ?)", values)
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
        further = self._db.execute(f"DELETE FROM waiter WHERE n / {PLACES} != seq RETURNING n, seq, topic, correlation")
        if first:
            self._db.execute(f"UPDATE job SET reply_topic = NULL, correlation = NULL WHERE {undelivered}")
        for number, topic, correlation in [*first, *(row[1:] for row in sorted(further.fetchall()))]:
            self.add(number, topic, correlation)
