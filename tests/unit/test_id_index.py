"""Which job has which id: as a dictionary would know it, over every sorting in."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from edged.jobs import id_index as module
from edged.jobs.id_index import IdIndex


@pytest.mark.parametrize("seed", range(5))
def test_it_knows_what_a_dictionary_knows(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(module, "_RECENT", 7)
    monkeypatch.setattr(module, "_ARRAYS", 4)
    draw = random.Random(seed)
    model = {f"id-{n}": n for n in range(1, 20)}
    ids = IdIndex((seq, id) for id, seq in model.items())
    for seq in range(20, 2000):
        id = f"id-{draw.randrange(100)}"
        if draw.random() < 0.5:
            ids.add(seq, id)
            model[id] = seq
        elif id in model:
            stale = draw.random() < 0.3
            ids.discard(model[id] - 1 if stale else model[id], id)
            if not stale:
                del model[id]
        assert ids.get(id) == model.get(id)
    assert [ids.get(f"id-{n}") for n in range(100)] == [model.get(f"id-{n}") for n in range(100)]


@pytest.mark.slow
def test_a_job_takes_sixteen_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ARRAYS", 2)
    few = 1 << 20  # bytes, for what waits in the dictionary; all in one would take 3 MB
    tracemalloc.start()
    try:
        ids = IdIndex((n, f"id-{n}") for n in range(1, 3_001))
        for n in range(3_001, 30_001):
            ids.add(n, f"id-{n}")
        assert tracemalloc.get_traced_memory()[0] < 16 * 30_000 + few
        assert all(ids.get(f"id-{n}") == n for n in range(1, 30_001, 97))
        for n in range(1, 25_001):
            ids.discard(n, f"id-{n}")
        for n in range(30_001, 40_001):
            ids.add(n, f"id-{n}")
        assert tracemalloc.get_traced_memory()[0] < 16 * 15_000 + few
    finally:
        tracemalloc.stop()


def test_without_jobs_it_knows_none() -> None:
    assert IdIndex([]).get("a") is None
