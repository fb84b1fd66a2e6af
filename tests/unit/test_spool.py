"""The spool: what a commit returned from is there, what was erased is not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spool_rig import pragma

from edged.jobs import schema
from edged.jobs.database import PAGE_BYTES, WAL_BYTES
from edged.jobs.records import Delivery, Known, Moment, Queued
from edged.jobs.schema import STEPS, Migration, SpoolDamagedError, SpoolError
from edged.jobs.shared import Mark, Shared
from edged.jobs.spool import Spool

SPOOLS = Path(__file__).parents[1] / "fixtures/spools"
"""One of every version of the schema, made by the code of its time."""
ERASED = b'{"id": "erased", "prompt": "What is it?"}'
ANY: dict[str, Any] = {
    "priority": 5,
    "store": True,
    "ttl": None,
    "deadline": None,
}
MOMENT = Moment(100.0, 10.0, "b", False)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool.db")
    yield spool
    spool.close()


def add(spool: Spool, id: str, document: bytes = b"{}", **fields: Any) -> Queued:
    with spool.transaction():
        received = fields.pop("received", MOMENT)
        return spool.add_job(id, hashlib.sha256(document).digest(), document, received, **ANY | fields)


def end(spool: Spool, queued: Queued, document: bytes = b"result", finished: float = 200.0) -> bool:
    with spool.transaction():
        return spool.add_result(queued.number, "succeeded", document, Moment(finished, 20.0, "b", False))


def wait(spool: Spool, queued: Queued, topic: str | None, correlation: bytes | None = None) -> int | None:
    with spool.transaction():
        return spool.waiters.add(queued.number, topic, correlation)


def pruned(spool: Spool, age: float, wall: float, boottime: float, boot_id: str, limit: int) -> int:
    with spool.transaction():
        return spool.prune(age, Moment(wall, boottime, boot_id, True), limit)


@contextlib.contextmanager
def other_process(spool: Spool) -> Iterator[sqlite3.Connection]:
    """Another connection to the same file."""
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as db:
        yield db


def reopened(spool: Spool) -> Spool:
    spool.close()
    return Spool(spool.path)


def files(spool: Spool) -> bytes:
    return b"".join(path.read_bytes() for path in spool.path.parent.iterdir())


def test_jobs_come_back_as_they_were_in_the_order_of_receipt(spool: Spool) -> None:
    jobs = [add(spool, "a", ttl=5.0, priority=9), add(spool, "b", deadline=7.0, store=False)]
    assert list(reopened(spool).queued()) == jobs
    assert jobs[0].number < jobs[1].number


def test_an_error_inside_a_transaction_undoes_all_of_it(spool: Spool) -> None:
    with pytest.raises(ZeroDivisionError), spool.transaction():
        spool.add_job("a", b"", b"", MOMENT, **ANY)
        _ = 1 / 0
    assert spool.find("a") is None
    add(spool, "a")


def test_a_job_that_was_forgotten_meanwhile_gets_no_result(spool: Spool) -> None:
    queued = add(spool, "a")
    with spool.transaction():
        spool.remove(queued.number)
    assert not end(spool, queued)
    assert list(spool.due()) == []


def test_the_number_of_a_removed_job_is_not_given_again(spool: Spool) -> None:
    first = add(spool, "a")
    with spool.transaction():
        spool.remove(first.number)
    assert add(spool, "a").number > first.number


def test_a_job_whose_commit_failed_is_not_known_and_one_whose_removal_failed_still_is(spool: Spool) -> None:
    queued = add(spool, "a")
    with pytest.raises(ZeroDivisionError), spool.transaction():
        spool.remove(queued.number)
        _ = 1 / 0
    with spool.transaction():
        pass
    known = spool.find("a")
    assert known is not None
    assert known.number == queued.number


def test_an_id_that_was_removed_is_free_and_belongs_to_the_next_job_with_it(spool: Spool) -> None:
    for remover in (spool, Spool(spool.path)):  # `edged forget` is another process
        queued = add(spool, "a")
        with remover.transaction():
            remover.remove(queued.number)
        assert spool.find("a") is None
    with spool.transaction():
        again = spool.add_job("a", b"1", b"", MOMENT, **ANY)
        spool.remove(again.number)
        last = spool.add_job("a", b"2", b"", MOMENT, **ANY)
    assert spool.find("a") == reopened(spool).find("a") == Known(last.number, b"2", None, False)


def test_a_job_that_was_removed_takes_no_memory(spool: Spool) -> None:
    queued = add(spool, "a")
    with spool.transaction():
        spool.remove(queued.number)
    assert "a" not in spool.ids()


def test_no_index_is_on_disk(spool: Spool) -> None:
    """Ids are random: each would touch a page of its own."""
    with other_process(spool) as db:
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'index'").fetchone() == (0,)


def test_what_is_known_of_an_id(spool: Spool) -> None:
    queued = add(spool, "a")
    assert spool.find("a") == Known(queued.number, hashlib.sha256(b"{}").digest(), None, False)
    end(spool, queued)
    assert spool.find("a") == Known(queued.number, hashlib.sha256(b"{}").digest(), "succeeded", True)
    with spool.transaction():
        spool.erase(queued.number)
    assert spool.find("a") == Known(queued.number, hashlib.sha256(b"{}").digest(), "succeeded", False)
    assert (spool.result(queued.number), spool.document(queued.number)) == (None, None)


def test_due_are_results_in_the_order_in_which_they_were_made_with_their_waiters(spool: Spool) -> None:
    first, second = add(spool, "a"), add(spool, "b")
    reply = wait(spool, first, "r", b"c")
    end(spool, second, finished=150.0)
    end(spool, first, finished=160.0)
    waiter = wait(spool, first, "late")
    assert wait(spool, first, "late") is None
    assert list(spool.due()) == [
        Delivery(second.number, "b"),
        Delivery(first.number, "a"),
        Delivery(first.number, "a", "r", b"c", reply),
        Delivery(first.number, "a", "late", None, waiter),
    ]
    with spool.transaction():
        spool.mark_delivered(first.number)
        spool.mark_delivered(first.number)
        spool.mark_delivered(second.number)
        spool.waiters.answered(reply or 0)
    assert [delivery.topic for delivery in spool.due()] == ["late"]
    with spool.transaction():
        spool.waiters.answered(waiter or 0)
    assert list(reopened(spool).due()) == []


def test_results_are_due_in_their_order_though_the_clock_was_set_back(spool: Spool) -> None:
    jobs = [add(spool, id) for id in "abc"]
    end(spool, jobs[2], finished=300.0)
    end(spool, jobs[1], finished=200.0)
    spool = reopened(spool)
    end(spool, jobs[0], finished=100.0)
    assert [delivery.id for delivery in reopened(spool).due()] == ["c", "b", "a"]


def test_interrupted_runs_are_counted(spool: Spool) -> None:
    queued = add(spool, "a")
    with spool.transaction():
        spool.note_interrupted(queued.number, crashed_alone=False, suspect=True)
        spool.note_interrupted(queued.number, crashed_alone=True, suspect=False)
        spool.note_interrupted(999, crashed_alone=True, suspect=False)  # forgotten
    (again,) = spool.queued()
    assert (again.starts, again.crashes, again.suspect) == (2, 1, True)


@pytest.mark.parametrize(
    ("boot_id", "boottime", "wall", "gone"),
    [
        ("b", 119.0, 9_999_999.0, False),  # this boot: its clock counts, whatever wall time was set to
        ("b", 121.0, 0.0, True),
        ("other", 0.0, 299.0, False),
        ("other", 0.0, 301.0, True),
    ],
)
def test_results_are_pruned_by_age(spool: Spool, boot_id: str, boottime: float, wall: float, gone: bool) -> None:
    queued = add(spool, "a")
    end(spool, queued, finished=200.0)
    assert pruned(spool, 100.0, wall, boottime, boot_id, 10) == 0  # nobody has it yet
    with spool.transaction():
        spool.mark_delivered(queued.number)
    assert pruned(spool, 100.0, wall, boottime, boot_id, 10) == gone
    assert (spool.find("a") is None) is gone


def test_pruning_leaves_jobs_without_result_and_stops_at_the_limit(spool: Spool) -> None:
    add(spool, "waits")
    for n in range(5):
        queued = add(spool, f"old-{n}")
        end(spool, queued)
        with spool.transaction():
            spool.mark_delivered(queued.number)
    assert [pruned(spool, 1.0, 1e9, 1e9, "b", 3) for _ in range(3)] == [3, 2, 0]
    assert spool.ids() == ["waits"]


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("older", [False, True])
def test_pruning_and_a_start_read_no_documents(spool: Spool, older: bool) -> None:
    for n in range(10):
        with spool.transaction():
            for m in range(100):
                queued = spool.add_job(f"{n}-{m}", b"d" * 32, b"x" * 4000, MOMENT, **ANY)
                spool.add_result(queued.number, "succeeded", b"x" * 4000, MOMENT)
                spool.mark_delivered(queued.number)
    if older:  # an edged that knows schema 2 alone wrote them
        with other_process(spool) as old:
            old.execute("UPDATE delivered SET finished = NULL, boottime = NULL, boot = NULL")
        spool = reopened(spool)
    size = spool.path.stat().st_size
    before = bytes_read()
    spool = reopened(spool)
    assert list(spool.due()) == list(spool.queued()) == []
    opened = bytes_read()
    assert pruned(spool, 100.0, 150.0, 50.0, "b", 10) == 0
    done = bytes_read()
    assert size > 8_000_000
    assert done - opened < size / 20
    assert opened - before < size / 4


@pytest.mark.parametrize("how", ["erase", "remove"])
def test_what_is_erased_is_in_no_file(spool: Spool, how: str) -> None:
    queued = add(spool, "a", b"the prompt" * 500)
    end(spool, queued, b"the answer" * 500)
    wait(spool, queued, "waiter-here", b"corr-here")
    traces = (b"the prompt", b"the answer", b"corr-here", b"waiter-here")
    assert all(trace in files(spool) for trace in traces)
    with spool.transaction():
        getattr(spool, how)(queued.number)
    assert spool.scrub()
    assert [trace for trace in traces if trace in files(spool)] == []


def test_scrubbing_beside_a_reader_says_that_it_must_be_tried_again(spool: Spool) -> None:
    add(spool, "a")
    other = sqlite3.connect(spool.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM job").fetchall()
    pragma(spool, "busy_timeout=0")
    add(spool, "b")
    assert not spool.scrub()
    other.close()
    assert spool.scrub()


def test_the_latest_moment_of_a_boot(spool: Spool) -> None:
    queued = add(spool, "a", received=Moment(100.0, 30.0, "b", False))
    assert spool.last_boottime("b") == 30.0
    with spool.transaction():
        spool.add_result(queued.number, "succeeded", b"", Moment(200.0, 45.0, "b", False))
    assert (spool.last_boottime("b"), spool.last_boottime("unknown")) == (45.0, 0.0)


def test_commits_are_durable_and_freed_space_is_zeroed(spool: Spool) -> None:
    settings = [pragma(spool, name) for name in ("journal_mode", "synchronous", "secure_delete")]
    assert settings == ["wal", 2, 1]
    assert spool.path.stat().st_mode & 0o777 == 0o600
    assert spool.bytes > 0


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one" * 50, b"\0" * 5000])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spool.db").write_bytes(content)
    with pytest.raises(SpoolDamagedError, match=r"^the spool \S+ cannot be opened: [^\n]+$"):
        Spool(tmp_path / "spool.db")


def test_damage_that_is_met_later_is_told_from_other_faults(spool: Spool) -> None:
    for n in range(50):
        add(spool, f"job-{n}", b"{}" * 100)
    spool = reopened(spool)
    pragma(spool, "shrink_memory")  # with nothing in SQLite's own
    for start, length in ((PAGE_BYTES * 14, spool.path.stat().st_size - PAGE_BYTES * 14),):
        with spool.path.open("r+b") as file:
            file.seek(start)
            file.write(b"\xa5" * length)
    assert spool.damage is None
    with pytest.raises(SpoolDamagedError, match="malformed"):
        list(spool.queued())
    assert spool.damage is not None
    with pytest.raises(SpoolDamagedError, match="cannot be written"):
        add(spool, "job-x")


@pytest.mark.parametrize("content", [b'{"prompt": "two"}', 5])
def test_a_job_whose_words_changed_is_damage(spool: Spool, content: object) -> None:
    queued = add(spool, "a", b'{"prompt": "one"}')
    with other_process(spool) as db:
        db.execute("UPDATE job SET document = ?", (content,))
    with pytest.raises(SpoolDamagedError, match="not what was accepted"):
        spool.document(queued.number)
    assert spool.damage is not None


@pytest.mark.parametrize(
    "change", ["document = x'00'", "document = 5", "(document, crc) = (SELECT document, crc FROM result WHERE seq = 2)"]
)
def test_a_result_that_changed_or_is_that_of_another_job_is_damage(spool: Spool, change: str) -> None:
    for id in ("a", "b"):
        end(spool, add(spool, id), f"result of {id}".encode())
    assert spool.result(1) == b"result of a"
    with other_process(spool) as db:
        db.execute(f"UPDATE result SET {change} WHERE seq = 1")
    with pytest.raises(SpoolDamagedError, match="not what was written down"):
        spool.result(1)
    assert spool.damage is not None


@pytest.mark.parametrize(
    ("table", "change"),
    [
        *(("job", change) for change in ("seq = 9", "id = 'c'", "digest = x'00'", "priority = 4", "store = 0")),
        *(("job", change) for change in ("received = 101.0", "boottime = 11.0", "boot_id = 'c'", "synchronised = 1")),
        *(("job", change) for change in ("ttl = 5.5", "deadline = 6.0", "id = CAST(x'ff' AS TEXT)", "row_crc = 1")),
        *(("result", change) for change in ("seq = 3", "state = 'failed'", "finished = 1.0", "boottime = 1.0")),
        *(("result", change) for change in ("boot_id = 'c'", "made = 7", "crc = 1")),
        *(("delivered", change) for change in ("seq = 2", "finished = 1.0", "boottime = 1.0", "boot = 1")),
        *(("waiter", change) for change in ("n = n + 1", "seq = 2", "topic = 'other'", "correlation = x'64'")),
    ],
)
def test_a_start_finds_a_row_that_changed(spool: Spool, table: str, change: str) -> None:
    """Each of these would send an answer elsewhere, or none, or end a job that waits."""
    delivered, answered, waiting = (add(spool, id, ttl=5.0) for id in ("delivered", "answered", "waiting"))
    for queued in (delivered, answered):
        end(spool, queued)
    with spool.transaction():
        spool.mark_delivered(delivered.number)
    wait(spool, waiting, "edged/v1/reply/x", b"c")
    which = {"job": waiting, "result": answered, "delivered": delivered, "waiter": waiting}[table]
    spool.close()
    read_all(Spool(spool.path))
    with other_process(spool) as db:
        db.execute(f"UPDATE {table} SET {change} WHERE seq = ?", (which.number,))
    with pytest.raises(SpoolDamagedError, match="is not what was written down"):
        read_all(Spool(spool.path))


def read_all(spool: Spool) -> None:
    """What a start reads."""
    try:
        list(spool.queued())
        list(spool.due())
    finally:
        spool.close()


def test_a_repeat_finds_a_row_that_changed(spool: Spool) -> None:
    queued = add(spool, "a")
    assert spool.find("a") is not None
    with other_process(spool) as db:
        db.execute("UPDATE job SET digest = x'00', store = 0")
    with pytest.raises(SpoolDamagedError, match="a row of the table job is not what was written down"):
        spool.find("a")
    with pytest.raises(SpoolDamagedError, match="a row of the table job is not what was written down"):
        spool.stores(queued.number)
    assert spool.damage is not None


MORE = (
    Migration("ALTER TABLE job ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue';\nCREATE TABLE pot (seq INTEGER)"),
    Migration("ALTER TABLE result ADD COLUMN weight REAL"),
)


def test_what_is_shared_over_a_group_outlives_a_restart(tmp_path: Path) -> None:
    spool = Spool(Path(shutil.copy(SPOOLS / "version-5.db", tmp_path)))
    assert spool.shared.leaving() == [Shared(1, "hall", ("pi-1",), "give-1", "give-2", "pi-2")]
    assert spool.shared.mark_of("given") == Mark(hashlib.sha256(b"{}").digest(), "hall", "pi-2", None)
    with spool.transaction():
        spool.remove(1)
        spool.shared.unmark("given")
    assert (spool.shared.leaving(), spool.shared.mark_of("given")) == ([], None)


def test_a_spool_of_every_earlier_version_is_opened(tmp_path: Path) -> None:
    files = sorted(SPOOLS.iterdir())
    assert [file.name for file in files] == [f"version-{n}.db" for n in range(1, len(STEPS) + 1)]
    for file in files:
        spool = Spool(Path(shutil.copy(file, tmp_path)))
        assert spool.ids() == ["waiting", "answered", "delivered", "erased"]
        (waiting,) = spool.queued()
        assert (waiting.id, waiting.priority, waiting.starts, waiting.crashes, waiting.suspect) == (
            "waiting",
            7,
            1,
            1,
            True,
        )
        assert json.loads(spool.document(waiting.number) or b"") == {"id": "waiting", "prompt": "What is it?"}
        assert [(delivery.id, delivery.topic) for delivery in spool.due()] == [
            ("answered", None),
            ("answered", "edged/v1/reply/x"),
            ("answered", "edged/v1/reply/more"),
        ]
        assert spool.find("erased") == Known(4, hashlib.sha256(ERASED).digest(), "succeeded", False)
        assert json.loads(spool.result(2) or b"")["text"] == "That."
        end(spool, add(spool, "new"), finished=0.0)
        assert [delivery.id for delivery in spool.due() if delivery.topic is None] == ["answered", "new"]
        limit = [pragma(spool, name) for name in ("wal_autocheckpoint", "page_size")]
        assert limit[0] * limit[1] == WAL_BYTES
        spool.close()


def test_an_older_edged_goes_on_with_a_newer_file_and_a_newer_one_after_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(spool, "a")
    with monkeypatch.context() as newer:
        newer.setattr(schema, "STEPS", (*STEPS, *MORE))
        spool = reopened(spool)
        add(spool, "b")
    spool = reopened(spool)  # the older
    end(spool, add(spool, "c"))
    assert spool.ids() == ["a", "b", "c"]
    monkeypatch.setattr(schema, "STEPS", (*STEPS, *MORE))
    spool = reopened(spool)
    with other_process(spool) as db:
        assert db.execute("SELECT id, colour FROM job").fetchall() == [(id, "blue") for id in "abc"]
    assert [job.id for job in spool.queued()] == ["a", "b"]


def test_version_1_goes_on_with_a_file_of_version_2(spool: Spool) -> None:
    """What it wrote and read, as it stood in its code."""
    end(spool, add(spool, "a"))
    old = sqlite3.connect(spool.path, isolation_level=None)
    old.execute(
        "INSERT INTO job (seq, id, digest, document, priority, store, received, boottime, boot_id, synchronised, ttl, "
        "deadline, reply_topic, correlation) VALUES (2, 'b', x'', x'', 5, 1, 1.0, 1.0, 'b', 1, NULL, NULL, NULL, NULL)"
    )
    old.execute(
        "INSERT INTO result (seq, state, document, finished, boottime, boot_id) "
        "SELECT seq, 'succeeded', x'6f6c64', 1.0, 1.0, 'b' FROM job WHERE seq = 2"
    )
    find = (
        "SELECT job.seq, digest, state, result.document IS NOT NULL FROM job LEFT JOIN result USING (seq) WHERE id = ?"
    )
    assert [row[0] for id in "abc" for row in old.execute(find, (id,))] == [1, 2]
    old.close()
    spool = reopened(spool)
    assert (spool.result(1), spool.result(2)) == (b"result", b"old")
    assert spool.find("b") is not None


def test_version_2_goes_on_with_a_file_of_version_3_and_a_newer_one_adopts_its_rows(spool: Spool) -> None:
    """The statements as they stood in its code."""
    mine = add(spool, "mine")
    n = wait(spool, mine, "edged/v1/reply/first", b"c")
    with other_process(spool) as old:
        assert old.execute("SELECT n, topic, correlation FROM waiter WHERE seq = 1 ORDER BY n").fetchall() == [
            (n, "edged/v1/reply/first", b"c")
        ]
        for seq, id in ((2, "old"), (3, "done")):
            old.execute(
                "INSERT INTO job (seq, id, digest, document, priority, store, received, boottime, boot_id, "
                "synchronised, ttl, deadline, reply_topic, correlation) "
                "VALUES (?, ?, x'', x'', 5, 1, 1.0, 1.0, 'b', 1, NULL, NULL, 'edged/v1/reply/r', x'63')",
                (seq, id),
            )
            old.execute("INSERT INTO waiter (seq, topic, correlation) VALUES (?, 'edged/v1/reply/more', NULL)", (seq,))
            old.execute(
                "INSERT INTO result (seq, state, document, finished, boottime, boot_id, made, crc) "
                "SELECT seq, 'succeeded', x'6f6c64', 200.0, 20.0, 'b', ?, NULL FROM job WHERE seq = ?",
                (seq, seq),
            )
        old.execute("INSERT OR IGNORE INTO delivered (seq) VALUES (3)")
        old.execute("DELETE FROM waiter WHERE seq = 3")
    spool = reopened(spool)
    due = list(spool.due())
    assert [(delivery.id, delivery.topic, delivery.correlation) for delivery in due] == [
        ("old", None, None),
        ("old", "edged/v1/reply/r", b"c"),
        ("old", "edged/v1/reply/more", None),
    ]
    assert [row[2] for row in spool.waiters.of(1)] == ["edged/v1/reply/first"]
    spool = reopened(spool)
    assert list(spool.due()) == due
    assert pruned(spool, 100.0, 9e9, 121.0, "b", 10) == 1
    assert spool.ids() == ["mine", "old"]


def test_version_3_goes_on_with_a_file_of_version_4(spool: Spool) -> None:
    """What it wrote, as it stood in its code: its rows have no checksum, and what it erases keeps one that is right."""
    for id in ("erased", "answered"):
        end(spool, add(spool, id, store=False))
    waiting = add(spool, "waiting")
    wait(spool, waiting, "edged/v1/reply/x")
    with other_process(spool) as old:
        old.execute("UPDATE job SET document = NULL, reply_topic = NULL, correlation = NULL WHERE seq = 1")
        old.execute("UPDATE result SET document = NULL WHERE seq = 1")
        old.execute(
            "INSERT OR IGNORE INTO delivered (seq, finished, boottime, boot) "
            "SELECT seq, finished, boottime, 5 FROM result WHERE seq = 1"
        )
        old.execute(
            "INSERT INTO job (seq, id, digest, document, priority, store, received, boottime, boot_id, synchronised, "
            "ttl, deadline) VALUES (4, 'old', x'', x'', 5, 1, 1.0, 1.0, 'b', 1, NULL, NULL)"
        )
        old.execute("INSERT INTO waiter (n, seq, topic, correlation) VALUES (512, 4, 'edged/v1/reply/old', x'63')")
        old.execute(
            "INSERT INTO result (seq, state, document, finished, boottime, boot_id, made, crc) "
            "SELECT seq, 'succeeded', x'6f6c64', 1.0, 1.0, 'b', 9, NULL FROM job WHERE seq = 4"
        )
    spool = reopened(spool)
    assert [job.id for job in spool.queued()] == ["waiting"]
    assert [(delivery.id, delivery.topic) for delivery in spool.due()] == [
        ("answered", None),
        ("old", None),
        ("old", "edged/v1/reply/old"),
    ]
    assert [spool.find(id) is not None for id in ("erased", "old", "waiting")] == [True] * 3
    assert not spool.stores(1)


def test_the_waiters_of_a_job_are_found_and_removed_without_those_of_its_neighbours(spool: Spool) -> None:
    jobs = [add(spool, id) for id in "abc"]
    for queued in jobs:
        for place in range(3):
            wait(spool, queued, f"{queued.id}{place}")
    assert [row[2] for row in spool.waiters.of(jobs[1].number)] == ["b0", "b1", "b2"]
    with spool.transaction():
        spool.waiters.answered(spool.waiters.of(jobs[1].number)[0][0])
        spool.waiters.remove(jobs[0].number)
    assert [row[2] for row in spool.waiters.all()] == ["b1", "b2", "c0", "c1", "c2"]
    assert wait(spool, jobs[1], "b1") is None
    assert wait(spool, jobs[1], "b3") is not None


def test_steps_are_applied_together_or_not_at_all(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    add(spool, "a")
    spool.close()
    before = spool.path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(schema, "STEPS", (*STEPS, *MORE, Migration("CREATE TABLE pot (seq INTEGER)")))
        with pytest.raises(SpoolError, match="pot already exists"):
            Spool(spool.path)
    assert spool.path.read_bytes() == before
    assert Spool(spool.path).ids() == ["a"]


def test_a_file_that_leaves_this_edged_out_is_left_alone(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(schema, "STEPS", (*STEPS, MORE[0], Migration("DROP TABLE pot", oldest=7)))
        reopened(spool).close()
    with pytest.raises(SpoolError, match="newer edged: it needs one that knows schema 7, this one knows 5"):
        Spool(spool.path)


def test_a_place_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="no such file or directory"):
        Spool(tmp_path / "nowhere/spool.db")


def test_a_writer_beside_it_is_waited_for_and_then_an_error(spool: Spool) -> None:
    pragma(spool, "busy_timeout=10")
    other = sqlite3.connect(spool.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpoolError, match="locked"):
        add(spool, "a")
    other.execute("ROLLBACK")
    other.close()
    add(spool, "a")
