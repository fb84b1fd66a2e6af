"""Which publication the broker closes the connection on, and that chance convicts none."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import pytest

from edged.jobs.poison import CLOSED_TIMES, PROBE, SMALL_BYTES, Alone, PoisonFinder, Step
from edged.mqtt.events import Blame

PROBE_SIZE = 300
WINDOW = 32


@dataclass
class Network:
    """One device, its queue, a line and a broker, in simulated time.

    `mean_up`: seconds between random drops. `bytes_per_second`, `round_trip`: of the line. `limit`: the broker closes
    on a larger packet. `half_open`: the share of drops that only the device's time-out finds.
    """

    draw: random.Random
    mean_up: float = float("inf")
    bytes_per_second: float = 1e6
    round_trip: float = 0.05
    limit: float = float("inf")
    half_open: float = 0.0
    rate: float = float("inf")
    """The broker closes on more publications within a second, as AWS IoT Core does on more than 100."""
    slow: Callable[[], float] = lambda: 0.0
    """Seconds that the broker takes for an answer beside."""
    now: float = 0.0
    drops: int = 0
    queue: dict[Hashable, int] = field(default_factory=dict)
    """Sizes of what is due."""
    delivered: list[Hashable] = field(default_factory=list)
    convicted: list[Hashable] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.finder = PoisonFinder(self.draw)
        self.recent: deque[float] = deque()

    def connection(self) -> None:
        """From a connect to the next drop, or until nothing is due."""
        self.now += self.draw.uniform(0.0, 5.0)
        self.finder.connected(self.now)
        self.recent.clear()
        ends = self.now + self.draw.expovariate(1 / self.mean_up) if self.mean_up < float("inf") else float("inf")
        while True:
            step = self.finder.next(self.now)
            assert step is not Step.WAIT  # here everything that is sent is answered before the next step
            if step is Step.PROBE:
                self.finder.sent(PROBE, PROBE_SIZE, self.now, alone=True)
                if not self.transfer([PROBE_SIZE], ends):
                    return
                self.finder.answered(PROBE)
                continue
            keys = [step.key] if isinstance(step, Alone) else [k for k in self.queue if k not in self.finder][:WINDOW]
            if not keys:
                if not self.queue:
                    return
                self.now += 0.5  # suspects wait for a connection that has stood
                if self.now >= ends:
                    self.drop(ends)
                    return
                continue
            for key in keys:
                self.finder.sent(key, self.queue[key], self.now, alone=isinstance(step, Alone))
            if not self.transfer([self.queue[key] for key in keys], ends):
                return
            for key in keys:
                self.finder.answered(key)
                del self.queue[key]
                self.delivered.append(key)

    def transfer(self, sizes: list[int], ends: float) -> bool:
        """Send packets and wait for the answers; False where the connection ended."""
        at = self.now
        for size in sizes:
            at += size / self.bytes_per_second
            self.recent.append(at)
            while self.recent[0] < at - 1.0:
                self.recent.popleft()
            if size > self.limit or len(self.recent) > self.rate:
                closes = at + self.round_trip
                self.drop(min(closes, ends), by_chance=ends < closes)
                return False
        at += self.round_trip + self.slow()
        if at >= ends:
            self.drop(ends)
            return False
        self.now = at
        return True

    def drop(self, at: float, by_chance: bool = True) -> None:
        self.now, blame = at, Blame.POSSIBLE
        if by_chance and self.draw.random() < self.half_open:
            self.now, blame = self.now + 90.0, Blame.NONE
        self.drops += 1
        if (convicted := self.finder.disconnected(self.now, blame)) is not None:
            self.convicted.append(convicted)
            del self.queue[convicted]


def fill(network: Network, count: int) -> None:
    for _ in range(count):
        name = len(network.delivered) + len(network.queue) + len(network.convicted)
        size = int(10 ** network.draw.uniform(2.3, 5.5))  # 200 bytes to 300 KB
        network.queue[f"{name}-{network.draw.random()}"] = size


LINES: dict[str, Callable[[random.Random], Network]] = {
    "flaps of any rate": lambda draw: Network(draw, mean_up=10 ** draw.uniform(-1, 2.5)),
    "slow and flapping": lambda draw: Network(draw, mean_up=10 ** draw.uniform(0, 2), bytes_per_second=20e3),
    "slower than it flaps": lambda draw: Network(draw, mean_up=10 ** draw.uniform(-1, 1), bytes_per_second=5e3),
    "half-open": lambda draw: Network(draw, mean_up=10 ** draw.uniform(0, 2), half_open=0.5),
    "slow broker": lambda draw: Network(
        draw, mean_up=10 ** draw.uniform(0, 2), slow=lambda: 10 ** draw.uniform(-2, 1.5)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_of_twelve_thousand_random_drops_none_convicts(line: str) -> None:
    draw = random.Random(f"2026 {line}")
    drops = 0
    while drops < 2_500:
        network = LINES[line](draw)
        fill(network, 40)
        for _ in range(50):
            network.connection()
            if len(network.queue) < 10:
                fill(network, 30)
        assert network.convicted == []
        drops += network.drops


@pytest.mark.parametrize("seed", range(30))
def test_what_the_broker_never_takes_is_convicted_and_the_others_leave_meanwhile(seed: int) -> None:
    draw = random.Random(seed)
    network = Network(draw, limit=100_000.0)
    sizes = [1000 + 10 * n for n in range(200)]
    sizes.insert(draw.randrange(len(sizes)), 250_000)
    network.queue = dict(enumerate(sizes))
    poison = sizes.index(250_000)
    while not network.convicted:
        network.connection()
        # No drop costs the others more than the attempts with which it is found out what the drop was about.
        assert network.drops < 3 or len(network.delivered) == 200
        assert network.drops <= CLOSED_TIMES + 3
    network.connection()
    assert network.convicted == [poison]
    assert len(network.delivered) == 200


@pytest.mark.parametrize("seed", range(10))
def test_several_are_convicted_over_a_line_that_flaps_too(seed: int) -> None:
    draw = random.Random(f"flaps {seed}")
    network = Network(draw, limit=100_000.0, mean_up=300.0)
    poison = {n: 150_000 + 1000 * n for n in range(0, 400, 80)}
    network.queue = {n: poison.get(n, 2000) for n in range(400)}
    while network.queue:
        network.connection()
        assert network.drops < 300
    assert sorted(map(str, network.convicted)) == sorted(map(str, poison))


@pytest.mark.parametrize("round_trip", [0.001, 0.05])
@pytest.mark.parametrize("rate", [20, 100])
def test_a_broker_that_hangs_up_on_too_many_at_once_gets_all_of_them_and_convicts_none(
    rate: int, round_trip: float
) -> None:
    for seed in range(5):
        network = Network(random.Random(seed), rate=rate, round_trip=round_trip, bytes_per_second=1e8)
        fill(network, 600)
        while network.queue:
            network.connection()
            assert network.drops < 200
        assert (network.convicted, network.drops > 0) == ([], True)


# Rules one by one


def closed(finder: PoisonFinder, at: float, took: float = 0.01, size: int = 5000, small: int = 300) -> object:
    """Connect, have something small acknowledged, send "a" alone 10 s later, and lose the connection by the broker."""
    finder.connected(at)
    finder.sent("small", small, at)
    finder.answered("small")
    finder.sent("a", size, at + 10.0, alone=True)
    return finder.disconnected(at + 10.0 + took, Blame.POSSIBLE)


def test_the_third_close_in_a_row_convicts() -> None:
    finder = PoisonFinder()
    assert [closed(finder, at) for at in (0.0, 100.0, 200.0)] == [None, None, "a"]
    assert "a" not in finder


@pytest.mark.parametrize(
    "different",
    [
        pytest.param(lambda finder: closed(finder, 200.0, took=5.0), id="the connection had not stood long enough"),
        pytest.param(lambda finder: closed(finder, 200.0, small=5000), id="nothing smaller was acknowledged before"),
    ],
)
def test_a_close_that_does_not_count_begins_anew(different: Callable[[PoisonFinder], object]) -> None:
    finder = PoisonFinder()
    assert [closed(finder, at) for at in (0.0, 100.0)] == [None, None]
    assert different(finder) is None
    assert [closed(finder, at) for at in (300.0, 400.0, 500.0)] == [None, None, "a"]


def test_a_time_out_begins_anew() -> None:
    finder = PoisonFinder()
    assert [closed(finder, at) for at in (0.0, 100.0)] == [None, None]
    finder.connected(200.0)
    finder.sent("small", 300, 200.0)
    finder.answered("small")
    finder.sent("a", 5000, 210.0, alone=True)
    assert finder.disconnected(210.01, Blame.NONE) is None
    assert closed(finder, 300.0) is None


def test_a_larger_one_that_is_taken_begins_anew() -> None:
    finder = PoisonFinder()
    assert [closed(finder, at) for at in (0.0, 100.0)] == [None, None]
    finder.connected(200.0)
    finder.sent("larger", 5001, 200.0)
    finder.answered("larger")
    finder.disconnected(201.0, Blame.POSSIBLE)
    assert [closed(finder, at) for at in (300.0, 400.0, 500.0)] == [None, None, "a"]


def test_a_broker_that_names_the_size_needs_no_long_stand_but_three_times() -> None:
    finder = PoisonFinder()
    found = []
    for at in (0.0, 1.0, 2.0):
        finder.connected(at)
        finder.sent("small", 300, at)
        finder.answered("small")
        finder.sent("a", 5000, at + 0.1, alone=True)
        found.append(finder.disconnected(at + 0.2, Blame.SIZE))
    assert found == [None, None, "a"]


def test_what_was_under_way_goes_alone_the_smallest_first_after_a_small_one() -> None:
    finder = PoisonFinder()
    finder.connected(0.0)
    assert finder.next(0.0) is Step.FREE
    for key, size in (("c", 3000), ("a", 1000), ("b", 2000)):
        finder.sent(key, size, 0.0)
    finder.disconnected(0.1, Blame.NONE)
    assert finder.next(0.2) is Step.WAIT  # there is no connection
    finder.connected(1.0)
    assert finder.next(1.0) is Step.PROBE
    finder.sent(PROBE, 300, 1.0, alone=True)
    assert finder.next(1.0) is Step.WAIT
    finder.answered(PROBE)
    for key in ("a", "b", "c"):
        assert finder.next(1.1) == Alone(key)
        finder.sent(key, 1000, 1.1, alone=True)
        assert finder.next(1.1) is Step.WAIT
        finder.answered(key)
    assert finder.next(1.2) is Step.FREE


def test_the_others_go_on_until_the_connection_has_stood_and_what_is_under_way_is_answered() -> None:
    finder = PoisonFinder()
    closed(finder, 0.0)
    finder.connected(100.0)
    assert finder.next(100.0) is Step.FREE
    assert "a" in finder
    finder.sent("other", SMALL_BYTES, 100.0)
    assert finder.next(110.0) is Step.WAIT
    finder.answered("other")
    assert finder.next(110.0) == Alone("a")


def test_a_probe_that_the_broker_closes_on_holds_nothing_up() -> None:
    finder = PoisonFinder()
    finder.connected(0.0)
    finder.sent("a", 5000, 0.0)
    finder.disconnected(0.1, Blame.POSSIBLE)
    finder.connected(1.0)
    assert finder.next(1.0) is Step.PROBE
    finder.sent(PROBE, 300, 1.0, alone=True)
    assert finder.disconnected(1.1, Blame.POSSIBLE) is None
    finder.connected(2.0)
    assert finder.next(2.0) == Alone("a")


def test_what_is_due_no_more_is_no_suspect() -> None:
    finder = PoisonFinder()
    closed(finder, 0.0)
    finder.forget("a")
    finder.connected(100.0)
    assert finder.next(1000.0) is Step.FREE


@pytest.mark.parametrize("blame", [Blame.RATE, Blame.UNANSWERED])
def test_what_the_broker_may_take_later_is_never_convicted(blame: Blame) -> None:
    finder = PoisonFinder()
    for n in range(20):
        finder.connected(n * 10_000.0)
        finder.sent("small", 300, n * 10_000.0)
        finder.answered("small")
        finder.sent("a", 5000, n * 10_000.0 + 9_000.0, alone=True)
        assert finder.disconnected(n * 10_000.0 + 9_000.1, blame) is None


def test_what_the_broker_leaves_unanswered_holds_up_the_others_a_sixth_of_the_time_at_most() -> None:
    finder = PoisonFinder()
    finder.connected(0.0)
    finder.sent("small", 300, 0.0)
    finder.answered("small")
    finder.sent("a", 5000, 1.0, alone=True)
    assert finder.disconnected(121.0, Blame.UNANSWERED) is None
    finder.connected(122.0)
    finder.sent("small", 300, 122.0)
    finder.answered("small")
    assert finder.next(122.0 + 5 * 119.0) is Step.FREE
    assert finder.next(122.0 + 5 * 121.0) == Alone("a")
