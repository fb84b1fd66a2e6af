"""The spool: jobs, results and who waits for them, in one SQLite file that a power cut cannot break.

WAL with synchronous=FULL: what a commit returned from is on disk. Rows are appended, hardly ever rewritten, and freed
space is zeroed (secure_delete). One thread at a time uses it. The caller groups writes with `transaction()`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.erasure import erase_file
from edged.jobs.id_index import IdIndex
from edged.jobs.schema import SpoolDamagedError, migrate, spool_error
from edged.jobs.schema import SpoolError as SpoolError

_LOG_HEADER, _PAGE, _ZEROS = 32, 4096, 1 << 20
"""Bytes: of the write-ahead log's header, which holds a salt; of a page of the disk; overwritten at a time."""

PAGE_BYTES = 512
"""A commit writes whole pages: with small ones hardly more than what is new. A file keeps what it was made with."""
WAL_BYTES = 1 << 20
"""Size of the write-ahead log at which it is copied into the file and begun anew."""


@dataclass(frozen=True)
class Queued:
    """A job without a result. Times as in the table `job`."""

    seq: int
    id: str
    priority: int
    store: bool
    received: float
    boottime: float
    boot_id: str
    synchronised: bool
    ttl: float | None
    deadline: float | None
    starts: int = 0
    crashes: int = 0
    suspect: bool = False


@dataclass(frozen=True)
class Known:
    """What the spool has under an id. `state` is None while there is no result."""

    seq: int
    digest: bytes
    state: str | None
    kept: bool
    """False once the result was erased (store: false)."""


@dataclass(frozen=True)
class Delivery:
    """One publication of a result that is due. `topic` None is the job's own result topic."""

    seq: int
    id: str
    topic: str | None
    correlation: bytes | None
    waiter: int | None = None


