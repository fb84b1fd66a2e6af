"""The SQLite file under the spool: how it is opened, committed to, read, and scrubbed of erased content.

WAL with synchronous=FULL: a commit that returned is on disk. Freed space is zeroed (secure_delete).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edged.jobs.schema import SpoolDamagedError, SpoolError, migrate, spool_error

_LOG_HEADER, _PAGE, _ZEROS = 32, 4096, 1 << 20
"""Bytes: of the write-ahead log's header, which holds a salt; of a page of the disk; overwritten at a time."""

PAGE_BYTES = 512
"""A commit writes whole pages; small ones hold hardly more than what is new. A file keeps the size it was made with."""
WAL_BYTES = 1 << 20
"""Size of the write-ahead log at which it is copied into the file and begun anew."""


class Database:
    """One SQLite file, used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, and bring an older file's schema up to date.

        Raises SpoolError: no permission, read-only, full, or written by a newer edged that rules this one out. Raises
        SpoolDamagedError.
        """
        self.path = path
        self.damage: str | None = None
        """Why this file is broken, once damage was met."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.close(descriptor)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise spool_error(f"the spool {path} cannot be opened", error) from None
        try:
            self._db.text_factory = lossy_text
            self._db.create_function("boot_number", 1, boot_number, deterministic=True)
            self._db.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file
            self._db.execute("PRAGMA journal_mode=WAL")
            page = self._db.execute("PRAGMA page_size").fetchone()[0]
            self._db.execute(f"PRAGMA wal_autocheckpoint={WAL_BYTES // page}")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")
            with self.transaction():  # a read-only disk is found here and not at the first job
                migrate(self._db, path)
                self.adopt_older_rows()
                self.touch()
            self.load()
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error):
                raise spool_error(f"the spool {path} cannot be opened", error) from None
            raise

    def adopt_older_rows(self) -> None:
        """Bring rows that an older edged wrote since the last start into this version's form."""

    def load(self) -> None:
        """Read what is kept in memory."""

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
            if isinstance(error, sqlite3.Error):
                raise self._failure("written", error) from None
            raise

    @property
    def writing(self) -> bool:
        """Whether a transaction is open."""
        return self._db.in_transaction

    @property
    def version(self) -> int:
        """Another number after another connection has committed, such as that of `edged forget`. Raises SpoolError."""
        row = self._one("PRAGMA data_version")
        return int(row[0]) if row else 0

    def touch(self) -> None:
        """A write that changes nothing: it shows whether the disk takes writes."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        self._db.execute(f"PRAGMA user_version={version}")

    def check_structure(self) -> None:
        """Read all pages and check how rows lie in them, but not indexes. Raises SpoolError, SpoolDamagedError."""
        found = self._one("PRAGMA quick_check(1)")
        if found is not None and found[0] != "ok":
            raise self._damaged(" ".join(str(found[0]).split())[:200])

    def scrub(self) -> bool:
        """Leave nothing of erased rows in the write-ahead log: checkpoint it, overwrite it, and cut it to nothing.

        Cut alone, its blocks would keep their content on the raw disk. False where another process reads or writes at
        the moment: try again later. Raises SpoolError.
        """
        header = self._log_header()
        if not self._checkpoint("RESTART"):
            return False
        with self.transaction():  # nobody writes meanwhile, and readers need no log whose content is all in the file
            if self._log_header() != header:
                return False  # another process has begun the log anew
            self._overwrite_log()
        return self._checkpoint("TRUNCATE")

    def _checkpoint(self, kind: str) -> bool:
        busy = self._one(f"PRAGMA wal_checkpoint({kind})")
        return busy is not None and not busy[0]

    def _log_header(self) -> bytes:
        """The log's first bytes, which change whenever it is begun anew; empty where there is no log."""
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
            # The header first: were it whole after a power cut, and the frames only up to some place, SQLite would
            # play back content that is older than the file.
            for start, end in ((0, min(size, _PAGE)), (_PAGE, size)):
                for place in range(start, end, _ZEROS):
                    os.pwrite(descriptor, bytes(min(_ZEROS, end - place)), place)
                os.fdatasync(descriptor)
        except OSError as error:
            raise spool_error(f"the spool {self.path} cannot be written", error) from None
        finally:
            os.close(descriptor)

    def _damaged(self, fault: str) -> SpoolDamagedError:
        self.damage = f"the spool {self.path} is damaged: {fault}"
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

    @property
    def bytes(self) -> int:
        """Size of the spool's files."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                total += os.stat(f"{self.path}{suffix}").st_size
        return total


def lossy_text(text: bytes) -> str:
    """A text of the file. If damage made it invalid, a checksum judges it: sqlite3 has no error for that alone."""
    return text.decode("utf-8", "replace")


def boot_number(boot_id: str) -> int:
    """A short number for a boot. Two boots that share one (2**-32) differ only in which clock judges an age."""
    return zlib.crc32(boot_id.encode())
