"""Opens the spool, also a damaged one: it is set aside, and a new one takes over every job and result that can be read.

The new file is whole and on disk before the damaged one is touched, so a power cut in between costs nothing: the next
start goes on where this one was. SQLite tells damage of its own structures; what a job said is checked by its digest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from edged.jobs.database import PAGE_BYTES, lossy_text
from edged.jobs.row_checks import Row, has_its_checksum, is_job, is_mark, is_result, is_shared
from edged.jobs.schema import SpoolDamagedError, SpoolError, has_tables_of, is_damage, spool_error
from edged.jobs.spool import Spool, discard, set_aside
from edged.jobs.waiters import PLACES
from edged.jobs.wal import damage_of

log = structlog.get_logger(__name__)

KEPT = 3
"""Damaged spools that are kept for somebody to look at; the oldest go. So do those past `jobs.retention`."""
CHECKED_BYTES = 32 << 20
"""A spool of up to this size is read whole at a start: less than two seconds from a slow card."""
BEYOND = 1000
"""Numbers that are tried after the greatest that is known: the page with the last ones may be the broken one."""
_VALID_FOR = slice(92, 96)
"""Bytes of SQLite's header that say whether the number of pages beside them is to be believed."""


def open_spool(path: Path) -> Spool:
    """Open the spool as Spool() does, or what can be recovered of it. Raises SpoolError, of damage never."""
    try:
        for ready in path.parent.glob(f"{path.name}.recovered-*"):
            _swap(path, ready)  # a recovery that something cut short
        reason = _known_damage(path)
    except OSError as error:
        raise spool_error(f"the spool {path} cannot be opened", error) from None
    if reason is None:
        try:
            spool = Spool(path)
            try:
                # A page may lose rows without an error. To read a large file whole would take a slow card minutes.
                if spool.bytes <= CHECKED_BYTES:
                    spool.check_structure()
                # What a start reads anyway.
                deque(spool.queued(), 0)
                deque(spool.due(), 0)
            except BaseException:
                spool.close()
                raise
            return spool
        except SpoolDamagedError as error:
            reason = str(error)
    try:
        path.touch(0o600)  # where somebody removed it, and left its log or the note of its damage
        return _recover(path, reason)
    except (OSError, sqlite3.Error) as error:  # the disk is full, say; the damaged file is as it was
        with contextlib.suppress(OSError):
            _clear(path)  # the room belongs to others
        what = spool_error(f"the spool {path} is damaged, and recovering it failed", error)
        raise SpoolError(f"{what}; {_room(path)}") from None


def mark_damaged(path: Path, reason: str) -> None:
    """Let the next open_spool() recover this spool, whatever it sees of the damage itself."""
    with contextlib.suppress(OSError):  # on a full disk, say: then the damage is met again
        _mark(path).write_text(reason)


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.damage")


def _known_damage(path: Path) -> str | None:
    """Damage that SQLite would pass over in silence, or that was noted by mark_damaged()."""
    with contextlib.suppress(FileNotFoundError):
        return _mark(path).read_text()
    try:
        with Path(f"{path}-wal").open("rb") as file:
            header = file.read(32)
    except FileNotFoundError:
        return None
    if not path.exists() or not path.stat().st_size:
        # A log comes only after the file has its first page; SQLite would remove it.
        return f"the spool {path} is empty, and its write-ahead log is not" if header else None
    damaged = damage_of(Path(f"{path}-wal"))
    return f"the write-ahead log of the spool {path} is damaged: {damaged}" if damaged is not None else None


