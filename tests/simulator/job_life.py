"""The jobs of one process: the real JobManager over a real spool in memory; link, preparer and engine are virtual.

Metrics are not kept: nothing depends on them, and a registry for each start of each board would cost more than all
that is looked at here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edged.engine.events import Ended, EngineEvent, Finished, ModelChanged, Started
from edged.engine.sequence import Request
from edged.jobs.document import Job
from edged.jobs.energy import EnergyLedger
from edged.jobs.manager import JobManager
from edged.jobs.preparer import Prepared, PreparerStatus
from edged.jobs.schema import SpoolError
from edged.jobs.spool import Spool
from edged.mqtt.events import JobReceived, LinkDown, LinkUp, Published, Receipt, ReceivedMessage, ShareReceived
from edged.mqtt.session_types import LOST

from .broker import Message
from .timeline import DAY

if TYPE_CHECKING:
    from .board import Board
    from .process import Process

ROWS = 1
TICK_SECONDS, ALONE_SECONDS = 2.0, 10.0
"""Between two ticks, which are a second apart: of a board in whose cell jobs wait, and of one that runs the last ones.
Others do not tick."""
DRAIN_SECONDS = 30.0


class _NoMetrics:
    """Takes every count."""

    def __getattr__(self, _name: str) -> Any:
        return self

    def __call__(self, *_values: object, **_more: object) -> Any:
        return self


class CardSpool(Spool):
    """The real spool; the power may go before and after each commit, and none is made where the card is full."""

    def __init__(self, board: Board) -> None:
        self._board = board
        super().__init__(board.settings.state_dir / "spool.db")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit."""
        self._board.step()
        with super().transaction():
            yield
            if self._board.full:
                raise SpoolError("database or disk is full")
            self._board.step()
        self._board.step()


