"""The operator and the conductors: the real Conductor over what the virtual broker brings, one or two at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edged.fleet.boards import Boards
from edged.machine.clock import format_time
from edged.rollout.conductor import Options, Verdict
from edged.rollout.conductor_documents import Heard
from edged.rollout.conductor_run import CannotBeginError, Conductor, aborted, paused, publish, resumed
from edged.rollout.desired import RefusedError, check_desired

from .board import GROUP, ROOT
from .broker import Message, Session
from .packages import BAD, Kind, Package
from .timeline import DAY, HOUR, Host

if TYPE_CHECKING:
    from .world import World

GATHER_SECONDS = 5.0
MANY = 100
"""Boards from which on rollouts are rarer, and take longer."""
_OVER = (Verdict.SUCCEEDED, Verdict.ABORTED, Verdict.SUPERSEDED)


class Conducting:
    """A computer on which somebody runs `edged fleet rollout`, until it is over or killed."""

    def __init__(self, operator: Operator, wanted: Mapping[str, Any], package: Package, options: Options) -> None:
        self.operator, self.world = operator, operator.world
        self.package = package
        self.host = Host(self.world.timeline, "conductor")
        self.conductor = Conductor(wanted, options, lambda document: document)
        self.reachable = True
        self.over = False
        self.heard_: Heard | None = None
        self.session: Session | None = None
        self._looks = 0
        self._look_at = float("inf")
        self._gathered_at = 0.0
        """When all that the broker retains has come."""
        self._waits_for_echo = False
        self.given = wanted, package, options
        self.connect(0.0)

    # The connection

    def connect(self, seconds: float) -> None:
        """Connect and gather, so many seconds from now, and again until it succeeds."""
        self.world.timeline.after(seconds, self._connect)

    def _connect(self) -> None:
        if self.over or self.session is not None:
            return
        now = self.world.timeline
        boards = Boards(ROOT, now=lambda: now.now, wall=self.host.wall)
        heard = Heard(boards, ROOT, GROUP, lambda _: None, signed=False, now=lambda: now.now)
        filters = {f"{ROOT}/group/{GROUP}/desired": True}
        filters |= {f"{ROOT}/device/+/{channel}": True for channel in ("status", "info", "reported")}
        session = Session(self, filters, clean=True)
        self.world.broker.add(session)
        if not self.reachable or not self.world.broker.connect(session):
            self.world.broker.remove(session)
            self.connect(self.world.chance.uniform(5.0, 60.0))
            return
        heard.connect()
        self.heard_, self.session, self._waits_for_echo = heard, session, False
        self._look_at = float("inf")
        self._gathered_at = now.now + GATHER_SECONDS + self.world.broker.latest
        self.look(0.0)

    def heard(self, message: Message, _mid: int) -> None:
        """The broker brings a message."""
        assert self.heard_ is not None
        self.heard_.take(message.topic, message.payload, message.retained)
        if message.topic == self.heard_.topic:
            self._waits_for_echo = False
            self.look(1.0)
        elif message.topic.endswith("/reported"):
            self.look(self.world.conductor_look_seconds)

    def lost(self) -> None:
        """The connection is lost."""
        assert self.session is not None
        self.world.broker.remove(self.session)
        self.heard_ = self.session = None
        self.connect(self.world.chance.uniform(5.0, 30.0))

    def end(self) -> None:
        """The command ends, or is killed."""
        self.over = True
        if self.session is not None:
            self.world.broker.disconnect(self.session)
            self.world.broker.remove(self.session)
            self.heard_ = self.session = None

    # The loop

    def look(self, seconds: float) -> None:
        """Look within so many seconds; the command looks each second."""
        moment = max(self.world.timeline.now + seconds, self._gathered_at)
        if moment >= self._look_at:
            return
        self._look_at = moment
        self._looks += 1
        number, session = self._looks, self.session

        def do() -> None:
            if number == self._looks and session is not None and session is self.session:
                self._look_at = float("inf")
                self._look()

        self.world.timeline.at(moment, do)

    def _look(self) -> None:
        heard, world = self.heard_, self.world
        assert heard is not None
        if self._waits_for_echo:
            return
        # Heartbeats are thinned to those that a look needs: those of boards that are connected.
        for board in world.boards:
            if board.session.connected:
                heard.take(board.topics.health, b"{}", False)
        world.hosts.host = self.host
        try:
            picture = self.conductor.step(heard, self.keep)
        except (CannotBeginError, RefusedError) as error:
            self.operator.ended(self, None, str(error))
            return
        finally:
            world.hosts.host = None
        if picture.decision.verdict in _OVER:
            self.operator.ended(self, picture.decision.verdict, "")
        else:
            self.look(5 * world.conductor_look_seconds)

    def keep(self, topic: str, payload: bytes) -> None:
        """Publish, and look no further until it has come back; the connection may be lost before."""
        assert self.session is not None
        self._waits_for_echo = True
        self.world.broker.publish(self.session, Message(topic, payload, retained=True))

    def steer(self, word: str) -> None:
        """A person's word, by another connection that hears the same."""
        heard = self.heard_
        if heard is None or self.session is None or heard.newest is None:
            return
        alter = {"abort": aborted, "pause": paused, "resume": resumed}[word]
        session = self.session

        def keep(topic: str, payload: bytes) -> None:
            self.world.broker.publish(session, Message(topic, payload, retained=True))

        publish(keep, heard, heard.newest, alter(heard.wave()), lambda document: document)


