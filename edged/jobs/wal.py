"""Tells decay of SQLite's write-ahead log from the torn end that a power cut leaves.

SQLite ends the log at the first frame without its checksum, in silence (sqlite.org/fileformat2.html, section 4). Each
commit syncs the log, so that only the last transaction can be torn: a whole one after the first bad frame shows that
the bad one was whole once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HEADER, _FRAME = 32, 24
"""Bytes of the log's header, and of each frame's before its page."""
_MAGIC = {0x377F0682: "<u4", 0x377F0683: ">u4"}
"""The header's first number says in which order the checksums read bytes."""


def damage_of(path: Path) -> str | None:
    """What is damaged in the log at `path`, None where nothing is or no log is there. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not any(data[:_HEADER]):  # empty, or overwritten by scrub()
        return None
    order = _MAGIC.get(int.from_bytes(data[:4], "big"))
    if len(data) < _HEADER or order is None:
        return "its header"
    header = np.frombuffer(data[:_HEADER], ">u4").astype(np.uint32)
    if not np.array_equal(_checksums(data[: _HEADER - 8], 1, order, np.zeros((1, 2), np.uint32))[0], header[6:8]):
        return "its header"
    place = _first_bad_frame(data[_HEADER:], _FRAME + int(header[2]), order, header)
    return None if place is None else f"the frame at byte {_HEADER + place}"


def _first_bad_frame(log: bytes, size: int, order: str, header: NDArray[np.uint32]) -> int | None:
    """Where a frame begins that was whole once and is no longer; None where the rest may be a torn end."""
    count = len(log) // size
    if not count:
        return None
    frames = np.frombuffer(log[: count * size], np.uint8).reshape(count, size)
    fields = np.ascontiguousarray(frames[:, :_FRAME]).view(">u4").astype(np.uint32)  # page, commit, salts, checksums
    seeds = np.concatenate([header[None, 6:8], fields[:-1, 4:6]])
    content = np.concatenate([frames[:, :8], frames[:, _FRAME:]], axis=1).tobytes()
    of_this_log = (fields[:, 2:4] == header[None, 4:6]).all(axis=1)
    right = of_this_log & (_checksums(content, count, order, seeds) == fields[:, 4:6]).all(axis=1)
    bad = np.flatnonzero(~right)
    if not len(bad):
        return None
    commits = np.flatnonzero(of_this_log & (fields[:, 1] != 0) & (np.arange(count) >= bad[0]))
    # The first of these may end the transaction of the bad frame.
    return int(bad[0]) * size if right[commits[1:]].any() else None


def _checksums(content: bytes, count: int, order: str, seeds: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """SQLite's checksum of each of `count` equal parts, [count, 2]. `seeds`, of the same shape: what comes before."""
    words = np.frombuffer(content, order).astype(np.uint32).reshape(count, -1)
    first, second = seeds[:, 0].copy(), seeds[:, 1].copy()
    for at in range(0, words.shape[1], 2):
        first += words[:, at] + second
        second += words[:, at + 1] + first
    return np.stack([first, second], axis=1)
