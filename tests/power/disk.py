"""What a disk may hold after the power went: replays a recording of writes and syncs."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

WRITE, TRUNCATE, SYNC, RENAME, UNLINK = range(1, 6)
SECTOR = 512
_HEAD = struct.Struct("=IIII QQQQQ")


@dataclass(frozen=True)
class Change:
    """One call that changed a file, or made changes last. Times are CLOCK_MONOTONIC in ns."""

    op: int
    path: str
    other: str
    inode: int
    offset: int
    data: bytes
    began: int
    ended: int


def read_recording(path: Path) -> Iterator[Change]:
    """The calls in their order."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        op, path_bytes, other_bytes, _, inode, offset, size, began, ended = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        name, at = content[at : at + path_bytes].decode(), at + path_bytes
        other, at = content[at : at + other_bytes].decode(), at + other_bytes
        data, at = content[at : at + size], at + size
        yield Change(op, name, other, inode, offset, data, began, ended)


Name = tuple[str, "int | None"]
"""A name, and the file that it is from now on the name of."""


@dataclass
class Disk:
    """What is surely on the disk, and what was told to it since and may be there in part.

    Stricter than ext4: data lasts by a sync of the file, a name only by a sync of the folder. Names come and go in
    their order, as a journal keeps them; data comes in any order and in sectors.
    """

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    pending_names: list[list[Name]] = field(default_factory=list)
    _now: dict[str, int] = field(default_factory=dict)
    _files: dict[int, int] = field(default_factory=dict)
    """The file of each inode: the numbers of inodes come again once a file is gone."""
    _made: int = 0

    def apply(self, change: Change) -> None:
        """One more call."""
        change = self._by_file(change)
        if change.op in (WRITE, TRUNCATE):
            if self._now.get(change.path) != change.inode:
                self._rename([(change.path, change.inode)])
            self.pending.append(change)
        elif change.op == RENAME:
            if change.path in self._now:
                self._rename([(change.path, None), (change.other, self._now[change.path])])
        elif change.op == UNLINK:
            if change.path in self._now:
                self._rename([(change.path, None)])
        elif change.path == ".":
            _name(self.names, self.pending_names)
            self.pending_names.clear()
        else:
            rest = []
            for waiting in self.pending:
                if waiting.inode == change.inode:
                    _write(self.files.setdefault(waiting.inode, bytearray()), waiting)
                else:
                    rest.append(waiting)
            self.pending = rest

    def _by_file(self, change: Change) -> Change:
        """The call with the number of its file in place of its inode."""
        if change.op in (WRITE, TRUNCATE) and self._files.get(change.inode) not in self._now.values():
            self._made += 1
            self._files[change.inode] = self._made
        return replace(change, inode=self._files.get(change.inode, 0))

    def _rename(self, names: list[Name]) -> None:
        self.pending_names.append(names)
        _name(self._now, [names])

    def after_a_cut(self, chance: random.Random | None, everything: bool = False) -> dict[str, bytes]:
        """The files as they may be: what was surely written, and of the rest all, nothing, or what chance says."""
        files = {inode: bytearray(content) for inode, content in self.files.items()}
        names = dict(self.names)
        if everything:
            for change in self.pending:
                _write(files.setdefault(change.inode, bytearray()), change)
            _name(names, self.pending_names)
        elif chance is not None:
            share = chance.choice((0.1, 0.5, 0.9, 1.0))
            last = chance.randint(0, len(self.pending)) if chance.random() < 0.5 else len(self.pending)
            for change in self.pending[:last]:
                _write_part(files.setdefault(change.inode, bytearray()), change, chance, share)
            _name(names, self.pending_names[: chance.randint(0, len(self.pending_names))])
        return {name: bytes(files.get(inode, b"")) for name, inode in names.items()}


def _name(names: dict[str, int], changes: list[list[Name]]) -> None:
    for together in changes:
        for name, inode in together:
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode


def _write(file: bytearray, change: Change) -> None:
    if change.op == TRUNCATE:
        del file[change.offset :]
        file.extend(bytes(change.offset - len(file)))
    else:
        _put(file, change.offset, change.data)


def _write_part(file: bytearray, change: Change, chance: random.Random, share: float) -> None:
    """Each sector that a write touches is written or not."""
    if change.op == TRUNCATE:
        if chance.random() < share:
            _write(file, change)
        return
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        if chance.random() < share:
            _put(file, start, change.data[start - change.offset : stop - change.offset])
        start = stop


def _put(file: bytearray, offset: int, data: bytes) -> None:
    if len(file) < offset:
        file.extend(bytes(offset - len(file)))
    file[offset : offset + len(data)] = data
