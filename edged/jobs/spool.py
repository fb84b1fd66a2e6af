"""The spool: jobs, results and their waiters, in one SQLite file that a power cut cannot break.

Rows are appended and hardly ever rewritten. The caller groups writes with `transaction()`.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edged.erasure import erase_file
from edged.jobs.checksums import COVERED, columns, document_crc, is_whole, row_crc
from edged.jobs.database import Database, boot_number
from edged.jobs.id_index import IdIndex
from edged.jobs.records import Delivery, Known, Moment, Queued
from edged.jobs.shared import SharedJobs
from edged.jobs.waiters import Row, Waiters

_UNDELIVERED = "seq IN (SELECT seq FROM result EXCEPT SELECT seq FROM delivered)"
"""Written so that SQLite reads keys alone until it knows which results are due."""


class Spool(Database):
    """Jobs and results on disk. A job's `number` is the column `seq`."""

    def __init__(self, path: Path) -> None:
        """Open or make the spool; raises as Database()."""
        self._removed: list[tuple[int, str]] = []
        super().__init__(path)

    def adopt_older_rows(self) -> None:
        """Complete what an edged that knows schema 2 or less wrote since."""
        self.waiters = Waiters(self._db, self._damaged)
        self.waiters.adopt()
        self._db.execute(
            "UPDATE delivered SET (finished, boottime, boot) = "
            "(SELECT finished, boottime, boot_number(boot_id) FROM result WHERE seq = delivered.seq) "
            "WHERE finished IS NULL"
        )

    def load(self) -> None:
        """Read the numbers that come next, and the index of ids."""
        self.shared = SharedJobs(self._db, self._read)
        # Given by hand, so that the number of a job that was removed is never given again while this process runs.
        self._next = self._db.execute("SELECT ifnull(max(seq), 0) + 1 FROM job").fetchone()[0]
        made = f"SELECT ifnull(max(made), 0) + 1 FROM result WHERE {_UNDELIVERED}"
        self._made = self._db.execute(made).fetchone()[0]
        self._ids = IdIndex(self._db.execute("SELECT seq, id FROM job"))
        # Without its row a result is published again; another's row in its place would keep it from its waiters.
        for *values, crc in self._db.execute(f"SELECT {columns('delivered')} FROM delivered"):
            self._check("delivered", tuple(values), crc)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit for all writes inside; on any error none of them. Raises SpoolError."""
        try:
            with super().transaction():
                yield
        except BaseException:
            self._removed.clear()
            raise
        while self._removed:
            self._ids.discard(*self._removed.pop())

    # What is written

    def add_job(
        self,
        id: str,
        digest: bytes,
        document: bytes,
        received: Moment,
        *,
        priority: int,
        store: bool,
        ttl: float | None,
        deadline: float | None,
    ) -> Queued:
        """Append a job. The caller checks by find() that its id is free."""
        number, self._next = self._next, self._next + 1
        values = (
            *(number, id, digest, priority, store),
            *(received.wall, received.boottime, received.boot_id, received.synchronised),
            *(ttl, deadline),
        )
        self._db.execute(
            f"INSERT INTO job ({', '.join(COVERED['job'])}, document, row_crc) VALUES ({', '.join('?' * 13)})",
            (*values, document, row_crc("job", values)),
        )
        self._ids.add(number, id)  # find() sees whether the commit came to its end
        return Queued(number, id, priority, store, received, ttl, deadline)

    def add_result(self, number: int, state: str, document: bytes, finished: Moment) -> bool:
        """Append a job's one result; False where the job was forgotten meanwhile."""
        row = self._db.execute("SELECT id FROM job WHERE seq = ?", (number,)).fetchone()
        if row is None:
            return False
        made, self._made = self._made, self._made + 1
        moment = finished.wall, finished.boottime, finished.boot_id
        values = number, state, *moment, made, document_crc(number, document)
        self._db.execute(
            f"INSERT INTO result ({', '.join(COVERED['result'])}, document, row_crc) VALUES ({', '.join('?' * 9)})",
            (*values, document, row_crc("result", (*values, row[0]))),
        )
        return True

    def replace_result(self, number: int, state: str, document: bytes) -> None:
        """Put another result in a job's only one's place."""
        crc = document_crc(number, document)
        wanted = "result.finished, result.boottime, result.boot_id, result.made, job.id"
        query = f"SELECT {wanted} FROM result JOIN job USING (seq) WHERE seq = ?"
        for *kept, id in self._db.execute(query, (number,)).fetchall():
            self._db.execute(
                "UPDATE result SET state = ?, document = ?, crc = ?, row_crc = ? WHERE seq = ?",
                (state, document, crc, row_crc("result", (number, state, *kept, crc, id)), number),
            )

    def mark_delivered(self, number: int) -> None:
        """The broker has the result on the job's result topic."""
        query = "SELECT finished, boottime, boot_id FROM result WHERE seq = ?"
        for finished, boottime, boot_id in self._db.execute(query, (number,)).fetchall():
            values = number, finished, boottime, boot_number(boot_id)
            self._db.execute(
                "INSERT OR IGNORE INTO delivered (seq, finished, boottime, boot, row_crc) VALUES (?, ?, ?, ?, ?)",
                (*values, row_crc("delivered", values)),
            )

    def note_interrupted(self, number: int, *, crashed_alone: bool, suspect: bool) -> None:
        """Account for a run that an end of the process cut short; negative numbers are those of pinned prompts."""
        self._db.execute(
            "INSERT INTO attempt (seq, starts, crashes, suspect) SELECT ?1, 1, ?2, ?3 "
            "WHERE ?1 < 0 OR EXISTS (SELECT 1 FROM job WHERE seq = ?1) ON CONFLICT (seq) DO UPDATE SET "
            "starts = starts + 1, crashes = crashes + excluded.crashes, suspect = max(suspect, excluded.suspect)",
            (number, int(crashed_alone), int(suspect)),
        )

    def take_over_attempts(self, number: int, starts: int, crashes: int) -> None:
        """Write down the runs of a job that other members cut short."""
        if starts:
            values = (number, starts, crashes)
            self._db.execute("INSERT INTO attempt (seq, starts, crashes, suspect) VALUES (?, ?, ?, 0)", values)

    def forget_attempts(self, number: int) -> None:
        """Forget the interrupted runs of a pinned prompt."""
        self._db.execute("DELETE FROM attempt WHERE seq = ?", (number,))

    def erase(self, number: int) -> None:
        """Remove a job's prompt, answer and waiters; id and digest stay, so that a redelivery does not run again."""
        self._db.execute(
            "UPDATE job SET document = NULL, reply_topic = NULL, correlation = NULL WHERE seq = ?", (number,)
        )
        self._db.execute("UPDATE result SET document = NULL WHERE seq = ?", (number,))
        self.waiters.remove(number)

    def remove(self, number: int) -> None:
        """Remove a job with all that belongs to it."""
        for (id,) in self._db.execute("DELETE FROM job WHERE seq = ? RETURNING id", (number,)).fetchall():
            self._removed.append((number, id))
        for table in ("result", "delivered", "attempt"):
            self._db.execute(f"DELETE FROM {table} WHERE seq = ?", (number,))
        self.waiters.remove(number)
        self.shared.remove(number)

    def prune(self, age: float, now: Moment, limit: int) -> int:
        """Remove up to `limit` delivered jobs whose result is older than `age` seconds; return how many.

        Damaged spools that were set aside so long ago go too: the same jobs are in them. The boot clock judges results
        of this boot, since the wall clock may have been set right since.
        """
        rows = self._db.execute(
            "SELECT seq FROM delivered WHERE iif(boot = boot_number(?), boottime < ?, finished < ?) "
            "ORDER BY seq LIMIT ?",
            (now.boot_id, now.boottime - age, now.wall - age, limit),
        ).fetchall()
        for (number,) in rows:
            self.remove(number)
        self.shared.prune(age, now)
        for file in self.set_aside:
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < now.wall - age:
                    discard(file)
        return len(rows)

    # What is read

    def find(self, id: str) -> Known | None:
        """The job that has this id."""
        number = self._ids.get(id)
        if number is None:
            return None
        row = self._one(
            f"SELECT {columns('job')}, state, result.document IS NOT NULL FROM job LEFT JOIN result USING (seq) "
            "WHERE seq = ? AND id = ?",
            (number, id),
        )
        if row is None:
            return None
        (*values, crc), (state, kept) = row[:-2], row[-2:]
        self._check("job", tuple(values), crc)
        return Known(number, values[2], state, bool(kept))

    def document(self, number: int) -> bytes | None:
        """A job's canonical document, None once it was forgotten or erased.

        Raises SpoolDamagedError where it is not the one that was accepted: SQLite itself checks no content.
        """
        row = self._one("SELECT document, digest FROM job WHERE seq = ?", (number,))
        if row is None or row[0] is None:
            return None
        if not isinstance(row[0], bytes) or hashlib.sha256(row[0]).digest() != row[1]:
            raise self._damaged("a job in it is not what was accepted")
        return row[0]

    def result(self, number: int) -> bytes | None:
        """A result as it was first published, None once erased.

        Raises SpoolDamagedError where it is not the one that was written down.
        """
        row = self._one("SELECT document, crc FROM result WHERE seq = ?", (number,))
        if row is None or row[0] is None:
            return None
        if not isinstance(row[0], bytes) or row[1] not in (None, document_crc(number, row[0])):
            raise self._damaged("a result in it is not what was written down")
        return row[0]

    def delivered(self, number: int) -> bool:
        """Whether the broker has the result on the job's result topic."""
        return self._one("SELECT 1 FROM delivered WHERE seq = ?", (number,)) is not None

    def stores(self, number: int) -> bool:
        """Whether a job's documents may be kept once its result is delivered."""
        row = self._one(f"SELECT {columns('job')} FROM job WHERE seq = ?", (number,))
        if row is None:
            return True
        self._check("job", row[:-1], row[-1])
        return bool(row[4])

    def queued(self) -> Iterator[Queued]:
        """All jobs without a result, in the order of receipt."""
        for row in self._read(
            f"SELECT {columns('job')}, ifnull(starts, 0), ifnull(crashes, 0), ifnull(suspect, 0) FROM job "
            "LEFT JOIN result USING (seq) LEFT JOIN attempt USING (seq) WHERE result.seq IS NULL ORDER BY job.seq"
        ):
            *values, crc, starts, crashes, suspect = row
            self._check("job", tuple(values), crc)
            number, id, _, priority, store, wall, boottime, boot_id, synchronised, ttl, deadline = values
            moment = Moment(wall, boottime, boot_id, bool(synchronised))
            yield Queued(number, id, priority, bool(store), moment, ttl, deadline, starts, crashes, bool(suspect))

    def places(self, number: int) -> list[tuple[str | None, bytes | None]]:
        """Topics and Correlation Data that wait for a job's result, beside its own result topic."""
        try:
            return [(topic, correlation) for _, _, topic, correlation in self.waiters.of(number)]
        except sqlite3.Error as error:
            raise self._failure("read", error) from None

    def pinned_attempts(self) -> dict[int, tuple[int, bool]]:
        """Of pinned prompts that were interrupted: (crashes alone, whether it must run alone) by number."""
        rows = self._read("SELECT seq, crashes, suspect FROM attempt WHERE seq < 0")
        return {number: (crashes, bool(suspect)) for number, crashes, suspect in rows}

    def due(self) -> Iterator[Delivery]:
        """All publications that the broker has not confirmed, results in the order in which they were made."""
        waiters: dict[int, list[Row]] = defaultdict(list)
        try:
            for row in self.waiters.all():
                waiters[row[1]].append(row)
        except sqlite3.Error as error:
            raise self._failure("read", error) from None
        for *values, crc, id in self._read(
            f"SELECT {columns('result')}, id FROM result JOIN job USING (seq) WHERE {_UNDELIVERED} "
            "AND result.document IS NOT NULL ORDER BY made, result.finished, seq"
        ):
            number = values[0]
            self._check("result", (*values, id), crc)
            yield Delivery(number, id)
            yield from self._to_waiters(id, waiters.pop(number, []))
        for number, rows in waiters.items():  # that asked again, after the result topic had it
            known = self._one(
                "SELECT id FROM job JOIN result USING (seq) WHERE seq = ? AND result.document IS NOT NULL", (number,)
            )
            if known is not None:
                yield from self._to_waiters(known[0], rows)

    def deliveries(self, job: Queued) -> list[Delivery]:
        """The publications of a result that was just made."""
        return [Delivery(job.number, job.id), *self._to_waiters(job.id, self.waiters.of(job.number))]

    def _to_waiters(self, id: str, rows: list[Row]) -> Iterator[Delivery]:
        for n, number, topic, correlation in rows:
            yield Delivery(number, id, topic, correlation, n)

    def _check(self, table: str, values: tuple[Any, ...], crc: object) -> None:
        """Raises SpoolDamagedError where a row does not have its checksum."""
        if not is_whole(table, values, crc):
            raise self._damaged(f"a row of the table {table} is not what was written down")

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

    @property
    def set_aside(self) -> list[Path]:
        """Damaged spools that were set aside, the oldest first."""
        return set_aside(self.path)


def set_aside(path: Path) -> list[Path]:
    """Damaged spools that were set aside for the spool at `path`, the oldest first, each without its log (-wal)."""
    found = (file for file in path.parent.glob(f"{path.name}.damaged-*") if not file.name.endswith(("-wal", "-shm")))
    return sorted(found, key=lambda file: file.name)


def discard(damaged: Path) -> None:
    """Erase a spool that was set aside. Raises OSError."""
    Path(f"{damaged}-shm").unlink(missing_ok=True)  # no row is in it, and on a full disk it has holes
    for suffix in ("-wal", ""):
        erase_file(Path(f"{damaged}{suffix}"))
