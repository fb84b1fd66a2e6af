"""Pieces of answers: the first at once, no more than so many a second, and no text later than that allows."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.jobs.streams import Streams

PER_SECOND = 8
INTERVAL = 1 / PER_SECOND


class Place:
    """Streams on a clock that stands still until the test moves it; `said`: (time, id, number, text) of each piece."""

    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[tuple[float, str, int, str]] = []
        self.streams = Streams(lambda id, number, text: self.said.append((self.now, id, number, text)), PER_SECOND)

    def wait(self, seconds: float) -> None:
        """As the main loop does: sleep until something is due, and flush."""
        until = self.now + seconds
        while self.streams.due_in <= until - self.now:
            self.now += max(0.0, self.streams.due_in)
            self.streams.flush()
        self.now = until


@contextlib.contextmanager
def new_place() -> Iterator[Place]:
    place = Place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: place.now)
        yield place


@pytest.fixture
def place() -> Iterator[Place]:
    with new_place() as place:
        yield place


def test_pieces_that_come_slowly_leave_at_once(place: Place) -> None:
    for text in "abc":
        place.streams.add(1, "job", text)
        place.wait(INTERVAL)
    assert place.said == [(100.0 + n * INTERVAL, "job", n, text) for n, text in enumerate("abc")]


def test_held_text_leaves_when_it_is_due_though_nothing_more_comes(place: Place) -> None:
    place.streams.add(1, "job", "a")
    place.wait(INTERVAL / 4)
    place.streams.add(1, "job", "b")
    assert place.streams.due_in == INTERVAL * 3 / 4
    place.wait(10)
    assert place.said == [(100.0, "job", 0, "a"), (100.0 + INTERVAL, "job", 1, "b")]
    assert place.streams.due_in == math.inf


def test_a_turn_without_new_text_publishes_nothing(place: Place) -> None:
    place.streams.add(1, "job", "a")
    place.wait(INTERVAL)
    place.streams.flush()
    assert place.said == [(100.0, "job", 0, "a")]


def test_jobs_do_not_hold_up_each_other(place: Place) -> None:
    for number, id in ((1, "one"), (2, "two")):
        place.streams.add(number, id, "x")
    assert [said[1:] for said in place.said] == [("one", 0, "x"), ("two", 0, "x")]


def test_a_job_that_runs_again_begins_with_number_0(place: Place) -> None:
    for _ in range(2):
        place.streams.add(1, "job", "a")
        place.streams.end(1)
    place.streams.end(1)
    assert [said[1:] for said in place.said] == [("job", 0, "a")] * 2


@given(st.lists(st.tuples(st.integers(0, 20), st.text("ab", min_size=1, max_size=3)), min_size=1, max_size=80))
def test_any_text_is_whole_in_few_pieces_and_never_late(parts: list[tuple[int, str]]) -> None:
    came: list[float] = []
    with new_place() as place:
        for ticks, text in parts:
            place.wait(ticks / 128)
            place.streams.add(1, "job", text)
            came += [place.now] * len(text)
        place.streams.end(1)
    times, _, numbers, texts = zip(*place.said, strict=True)
    assert "".join(texts) == "".join(text for _, text in parts)
    assert numbers == tuple(range(len(numbers)))
    assert times[0] == came[0]
    assert len(times) <= 2 + PER_SECOND * (place.now - came[0])
    left = [time for time, _, _, text in place.said for _ in text]
    assert all(0 <= later - sooner <= INTERVAL for sooner, later in zip(came, left, strict=True))
