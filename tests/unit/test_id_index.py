"""Which job has which id: as a dictionary would know it, over every sorting in."""

from __future__ import annotations

import random

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


def test_a_job_takes_sixteen_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ARRAYS", 2)
    ids = IdIndex((n, f"id-{n}") for n in range(1, 10_001))
    for n in range(10_001, 100_001):
        ids.add(n, f"id-{n}")
    assert sum(hashes.nbytes + seqs.nbytes for hashes, seqs in ids._arrays) <= 16 * 100_000
    assert len(ids._recent) <= 5000
    assert all(ids.get(f"id-{n}") == n for n in range(1, 100_001, 997))
    for n in range(1, 90_001):
        ids.discard(n, f"id-{n}")
    for n in range(100_001, 110_001):
        ids.add(n, f"id-{n}")
    assert sum(len(hashes) for hashes, _ in ids._arrays) <= 20_000


def test_without_jobs_it_knows_none() -> None:
    assert IdIndex([]).get("a") is None