class Operator:
    """Releases packages, good and bad, and lets them be rolled out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = random.Random(f"{world.seed}/operator")
        self.conducting: list[Conducting] = []
        self.verdicts: dict[int, str] = {}
        """Of each package's rollout, by its number."""
        self.refused: list[str] = []
        self._kinds: list[Kind] = []
        """Of the next packages: of each bad one, and as many good ones, before any comes again."""

    def plan(self, until: float) -> None:
        """Release something now and then until then."""
        moment = self.world.timeline.now + self.chance.uniform(0.5, 2.0) * HOUR
        while moment < until:
            self.world.timeline.at(moment, self.release)
            pause = self.chance.uniform(0.4, 1.2) if len(self.world.boards) < MANY else self.chance.uniform(1.0, 3.0)
            moment += pause * DAY

    def release(self, kind: Kind | None = None, plain: bool = False) -> Package:
        """Begin the rollout of a new package. `plain`: with nothing that may make a board wait."""
        chance, world = self.chance, self.world
        if kind is None:
            if not self._kinds:
                self._kinds = [*BAD, *[Kind.GOOD] * len(BAD)]
                chance.shuffle(self._kinds)
            kind = self._kinds.pop()
        package = world.make_package(kind)
        proving = {"seconds": 5400 if kind is Kind.LATER else chance.choice([60, 600, 1800]), "speed": 0.5}
        document: dict[str, Any] = {
            "rollout": f"r{package.number}",
            "model": {"source": package.source, "digest": package.digest, "name": package.name},
            "proving": proving,
            "timeout": 86400,
        }
        if not plain:
            if chance.random() < 0.2:
                document["window"] = {"start": "01:00", "end": "05:00"}
            if chance.random() < 0.2:
                document["not_before"] = format_time(world.timeline.now + chance.uniform(0, 3) * HOUR)
            if chance.random() < 0.2:
                document["expires"] = format_time(world.timeline.now + chance.uniform(1, 48) * HOUR)
        desired = check_desired({"sequence": 1, **document}, f"group/{GROUP}").desired
        world.wanting.setdefault(package.digest, []).append(desired)
        options = Options(min_executed=min(3, len(world.boards)))
        if not plain and chance.random() < 0.3:
            options = replace(options, per_minute=chance.choice([1, 10]) * (1 + len(world.boards) // 50))
        self.conduct(document, package, options)
        if not plain and chance.random() < 0.3:
            world.counts["second conductor"] += 1
            self.later(chance.uniform(0.0, 2.0) * HOUR, self.conducting[-1])
        return package

    def later(self, seconds: float, one: Conducting) -> None:
        """Somebody begins the same command again so many seconds from now, if nothing newer was released."""

        def begin() -> None:
            if one.package is self.world.packages[-1]:
                self.conduct(*one.given)

        self.world.timeline.after(seconds, begin)

    def conduct(self, document: Mapping[str, Any], package: Package, options: Options) -> None:
        """Let one more computer conduct it."""
        self.conducting.append(Conducting(self, document, package, options))

    def ended(self, one: Conducting, verdict: Verdict | None, told: str) -> None:
        """A conductor says how it ended."""
        one.end()
        self.conducting.remove(one)
        if verdict is None:
            self.refused.append(told)
            return
        number = one.package.number
        self.world.oracles.note("verdict", number, verdict.value)
        if self.verdicts.get(number) in (None, "SUPERSEDED"):
            self.verdicts[number] = verdict.value

    def kill(self, one: Conducting) -> None:
        """It is killed, and somebody begins it again, here or elsewhere."""
        if one in self.conducting:
            one.end()
            self.conducting.remove(one)
            self.later(self.chance.uniform(60.0, 3 * HOUR), one)
