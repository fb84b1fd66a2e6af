"""A damaged spool is set aside, what can be read is taken over, and the start goes on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spool_rig import outside, pragma
from test_spool import ANY

from edged.jobs import schema
from edged.jobs.database import PAGE_BYTES
from edged.jobs.records import Moment
from edged.jobs.schema import STEPS, Migration, SpoolError
from edged.jobs.shared import Mark, Shared
from edged.jobs.spool import Spool, set_aside
from edged.jobs.spool_recovery import KEPT, mark_damaged, open_spool

JOBS, RESULTS, DELIVERED = 60, 40, 30


def document(n: int) -> bytes:
    return json.dumps({"id": f"job-{n}", "prompt": f"{n} " * 100}).encode()


def result(n: int) -> bytes:
    return json.dumps({"id": f"job-{n}", "state": "succeeded", "text": f"{n} " * 90}).encode()


def fill(path: Path, jobs: int = JOBS) -> Spool:
    """A spool with jobs that wait, that have a result, and whose result is delivered; some with a waiter."""
    spool = Spool(path)
    moment = Moment(1.0, 1.0, "b", False)
    for n in range(jobs):
        with spool.transaction():
            digest = hashlib.sha256(document(n)).digest()
            queued = spool.add_job(f"job-{n}", digest, document(n), moment, **ANY)
            spool.waiters.add(queued.number, f"edged/v1/reply/{n}", b"c")
            if n < RESULTS:
                spool.add_result(queued.number, "succeeded", result(n), Moment(2.0 + n, 1.0, "b", False))
            if n < DELIVERED:
                spool.mark_delivered(queued.number)
            if n % 10 == 0:
                spool.waiters.add(queued.number, f"edged/v1/reply/more-{n}", None)
            spool.note_interrupted(queued.number, crashed_alone=True, suspect=False)
    return spool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "spool.db"
    fill(path).close()
    return path


def overwrite(path: Path, start: int, length: int, seed: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(random.Random(seed).randbytes(length))


def check(spool: Spool) -> tuple[int, int]:
    """Whatever was taken over is as it was; how many jobs and results these are."""
    assert outside(spool.path, "PRAGMA integrity_check") == [("ok",)]
    jobs = results = 0
    due = {delivery.id for delivery in spool.due()}
    queued = {job.id: job for job in spool.queued()}
    for n in range(JOBS):
        known = spool.find(f"job-{n}")
        if known is None:
            continue
        jobs += 1
        assert spool.document(known.number) == document(n)
        wanted = [(f"edged/v1/reply/{n}", b"c"), *([(f"edged/v1/reply/more-{n}", None)] if n % 10 == 0 else [])]
        assert {row[2:] for row in spool.waiters.of(known.number)} <= set(wanted)
        if known.state is None:
            assert f"job-{n}" in queued
            continue
        results += 1
        assert spool.result(known.number) == result(n)
        if n >= DELIVERED:
            assert f"job-{n}" in due
    return jobs, results


def test_a_whole_spool_is_opened_and_nothing_set_aside(path: Path) -> None:
    before = sorted(file.name for file in path.parent.iterdir())
    spool = open_spool(path)
    assert check(spool) == (JOBS, RESULTS)
    spool.close()
    assert sorted(file.name for file in path.parent.iterdir()) == before == ["spool.db"]


def test_garbage_in_the_header_costs_nothing(path: Path) -> None:
    overwrite(path, 0, 100)
    spool = open_spool(path)
    assert check(spool) == (JOBS, RESULTS)
    assert [job.crashes for job in spool.queued()] == [1] * (JOBS - RESULTS)
    assert len(spool.waiters.of(1)) == 2
    assert spool.set_aside[0].name.startswith("spool.db.damaged-")
    assert spool.path.stat().st_mode & 0o777 == 0o600


def test_garbage_in_the_header_of_a_spool_that_grew_before_a_step_costs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its schema lies on other pages than that of a fresh one."""
    columns = ", ".join(f"column_{n} TEXT" for n in range(50))
    more = Migration(f"ALTER TABLE job ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue';\nCREATE TABLE pot ({columns})")
    monkeypatch.setattr(schema, "STEPS", (*STEPS, more))
    Spool(path).close()
    overwrite(path, 0, 100)
    assert check(open_spool(path)) == (JOBS, RESULTS)


