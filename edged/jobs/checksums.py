"""Checksums of the spool's rows: SQLite finds damage to its own structures, and passes over a changed value in silence.

A document has one of its own (a job's digest, a result's crc). `row_crc` covers the other columns that an edged writes
once; what an older edged may change later is left out. It is NULL in rows of an edged that knows schema 3 or less.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

COVERED: Mapping[str, tuple[str, ...]] = {
    "job": (
        *("seq", "id", "digest", "priority", "store", "received", "boottime", "boot_id", "synchronised"),
        *("ttl", "deadline"),
    ),
    "result": ("seq", "state", "finished", "boottime", "boot_id", "made", "crc"),
    "delivered": ("seq", "finished", "boottime", "boot"),
    "waiter": ("n", "seq", "topic", "correlation"),
}
"""Columns that a row's row_crc covers, in this order. A result's covers its job's id too, after these."""


def document_crc(number: int, document: bytes) -> int:
    """A checksum that tells a result's document from one that was changed, or that is another job's."""
    return zlib.crc32(document, number & 0xFFFFFFFF)


def row_crc(table: str, values: tuple[Any, ...]) -> int:
    """The checksum of a row. `values`: of the columns in COVERED."""
    parts = [table.encode()]
    for value in values:
        if isinstance(value, (int, float)):  # SQLite gives back a number as its column says
            part = b"n" + repr(float(value)).encode()
        elif isinstance(value, str):
            part = b"t" + value.encode("utf-8", "surrogatepass")
        else:
            part = b"-" if value is None else b"b" + value
        parts += [len(part).to_bytes(4, "little"), part]
    return zlib.crc32(b"".join(parts))


def is_whole(table: str, values: tuple[Any, ...], crc: Any) -> bool:
    """Whether a row has its checksum, or none."""
    return crc is None or crc == row_crc(table, values)


def columns(table: str) -> str:
    """The covered columns and row_crc for a SELECT, with the table's name."""
    return ", ".join(f"{table}.{column}" for column in (*COVERED[table], "row_crc"))