def _recover(path: Path, reason: str) -> Spool:
    part, copy = _clear(path)
    Spool(part).close()
    found = dict.fromkeys(("job", "result"), 0)
    # Of an empty file SQLite would remove the log, even when it only reads.
    patches = (None, _with_new_schema, _with_new_first_page) if path.stat().st_size else (_with_new_first_page,)
    for patch in patches:
        with contextlib.closing(_reader(patch(path, copy, part) if patch is not None else path)) as old:
            if not _has_schema(old, patched=patch is not None):
                continue
            with contextlib.closing(sqlite3.connect(part)) as new:
                # It is synced as a whole. A log would take the same room once more.
                new.execute("PRAGMA journal_mode=MEMORY")
                new.execute("PRAGMA synchronous=OFF")
                with new:
                    found = _take_over(old, new)
        break
    discard(copy)
    stamp = name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    while path.with_name(f"{path.name}.damaged-{name}").exists():  # a clock that was set back
        name = f"{stamp}-{len(set_aside(path)) + 1}" if name == stamp else name + "x"
    ready = path.with_name(f"{path.name}.recovered-{name}")
    _sync(part)
    part.rename(ready)
    _sync(path.parent)
    damaged = _swap(path, ready)
    spool = Spool(path)
    log.error(
        "spool_recovered",
        reason=reason,
        set_aside=str(damaged),
        jobs=found["job"],
        results=found["result"],
        hint="what could not be read runs again when its sender sends it again",
    )
    return spool


def _clear(path: Path) -> tuple[Path, Path]:
    """The names of the files that a recovery writes; what an earlier one left there is removed."""
    part, copy = (path.with_name(f"{path.name}.{kind}") for kind in ("recovering", "copy"))
    for leftover in (part, copy):
        discard(leftover)
    return part, copy


def _room(path: Path) -> str:
    """The free space that a recovery needs: for what it takes over, and once more where it must read from a copy."""
    held = sum(os.stat(file).st_size for file in (path, f"{path}-wal") if os.path.exists(file))
    free = shutil.disk_usage(path.parent).free
    return f"it takes up to {2 * held / 2**20:.1f} MiB of free space, and there are {free / 2**20:.1f}"