def test_a_damaged_spool_of_a_newer_edged_is_taken_over_without_what_is_unknown_here(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(schema, "STEPS", (*STEPS, Migration("ALTER TABLE result ADD COLUMN weight REAL DEFAULT 1.0")))
        Spool(path).close()
    mark_damaged(path, "seen while it ran")
    assert check(open_spool(path)) == (JOBS, RESULTS)


def test_what_was_given_away_and_what_is_on_its_way_is_taken_over(path: Path) -> None:
    spool, moment = Spool(path), Moment(3.0, 2.0, "b", False)
    mark, waiting = Mark(b"d" * 32, "hall", "pi-2", "give-1"), RESULTS + 1
    with spool.transaction():
        spool.shared.add(waiting, "hall", ["pi-0", "pi-1"], "give-0")
        spool.shared.leave(waiting, "give-2", "pi-2")
        spool.shared.add(waiting + 1, "hall")
        for n in range(100):
            spool.shared.mark(f"given-{n}", mark, moment)
        spool.shared.mark("job-1", mark, moment)  # is here: no mark may hide it
    spool.close()
    outside(path, "INSERT INTO shared VALUES (?, 'h a l l', '', NULL, NULL, NULL)", waiting + 2)
    outside(path, "UPDATE given SET digest = 'short' WHERE id = 'given-5'")
    mark_damaged(path, "seen while it ran")
    spool = open_spool(path)
    assert check(spool) == (JOBS, RESULTS)
    assert spool.shared.leaving() == [Shared(waiting, "hall", ("pi-0", "pi-1"), "give-0", "give-2", "pi-2")]
    assert spool.shared.of(waiting + 1) == Shared(waiting + 1, "hall", (), None, None, None)
    assert spool.shared.of(waiting + 2) is None
    assert spool.shared.marked() == sorted(f"given-{n}" for n in range(100) if n != 5)
    assert spool.shared.mark_of("given-7") == mark
    with spool.transaction():
        spool.shared.prune(10.0, Moment(12.0, 13.0, "b", False))
    assert spool.shared.marked() == []  # their age was taken over too


def test_garbage_among_the_marks_of_what_was_given_away_costs_those_of_a_page(path: Path) -> None:
    spool = Spool(path)
    with spool.transaction():
        for n in range(100):
            spool.shared.mark(f"given-{n}", Mark(b"d" * 32, "hall", "pi-2", None), Moment(3.0, 2.0, "b", False))
    spool.close()
    (root,) = outside(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'given'")[0]
    some = outside(path, "SELECT pageno FROM dbstat WHERE name = 'given' AND pagetype = 'leaf' ORDER BY path")
    assert (root,) not in some
    overwrite(path, (some[len(some) // 2][0] - 1) * PAGE_BYTES, PAGE_BYTES)
    recovered = open_spool(path)
    assert check(recovered) == (JOBS, RESULTS)
    assert 80 <= len(recovered.shared.marked()) < 100


def test_results_stay_in_their_order(path: Path) -> None:
    spool = Spool(path)
    before = list(spool.due())
    spool.close()
    outside(path, "UPDATE result SET finished = -finished")
    mark_damaged(path, "seen while it ran")
    assert list(open_spool(path).due()) == before


@pytest.mark.parametrize("change", ["document = document || ' '", "document = 5", "made = 'x'", "crc = 5"])
def test_a_result_that_is_not_what_was_written_down_is_not_taken_over(path: Path, change: str) -> None:
    """What came is still JSON, and still of this job."""
    outside(path, f"UPDATE result SET {change} WHERE seq = 8")
    outside(path, "UPDATE result SET document = CAST(document AS BLOB) WHERE typeof(document) = 'text'")
    mark_damaged(path, "seen while it ran")
    assert check(open_spool(path)) == (JOBS, RESULTS - 1)


def test_of_two_jobs_with_one_id_the_first_is_taken_over(path: Path) -> None:
    outside(path, "UPDATE job SET id = 'job-50' WHERE id = 'job-51'")
    mark_damaged(path, "seen while it ran")
    spool = open_spool(path)
    assert len(spool.ids()) == len(set(spool.ids())) == JOBS - 1
    assert spool.document(51) == document(50)


@pytest.mark.parametrize("seed", range(12))
def test_garbage_in_a_page_costs_what_was_in_it(path: Path, seed: int) -> None:
    """Of each page in turn but those that hold the schema and the roots of the tables."""
    pages = path.stat().st_size // PAGE_BYTES
    page = random.Random(seed).randrange(14, pages)
    overwrite(path, page * PAGE_BYTES, PAGE_BYTES, seed)
    mark_damaged(path, "seen while it ran")
    jobs, results = check(open_spool(path))
    assert jobs >= JOBS - 20  # an inner page of the table leads to several
    assert results >= RESULTS - 20
    assert (jobs, results) >= (JOBS - 20, RESULTS - 20)


def test_damage_that_a_start_meets_is_recovered_from(path: Path) -> None:
    with sqlite3.connect(path) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'job'").fetchone()[0]
    overwrite(path, (root - 1) * PAGE_BYTES, PAGE_BYTES)
    spool = open_spool(path)
    assert len(spool.set_aside) == 1
    assert check(spool) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_short_gives_what_is_left(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))
    jobs, results = check(open_spool(path))
    assert jobs >= int(JOBS * share) - 10
    assert len(set_aside(path)) == 1
    assert results <= jobs


def test_an_empty_file_is_a_new_spool(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.touch()
    assert open_spool(path).ids() == []
    assert set_aside(path) == []


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """What is there after a kill: most of it in the write-ahead log."""
    folder = tmp_path / "killed"
    folder.mkdir()
    spool = fill(tmp_path / "spool.db", jobs=20)
    assert spool.scrub()
    pragma(spool, "wal_autocheckpoint=0")
    with spool.transaction():
        spool.remove(20)
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"spool.db{suffix}", folder)
    spool.close()
    assert (folder / "spool.db-wal").stat().st_size > 0
    return folder / "spool.db"


def test_a_file_that_was_emptied_beside_its_log_is_kept(killed: Path) -> None:
    os.truncate(killed, 0)
    assert open_spool(killed).ids() == []
    (damaged,) = set_aside(killed)
    assert Path(f"{damaged}-wal").stat().st_size > 0


def test_a_file_that_was_removed_beside_its_log_or_a_note_of_its_damage_keeps_no_start_away(killed: Path) -> None:
    killed.unlink()
    spool = open_spool(killed)
    assert spool.ids() == []
    (damaged,) = set_aside(killed)
    assert Path(f"{damaged}-wal").stat().st_size > 0
    spool.close()
    killed.unlink()
    mark_damaged(killed, "the spool is damaged")
    assert open_spool(killed).ids() == []
    assert not killed.with_name("spool.db.damage").exists()


def test_a_log_of_garbage_costs_what_was_only_there(killed: Path) -> None:
    overwrite(Path(f"{killed}-wal"), 0, Path(f"{killed}-wal").stat().st_size)
    spool = open_spool(killed)
    assert len(spool.ids()) == 20
    (damaged,) = spool.set_aside
    assert Path(f"{damaged}-wal").exists()


def test_the_log_is_read_too(killed: Path) -> None:
    overwrite(killed, 0, 100)
    assert len(open_spool(killed).ids()) == 19


def test_a_result_whose_words_changed_is_not_answered_with(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(result(7)[:40])
    overwrite(path, at, 8)
    mark_damaged(path, "seen while it ran")
    spool = open_spool(path)
    known = spool.find("job-7")
    assert known is not None
    assert known.state is None  # it runs again
    assert check(spool) == (JOBS, RESULTS - 1)


def test_an_erased_job_whose_result_is_lost_is_not_taken_over(path: Path) -> None:
    spool = Spool(path)
    with spool.transaction():
        spool.erase(1)
    spool.close()
    outside(path, "DELETE FROM result WHERE seq = 1")
    mark_damaged(path, "seen while it ran")
    assert open_spool(path).find("job-0") is None


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["rename", "unlink", "fsync"])
def test_a_recovery_cut_short_anywhere_goes_on_at_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Each step that changes a name, in turn, is the last one before the power goes."""
    untouched = path.parent / "untouched"
    shutil.copytree(path.parent, untouched)
    for last in range(1, 40):
        folder = path.parent / f"cut-{last}"
        shutil.copytree(untouched, folder)
        overwrite(folder / "spool.db", 0, 100)
        (folder / "spool.db-wal").write_bytes(b"garbage" * 100)
        calls = [0]

        def power_goes(function: Callable[..., Any], calls: list[int] = calls, last: int = last) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                calls[0] += 1
                if calls[0] == last:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return wrapped

        with monkeypatch.context() as patch:
            where: Any = os if cut == "fsync" else Path
            patch.setattr(where, cut, power_goes(getattr(where, cut)))
            try:
                open_spool(folder / "spool.db").close()
            except KeyboardInterrupt:
                pass
            else:
                assert last > 1
                break
        spool = open_spool(folder / "spool.db")
        assert check(spool) == (JOBS, RESULTS), last
        spool.close()
        assert not list(folder.glob("*.recovered-*"))
    else:
        pytest.fail("it never came to its end")


def test_few_damaged_files_are_kept_and_pruning_removes_old_ones(path: Path) -> None:
    for _ in range(KEPT + 2):
        mark_damaged(path, "again")
        spool = open_spool(path)
        assert check(spool) == (JOBS, RESULTS)
        spool.close()
    spool = open_spool(path)
    assert len(spool.set_aside) == KEPT
    newest = max(file.stat().st_mtime for file in spool.set_aside)
    with spool.transaction():
        spool.prune(100.0, Moment(newest + 101.0, 0.0, "b", True), 10)
    assert spool.set_aside == []


def test_what_is_no_damage_is_left_alone(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpoolError, match="no such file or directory"):
        open_spool(tmp_path / "nowhere/spool.db")
    outside(path, f"PRAGMA user_version={9 << 16 | 9}")
    with pytest.raises(SpoolError, match="newer edged"):
        open_spool(path)
    assert set_aside(path) == []
