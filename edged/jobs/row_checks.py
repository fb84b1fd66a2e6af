"""Tells whether a row read from a damaged spool is whole: types, digest, checksum, and the ids in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from edged.jobs.checksums import COVERED, document_crc, is_whole
from edged.mqtt.topics import is_id

Row = dict[str, Any]


def is_job(row: Row) -> bool:
    """Whether a row of the table `job` is whole."""
    document, digest = row["document"], row["digest"]
    if not (isinstance(row["id"], str) and is_id(row["id"]) and isinstance(digest, bytes) and len(digest) == 32):
        return False
    if not all(isinstance(row[name], (int, float)) for name in ("priority", "store", "received", "boottime")):
        return False
    if not all(isinstance(row[name], (int, float, type(None))) for name in ("ttl", "deadline")):
        return False
    if not (isinstance(row["boot_id"], str) and isinstance(row["synchronised"], int)):
        return False
    if not has_its_checksum("job", row):
        return False
    return document is None or (isinstance(document, bytes) and hashlib.sha256(document).digest() == digest)


def is_result(row: Row, id: str) -> bool:
    """Whether a row of the table `result` has a whole document, and is that of the job with this id."""
    if not (isinstance(row["state"], str) and isinstance(row["boot_id"], str)):
        return False
    if not all(isinstance(row[name], (int, float)) for name in ("finished", "boottime")):
        return False
    if not all(isinstance(row.get(name), (int, type(None))) for name in ("made", "crc")):  # version 1 has neither
        return False
    if row["document"] is None:
        return True
    if not isinstance(row["document"], bytes) or row.get("crc") not in (
        None,
        document_crc(row["seq"], row["document"]),
    ):
        return False
    try:
        document = json.loads(row["document"])
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("id") == id and document.get("state") == row["state"]


def is_shared(row: Row) -> bool:
    """Whether a row of the table `shared` can be what was written."""
    members = row["path"].split("/")[:-1] if isinstance(row["path"], str) else [""]
    give = row["give"], row["taker"]
    return (
        all(isinstance(name, str) and is_id(name) for name in (row["grp"], *members))
        and all(name is None or (isinstance(name, str) and is_id(name)) for name in (row["came"], *give))
        and (give[0] is None) == (give[1] is None)
    )


def is_mark(row: Row) -> bool:
    """Whether a row of the table `given` can be what was written."""
    return (
        all(isinstance(row[name], str) and is_id(row[name]) for name in ("id", "grp", "taker"))
        and (row["came"] is None or (isinstance(row["came"], str) and is_id(row["came"])))
        and isinstance(row["digest"], bytes)
        and len(row["digest"]) == 32
        and all(isinstance(row[name], (int, float)) for name in ("finished", "boottime", "boot"))
    )


def has_its_checksum(table: str, row: Row, *more: str) -> bool:
    """Whether the other columns are as they were written; older versions have no checksum of them."""
    return is_whole(table, (*(row.get(column) for column in COVERED[table]), *more), row.get("row_crc"))
