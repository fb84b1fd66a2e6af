"""The write-ahead log: decay is told from the torn end that a power cut leaves."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from test_manifest import flip

from edged.jobs.wal import damage_of

FRAME = 24 + 512


@pytest.fixture(params=["little", "big"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A log of 20 transactions of some frames each."""
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as db:
        for pragma in ("page_size=512", "journal_mode=WAL", "wal_autocheckpoint=0"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE t (x)")
        for n in range(20):
            db.execute("INSERT INTO t VALUES (?)", (random.Random(n).randbytes(1500),))
        copy = tmp_path / "log"
        copy.write_bytes((tmp_path / "x.db-wal").read_bytes())
    if request.param == "big":
        as_big_endian(copy)
    return copy


def as_big_endian(log: Path) -> None:
    """The same log as a processor of the other byte order writes it."""
    data = bytearray(log.read_bytes())
    data[3] = 0x83

    def checksum(content: bytes, first: int, second: int) -> tuple[int, int]:
        for at in range(0, len(content), 8):
            first = first + int.from_bytes(content[at : at + 4], "big") + second & 0xFFFFFFFF
            second = second + int.from_bytes(content[at + 4 : at + 8], "big") + first & 0xFFFFFFFF
        return first, second

    sums = checksum(data[:24], 0, 0)
    data[24:32] = b"".join(number.to_bytes(4, "big") for number in sums)
    for at in range(32, len(data), FRAME):
        sums = checksum(data[at : at + 8] + data[at + 24 : at + FRAME], *sums)
        data[at + 16 : at + 24] = b"".join(number.to_bytes(4, "big") for number in sums)
    log.write_bytes(data)


def transactions(log: Path) -> list[int]:
    """Where the frames of each transaction end, in bytes."""
    data = log.read_bytes()
    return [at + FRAME for at in range(32, len(data), FRAME) if any(data[at + 4 : at + 8])]


def test_a_whole_one_an_empty_one_and_none(log: Path) -> None:
    assert damage_of(log) is None
    log.write_bytes(b"")
    assert damage_of(log) is None
    log.write_bytes(bytes(100_000))  # as scrub() leaves it
    assert damage_of(log) is None
    log.unlink()
    assert damage_of(log) is None


def test_any_bit_before_the_last_transaction_is_found(log: Path) -> None:
    end = transactions(log)[-2]
    for bit in random.Random(1).sample(range(8 * end - 8 * FRAME), 200):
        flip(log, bit)
        frame = (bit // 8 - 32) // FRAME
        assert damage_of(log) == ("its header" if bit < 8 * 32 else f"the frame at byte {32 + frame * FRAME}")
        flip(log, bit)


def test_a_torn_end_is_no_damage(log: Path) -> None:
    """Any sectors of the last transaction may be there or not, and what was there before is an older log's."""
    whole, ends = log.read_bytes(), transactions(log)
    chance = random.Random(2)
    for _ in range(100):
        torn = bytearray(whole)
        for sector in range(ends[-2], ends[-1], 512):
            if chance.random() < 0.5:
                length = min(512, ends[-1] - sector)
                torn[sector : sector + length] = chance.choice([bytes(length), chance.randbytes(length)])
        log.write_bytes(torn[: chance.choice([len(torn), chance.randrange(ends[-2], ends[-1])])])
        assert damage_of(log) is None


def test_a_log_that_was_begun_anew_over_an_older_one_is_no_damage(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as db:
        for pragma in ("page_size=512", "journal_mode=WAL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE t (x)")
        for _ in range(20):
            db.execute("INSERT INTO t VALUES (zeroblob(1500))")
        db.execute("PRAGMA wal_checkpoint(RESTART)")
        db.execute("INSERT INTO t VALUES (1)")
        assert (tmp_path / "x.db-wal").stat().st_size > 20 * FRAME
        assert damage_of(tmp_path / "x.db-wal") is None