def _swap(path: Path, ready: Path) -> Path:
    """Put the damaged spool aside and the new one in its place; every step may have been made already."""
    damaged = path.with_name(ready.name.replace(".recovered-", ".damaged-"))
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{damaged}{suffix}")
    for leftover in (Path(f"{path}-shm"), _mark(path)):
        leftover.unlink(missing_ok=True)
    ready.rename(path)
    _sync(path.parent)
    for old in set_aside(path)[:-KEPT]:
        discard(old)
    return damaged


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reader(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    db.text_factory = lossy_text
    db.execute("PRAGMA writable_schema=ON")  # else a file that was cut short is not read at all
    return db


def _has_schema(db: sqlite3.Connection, patched: bool) -> bool:
    """Whether the schema can be read, and is that of its version or, if it is `patched`, has what every version has.

    Raises sqlite3.Error where something else than damage is in the way.
    """
    try:
        version = 1 if patched else db.execute("PRAGMA user_version").fetchone()[0] & 0xFFFF
        return has_tables_of(db, version, or_more=patched)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return False
        raise


def _with_new_schema(path: Path, copy: Path, fresh: Path) -> Path:
    """A copy whose tables are declared as in a fresh spool. Where each begins stays."""
    _copy(path, copy)
    with contextlib.closing(sqlite3.connect(fresh)) as new:
        rows = new.execute("SELECT type, name, tbl_name, sql, rowid FROM sqlite_schema").fetchall()
    with (
        contextlib.suppress(sqlite3.DatabaseError),  # then it cannot be read, and the next patch is tried
        contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as damaged,
    ):
        damaged.execute("PRAGMA writable_schema=ON")
        damaged.executemany("UPDATE sqlite_schema SET (type, name, tbl_name, sql) = (?, ?, ?, ?) WHERE rowid = ?", rows)
    return copy


def _with_new_first_page(path: Path, copy: Path, fresh: Path) -> Path:
    """A copy with the first page of a fresh spool, whose tables begin at the same pages."""
    with fresh.open("rb") as file:
        first = bytearray(file.read(PAGE_BYTES))
    first[_VALID_FOR] = b"\xff" * 4  # the number of pages is that of the file
    _copy(path, copy)
    with copy.open("r+b") as file:
        file.write(first)
    return copy


def _copy(path: Path, copy: Path) -> None:
    discard(copy)
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")


def _take_over(old: sqlite3.Connection, new: sqlite3.Connection) -> dict[str, int]:
    """Copy every row that can be read and is whole; how many of each table."""
    last = max(_last(old, table) for table in ("job", "result", "delivered")) + BEYOND
    last_waiter = max(_last(old, "waiter", "n"), last * PLACES)
    # A newer edged may have added columns.
    names = {
        table: {column[1] for column in new.execute(f"PRAGMA table_info({table})")}
        for table in ("job", "result", "delivered", "attempt", "waiter", "shared", "given")
    }

    def put(table: str, row: Row) -> None:
        _insert(new, table, {name: value for name, value in row.items() if name in names[table]})

    jobs, results, ids = {}, {}, set()
    for row in _rows(old, "job", last):
        if is_job(row) and row["id"] not in ids:
            jobs[row["seq"]] = row["id"], row["document"] is None
            ids.add(row["id"])
            put("job", row)
    for row in _rows(old, "result", last):
        if row["seq"] in jobs and is_result(row, jobs[row["seq"]][0]):
            results[row["seq"]] = True
            # The answer is whole. What else can have changed is its age and its place among the others.
            unchanged = has_its_checksum("result", row, jobs[row["seq"]][0])
            put("result", row if unchanged else {**row, "row_crc": None})
    for seq in [seq for seq, (_, erased) in jobs.items() if erased and seq not in results]:
        new.execute("DELETE FROM job WHERE seq = ?", (seq,))  # nothing to run and nothing to answer
        del jobs[seq]
    checks: dict[str, Callable[[Row], bool]] = {
        "delivered": lambda row: row["seq"] in results and has_its_checksum("delivered", row),
        "attempt": lambda row: row["seq"] in jobs and all(isinstance(value, int) for value in row.values()),
        "waiter": lambda row: (
            row["seq"] in jobs and isinstance(row["topic"], (str, type(None))) and has_its_checksum("waiter", row)
        ),
        "shared": lambda row: row["seq"] in jobs and is_shared(row),
    }
    present = {name for (name,) in old.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    for table, whole in checks.items():
        if table not in present:  # `shared`, before schema 5
            continue
        for row in _rows(old, table, *((last_waiter, "n") if table == "waiter" else (last, "seq"))):
            if whole(row):
                put(table, row)
    for row in _marks(old):
        if row["id"] not in ids and is_mark(row):
            put("given", row)
    return {"job": len(jobs), "result": len(results)}


def _last(old: sqlite3.Connection, table: str, key: str = "seq") -> int:
    try:
        number = old.execute(f"SELECT max({key}) FROM {table}").fetchone()[0]
    except sqlite3.DatabaseError:
        return 0
    return number if isinstance(number, int) else 0


def _rows(old: sqlite3.Connection, table: str, last: int, key: str = "seq") -> Iterator[Row]:
    """Every row that can be read, in the order of the key. Where a page is broken the next keys are tried singly."""
    at, after = 0, f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key}"
    single = f"SELECT * FROM {table} WHERE {key} = ?"
    while True:
        try:
            for row in old.execute(after, (at,)):
                if not isinstance(row[key], int) or row[key] <= at:
                    break  # broken keys would lead in circles
                at = row[key]
                yield dict(row)
            else:
                return
        except (sqlite3.Error, UnicodeDecodeError):  # of a column's name
            pass
        while True:
            at += 1
            if at > last:
                return
            try:
                found = old.execute(single, (at,)).fetchone()
            except (sqlite3.Error, UnicodeDecodeError):
                continue
            if found is not None:
                yield dict(found)
                break


def _marks(old: sqlite3.Connection) -> Iterator[Row]:
    """The rows of `given` that can be read, from both ends up to a broken page: its keys are no numbers."""
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            for row in old.execute(f"SELECT * FROM given ORDER BY id {order}"):
                yield dict(row)


def _insert(new: sqlite3.Connection, table: str, row: Row) -> None:
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    with contextlib.suppress(sqlite3.IntegrityError):  # a row that a broken page holds once more
        new.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
