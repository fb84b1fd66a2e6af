"""The prefix store's thread when memory runs out: every request is answered, and the thread goes on."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from structlog.testing import capture_logs

from edged.engine.prefix_store import Changed, DiskEvent, Found, PrefixStore

ID = b"m" * 32
SHAPE = (2, 4)
HUGE = (1 << 46,)
"""More float32 values than the address space has room for: allocating them is a real MemoryError."""


class Store:
    """A store on a folder, and its events."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self._events: queue.SimpleQueue[DiskEvent] = queue.SimpleQueue()
        self.store = PrefixStore(folder, ID, shape, np.float32, budget=1 << 62, daily_writes=1 << 62, keep=1e6)
        self.known = self.store.start(self._events.put)

    def event(self) -> DiskEvent:
        return self._events.get(timeout=PATIENCE)

    def write(self, key: bytes, block: Any) -> DiskEvent:
        self.store.write(key, block, pinned=False)
        return self.event()

    def read(self, *keys: bytes) -> list[DiskEvent]:
        self.store.read(7, 3, keys)
        events = [self.event()]
        while not (isinstance(events[-1], Found) and events[-1].last):
            events.append(self.event())
        return events


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Any]:
    opened: list[Store] = []

    def make(shape: tuple[int, ...] = SHAPE) -> Store:
        opened.append(Store(tmp_path / "prefixes", shape))
        return opened[-1]

    yield make
    for store in opened:
        store.store.close()


def key(letter: str) -> bytes:
    return letter.encode() * 32


def test_a_write_without_memory_is_answered_and_the_next_one_succeeds(open_store: Any) -> None:
    store = open_store()
    no_block = np.broadcast_to(np.float32(1), HUGE)  # to be copied before it is written
    with capture_logs() as logs:
        assert store.write(key("a"), no_block) == Changed(rest=True)
        assert store.write(key("a"), no_block) == Changed(rest=True)
        assert store.write(key("b"), np.ones(SHAPE, np.float32)) == Changed(added={key("b"): False})
    assert [line["event"] for line in logs] == ["prefix_store_failed"]  # once, since each block would fail the same way
    assert store.store.failed == 2


def test_a_read_without_memory_ends_its_row_and_keeps_the_file(open_store: Any, tmp_path: Path) -> None:
    open_store().write(key("a"), np.ones(SHAPE, np.float32))
    store = open_store(HUGE)
    assert store.known == {key("a"): False}
    with capture_logs() as logs:
        assert store.read(key("a"), key("b")) == [Found(7, 3, key("a"), None, last=True)]
        store.store.close()
    assert [line["event"] for line in logs] == ["prefix_store_failed"]
    assert (store.store.failed, store.store.refused) == (1, 0)
    assert len(list((tmp_path / "prefixes").glob("*.kv"))) == 1


def test_a_read_that_fails_late_does_not_repeat_what_was_delivered(tmp_path: Path) -> None:
    events: queue.SimpleQueue[DiskEvent] = queue.SimpleQueue()

    def deliver(event: DiskEvent) -> None:
        if isinstance(event, Found) and event.depth == 1 and event.block is not None:
            raise RuntimeError("no place for it")
        events.put(event)

    store = PrefixStore(tmp_path / "prefixes", ID, SHAPE, np.float32, 1 << 62, 1 << 62, 1e6)
    store.start(deliver)
    for letter in "ab":
        store.write(key(letter), np.ones(SHAPE, np.float32), pinned=False)
        assert events.get(timeout=PATIENCE) == Changed(added={key(letter): False})
    store.read(7, 0, [key("a"), key("b")])
    found = [events.get(timeout=PATIENCE) for _ in range(2)]
    assert [(event.depth, event.block is None, event.last) for event in found if isinstance(event, Found)] == [
        (0, False, False),
        (1, True, True),
    ]
    store.close()
