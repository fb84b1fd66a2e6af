"""Which steps round alike is measured at a load, and a row that would round otherwise is not left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, RUNTIME, load, request, running

from edged.engine.attention_probe import DecodeProbe
from edged.engine.bit_classes import BitClasses, find_bit_classes
from edged.engine.kv_cache import KVCache
from edged.engine.package import Package, open_package
from edged.engine.session import ModelSession

CPU = ["CPUExecutionProvider"]
needs_int8 = pytest.mark.skipif(RUNTIME < (1, 27), reason="no int8 cache")


@pytest.fixture
def session() -> ModelSession:
    return ModelSession(open_package(MODELS / "phi3"), ["CPUExecutionProvider"], 1)


def spoil(session: ModelSession, monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Change the last bits of the logits of steps that `when` accepts, by their rows and tokens."""
    forward = session.forward

    def rounded_otherwise(first: int, ids: Any, *more: Any) -> Any:
        logits = forward(first, ids, *more)
        return np.nextafter(logits, np.float32(1e9)) if when(*ids.shape) else logits

    monkeypatch.setattr(session, "forward", rounded_otherwise)


def test_a_row_that_rounds_otherwise_alone_is_found(session: ModelSession, monkeypatch: pytest.MonkeyPatch) -> None:
    agree = find_bit_classes(session, 4)
    assert (agree.batches_differ, agree.chunks_differ) == (False, False)
    if not agree.lone_row_differs:  # this processor has one kernel for all; another one has not
        spoil(session, monkeypatch, lambda rows, new: rows == new == 1)
        assert find_bit_classes(session, 4) == BitClasses(True, False, False)


@pytest.mark.parametrize("rows", [2, 3, 5, 8])
def test_batches_that_round_otherwise_are_found(
    rows: int, session: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(session, monkeypatch, lambda some, new: some == rows and new == 1)
    assert find_bit_classes(session, 5) == BitClasses(False, True, False)


def test_chunks_that_round_otherwise_are_found(session: ModelSession, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(session, monkeypatch, lambda _rows, new: new == 5)
    assert find_bit_classes(session, 1).chunks_differ


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ((), BitClasses(False, False, False)),
        ((1,), BitClasses(True, False, False)),
        ((1, 2, 3), BitClasses(False, True, False)),
        ((3,), BitClasses(False, True, False)),
    ],
)
def test_keys_that_are_shared_out_among_threads_are_found(
    odd: tuple[int, ...], expected: BitClasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are more threads than heads; numbers of rows in `odd` have other last bits."""

    class Attention:
        def __init__(self, numbers: dict[str, float], package: Package, threads: int, int8: bool) -> None:
            assert (numbers["num_heads"], threads, int8) == (4, 5, False)

        def read(self, rows: int) -> Any:
            return np.full((rows, 64), rows in odd, np.float32)

    monkeypatch.setattr("edged.engine.bit_classes.DecodeProbe", Attention)
    agree = find_bit_classes(ModelSession(open_package(MODELS / "phi3"), CPU, 4), 5)
    if agree.lone_row_differs:
        expected = replace(expected, lone_row_differs=not expected.batches_differ)
    assert find_bit_classes(ModelSession(open_package(MODELS / "phi3"), CPU, 5), 5) == expected


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs_int8)])
def test_rows_agree_over_a_long_context_where_no_thread_is_without_a_head(int8: bool) -> None:
    package = open_package(MODELS / "phi3")
    (numbers,) = package.graph.attentions
    attention = DecodeProbe(numbers, package, 2, int8)
    one, five = attention.read(1), attention.read(5)
    assert one.shape == (1, 64)
    assert np.isfinite(one).all()
    assert all(np.array_equal(row, one[0]) for row in five)


def test_rows_that_never_share_a_step_are_not_padded() -> None:
    package = open_package(MODELS / "phi3-small")
    assert not find_bit_classes(ModelSession(package, ["CPUExecutionProvider"], 1), 8).lone_row_differs


def test_a_companion_changes_nothing_that_its_row_keeps(session: ModelSession) -> None:
    """Its cache is written only where it will compute next itself."""
    cache = KVCache(session.package, 3, 64)
    session.use(cache)
    tokens = np.arange(5, 25)
    for row in (0, 1):
        session.step(row, tokens[None], [0], 20)
    before = cache.read(1, 0, 20)
    logits = session.step(0, np.array([[7]]), [20, 20], 21)
    assert logits.shape == (1, session.package.vocabulary)
    assert np.array_equal(cache.read(1, 0, 20), before)


@pytest.mark.parametrize("padded", [False, True])
def test_a_row_alone_is_computed_with_a_companion_where_it_must_be(
    padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = BitClasses(lone_row_differs=padded, batches_differ=False, chunks_differ=False)
    monkeypatch.setattr("edged.engine.kept_bits.find_bit_classes", lambda *_: bits)
    one = load(MODELS / "phi3", rows=1)
    shapes = []
    forward = one.session.forward

    def noted(first: int, ids: Any, *more: Any) -> Any:
        shapes.append(ids.shape)
        return forward(first, ids, *more)

    monkeypatch.setattr(one.session, "forward", noted)
    with running(one) as rig:
        rig.run(request(0, (5, 6, 7), 4))
    assert shapes == [(1, 3), *[(1 + padded, 1)] * 3]
