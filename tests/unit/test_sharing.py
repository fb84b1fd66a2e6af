"""Load shared over a group: its documents, who takes what, and that no job is lost whatever arrives late or never."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.sharing.credits import CREDIT_SECONDS, Credits
from edged.sharing.messages import (
    GIVE_BYTES,
    MAX_HOPS,
    SMALL_BYTES,
    Answer,
    Cancel,
    Give,
    MessageError,
    Offer,
    Repeat,
    Waiter,
    read_answer,
    read_handed,
    read_offer,
)
from edged.sharing.policy import Handing, Here, Known, Place, Refusal, Taker, Waiting, choose, judge, owned

IDS = st.text("abcXYZ019._-", min_size=1, max_size=64)
TEXT = st.text(st.characters(codec="utf-8"), min_size=2, max_size=60)
WAITERS = st.lists(st.builds(Waiter.of, TEXT, st.none() | st.binary(max_size=1024)), max_size=4)
SPEED = st.none() | st.floats(0.01, 1000)


def a_give(**fields: Any) -> Give:
    known: dict[str, Any] = {"device": "a", "give": "g", "id": "job", "document": "{}", "waiters": [], "age": 1.0}
    known |= {"ttl": None, "starts": 0, "crashes": 0, "path": ["a"], "credit": "c", "speed": None}
    return Give(**known | fields)


def offer(device: str, speed: float | None = 10.0, model: str = "m") -> Offer:
    return Offer(device=device, model=model, speed=speed, credit="c")


# Documents


@given(IDS, IDS, TEXT, WAITERS, st.lists(IDS, max_size=MAX_HOPS - 1), st.none() | st.floats(0, 1e9))
def test_a_give_arrives_as_it_was_sent(
    device: str, id: str, document: str, waiters: list[Waiter], path: list[str], ttl: float | None
) -> None:
    give = a_give(device=device, id=id, document=document, waiters=waiters, path=[*path, device], ttl=ttl)
    read = read_handed(give.payload())
    assert read == give
    assert isinstance(read, Give)
    assert read.document.encode() == document.encode()
    assert [waiter.place for waiter in read.waiters] == [waiter.place for waiter in waiters]
    for other in (Repeat(device=device, id=id, document=document, waiters=waiters), Cancel(device=device, id=id)):
        assert read_handed(other.payload()) == other
    answer = Answer(device=device, id=id, give=None, answer="known")
    assert read_answer(answer.payload()) == answer


@given(st.binary(max_size=40) | TEXT.map(str.encode))
def test_any_bytes_are_refused_in_words(payload: bytes) -> None:
    for read in (read_handed, read_answer, lambda payload: read_offer(payload, "a")):
        with pytest.raises(MessageError):
            read(payload)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "present"}, "kind must be one of job, repeat, cancel"),
        ({"more": 1}, "wrong, missing or unknown: more"),
        ({"path": []}, "path"),
        ({"path": ["b"]}, "document"),
        ({"path": ["w", "x", "y", "a"]}, "path"),
        ({"id": "a b"}, "id"),
        ({"ttl": -1.0}, "ttl"),
        ({"age": "1"}, "age"),
        ({"waiters": [{"topic": "t", "correlation": "!"}]}, "waiters.0"),
        ({"waiters": [{"topic": "t", "correlation": None}] * 66}, "waiters"),
        ({"document": "{\ud800}"}, "document"),
    ],
)
def test_a_give_that_is_wrong_is_refused(changes: dict[str, Any], words: str) -> None:
    document = json.loads(a_give().payload()) | changes
    with pytest.raises(MessageError, match=words):
        read_handed(json.dumps(document).encode())


def test_sizes_are_limited() -> None:
    with pytest.raises(MessageError, match=f"up to {GIVE_BYTES} are taken"):
        read_handed(b" " * (GIVE_BYTES + 1))
    with pytest.raises(MessageError, match=f"up to {SMALL_BYTES} are taken"):
        read_answer(b" " * (SMALL_BYTES + 1))


def test_an_offer_speaks_for_the_device_of_its_topic() -> None:
    assert read_offer(offer("a").payload(), "a") == offer("a")
    with pytest.raises(MessageError, match="device must be that of the topic"):
        read_offer(offer("a").payload(), "b")


# Credits


def test_a_credit_is_good_once_and_for_some_seconds() -> None:
    credits = Credits()
    credits.issue("one", 100.0)
    credits.issue("two", 100.0)
    assert credits.redeem("one", 101.0)
    assert not credits.redeem("one", 101.0)
    assert not credits.redeem("two", 100.0 + CREDIT_SECONDS)
    assert not credits.redeem("never", 100.0)


def test_credits_take_no_room_without_end() -> None:
    credits = Credits()
    for number in range(1000):
        credits.issue(str(number), 0.0)
    assert [credits.redeem(str(number), 1.0) for number in (0, 999)] == [False, True]


# Who gets what


HERE = Here("here", serves=True, rows=1, speed=10.0)


def waiting(number: int, ahead: int = 0, **fields: Any) -> Waiting:
    known: dict[str, Any] = {"number": number, "group": "g", "model": None, "path": (), "ahead": ahead}
    return Waiting(**known | fields)


def pairs(chosen: list[Handing]) -> list[tuple[int, str]]:
    return [(handing.waiting.number, handing.offer.device) for handing in chosen]


def test_the_oldest_goes_to_the_fastest() -> None:
    offers = [("g", offer("slow", 6.0)), ("g", offer("fast", 50.0)), ("other", offer("else", 90.0))]
    assert pairs(choose([waiting(1), waiting(2, 1)], offers, HERE)) == [(1, "fast"), (2, "slow")]


def test_a_slow_member_gets_the_oldest_that_it_finishes_sooner() -> None:
    jobs = [waiting(n, n) for n in range(30)]  # the job with n ahead of it is finished after n + 2 durations
    assert pairs(choose(jobs, [("g", offer("slow", 1.0))], HERE)) == [(9, "slow")]
    assert choose(jobs[:9], [("g", offer("slow", 1.0))], HERE) == []


def test_a_member_that_does_not_serve_gives_to_any() -> None:
    here = Here("here", serves=False, rows=1, speed=10.0)
    (handing,) = choose([waiting(1)], [("g", offer("slow", 0.1))], here)
    assert handing.speed is None


def test_a_job_that_names_a_model_goes_only_where_it_is_served() -> None:
    offers = [("g", offer("fast", 50.0, model="other")), ("g", offer("slow", 40.0, model="m"))]
    assert pairs(choose([waiting(1, model="m"), waiting(2, 1, model="none")], offers, HERE)) == [(1, "slow")]


@given(
    st.lists(
        st.builds(
            Waiting,
            number=st.integers(0, 99),
            group=st.sampled_from("gh"),
            model=st.sampled_from([None, "m", "n"]),
            path=st.lists(st.sampled_from("abcdef"), max_size=4, unique=True).map(tuple),
            ahead=st.integers(0, 50),
        ),
        max_size=20,
        unique_by=lambda job: job.number,
    ),
    st.lists(
        st.tuples(st.sampled_from("gh"), st.builds(offer, st.sampled_from("abcdef"), SPEED, st.sampled_from("mn"))),
        max_size=12,
    ),
    st.builds(Here, st.sampled_from("ab"), st.booleans(), st.integers(0, 8), SPEED),
)
def test_no_job_and_no_member_is_chosen_twice_and_each_may_take_what_it_gets(
    jobs: list[Waiting], offers: list[tuple[str, Offer]], here: Here
) -> None:
    chosen = choose(jobs, offers, here)
    assert len({handing.waiting.number for handing in chosen}) == len(chosen)
    assert len({handing.offer.device for handing in chosen}) == len(chosen)
    for handing in chosen:
        job, taken = handing.waiting, handing.offer
        assert (job.group, taken) in offers
        assert job.model in (None, taken.model)
        assert taken.device != here.device
        assert taken.device not in job.path
        assert len(job.path) < MAX_HOPS
        give = a_give(device=here.device, path=[*job.path, here.device], speed=handing.speed)
        taker = Taker(taken.device, True, taken.model, taken.speed)
        assert judge(give, job.model, Known(), taker, credit_good=True) is None


# What is refused


FREE = Taker("b", True, "m", 10.0)


@pytest.mark.parametrize(
    ("give", "model", "known", "taker", "credit", "refusal"),
    [
        (a_give(), None, Known(), FREE, True, None),
        (a_give(), None, Known(Place.HERE), FREE, False, None),
        (a_give(), None, Known(Place.HERE, same=False), FREE, True, Refusal.CONFLICT),
        (a_give(), None, Known(Place.GONE, same=False, came="g"), FREE, True, Refusal.CONFLICT),
        (a_give(), None, Known(Place.LEAVING), FREE, True, Refusal.GIVEN_ON),
        (a_give(), None, Known(Place.GONE), FREE, True, Refusal.GIVEN_ON),
        (a_give(), None, Known(Place.GONE, came="g"), FREE, False, None),
        (a_give(), None, Known(Place.LEAVING, came="g"), FREE, False, None),
        (a_give(path=["b", "a"]), None, Known(), FREE, True, Refusal.CAME_BY),
        (a_give(), None, Known(), FREE, False, Refusal.CREDIT),
        (a_give(), None, Known(), Taker("b", False, "m", 10.0), True, Refusal.BUSY),
        (a_give(), "n", Known(), FREE, True, Refusal.MODEL),
        (a_give(speed=10.0), None, Known(), FREE, True, Refusal.SLOW),
    ],
)
def test_what_is_taken(
    give: Give, model: str | None, known: Known, taker: Taker, credit: bool, refusal: Refusal | None
) -> None:
    assert judge(give, model, known, taker, credit) is refusal


# A job among members: whatever is late, doubled or lost, whoever gave it on leads to a member that has it.


@dataclass
class Member:
    """What one member has of the job, as the job life keeps it on disk."""

    place: Place = Place.NOTHING
    came: str | None = None
    path: tuple[str, ...] = ()
    give: Give | None = None
    """Under way, while LEAVING."""
    to: str = ""
    """Where it went, while LEAVING or GONE."""


@dataclass
class Group:
    members: dict[str, Member]
    gives: list[tuple[str, Give]] = field(default_factory=list)
    """All that were ever sent, each with its taker: any of them may arrive at any time, and again."""
    answers: list[tuple[str, str, str, bool]] = field(default_factory=list)
    """Giver, taker, give, accepted."""
    used: set[str] = field(default_factory=set)
    """Gives whose credit was redeemed."""

    def start(self, giver: str, taker: str) -> None:
        member = self.members[giver]
        if member.place is not Place.HERE or giver == taker:
            return
        here = Here(giver, serves=False, rows=1, speed=None)
        job = Waiting(1, "g", None, member.path, 0)
        for _ in choose([job], [("g", offer(taker))], here):
            member.place, member.to = Place.LEAVING, taker
            member.give = a_give(device=giver, give=f"give-{len(self.gives)}", path=[*member.path, giver])
            self.gives.append((taker, member.give))

    def hand(self, giver: str, taker: str) -> None:
        """The whole way of one give."""
        sent = len(self.gives)
        self.start(giver, taker)
        if len(self.gives) > sent:
            self.arrive(*self.gives[-1], credit=True)
            self.hear(*self.answers[-1])

    def arrive(self, taker: str, give: Give, credit: bool | None = None) -> None:
        """`credit`: whether it is good; None: if the give comes for the first time."""
        good = give.give not in self.used if credit is None else credit
        self.used.add(give.give)
        member = self.members[taker]
        known = Known(member.place, True, member.came)
        refusal = judge(give, None, known, Taker(taker, True, "m", None), good)
        if refusal is None and owned(give.give, known) is None:
            self.members[taker] = Member(Place.HERE, give.give, tuple(give.path))
        self.answers.append((give.device, taker, give.give, refusal is None))

    def hear(self, giver: str, taker: str, give: str, accepted: bool) -> None:
        member = self.members[giver]
        if member.place is Place.LEAVING and member.give is not None and member.give.give == give:
            assert member.to == taker
            member.place = Place.GONE if accepted else Place.HERE

    def repeat(self, member: str) -> None:
        """A sender comes again to a member that gave the job on; the one behind it does not know it, or is silent."""
        mine = self.members[member]
        if mine.place is Place.GONE:
            self.members[member] = Member(Place.HERE)

    def check(self) -> None:
        assert any(member.place in (Place.HERE, Place.LEAVING) for member in self.members.values())
        for name in self.members:
            seen: set[str] = set()
            while self.members[name].place is Place.GONE:
                assert name not in seen, "marks lead in a circle: a repeat would find nobody"
                seen.add(name)
                name = self.members[name].to
            if seen:
                assert self.members[name].place is not Place.NOTHING
        assert all(len(member.path) <= MAX_HOPS for member in self.members.values())


NAMES = "abcd"
FAULTLESS = ["hand", "start", "start", "arrive", "arrive", "hear"]
CROSSING = ["start", "start", "arrive", "arrive", "hear", "hear"]
STEPS = ["hand", "hand", "hand", "start", "arrive", "hear", "give up", "repeat"]


@pytest.mark.parametrize("block", range(4))
def test_a_job_is_never_lost_among_members(block: int) -> None:
    for seed in range(100):
        chance = random.Random(1000 * block + seed)
        group, steps = new_group(), STEPS
        if seed % 2:  # two members have it, since it was taken anew: they may give it to each other at the same time
            group.hand("a", "b")
            group.repeat("a")
            group.hand("a", "c")
            steps = CROSSING
        for _ in range(60):
            step(group, chance, chance.choice(steps), chance.choice((True, False)))
            group.check()


@pytest.mark.parametrize("block", range(4))
def test_a_job_is_at_one_member_where_messages_are_only_late_and_doubled(block: int) -> None:
    """One that has accepted it gives it on at once, whether or not the giver has heard of that."""
    for seed in range(100):
        chance, group = random.Random(1000 * block + seed), new_group()
        for _ in range(30):
            step(group, chance, chance.choice(FAULTLESS), None)
            group.check()
        while leaving := [member for member in group.members.values() if member.place is Place.LEAVING]:
            for member in leaving:
                if member.give is not None:
                    group.arrive(member.to, member.give)
                    group.hear(*group.answers[-1])
        assert [member.place for member in group.members.values()].count(Place.HERE) == 1


def new_group() -> Group:
    group = Group({name: Member() for name in NAMES})
    group.members["a"].place = Place.HERE
    return group


def step(group: Group, chance: random.Random, step: str, credit: bool | None) -> None:
    name, other = chance.sample(NAMES, 2)
    if step == "hand":
        group.hand(name, other)
    elif step == "start":
        group.start(name, other)
    elif step == "arrive" and group.gives:
        group.arrive(*chance.choice(group.gives[-6:]), credit=credit)
    elif step == "hear" and group.answers:
        group.hear(*chance.choice(group.answers[-6:]))
    elif step == "give up" and group.members[name].place is Place.LEAVING:
        group.members[name].place = Place.HERE
    elif step == "repeat":
        group.repeat(name)
