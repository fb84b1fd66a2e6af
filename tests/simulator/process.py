"""One process of edged on a virtual board: the real Rollout, Trial and SelfBench, wired as app.py and daemon.py do.

The engine, the pull and the link are virtual: what they bring and how long they take is the board's and the package's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.engine.events import EngineEvent, Finished, ModelChanged
from edged.engine.self_bench import KEY, SelfBench
from edged.engine.sequence import Request
from edged.engine.steps import StepRecord, StepRow
from edged.mqtt.events import DesiredReceived, Receipt, ReceivedMessage
from edged.rollout.memory import Memory
from edged.rollout.puller import Order, PullEnded, PullEvent, PullProgress
from edged.rollout.rollout import Rollout
from edged.rollout.trial import Trial
from edged.status import DaemonState, ModelFacts, ModelStatus, Status

from .broker import Message
from .job_life import JobLife
from .packages import LATE_SECONDS, Kind, Package, digest_in

if TYPE_CHECKING:
    from .board import Board

BENCH_STEPS = 32
PULL_LOOKS = 4
"""How often a pull tells how far it is."""
FACTS = ModelFacts(
    architecture="phi3",
    execution_provider="CPUExecutionProvider",
    execution_provider_reason="",
    threads=1,
    planned_bytes=0,
    verified=True,
    digest=None,
    lone_rows_padded=False,
    same_ids_in_any_company=True,
    logits="wanted",
    logits_reason=None,
    response_formats=("text",),
    response_formats_reason=None,
    kv_cache="float32",
    kv_cache_reason=None,
    speculation=False,
    speculation_reason=None,
    split_tokens=1,
    chat=None,
    load_seconds=1.0,
    rows=1,
    context=512,
    prefix_bytes=0,
)


@dataclass(frozen=True)
class _Acknowledging:
    def acknowledge(self, _receipt: Receipt) -> bool:
        return True

    def unsubscribe(self, _topic_filter: str) -> None: ...


_SESSION = _Acknowledging()


class Process:
    """From resume() on until it ends, by itself or with the board's power."""

    def __init__(self, board: Board, memory: Memory, path: Path) -> None:
        """Raises SpoolError."""
        self.board = board
        self.world = board.world
        self.path = path
        self.alive = True
        self.draining = False
        self._reload_asked = False
        self._tick_at = float("inf")
        self._ticks = 0
        self._model = ModelStatus("loading")
        self._status: Status | None = None
        self._report: Mapping[str, Any] = {}
        """What was reported last."""
        self.life = None if board.cell is None else JobLife(self, board.cell)
        self.bench = SelfBench(self._engine_event)
        self.puller = VirtualPuller(self)
        self.rollout = Rollout(
            board.loaded,
            memory,
            board.remote,
            board.topics,
            self,
            self,
            board.host,  # type: ignore[arg-type]
            self.puller,  # type: ignore[arg-type]
            Trial(self.bench, self.submit, self.cancel, comparable=True),
            reload=self.ask_reload,
        )

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it here, if this process still lives then."""

        def do() -> None:
            if self.alive:
                self.board.act(action)

        self.world.timeline.after(seconds, do)

    def begin(self) -> None:
        """The engine loads the package, and the link connects."""
        self.package = self.world.by_digest(digest_in(self.path))
        self.world.oracles.loads(self.board, self.package)
        package, factor = self.package, self.board.factor
        if package is None:
            self.after(1.0, lambda: self._loaded("the folder is no package"))
        elif package.kind is Kind.CRASH:
            self.after(0.7 * package.load_seconds * factor, lambda: self.board.kill(crash="SIGSEGV"))
        else:
            faults = {Kind.LOAD: "onnxruntime cannot open model.onnx", Kind.ANSWERS: "its known answers are wrong"}
            reason = faults.get(package.kind, "")
            self.after(package.load_seconds * factor, lambda: self._loaded(reason))
        self.board.connect(self.board.chance.uniform(1.0, 10.0))
        self.settle()

    def ended(self) -> None:
        """The process is no more."""
        self.alive = False
        if self.life is not None:
            self.life.close()

    # The daemon's loop

    @property
    def status(self) -> Status:
        if self._status is None:
            state = DaemonState.DRAINING if self.draining else DaemonState.ONLINE
            self._status = Status(state=state, model=self._model, monotonic_time=0.0)
        return self._status

    def tick(self) -> None:
        """One turn of the main loop in which a second is over."""
        self._tick_at = float("inf")
        if not self.draining:
            self.rollout.update(self.status)
            self.settle()

    def settle(self) -> None:
        """Do what was asked, and look again when something may have changed.

        The daemon looks once a second while a rollout is under way; here so often that a trial has some looks.
        """
        if self._reload_asked:
            self._reload_asked = False
            self._reload()
        if self.alive and not self.draining:
            state, report = self.rollout.state, self._report
            if self.rollout.busy:
                proving = report["desired"]["proving"]["seconds"] if report.get("desired") else 600.0
                self.look(min(300.0, max(30.0, proving / 10.0)))
            elif state == "QUEUED" and not (report.get("state") == state and report["waiting_for"] == "percent"):
                self.look(900.0)
            elif state == "FAILED":
                self.look(300.0)

    def look(self, seconds: float) -> None:
        """Let a turn come within so many seconds."""
        moment = self.world.timeline.now + seconds
        if moment >= self._tick_at:
            return
        self._tick_at = moment
        self._ticks += 1
        number = self._ticks

        def turn() -> None:
            if number == self._ticks:
                self.tick()

        self.after(seconds, turn)

    def ask_reload(self) -> None:
        """The rollout wants the daemon to run anew."""
        self._reload_asked = True

    def _reload(self) -> None:
        if self.board.settings_wrong:
            self.world.counts["settings wrong at a reload"] += 1
            self.rollout.reload_refused("mqtt.port = 0")
            self.settle()
            return
        self.drain(lambda: self.board.start(1.0 + 2.0 * self.board.factor))

    def drain(self, then: Callable[[], None]) -> None:
        """End in order."""
        self.draining, self._status = True, None
        self.board.calm_since = self.world.timeline.now
        self.rollout.stop()

        def end() -> None:
            if self.board.session.connected:
                self.publish(self.board.topics.status, {"state": "offline"})
                self.world.broker.disconnect(self.board.session)
            self.board.end_process(tell=True)
            then()

        if self.life is not None:
            self.life.drain(end)
        else:
            self.after(self.board.chance.uniform(0.5, 30.0), end)

    # The engine

    def _loaded(self, reason: str) -> None:
        package = self.package
        if reason or package is None:
            self._model = ModelStatus("unavailable", reason=reason)
        else:
            facts = replace(FACTS, digest=digest_in(self.path))
            self._model = ModelStatus("serving", package.name, facts=facts)
            if package.kind is Kind.LATER:
                self.after(LATE_SECONDS, lambda: self.board.kill(crash="SIGABRT"))
        self.world.oracles.loaded(self.board, package if self._model.state == "serving" else None)
        self._status = None
        if self.life is not None:
            if self._model.state == "serving":
                assert package is not None
                self.life.serves(package.name, self._step_seconds(package))
            else:
                self.life.fails(reason)
        self.rollout.update(self.status)
        self._tell_status()
        self.settle()

    def submit(self, request: Request) -> None:
        """Run the bench: its steps take as long as the package's on this board."""
        assert request.key == KEY
        package = self.package
        assert package is not None
        seconds = self._step_seconds(package) * self.board.chance.uniform(0.95, 1.1)
        self.after(seconds * BENCH_STEPS, lambda: self._benched(seconds))

    def _step_seconds(self, package: Package) -> float:
        return package.step_seconds * self.board.factor * (4.0 if package.kind is Kind.SLOW else 1.0)

    def _benched(self, seconds: float) -> None:
        now = self.board.host.boottime()
        for past in range(BENCH_STEPS):
            self.bench.ended(StepRecord(now, now + seconds, (StepRow(KEY, 1, prompt=False, past=past),)))
        self.bench.deliver(Finished(KEY, "", (1,), "length", 1, 0, 0.0, (0.0,), 0.0))

    def cancel(self, _key: int) -> None:
        """A bench that was given up may end all the same."""

    def _engine_event(self, event: EngineEvent) -> None:
        if self.life is not None and not isinstance(event, ModelChanged) and event.key != KEY:
            self.life.engine_event(event)
        else:
            self.look(1.0)

    # The link

    def acknowledge(self, receipt: Receipt) -> bool:
        return True

    def announce(self, topic: str, document: Mapping[str, Any]) -> bool:
        """Publish a retained document, as the outbox does."""
        if not self.board.session.connected:
            return False
        if topic == self.board.topics.reported:
            self._report = document
        self.publish(topic, document)
        return True

    def publish(self, topic: str, document: Mapping[str, Any]) -> None:
        """Hand it to the broker; the power may go just before."""
        self.board.step()
        payload = json.dumps(document, ensure_ascii=False).encode()
        self.world.broker.publish(self.board.session, Message(topic, payload, retained=True))

    def link_up(self) -> None:
        """The broker is there."""
        info = {"groups": list(self.board.settings.device.groups)}
        self.publish(self.board.topics.info, info)
        self._tell_status()
        if self.life is not None:
            self.life.link_up()
        self.rollout.publish_again()
        self.rollout.update(self.status)
        self.settle()

    def _tell_status(self) -> None:
        ready = self._model.state == "serving"
        self.announce(self.board.topics.status, {"state": "online", "ready": ready})

    def link_down(self) -> None:
        """The broker is away: what is published now is not taken."""
        if self.life is not None:
            self.life.link_down()

    def heard(self, message: Message, mid: int) -> None:
        """A desired document comes, or a job, or what another member of the cell says."""
        receipt = Receipt(_SESSION, mid, message.qos, len(message.payload))
        received = ReceivedMessage(receipt, message.topic, message.payload, message.retained, False, None, None, None)
        channel = self.board.topics.channel(message.topic)
        assert channel is not None
        if channel.kind != "desired":
            assert self.life is not None
            self.life.heard(message, receipt, channel.kind, channel.member)
            self.world.jobs.heard(self.board, channel.kind, message.payload)
            return
        self.rollout.desired_received(DesiredReceived(received, channel.group))
        self.look(0.0)

    def pull_event(self, event: PullEvent) -> None:
        """A pull has come further."""
        self.rollout.pull_event(event)
        self.look(0.0)