class Spool:
    """Jobs and results on disk."""

    def __init__(self, path: Path) -> None:
        """Open or make the spool, and bring an older file's schema up to date.

        Raises SpoolError: no permission, read-only, full, of a newer edged that leaves this one out. Raises
        SpoolDamagedError.
        """
        self.path = path
        self.damage: str | None = None
        """Why this file is broken, once that was met."""
        self._removed: list[tuple[int, str]] = []
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.close(descriptor)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise spool_error(f"the spool {path} cannot be opened", error) from None
        try:
            self._db.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file
            self._db.execute("PRAGMA journal_mode=WAL")
            page = self._db.execute("PRAGMA page_size").fetchone()[0]
            self._db.execute(f"PRAGMA wal_autocheckpoint={WAL_BYTES // page}")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")
            with self.transaction():  # a read-only disk is found here and not at the first job
                migrate(self._db, path)
                self.touch()
            # Given by hand, so that the number of a job that was removed is never given again while this process runs.
            self._next = self._db.execute("SELECT ifnull(max(seq), 0) + 1 FROM job").fetchone()[0]
            undelivered = "result LEFT JOIN delivered USING (seq) WHERE delivered.seq IS NULL"
            self._made = self._db.execute(f"SELECT ifnull(max(made), 0) + 1 FROM {undelivered}").fetchone()[0]
            self._ids = IdIndex(self._db.execute("SELECT seq, id FROM job"))
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error):
                raise spool_error(f"the spool {path} cannot be opened", error) from None
            raise

    def close(self) -> None:
        """Close the file; everything committed is on disk already."""
        with contextlib.suppress(SpoolError):
            self.scrub()  # SQLite removes the log now, and would leave its blocks as they are
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit for all writes inside; on any error none of them. Raises SpoolError."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            self._removed.clear()
            if isinstance(error, sqlite3.Error):
                raise self._failure("written", error) from None
            raise
        while self._removed:
            self._ids.discard(*self._removed.pop())

    def add_job(
        self,
        id: str,
        digest: bytes,
        document: bytes,
        *,
        priority: int,
        store: bool,
        received: float,
        boottime: float,
        boot_id: str,
        synchronised: bool,
        ttl: float | None,
        deadline: float | None,
        reply_topic: str | None,
        correlation: bytes | None,
    ) -> Queued:
        """Append a job. Whether its id is free is the caller's to ask, by find()."""
        seq, self._next = self._next, self._next + 1
        self._db.execute(
            "INSERT INTO job (seq, id, digest, document, priority, store, received, boottime, boot_id, synchronised, "
            "ttl, deadline, reply_topic, correlation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq,
                id,
                digest,
                document,
                priority,
                store,
                received,
                boottime,
                boot_id,
                synchronised,
                ttl,
                deadline,
                reply_topic,
                correlation,
            ),
        )
        self._ids.add(seq, id)  # find() sees whether the commit came to its end
        return Queued(seq, id, priority, store, received, boottime, boot_id, synchronised, ttl, deadline)

    def add_result(self, seq: int, state: str, document: bytes, finished: float, boottime: float, boot_id: str) -> bool:
        """Append a job's one result; False where the job was forgotten meanwhile."""
        made, self._made = self._made, self._made + 1
        cursor = self._db.execute(
            "INSERT INTO result (seq, state, document, finished, boottime, boot_id, made, crc) "
            "SELECT seq, ?, ?, ?, ?, ?, ?, ? FROM job WHERE seq = ?",
            (state, document, finished, boottime, boot_id, made, checksum(seq, document), seq),
        )
        return cursor.rowcount == 1

    def add_waiter(
        self, seq: int, topic: str | None, correlation: bytes | None, told: Container[int] = ()
    ) -> int | None:
        """Remember one more place that wants the result; None if it is remembered by a number that is not in `told`."""
        same = self._db.execute(
            "SELECT n FROM waiter WHERE seq = ? AND topic IS ? AND correlation IS ?",
            (seq, topic, correlation),
        )
        if any(n not in told for (n,) in same):
            return None
        return self._db.execute(
            "INSERT INTO waiter (seq, topic, correlation) VALUES (?, ?, ?)", (seq, topic, correlation)
        ).lastrowid

    def first_waiter(self, seq: int) -> tuple[str | None, bytes | None]:
        """The Response Topic and Correlation Data that the job came with."""
        row = self._db.execute("SELECT reply_topic, correlation FROM job WHERE seq = ?", (seq,)).fetchone()
        return (row[0], row[1]) if row else (None, None)

    def answered(self, waiter: int) -> None:
        """Forget a waiter that has its answer."""
        self._db.execute("DELETE FROM waiter WHERE n = ?", (waiter,))

    def mark_delivered(self, seq: int) -> None:
        """The broker has the result, wherever it was due at first."""
        self._db.execute("INSERT OR IGNORE INTO delivered (seq) VALUES (?)", (seq,))

    def note_interrupted(self, seq: int, *, crashed_alone: bool, suspect: bool) -> None:
        """Account for a run that an end of the process cut short."""
        self._db.execute(
            "INSERT INTO attempt (seq, starts, crashes, suspect) SELECT seq, 1, ?, ? FROM job WHERE seq = ? "
            "ON CONFLICT (seq) DO UPDATE SET "
            "starts = starts + 1, crashes = crashes + excluded.crashes, suspect = max(suspect, excluded.suspect)",
            (int(crashed_alone), int(suspect), seq),
        )

    def stores(self, seq: int) -> bool:
        """Whether a job's documents may be kept once its result is delivered."""
        row = self._one("SELECT store FROM job WHERE seq = ?", (seq,))
        return row is None or bool(row[0])

    def erase(self, seq: int) -> None:
        """Remove what a job said and got; its id and digest stay, so that a redelivery does not run again."""
        self._db.execute("UPDATE job SET document = NULL, reply_topic = NULL, correlation = NULL WHERE seq = ?", (seq,))
        self._db.execute("UPDATE result SET document = NULL WHERE seq = ?", (seq,))
        self._db.execute("DELETE FROM waiter WHERE seq = ?", (seq,))

    def remove(self, seq: int) -> None:
        """Remove a job with all that belongs to it."""
        for (id,) in self._db.execute("DELETE FROM job WHERE seq = ? RETURNING id", (seq,)).fetchall():
            self._removed.append((seq, id))
        for table in ("result", "delivered", "waiter", "attempt"):
            self._db.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))

    def prune(self, age: float, wall: float, boottime: float, boot_id: str, limit: int) -> int:
        """Remove up to `limit` delivered jobs whose result is older than `age` seconds now; how many they were.

        Damaged spools that were set aside so long ago go too: the same jobs are in them.
        What finished in this boot is judged by its clock: wall time may have been set right since.
        """
        rows = self._db.execute(
            "SELECT result.seq FROM result JOIN delivered USING (seq) "
            "WHERE iif(boot_id = ?, boottime < ?, finished < ?) ORDER BY result.seq LIMIT ?",
            (boot_id, boottime - age, wall - age, limit),
        ).fetchall()
        for (seq,) in rows:
            self.remove(seq)
        for file in self.set_aside:
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < wall - age:
                    discard(file)
        return len(rows)

    def touch(self) -> None:
        """A write that changes nothing: whether the disk takes writes."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        self._db.execute(f"PRAGMA user_version={version}")

    def find(self, id: str) -> Known | None:
        """What is known under `id`."""
        seq = self._ids.get(id)
        if seq is None:
            return None
        row = self._one(
            "SELECT digest, state, result.document IS NOT NULL FROM job LEFT JOIN result USING (seq) "
            "WHERE seq = ? AND id = ?",
            (seq, id),
        )
        return Known(seq, row[0], row[1], bool(row[2])) if row else None

    def document(self, seq: int) -> bytes | None:
        """A job's canonical document, None once it was forgotten or erased.

        Raises SpoolDamagedError where it is not the one that was accepted: SQLite itself checks no content.
        """
        row = self._one("SELECT document, digest FROM job WHERE seq = ?", (seq,))
        if row is None or row[0] is None:
            return None
        if not isinstance(row[0], bytes) or hashlib.sha256(row[0]).digest() != row[1]:
            raise self._damaged("a job in it is not what was accepted")
        return row[0]

    def result(self, seq: int) -> bytes | None:
        """A result as it was first published, None once erased.

        Raises SpoolDamagedError where it is not the one that was written down.
        """
        row = self._one("SELECT document, crc FROM result WHERE seq = ?", (seq,))
        if row is None or row[0] is None:
            return None
        if not isinstance(row[0], bytes) or row[1] not in (None, checksum(seq, row[0])):
            raise self._damaged("a result in it is not what was written down")
        return row[0]

    def queued(self) -> Iterator[Queued]:
        """All jobs without a result, in the order of receipt."""
        for row in self._read(
            "SELECT job.seq, id, priority, store, received, job.boottime, job.boot_id, synchronised, ttl, deadline, "
            "ifnull(starts, 0), ifnull(crashes, 0), ifnull(suspect, 0) FROM job LEFT JOIN result USING (seq) "
            "LEFT JOIN attempt USING (seq) WHERE result.seq IS NULL ORDER BY job.seq"
        ):
            (seq, id, priority, store, received, boottime, boot_id, synchronised), rest = row[:8], row[8:]
            (ttl, deadline, starts, crashes, suspect) = rest
            yield Queued(
                seq,
                id,
                priority,
                bool(store),
                received,
                boottime,
                boot_id,
                bool(synchronised),
                ttl,
                deadline,
                starts,
                crashes,
                bool(suspect),
            )

    def due(self) -> Iterator[Delivery]:
        """All publications that the broker has not confirmed, results in the order in which they were made."""
        for seq, id, topic, correlation in self._read(
            "SELECT seq, id, reply_topic, correlation FROM result JOIN job USING (seq) LEFT JOIN delivered USING (seq) "
            "WHERE delivered.seq IS NULL AND result.document IS NOT NULL ORDER BY made, finished, seq"
        ):
            yield Delivery(seq, id, None, None)
            if topic is not None:
                yield Delivery(seq, id, topic, correlation)
        for n, seq, id, topic, correlation in self._read(
            "SELECT n, seq, id, topic, waiter.correlation FROM waiter JOIN job USING (seq) JOIN result USING (seq) "
            "WHERE result.document IS NOT NULL ORDER BY n"
        ):
            yield Delivery(seq, id, topic, correlation, n)

    def waiters(self, seq: int) -> list[tuple[int, str | None, bytes | None]]:
        """The further waiters of a job: (number, topic, correlation)."""
        return list(self._read("SELECT n, topic, correlation FROM waiter WHERE seq = ? ORDER BY n", (seq,)))

    def last_boottime(self, boot_id: str) -> float:
        """The latest CLOCK_BOOTTIME that the spool saw in that boot, 0 if none."""
        row = self._one(
            "SELECT max(ifnull((SELECT max(boottime) FROM job WHERE boot_id = ?1), 0), "
            "ifnull((SELECT max(boottime) FROM result WHERE boot_id = ?1), 0))",
            (boot_id,),
        )
        return float(row[0]) if row else 0.0

    def ids(self) -> list[str]:
        """Every id the spool knows."""
        return [row[0] for row in self._read("SELECT id FROM job ORDER BY seq")]

    def scrub(self) -> bool:
        """Leave nothing of erased rows in the write-ahead log: checkpoint it, overwrite it, and cut it to nothing.

        Cut alone, its blocks would keep on the raw disk what stood in them. False where another process reads or
        writes just now: to be tried again. Raises SpoolError.
        """
        header = self._log_header()
        if not self._checkpoint("RESTART"):
            return False
        with self.transaction():  # nobody writes meanwhile, and readers have no use for a log that is all in the file
            if self._log_header() != header:
                return False  # another process has begun the log anew
            self._overwrite_log()
        return self._checkpoint("TRUNCATE")

    def _checkpoint(self, kind: str) -> bool:
        busy = self._one(f"PRAGMA wal_checkpoint({kind})")
        return busy is not None and not busy[0]

    def _log_header(self) -> bytes:
        """The log's first bytes, which are others whenever it is begun anew; empty where there is no log."""
        try:
            with open(f"{self.path}-wal", "rb") as log:
                return log.read(_LOG_HEADER)
        except FileNotFoundError:
            return b""

    def _overwrite_log(self) -> None:
        try:
            descriptor = os.open(f"{self.path}-wal", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            size = os.fstat(descriptor).st_size
            # Its header first: were it whole after a power cut, and the frames only up to some place, SQLite would
            # play back what is older than the file.
            for start, end in ((0, min(size, _PAGE)), (_PAGE, size)):
                for place in range(start, end, _ZEROS):
                    os.pwrite(descriptor, bytes(min(_ZEROS, end - place)), place)
                os.fdatasync(descriptor)
        except OSError as error:
            raise spool_error(f"the spool {self.path} cannot be written", error) from None
        finally:
            os.close(descriptor)

    @property
    def bytes(self) -> int:
        """Size of the spool's files."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                total += os.stat(f"{self.path}{suffix}").st_size
        return total

    @property
    def set_aside(self) -> list[Path]:
        """Damaged spools that were set aside, the oldest first."""
        return set_aside(self.path)

    def _damaged(self, what: str) -> SpoolDamagedError:
        self.damage = f"the spool {self.path} is damaged: {what}"
        return SpoolDamagedError(self.damage)

    def _failure(self, verb: str, error: sqlite3.Error) -> SpoolError:
        failure = spool_error(f"the spool {self.path} cannot be {verb}", error)
        if isinstance(failure, SpoolDamagedError):
            self.damage = str(failure)
        return failure

    def _one(self, query: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        rows = list(self._read(query, values))
        return rows[0] if rows else None

    def _read(self, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            raise self._failure("read", error) from None


def checksum(seq: int, document: bytes) -> int:
    """What tells a result that a damaged page changed, or gave to another job."""
    return zlib.crc32(document, seq & 0xFFFFFFFF)


def set_aside(path: Path) -> list[Path]:
    """Damaged spools that were set aside for the spool at `path`, the oldest first, each without its log (-wal)."""
    found = (file for file in path.parent.glob(f"{path.name}.damaged-*") if not file.name.endswith(("-wal", "-shm")))
    return sorted(found, key=lambda file: file.name)


def discard(damaged: Path) -> None:
    """Erase a spool that was set aside. Raises OSError."""
    Path(f"{damaged}-shm").unlink(missing_ok=True)  # no row is in it, and on a full disk it has holes
    for suffix in ("-wal", ""):
        erase_file(Path(f"{damaged}{suffix}"))