class JobLife:
    """From the start of a process to its end."""

    def __init__(self, process: Process, cell: str) -> None:
        """Raises SpoolError."""
        self.process, self.board, self.world = process, process.board, process.world
        self.cell = self.world.cells[cell]
        self.spool = CardSpool(self.board)
        self.ids: dict[int, str] = {}
        """Of the jobs that were prepared, by the engine's key."""
        self._waiting: deque[tuple[int, float]] = deque()
        self._running: dict[int, float] = {}
        self._speed = 0.1
        self._ticking = False
        self._flush_at = float("inf")
        self._backlog = False
        self.name = ""
        self.manager = JobManager(
            device=self.board.name,
            topics=self.board.topics,
            spool=self.spool,
            link=self,
            engine=self,
            preparer=self,
            ledger=SimpleNamespace(last_end=self.board.last_end()),  # type: ignore[arg-type]
            clock=self.board.host,  # type: ignore[arg-type]
            metrics=_NoMetrics(),  # type: ignore[arg-type]
            max_queued=1000,
            max_bytes=1 << 20,
            retention=3 * DAY,
            pieces_per_second=1,
            allow_pin=False,
            energy=EnergyLedger(now=self.board.host.boottime),
            share_groups=[cell],
        )

    def close(self) -> None:
        """The process is no more; what it has committed is on the card."""
        self.spool.close()

    @property
    def running(self) -> tuple[int, ...]:
        """What the crash ledger has."""
        return tuple(self._running)

    # Turns

    def flush(self) -> None:
        """Commit what is due, and come again for what is due later."""
        with suppress(SpoolError):
            self.manager.flush()
        moment = self.world.timeline.now + max(0.01, self.manager.due_in)
        if moment < self._flush_at and moment < self.world.timeline.now + DAY:
            self._flush_at = moment

            def again() -> None:
                self._flush_at = float("inf")
                self.flush()

            self.process.after(moment - self.world.timeline.now, again)

    def wake(self) -> None:
        """Something goes on in the cell."""
        if not self._ticking:
            self._ticking = True
            self.process.after(0.1, self.tick)

    def tick(self) -> None:
        """What edged does each second."""
        with suppress(SpoolError):  # which the daemon logs
            self.manager.tick()
        self.flush()
        status = self.manager.status()
        backlog = status.backlog
        if backlog != self._backlog:
            self._backlog = backlog
            change = self.world.broker.subscribe if backlog else self.world.broker.unsubscribe
            change(self.board.session, self.board.topics.group_offer(self.cell.name, "+"))
        if status.queued:
            self.cell.wake(self.world.timeline.now)
        if self.cell.awake(self.world.timeline.now):
            self.process.after(TICK_SECONDS, self.tick)
        elif self.manager.busy:
            self.process.after(ALONE_SECONDS, self.tick)
        else:
            self._ticking = False

    def drain(self, then: Callable[[], None]) -> None:
        """Let others take what waits, and what runs end, within DRAIN_SECONDS."""
        self.board.session.takes_jobs = False
        self.manager.drain()
        self.flush()
        until = self.world.timeline.now + DRAIN_SECONDS

        def look() -> None:
            with suppress(SpoolError):
                self.manager.tick()
            self.flush()
            if not self.manager.settled and self.world.timeline.now < until:
                self.process.after(1.0, look)
                return
            self.manager.abandon()
            self._running.clear()
            then()

        self.process.after(1.0, look)

    # What comes in

    def link_up(self) -> None:
        self.board.session.takes_jobs = self.process.status.model.state != "unavailable"
        self.manager.control_changed(LinkUp("control", True, "5"))
        if self._backlog:
            self.world.broker.subscribe(self.board.session, self.board.topics.group_offer(self.cell.name, "+"))
        self.flush()
        self.wake()

    def link_down(self) -> None:
        self.manager.jobs_disconnected()
        self.manager.control_changed(LinkDown("control", LOST))
        self.flush()

    def heard(self, message: Message, receipt: Receipt, kind: str, member: str | None) -> None:
        """A job, or what another member says."""
        received = ReceivedMessage(receipt, message.topic, message.payload, message.retained, False, None, None, None)
        if kind == "job":
            self.world.jobs.delivered(self.board, message)
            self.manager.received(JobReceived(received))
        else:
            assert member is not None
            self.manager.received(ShareReceived(kind, self.cell.name, member, received))  # type: ignore[arg-type]
        self.flush()
        self.cell.wake(self.world.timeline.now)

    def serves(self, name: str, step_seconds: float) -> None:
        """The package is loaded."""
        self.name, self._speed = name, step_seconds
        loaded: Any = SimpleNamespace(rows=ROWS, package=SimpleNamespace(name=name))
        self.manager.engine_event(ModelChanged("serving", loaded=loaded))
        self.flush()
        self.wake()

    def fails(self, reason: str) -> None:
        """It cannot be served: the device leaves its groups."""
        self.board.session.takes_jobs = False
        self.manager.engine_event(ModelChanged("unavailable", reason))
        self.flush()

    # The preparer

    @property
    def status(self) -> PreparerStatus:
        return PreparerStatus()

    def pin(self, texts: Sequence[str], _loaded: Any, _given_up: Container[int]) -> None:
        assert not texts

    # The engine; `submit` is also the preparer's, which prepares at once.

    def submit(self, job: Job | Request, *about: Any) -> None:
        """Prepare a job; or run a request, as soon as a row is free."""
        if isinstance(job, Request):
            self._waiting.append((job.key, job.max_tokens * self._speed))
            self._fill()
            return
        number, id, loaded, received = about
        self.ids[number] = id
        request = Request(number, (1,), job.max_tokens, priority=job.priority, received=received)
        self.process.after(0.01, lambda: self._prepared(Prepared(number, loaded, request)))

    def _prepared(self, prepared: Prepared) -> None:
        self.manager.prepared(prepared)
        self.flush()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < ROWS:
            key, seconds = self._waiting.popleft()
            self._running[key] = seconds
            self.process.after(0.01, lambda key=key: self._start(key))  # type: ignore[misc]

    def _start(self, key: int) -> None:
        seconds = self._running.get(key)
        if seconds is None:
            return
        self.world.jobs.runs(self.board, self.ids[key])
        self._deliver(Started(key))
        began = self.board.host.boottime()
        self.process.after(seconds, lambda: self._finish(key, began, seconds))

    def _finish(self, key: int, began: float, seconds: float) -> None:
        if self._running.pop(key, None) is None:
            return
        tokens = max(2, round(seconds / self._speed))
        step = seconds / tokens
        ended, times = began + seconds, (began + step, began + seconds)
        self._deliver(Finished(key, "text", (1,) * tokens, "length", 1, 0, began, times, ended))
        self._fill()

    def cancel(self, key: int) -> None:
        """End a request, wherever it is."""

        def end() -> None:
            waiting = [one for one in self._waiting if one[0] == key]
            if waiting or self._running.pop(key, None) is not None:
                for one in waiting:
                    self._waiting.remove(one)
                self._deliver(Ended(key))
                self._fill()

        self.process.after(0.01, end)

    def _deliver(self, event: EngineEvent) -> None:
        self.process.bench.deliver(event)

    def engine_event(self, event: EngineEvent) -> None:
        """Of a job."""
        self.manager.engine_event(event)
        self.flush()

    # The link

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, token: Hashable | None = None, **_: Any
    ) -> bool:
        """Hand it to the broker, which confirms it unless the connection is lost before."""
        if not self.board.session.connected:
            return False
        self.board.step()

        def confirmed() -> None:
            self.manager.published(Published(token))
            self.flush()

        done = None if token is None else lambda: self.process.after(0.05, confirmed)
        self.world.broker.publish(self.board.session, Message(topic, payload, qos, retain), done)
        return True

    def acknowledge(self, receipt: Receipt) -> bool:
        """PUBACK."""
        self.board.step()
        self.world.broker.acknowledge(self.board.session, receipt.mid)
        return True
