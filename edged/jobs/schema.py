"""The spool's schema, the steps by which it grows, and what can be wrong with a spool.

Steps add tables, and columns whose default is right for a row of an older edged; they may drop an index. So an older
edged goes on with a newer file, unless a step says that it must not.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class SpoolError(OSError):
    """The spool cannot be opened, read or written now; the message says why on one line."""


class SpoolDamagedError(SpoolError):
    """What the file holds is broken: no waiting helps, edged.jobs.spool_recovery does."""


@dataclass(frozen=True)
class Migration:
    """What leads from one version of the schema to the next."""

    sql: str
    """Statements, each on lines of its own and ended by a semicolon."""
    oldest: int = 0
    """The oldest version whose code may use a file after this step; given only where adding did not do."""


STEPS: tuple[Migration, ...] = (
    Migration("""
CREATE TABLE job (
    seq INTEGER PRIMARY KEY,   -- order of receipt
    id TEXT NOT NULL,
    digest BLOB NOT NULL,      -- SHA-256 of the canonical document
    document BLOB,             -- canonical JSON; NULL once erased
    priority INTEGER NOT NULL,
    store INTEGER NOT NULL,
    received REAL NOT NULL,    -- wall clock, seconds
    boottime REAL NOT NULL,    -- CLOCK_BOOTTIME at receipt, seconds
    boot_id TEXT NOT NULL,
    synchronised INTEGER NOT NULL,
    ttl REAL,                  -- seconds from receipt
    deadline REAL,             -- wall clock, seconds
    reply_topic TEXT,
    correlation BLOB
);
CREATE UNIQUE INDEX job_id ON job (id);
CREATE TABLE result (
    seq INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    document BLOB,             -- as published; NULL once erased
    finished REAL NOT NULL,    -- wall clock, seconds
    boottime REAL NOT NULL,
    boot_id TEXT NOT NULL
);
CREATE TABLE delivered (seq INTEGER PRIMARY KEY);
CREATE TABLE waiter (n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, topic TEXT, correlation BLOB);
CREATE TABLE attempt (
    seq INTEGER PRIMARY KEY,
    starts INTEGER NOT NULL,   -- runs that an end of the process cut short
    crashes INTEGER NOT NULL,  -- of these, crashes of the process's own making while it ran alone
    suspect INTEGER NOT NULL   -- ran beside others in such a crash: runs alone from now on
);
"""),
    # made: the order in which results were made. crc: checksums.py. Both are NULL where version 1 wrote.
    # An id is looked up in memory (id_index.py): its index cost the card a quarter of all bytes and more.
    Migration("""
ALTER TABLE result ADD COLUMN made INTEGER;
ALTER TABLE result ADD COLUMN crc INTEGER;
DROP INDEX job_id;
"""),
    # Pruning reads `delivered` alone, and so no documents; boot: boot_number() in database.py. All three are NULL where
    # an older version wrote, and are completed at the next start, as the table of waiters is (waiters.py).
    Migration("""
ALTER TABLE delivered ADD COLUMN finished REAL;
ALTER TABLE delivered ADD COLUMN boottime REAL;
ALTER TABLE delivered ADD COLUMN boot INTEGER;
"""),
    # checksums.py
    Migration("""
ALTER TABLE job ADD COLUMN row_crc INTEGER;
ALTER TABLE result ADD COLUMN row_crc INTEGER;
ALTER TABLE delivered ADD COLUMN row_crc INTEGER;
ALTER TABLE waiter ADD COLUMN row_crc INTEGER;
"""),
    # shared.py. An older edged runs a job that is being given away, and again one that was given away and comes again.
    Migration("""
CREATE TABLE shared (
    seq INTEGER PRIMARY KEY,
    grp TEXT NOT NULL,         -- the group whose job it is
    path TEXT NOT NULL,        -- members that gave it on, each ended by /
    came TEXT,                 -- the give that brought it; NULL: a sender did
    give TEXT,                 -- the give under way; NULL: none
    taker TEXT                 -- the member that it goes to
);
CREATE TABLE given (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    grp TEXT NOT NULL,
    taker TEXT NOT NULL,       -- the member that has accepted it
    came TEXT,                 -- the give that had brought it
    finished REAL NOT NULL,    -- when it was given away: wall clock, seconds
    boottime REAL NOT NULL,
    boot INTEGER NOT NULL      -- boot_number() in database.py
) WITHOUT ROWID;
"""),
)
"""STEPS[n] leads from version n to n + 1. A step that was released is not changed any more."""


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Apply the steps that the file lacks, in the caller's transaction. Raises SpoolError and sqlite3.Error.

    SQLite keeps one number for its users: here the schema's version, and above it the oldest that may use the file.
    Raises SpoolDamagedError where the tables are not those of that version: nothing in SQLite would tell.
    """
    number = db.execute("PRAGMA user_version").fetchone()[0]
    version, oldest = number & 0xFFFF, number >> 16
    if oldest > version or not has_tables_of(db, version):
        raise SpoolDamagedError(f"the spool {path} is damaged: its schema is not that of version {version}")
    if oldest > len(STEPS):
        raise SpoolError(
            f"{path} was written by a newer edged: it needs one that knows schema {oldest}, this one knows {len(STEPS)}"
        )
    for step in STEPS[version:]:
        _apply(db, [step])
        version, oldest = version + 1, max(oldest, step.oldest)
        db.execute(f"PRAGMA user_version={oldest << 16 | version}")


def has_tables_of(db: sqlite3.Connection, version: int, or_more: bool = False) -> bool:
    """Whether the tables have the columns of this version, and no others unless it is newer than this edged, `or_more`.

    Raises sqlite3.Error.
    """
    or_more = or_more or version > len(STEPS)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as reference:
        _apply(reference, STEPS[:version])
        expected = _columns(reference)
    actual = _columns(db)
    if or_more:
        return all(actual.get(key) == columns for key, columns in expected.items())
    return actual == expected


def _columns(db: sqlite3.Connection) -> dict[tuple[str, str], tuple[object, ...]]:
    """By table and column: type, not null, default, place in the primary key."""
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()]
    return {
        (table, row[1]): tuple(row[2:6])
        for table in tables
        for row in db.execute("SELECT * FROM pragma_table_info(?)", (table,)).fetchall()
    }


def _apply(db: sqlite3.Connection, steps: Sequence[Migration]) -> None:
    for step in steps:
        for statement in step.sql.split(";\n"):
            db.execute(statement)


def spool_error(what: str, error: Exception) -> SpoolError:
    """`what` could not be done because of an error of SQLite or of the system."""
    if isinstance(error, OSError) and error.strerror:
        return SpoolError(f"{what}: {error.strerror.lower()}")
    kind = SpoolDamagedError if is_damage(error) else SpoolError
    return kind(f"{what}: {' '.join(str(error).split())}")


def is_damage(error: Exception) -> bool:
    """Whether an error of SQLite says that the content is broken."""
    # SQLITE_CORRUPT and SQLITE_NOTADB; Python has a class of its own for every other code that a file can lead to.
    return type(error) is sqlite3.DatabaseError