class VirtualPuller:
    """Has the methods of Puller; what was pulled lies in the board's real store."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.order: Order | None = None

    def start(self, order: Order) -> None:
        """Begin, or go on where a pull was stopped."""
        self.order = order
        self._go_on(order)

    def stop(self) -> None:
        self.order = None

    def ended(self, event: PullEnded) -> bool:
        if event.order is not self.order:
            return False
        self.order = None
        return True

    def _go_on(self, order: Order) -> None:
        """Let one part of the pull come, or the fault that ends it."""
        process, board = self._process, self._process.board
        package = process.world.by_source(order.source)
        seconds = package.pull_seconds * board.factor / PULL_LOOKS

        def part() -> None:
            if self.order is not order:
                return
            if not board.reachable or process.world.faulty(board, "pull failed", 0.03):
                self._end(PullEnded(order, None, "no route to host"))
            elif board.full:
                self._end(PullEnded(order, None, "no space left on device"))
            elif package.kind is Kind.CONTENT:
                self._end(PullEnded(order, None, "the source has another digest", by="content"))
            else:
                share = board.pulled[package.digest] = board.pulled.get(package.digest, 0.0) + 1 / PULL_LOOKS
                if share < 1.0:
                    process.pull_event(PullProgress(order, int(share * 1000), 1000))
                    if self.order is order:
                        self._go_on(order)
                else:
                    self._place(order, package)

        there = any(digest_in(version) == package.digest for version in board.store.versions(package.name))
        if there:
            process.after(2.0, lambda: self._place(order, package) if self.order is order else None)
        else:
            process.after(seconds, part)

    def _place(self, order: Order, package: Package) -> None:
        store = self._process.board.store
        try:
            with store.pulling():
                for version in store.versions(package.name):
                    if digest_in(version) == package.digest:
                        break
                else:
                    package.stage(store)
                    version = store.place(package.name, package.origin)
                    self._process.board.pulled.pop(package.digest, None)
        except OSError as error:
            self._end(PullEnded(order, None, str(error)))
        else:
            self._end(PullEnded(order, version.relative_to(store.folder).as_posix()))

    def _end(self, event: PullEnded) -> None:
        self._process.pull_event(event)
