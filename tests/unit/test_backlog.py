"""What waits for a row: the order in which it gets one, what a model refuses, and what a cancel removes."""

from __future__ import annotations

from dataclasses import replace

from engine_rig import request, serving

from edged.engine.backlog import Backlog
from edged.engine.events import Ended
from edged.engine.loaded_model import LoadedModel
from edged.engine.sampler import Sampling
from edged.engine.sequence import Request, Sequence


def model() -> LoadedModel:
    return serving("phi3")


def admitted(one: Request) -> Sequence:
    """A sequence as the engine gets it."""
    backlog = Backlog()
    backlog.add(one)
    row = backlog.take_waiting(model())
    assert isinstance(row, Sequence)
    return row


def test_the_lowest_rank_is_next_and_the_first_among_equals() -> None:
    backlog = Backlog()
    for key, priority in ((1, 5), (2, 9), (3, 9), (4, 0)):
        backlog.add(request(key, (5, 6), priority=priority))
    assert len(backlog) == 4
    rows = [backlog.take_waiting(model()) for _ in range(4)]
    assert [row.request.key for row in rows if isinstance(row, Sequence)] == [2, 3, 1, 4]
    assert backlog.take_waiting(model()) is None
    assert not backlog


def test_what_the_model_cannot_run_ends() -> None:
    context = model().context
    backlog = Backlog()
    backlog.add(request(1, (5, 6), signature="of another model"))
    backlog.add(request(2, ()))
    backlog.add(request(3, (5, 6), context - 1))
    backlog.add(request(4, (5, 6), sampling=Sampling(temperature=1.0, seed=-1)))
    backlog.add(request(5, (5, 6), context - 2))
    ended = [backlog.take_waiting(model()) for _ in range(4)]
    refused = f"prompt and max_tokens must be 1 to {context} tokens, the context, together"
    assert ended[:3] == [Ended(1), Ended(2, failure=refused), Ended(3, failure=refused)]
    assert isinstance(ended[3], Ended)
    assert "the engine refuses the request: " in str(ended[3].failure)
    assert isinstance(backlog.take_waiting(model()), Sequence)


def test_rows_of_a_session_lost_again_come_before_those_that_still_wait() -> None:
    rows = [admitted(request(key, (5, 6))) for key in range(3)]
    for row in rows:
        row.computed, row.reading = 1, True
    backlog = Backlog()
    backlog.park(rows)
    first = backlog.take_parked(model())
    assert first is rows[0]
    assert (first.computed, first.reading) == (0, False)
    first.computed = 1
    backlog.park([first])
    assert backlog.parked == tuple(rows)
    assert [backlog.take_parked(model()) for _ in range(4)] == [*rows, None]
    assert {row.computed for row in rows} == {0}


def test_a_parked_sequence_of_another_model_or_a_longer_one_ends_with_its_tokens() -> None:
    rows = [admitted(request(key, (5, 6), 20)) for key in range(2)]
    for row in rows:
        row.tokens.append(7)
    backlog = Backlog()
    backlog.park(rows)
    assert backlog.take_parked(replace(model(), signature="of another")) == Ended(0, tokens=1)
    assert backlog.take_parked(replace(model(), context=21)) == Ended(1, tokens=1)
    assert not backlog


def test_a_cancel_removes_what_has_its_key_alone() -> None:
    parked = [admitted(request(key, (5, 6))) for key in (1, 2)]
    parked[0].tokens.append(7)
    backlog = Backlog()
    backlog.park(parked)
    for key in (3, 4):
        backlog.add(request(key, (5, 6)))
    assert backlog.remove(1) == [Ended(1, tokens=1)]
    assert backlog.remove(3) == [Ended(3)]
    assert backlog.remove(3) == []
    assert backlog.parked == (parked[1],)
    assert len(backlog) == 2
