"""SQL on a spool's file, past the code that owns it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from edged.jobs.spool import Spool


def outside(path: Path, sql: str, *values: object) -> list[Any]:
    """Execute and commit on a connection of its own; the rows."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(sql, values).fetchall()


def pragma(spool: Spool, words: str) -> Any:
    """Read or set what is a matter of the spool's own connection alone; its value."""
    return (spool._db.execute(f"PRAGMA {words}").fetchone() or [None])[0]
