"""A group of boards, its broker and its conductors, under the control of a test: nothing happens unless it says so."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Protocol

from rollout_rig import DIGEST, OTHER, document, now

from edged.fleet.boards import Boards
from edged.rollout.conductor import Options, Verdict
from edged.rollout.conductor_documents import Heard
from edged.rollout.conductor_member import Member
from edged.rollout.conductor_run import Conductor, Picture
from edged.rollout.desired import PLACES, RefusedError, read_desired
from edged.rollout.execution import Baseline, Execution, Package, State, Step
from edged.rollout.precedence import Documents
from edged.rollout.reported import reported_document

ROOT, GROUP = "edged/v1", "hall"
TOPIC = f"{ROOT}/group/{GROUP}/desired"
WANTED = {name: value for name, value in document().items() if name != "sequence"}


def members(*states: State | None, here: bool = True) -> list[Member]:
    """Devices at the places 0 %, 10 %, 20 % …, in these states."""
    return [Member(f"pi-{at}", at * PLACES // 10 + 1, here, state) for at, state in enumerate(states)]


class Publishing(Protocol):
    """What a board needs of a broker."""

    def publish(self, topic: str, payload: bytes) -> None: ...
    def subscribe(self) -> deque[tuple[str, bytes]]: ...


class Broker:
    """Retains, and queues for each subscriber what the test then delivers."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.subscribers: list[deque[tuple[str, bytes]]] = []

    def publish(self, topic: str, payload: bytes) -> None:
        self.retained[topic] = payload
        for queue in self.subscribers:
            queue.append((topic, payload))

    def subscribe(self) -> deque[tuple[str, bytes]]:
        self.subscribers.append(deque(self.retained.items()))
        return self.subscribers[-1]

    def tell(self, fields: dict[str, Any]) -> None:
        """Somebody publishes this as the group's desired document."""
        self.publish(TOPIC, json.dumps(fields).encode())

    @property
    def desired(self) -> dict[str, Any]:
        return dict(json.loads(self.retained[TOPIC]))


class Board:
    """A device with the real rules of rollouts; `good`: whether the new package passes there."""

    def __init__(self, broker: Publishing, device: str, good: bool) -> None:
        self.broker, self.device, self.good = broker, device, good
        self.documents = Documents()
        self.execution: Execution | None = None
        self.begun = False
        self.show()
        self.queue = broker.subscribe()

    def show(self) -> None:
        """Publish how it is."""
        for channel, told in (("status", {"state": "online", "ready": True}), ("info", {"groups": [GROUP]})):
            self.broker.publish(f"{ROOT}/device/{self.device}/{channel}", json.dumps(told).encode())

    def hear(self) -> bool:
        """Take the next message, if there is one."""
        while self.queue:
            topic, payload = self.queue.popleft()
            if topic == TOPIC:
                try:
                    self.documents = self.documents.take(read_desired(payload, f"group/{GROUP}"))
                except RefusedError as error:
                    raise AssertionError(error) from error
                return True
        return False

    def go_on(self) -> bool:
        """One step of the rollout, and a report if something changed."""
        known = self.documents.followed([GROUP])
        if known is None:
            return False
        before = self.execution
        aborted = known.received.desired.rollout in self.documents.aborted
        moment = now(device=self.device, percent=known.percent, aborted=aborted, serving=Package("old", OTHER))
        execution = Execution(known) if before is None else before.follow(known, moment)
        if execution.on_trial:
            proved = execution.step is Step.PROVING
            execution = execution.loaded(Package("new", DIGEST), self.good, moment)
            execution = execution.succeeded(moment) if proved and execution.on_trial else execution
        elif execution.step is Step.RETURNING:
            execution = execution.returned(moment)
        elif execution.pulls_now:
            execution = execution.pulled("new", Baseline(), moment)
        else:
            execution = execution.advance(moment)
        self.execution = execution
        self.begun = self.begun or execution.state not in (State.QUEUED, State.CANCELED)
        if execution == before:
            return False
        step = None if execution.step is None else execution.step.value
        told = reported_document(self.device, execution, step, None, Package("old", OTHER), None, (), {})
        self.broker.publish(f"{ROOT}/device/{self.device}/reported", json.dumps(told).encode())
        return True


class Conducting:
    """A conductor that may be killed at any time."""

    def __init__(self, broker: Broker, options: Options) -> None:
        self.broker, self.options = broker, options
        self.picture: Picture | None = None
        self.published: list[dict[str, Any]] = []
        self.restart()

    def restart(self) -> None:
        """Another process takes its place."""
        self.conductor = Conductor(WANTED, self.options, lambda fields: fields)
        self.reconnect()

    def reconnect(self) -> None:
        """Gather anew what the broker retains."""
        self.heard = Heard(Boards(ROOT), ROOT, GROUP, lambda _: None, signed=False)
        self.heard.connect()
        self.queue = self.broker.subscribe()
        self.queue = deque(sorted(self.queue, key=lambda message: message[0] != TOPIC))  # as it subscribes
        self.broker.subscribers[-1] = self.queue
        while self.hear():
            pass

    def hear(self) -> bool:
        """Take the next message, if there is one."""
        if not self.queue:
            return False
        self.heard.take(*self.queue.popleft(), True)
        return True

    def step(self) -> bool:
        """Look once; whether it published something."""
        before = len(self.published)
        self.picture = self.conductor.step(self.heard, self.keep)
        return len(self.published) > before

    @property
    def verdict(self) -> Verdict:
        """At the last look."""
        assert self.picture is not None
        return self.picture.decision.verdict

    def keep(self, topic: str, payload: bytes) -> None:
        assert topic == TOPIC
        self.published.append(json.loads(payload))
        self.broker.publish(topic, payload)
