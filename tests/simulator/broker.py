"""A broker: sessions, retained documents, and deliveries that are late, doubled, or lost with a connection.

Of one topic a client hears the messages in their order, as MQTT 5 §4.6 says; between topics there is none. A message is
lost only with the connection that carries it, or with a broker that forgets.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .timeline import Timeline

WILL_SECONDS = 45.0
"""After which the broker misses a client that is gone, and publishes its last will."""
_REMEMBERED = 4
"""Deliveries whose acknowledgements may have been lost with the connection."""
_MOST_QUEUED = 1000


@dataclass(frozen=True)
class Message:
    """A message on its way to a client."""

    topic: str
    payload: bytes
    qos: int = 1
    retained: bool = False


class Client(Protocol):
    """Who is connected."""

    def heard(self, message: Message, mid: int) -> None:
        """A message comes; one of a job is sent again on the next connection until `mid` is acknowledged."""

    def lost(self) -> None:
        """The connection is lost."""


@dataclass
class Session:
    """What the broker has of a client. `clean`: nothing is kept for it while it is away."""

    client: Client
    filters: dict[str, bool]
    """Topic filters, and whether the retained message is wanted."""
    clean: bool = False
    will: Message | None = None
    connected: bool = False
    generation: int = 0
    """Counts its connections."""
    queued: deque[Message] = field(default_factory=lambda: deque(maxlen=_MOST_QUEUED))
    recent: deque[Message] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    uplink: float = 0.0
    """When its last message reaches the broker."""
    takes_jobs: bool = True
    """Whether jobs of its groups are brought to it."""
    unacknowledged: dict[int, Message] = field(default_factory=dict)
    """Jobs that were brought to it, by their mid."""
    mids: int = 0
    downlink: dict[str, float] = field(default_factory=dict)
    """When the last message of each topic reaches it."""


class Broker:
    """All clients; `told` sees each message that reaches it."""

    def __init__(
        self, timeline: Timeline, chance: random.Random, counts: Counter[str], told: Callable[[Message], None]
    ) -> None:
        self._timeline = timeline
        self._chance = chance
        self._counts = counts
        self._told = told
        self.up = True
        self.retained: dict[str, bytes] = {}
        self._subscribed: dict[str, dict[int, Session]] = {}
        self._sessions: list[Session] = []
        self.shared: dict[str, list[Session]] = {}
        """Members of each shared subscription, by topic."""
        self.latest = 0.2
        """Longest way of a message, in seconds."""

    def add(self, session: Session) -> None:
        """A client that may connect from now on."""
        self._sessions.append(session)
        for topic_filter in session.filters:
            self._subscribed.setdefault(topic_filter, {})[id(session)] = session

    def remove(self, session: Session) -> None:
        """A client that never comes back."""
        self._sessions.remove(session)
        for topic_filter in session.filters:
            self._subscribed[topic_filter].pop(id(session), None)

    def connect(self, session: Session) -> bool:
        """Whether the connection stands; then what waited comes, and what is retained."""
        if not self.up:
            return False
        assert not session.connected
        session.connected, session.generation = True, session.generation + 1
        session.downlink.clear()
        session.uplink = 0.0
        waiting = list(session.queued)
        session.queued.clear()
        jobs = list(session.unacknowledged.values())
        session.unacknowledged.clear()
        again = [] if session.clean or self._chance.random() >= 0.3 else list(session.recent)
        if again or jobs:
            self._counts["message brought again"] += len(again) + len(jobs)
        for message in (*jobs, *again, *waiting):
            self._deliver(session, message)
        for topic_filter, wanted in session.filters.items():
            if wanted:
                for topic in self._retained_of(topic_filter):
                    self._deliver(session, Message(topic, self.retained[topic], retained=True))
        return True

    def _retained_of(self, topic_filter: str) -> list[str]:
        if "+" not in topic_filter:
            return [topic_filter] if topic_filter in self.retained else []
        before, _, after = topic_filter.partition("+")
        return [topic for topic in self.retained if topic.startswith(before) and topic.endswith(after)]

    def drop(self, session: Session, tell: bool = True) -> None:
        """The connection is lost. `tell`: the client is still there to notice."""
        if not session.connected:
            return
        session.connected = False
        generation, will = session.generation, session.will
        if will is not None:
            self._timeline.after(WILL_SECONDS, lambda: self._publish_will(session, generation, will))
        if tell:
            session.client.lost()

    def _publish_will(self, session: Session, generation: int, will: Message) -> None:
        if session.generation == generation and self.up:
            self._arrive(will)

    def disconnect(self, session: Session) -> None:
        """The client says good-bye: its will is not published."""
        session.connected = False
        session.generation += 1

    def subscribe(self, session: Session, topic_filter: str) -> None:
        """From now on, and what is retained."""
        if topic_filter not in session.filters:
            session.filters[topic_filter] = True
            self._subscribed.setdefault(topic_filter, {})[id(session)] = session
        if session.connected:
            for topic in self._retained_of(topic_filter):
                self._deliver(session, Message(topic, self.retained[topic], 0, retained=True))

    def unsubscribe(self, session: Session, topic_filter: str) -> None:
        """No more from now on."""
        if session.filters.pop(topic_filter, None) is not None:
            self._subscribed[topic_filter].pop(id(session), None)

    def share(self, topic: str, payload: bytes) -> None:
        """A sender's job goes to the next member that is there; else it waits for the next one that is not."""
        members = self.shared[topic]
        there = [one for one in members if one.connected and one.takes_jobs]
        chosen = (there or members)[0]
        members.remove(chosen)
        members.append(chosen)
        self._deliver(chosen, Message(topic, payload))

    def acknowledge(self, session: Session, mid: int) -> None:
        """PUBACK of a job; it may be lost with the connection."""
        session.unacknowledged.pop(mid, None)

    def publish(self, session: Session, message: Message, done: Callable[[], None] | None = None) -> None:
        """A connected client sends a message; it reaches the broker after those that it sent before.

        `done`: the broker confirms it.
        """
        arrives = session.uplink = max(session.uplink, self._timeline.now + self._way(0.2))
        generation = session.generation
        lost = self._chance.random() < 0.5

        def arrive() -> None:
            gone = session.generation != generation or not session.connected
            if gone and (lost or not self.up):
                self._counts["message lost"] += 1
                return
            self._arrive(message)
            if done is not None and not gone:
                done()

        self._timeline.at(arrives, arrive)

    def _arrive(self, message: Message) -> None:
        if message.retained:
            if message.payload:
                self.retained[message.topic] = message.payload
            else:
                self.retained.pop(message.topic, None)
        self._told(message)
        live = Message(message.topic, message.payload, message.qos)
        for topic_filter in _filters_of(message.topic):
            for session in list(self._subscribed.get(topic_filter, {}).values()):
                self._deliver(session, live)

    def _deliver(self, session: Session, message: Message) -> None:
        if not session.connected:
            self._keep(session, message)
            return
        way = max(session.downlink.get(message.topic, 0.0), self._timeline.now + self._way(self.latest))
        session.downlink[message.topic] = way
        generation = session.generation

        def bring() -> None:
            if session.connected and session.generation == generation:
                session.mids += 1
                if message.topic in self.shared:
                    session.unacknowledged[session.mids] = message
                if message.qos and not message.retained:
                    session.recent.append(message)
                session.client.heard(message, session.mids)
            else:
                self._keep(session, message)

        self._timeline.at(way, bring)

    def _keep(self, session: Session, message: Message) -> None:
        if message.qos and not message.retained and not session.clean:
            session.queued.append(message)

    def _way(self, longest: float) -> float:
        return self._chance.uniform(0.005, longest)

    # Faults

    def stop(self) -> None:
        """It ends, and with it all connections."""
        self.up = False
        for session in list(self._sessions):
            self.drop(session)

    def start(self) -> None:
        """It is back, with what it retains."""
        self.up = True

    def forget(self, retained: dict[str, bytes]) -> None:
        """It loses all sessions, and has these retained documents from now on."""
        for session in list(self._sessions):
            self.drop(session)
            session.queued.clear()
            session.recent.clear()
            session.unacknowledged.clear()
        self.retained = dict(retained)


def _filters_of(topic: str) -> tuple[str, ...]:
    """The filters that are used here and match a topic: itself, any device's, and any member's offer."""
    root, _, _ = topic.rpartition("/")
    kind, _, rest = topic.removeprefix("edged/v1/").partition("/")
    if kind == "device":
        return topic, f"edged/v1/device/+/{rest.partition('/')[2]}"
    if root.endswith("/offer"):
        return topic, f"{root}/+"
    return (topic,)
