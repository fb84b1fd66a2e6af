"""How a rollout is conducted: when a wave grows, when it ends, and that conductors cannot hurt each other."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from conductor_rig import Board, Broker, Conducting, members
from hypothesis import given
from hypothesis import strategies as st
from rollout_rig import document, received

from edged.machine.clock import format_time
from edged.rollout.conductor import Options, Verdict, Wave, decide, percent_of
from edged.rollout.conductor_history import history_of
from edged.rollout.conductor_member import Member, read_member
from edged.rollout.conductor_run import CannotBeginError, choose
from edged.rollout.desired import PLACES, within
from edged.rollout.execution import State

DONE, FAILED, QUEUED = State.SUCCEEDED, State.FAILED, State.QUEUED
RUNS, LATE, WRONG = State.IN_PROGRESS, State.TIMED_OUT, State.REJECTED
WAVES = Options(waves=(5.0, 25.0, 100.0), abort_over=10.0, min_executed=3)
IDLE: list[State | None] = [None] * 10


def verdict(states: Sequence[State | None], percent: float, **fields: Any) -> tuple[Verdict, float]:
    decision = decide(members(*states), Wave(percent, **fields), WAVES)
    return decision.verdict, decision.wave.percent


def test_the_first_wave_grows_until_it_holds_as_many_devices_as_must_have_executed() -> None:
    assert verdict(IDLE, 0) == (Verdict.IN_PROGRESS, 20.001)  # the third stands at 20 %
    few = decide(members(None, None), Wave(), WAVES)
    assert (few.verdict, few.wave, few.waits_for) == (Verdict.IN_PROGRESS, Wave(), "devices")
    away = decide(members(*IDLE, here=False), Wave(), WAVES)
    assert (away.wave, away.waits_for) == (Wave(), "devices")
    small = decide(members(*IDLE), Wave(), Options(waves=(15.0,)))
    assert (small.wave.percent, small.waits_for) == (15.0, "devices")  # never past the last wave


def test_a_wave_is_followed_by_the_next_when_all_its_devices_that_are_there_have_executed() -> None:
    first = 20.001
    assert verdict([DONE, DONE, RUNS, *IDLE[3:]], first) == (Verdict.IN_PROGRESS, first)
    assert verdict([DONE, DONE, None, *IDLE[3:]], first) == (Verdict.IN_PROGRESS, first)
    assert verdict([DONE, DONE, DONE, *IDLE[3:]], first) == (Verdict.IN_PROGRESS, 25.0)
    assert verdict([DONE, DONE, DONE, *IDLE[3:]], 25.0) == (Verdict.IN_PROGRESS, 100.0)
    assert verdict([DONE] * 9 + [RUNS], 100.0) == (Verdict.IN_PROGRESS, 100.0)
    assert verdict([DONE] * 10, 100.0) == (Verdict.SUCCEEDED, 100.0)
    away = [*members(DONE, DONE, DONE), Member("away", 1, here=False), Member("off", 2, here=False, state=QUEUED)]
    assert decide(away, Wave(100.0), WAVES).verdict is Verdict.SUCCEEDED
    dark = [*members(DONE, DONE, DONE), Member("dark", 1, here=False, state=RUNS)]
    assert decide(dark, Wave(100.0), WAVES).verdict is Verdict.IN_PROGRESS


def test_devices_that_go_dark_after_they_began_are_not_replaced_by_others() -> None:
    dark = [Member(f"dark-{at}", at, here=False, state=RUNS) for at in range(3)]
    first = decide([*dark, *members(*IDLE)[1:]], Wave(5.0), WAVES)
    assert (first.wave.percent, first.waits_for) == (5.0, "wave")


@pytest.mark.parametrize("state", [FAILED, WRONG, LATE])
def test_failures_above_the_threshold_abort_it_once_enough_devices_have_executed(state: State) -> None:
    assert verdict([state, state, RUNS, *IDLE[3:]], 25.0) == (Verdict.IN_PROGRESS, 25.0)
    assert verdict([state, DONE, DONE, *IDLE[3:]], 25.0) == (Verdict.ABORTED, 25.0)
    assert decide(members(state, DONE, DONE), Wave(25.0), WAVES).wave.abort
    assert verdict([state] + [DONE] * 9, 100.0) == (Verdict.SUCCEEDED, 100.0)  # 10 % are not more than 10 %
    assert verdict([state, state] + [DONE] * 8, 100.0) == (Verdict.ABORTED, 100.0)
    strict = Options(abort_over=0.0, min_executed=1)
    assert decide(members(state), Wave(5.0), strict).verdict is Verdict.ABORTED


def test_a_pause_holds_it_and_an_abort_ends_it() -> None:
    good = [DONE, DONE, DONE, *IDLE[3:]]
    assert verdict(good, 25.0, pauses=1) == (Verdict.PAUSED, 25.0)
    assert verdict(good, 25.0, pauses=2) == (Verdict.IN_PROGRESS, 100.0)
    assert verdict(good, 25.0, abort=True) == (Verdict.ABORTED, 25.0)
    assert verdict([FAILED, FAILED, FAILED], 25.0, pauses=1) == (Verdict.ABORTED, 25.0)


def test_no_more_devices_join_within_a_minute_than_are_allowed() -> None:
    paced = Options(per_minute=2)
    states = [DONE, DONE, DONE, *IDLE[3:]]

    def raised(percent: float, seconds: float) -> float:
        return decide(members(*states), Wave(percent), paced, seconds).wave.percent

    assert raised(25.0, 0) == 25.0
    assert raised(25.0, 29) == 25.0
    assert raised(25.0, 30) == 30.001
    assert raised(25.0, 60) == raised(25.0, 600) == 40.001
    assert decide(members(*states), Wave(25.0), paced, 0).waits_for == "pace"
    assert raised(80.001, 30) == 100.0  # one is left


STATES = st.sampled_from([None, *State])
MEMBERS = st.lists(
    st.builds(Member, device=st.just("pi"), place=st.integers(0, PLACES - 1), here=st.booleans(), state=STATES),
    max_size=12,
)
OPTIONS = st.builds(
    Options,
    waves=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=4, unique=True).map(lambda waves: tuple(sorted(waves))),
    per_minute=st.none() | st.integers(1, 100),
    abort_over=st.floats(0.0, 100.0),
    min_executed=st.integers(1, 5),
)
WAVE = st.builds(Wave, percent=st.floats(0.0, 100.0), abort=st.booleans(), pauses=st.integers(0, 5))


@given(MEMBERS, WAVE, OPTIONS, st.floats(0.0, 1e6))
def test_percent_never_falls_and_an_abort_stays(
    found: list[Member], wave: Wave, options: Options, seconds: float
) -> None:
    decision = decide(found, wave, options, seconds)
    assert (
        wave.percent
        <= decision.wave.percent
        <= max(100.0 if wave.percent > options.waves[-1] else options.waves[-1], wave.percent)
    )
    assert decision.wave.merge(wave) == decision.wave
    assert decision.wave.pauses == wave.pauses
    assert decision.wave.abort == (decision.verdict is Verdict.ABORTED)
    if wave.abort or wave.paused:
        assert decision.wave.percent == wave.percent
    if decision.verdict is Verdict.SUCCEEDED:
        assert wave.percent >= options.waves[-1]
        assert all(one.executed for one in found if one.counts and within(one.place, wave.percent))


@given(WAVE, WAVE, WAVE)
def test_what_is_known_of_a_wave_does_not_depend_on_who_says_it_first(one: Wave, two: Wave, three: Wave) -> None:
    assert one.merge(two) == two.merge(one)
    assert one.merge(two).merge(three) == one.merge(two.merge(three))
    assert one.merge(one) == one


@given(st.integers(0, PLACES - 1))
def test_the_percent_of_a_place_takes_it_in_and_little_more(place: int) -> None:
    assert within(place, percent_of(place))
    assert not within(place, percent_of(place) - 0.0011)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60))])
def test_two_conductors_that_hear_late_and_die_bring_it_to_one_end(seed: int, good: bool) -> None:
    chance, broker = random.Random(seed), Broker()
    boards = [Board(broker, f"pi-{at}", good) for at in range(12)]
    conductors = [Conducting(broker, WAVES) for _ in range(2)]
    for _ in range(400):
        one, board = chance.choice(conductors), chance.choice(boards)
        match chance.randrange(8):
            case 0 | 1:
                one.hear()
            case 2:
                one.step()
            case 3 if chance.random() < 0.1:
                one.restart()
            case 4 | 5:
                board.hear()
            case _:
                board.go_on()
    quiet = False
    while not quiet:
        changed = [one.hear() for one in (*conductors, *boards) for _ in range(50)]
        changed += [board.go_on() for board in boards] + [one.step() for one in conductors]
        quiet = not any(changed)
    for one in conductors:
        percents = [told["percent"] for told in one.published]
        assert percents == sorted(percents)
    ends = {one.verdict for one in conductors}
    states = {board.execution.state for board in boards if board.execution}
    if good:
        assert (ends, states, broker.desired["percent"]) == ({Verdict.SUCCEEDED}, {DONE}, 100.0)
        return
    assert ends == {Verdict.ABORTED}
    assert broker.desired["abort"] is True
    places = sorted(received(target="group/hall").desired.place(board.device) for board in boards)
    first = max(5.0, percent_of(places[2]))
    assert {board.begun for board in boards if not within(received().desired.place(board.device), first)} == {False}
    assert states == {FAILED, State.CANCELED}


def test_an_abort_that_another_publication_took_the_place_of_is_told_by_the_devices() -> None:
    broker = Broker()
    boards = [Board(broker, f"pi-{at}", True) for at in range(4)]
    Conducting(broker, WAVES).step()
    ahead = broker.desired
    broker.tell({**ahead, "abort": True})
    broker.tell(ahead)  # by a conductor that had not heard of it, and is gone
    for board in boards:
        while board.hear() or board.go_on():
            pass
    fresh = Conducting(broker, WAVES)
    assert fresh.step()
    assert (fresh.verdict, broker.desired["abort"]) == (Verdict.ABORTED, True)


def test_what_a_broker_forgot_is_told_to_it_again() -> None:
    broker = Broker()
    boards = [Board(broker, f"pi-{at}", True) for at in range(4)]
    one = Conducting(broker, WAVES)
    while one.hear() or any(board.hear() or board.go_on() for board in boards) or one.step():
        pass
    last = broker.desired
    assert last["percent"] == 100.0
    for forgotten in (b"", json.dumps({**last, "percent": 1.0}).encode()):
        broker.retained["edged/v1/group/hall/desired"] = forgotten
        one.reconnect()
        assert one.step()
        assert broker.desired == last


def test_a_device_cannot_advance_a_rollout_by_what_it_reports() -> None:
    broker = Broker()
    boards = [Board(broker, f"pi-{at}", True) for at in range(4)]
    one = Conducting(broker, WAVES)
    one.step()
    first = broker.desired["percent"]
    told = {"target": "group/hall", "rollout": "r1", "sequence": 1, "state": "QUEUED", "percent": 100}
    forged = {**told, "desired": {**broker.desired, "percent": 100, "sequence": 1}}
    broker.publish("edged/v1/device/pi-1/reported", json.dumps(forged).encode())
    newer = {**told, "desired": {**broker.desired, "percent": 100, "sequence": 9}}
    broker.publish("edged/v1/device/pi-2/reported", json.dumps(newer).encode())
    while one.hear():
        pass
    one.step()
    assert (one.verdict, broker.desired["percent"]) == (Verdict.IN_PROGRESS, first)
    assert len(boards) == 4


def test_another_document_of_this_sequence_or_a_higher_one_ends_it() -> None:
    for other in ({"rollout": "r2", "sequence": 2}, {"rollout": "r2", "sequence": 1}):
        broker = Broker()
        boards = [Board(broker, f"pi-{at}", True) for at in range(4)]
        one = Conducting(broker, WAVES)
        one.step()
        broker.tell(document(**other))
        while one.hear():
            pass
        assert not one.step()
        assert one.verdict is Verdict.SUPERSEDED
        assert len(boards) == 4


def test_a_conductor_with_a_new_model_takes_the_next_sequence_and_with_the_same_one_goes_on() -> None:
    broker = Broker()
    heard = Conducting(broker, WAVES).heard
    wanted = {name: value for name, value in document().items() if name != "sequence"}
    with pytest.raises(CannotBeginError, match="no rollout; --model"):
        choose(heard, None)
    assert choose(heard, wanted).desired.sequence == 1
    broker.tell(document(sequence=4, percent=25))
    heard = Conducting(broker, WAVES).heard
    assert choose(heard, wanted).desired.sequence == 4
    assert choose(heard, None).desired.sequence == 4
    assert choose(heard, {**wanted, "rollout": "r2"}).desired.sequence == 5
    assert choose(heard, document(sequence=9, rollout="r2")).desired.sequence == 9
    with pytest.raises(CannotBeginError, match="the sequence 4: give the document a higher one"):
        choose(heard, document(sequence=4, rollout="r2"))
    with pytest.raises(CannotBeginError, match="another id with --rollout"):
        choose(heard, {**wanted, "timeout": 60})
    reported = {"target": "group/hall", "rollout": "r0", "sequence": 7}
    broker.publish("edged/v1/device/pi-1/reported", json.dumps(reported).encode())
    assert choose(Conducting(broker, WAVES).heard, {**wanted, "rollout": "r2"}).desired.sequence == 8


HALL = received(target="group/hall", sequence=3)
LONGEST = HALL.desired.timeout + HALL.desired.proving.seconds


def member(here: bool = True, wall: float = 0.0, **report: Any) -> Member | None:
    told = {"target": "group/hall", "rollout": "r1", "sequence": 3, **report}
    return read_member("pi", here, told, HALL, wall)


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ({"state": "SUCCEEDED"}, DONE),
        ({"state": "QUEUED", "failures": 0}, QUEUED),
        ({"state": "QUEUED", "failures": 1}, FAILED),
        ({"state": "IN_PROGRESS", "failures": 2}, FAILED),
        ({"state": "REJECTED"}, WRONG),
        ({"sequence": 2, "state": "SUCCEEDED"}, None),
        ({"rollout": "r0", "state": "SUCCEEDED"}, None),
        ({"target": "group/a", "sequence": 2, "state": "SUCCEEDED"}, None),
        ({"state": 7, "since": [], "failures": "x", "refused": {}}, None),
    ],
)
def test_a_report_tells_the_state_of_its_own_rollout_only(report: dict[str, Any], state: State | None) -> None:
    found = member(**report)
    assert found is not None
    assert found.state is state


def test_a_device_that_follows_another_document_is_not_waited_for() -> None:
    assert member(target="device", sequence=1) is None
    assert member(target="group/other", sequence=3) is None
    assert member(target="group/hall", rollout="r4", sequence=4) is None


def test_a_document_that_a_device_refuses_is_rejected_there() -> None:
    refusal = {"target": "group/hall", "rollout": "r1", "sequence": 3, "fault": {"code": "desired_signature_wrong"}}
    found = member(sequence=1, state="SUCCEEDED", refused=[refusal])
    assert found is not None
    assert (found.state, found.fault) == (WRONG, {"code": "desired_signature_wrong"})


def test_a_device_that_went_dark_in_the_middle_is_timed_out_after_timeout_and_trial() -> None:
    begun = {"state": "IN_PROGRESS", "since": format_time(1_000_000.0)}
    for here, seconds, state in ((False, LONGEST - 1, RUNS), (False, LONGEST + 1, LATE), (True, LONGEST + 1, RUNS)):
        found = member(here, 1_000_000.0 + seconds, **begun)
        assert found is not None
        assert found.state is state


def test_the_history_is_what_the_document_and_the_reports_tell() -> None:
    reports: dict[str, dict[str, Any]] = {
        "a": {"target": "group/hall", "rollout": "r1", "sequence": 3, "state": "SUCCEEDED", "since": format_time(50.0)},
        "b": {"target": "group/hall", "rollout": "r1", "sequence": 3, "state": "FAILED", "since": format_time(90.0)},
        "c": {"target": "group/hall", "rollout": "r0", "sequence": 2, "state": "SUCCEEDED"},
        "d": {"target": "device", "rollout": "mine", "sequence": 9, "state": "SUCCEEDED"},
        "e": {},
    }
    latest, before = history_of(HALL, reports, "group/hall")
    assert (latest.sequence, latest.counts, latest.first, latest.last) == (3, {"SUCCEEDED": 1, "FAILED": 1}, 50.0, 90.0)
    assert (before.rollout, before.digest, before.first) == ("r0", None, None)
    assert history_of(HALL, {}, "group/hall")[0].line().endswith("no device follows it")
