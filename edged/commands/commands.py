"""The commands of this device: takes them from the broker, runs each once, and answers. Main thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from edged import logs
from edged.checked_json import DamagedError
from edged.commands.answer import MOST_RESULT_BYTES, answer, size_of
from edged.commands.document import Code, Command, Failure
from edged.commands.memory import FILE, MOST_ENTRIES, Entry, Memory, Status, read_memory, write_memory
from edged.commands.reading import Action, Message, Now, decide, refused, taken
from edged.commands.worker import Worker, WorkerEnded
from edged.machine.clock import Clock, format_time
from edged.mqtt.events import CommandReceived, Receipt
from edged.mqtt.topics import Topics
from edged.settings import Settings
from edged.status import DaemonState
from edged.status import Status as DaemonStatus

log = structlog.get_logger(__name__)

MOST_WAITING = 8
"""Commands that wait for their turn, and results that wait for the broker; further ones are refused."""
MOST_UNREMEMBERED = 64
"""Refusals of unknown senders that wait for the broker; further ones are dropped."""
TOLD_SECONDS = 10.0
"""How long a restart waits for the broker to confirm `executing`."""
WRITE_PAUSE = 30.0
"""Seconds before the next try after the memory could not be written."""
LIMIT_SECONDS = {"doctor": 300.0, "bench": 1800.0, "forget": 300.0}
"""For how long the process of a command may run."""
_AGAIN = "send it again under another id"


class CommandLink(Protocol):
    """The part of the link that commands need."""

    def acknowledge(self, receipt: Receipt) -> object: ...


class Answering(Protocol):
    """The part of the outbox that commands need."""

    def announce(self, topic: str, document: Mapping[str, Any]) -> bool: ...
    def has_confirmed(self, topic: str) -> bool: ...
    def forget(self, topic: str) -> None: ...


def begin(settings: Settings) -> Memory:
    """What a new process remembers: commands that were executing have ended by now."""
    file = settings.state_dir / FILE
    try:
        before = read_memory(file)
    except (DamagedError, OSError) as error:
        hint = "commands that the broker retains and that have not expired may run a second time"
        log.error("command_memory_refused", file=str(file), reason=str(error), hint=hint)
        return Memory()
    memory = before.begun_anew()
    for key, entry in memory.entries.items():
        if entry is not before.entries[key]:
            _log_end(entry)
    return memory


class Commands:
    """What is remembered, what waits and runs, and the answers that the broker does not have yet."""

    def __init__(
        self,
        settings: Settings,
        memory: Memory,
        topics: Topics,
        link: CommandLink,
        outbox: Answering,
        clock: Clock,
        worker: Worker,
        reload: Callable[[bool], None],
    ) -> None:
        """`memory`: as begin() left it. `reload` ends this process to run anew, at once (True) or after its jobs."""
        self._settings = settings
        self._memory = memory
        self._topics = topics
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._worker = worker
        self._reload = reload
        self._file = settings.state_dir / FILE
        self._written = Memory()
        self._write_again_at = float("-inf")
        self._unremembered: dict[str, Entry] = {}
        self._announced: dict[str, Entry] = {}
        self._waiting: dict[str, Command] = {}
        self._running: tuple[str, float] | None = None
        """The key of the command whose process runs, and when it is ended (monotonic)."""
        self._restart: tuple[str, float] | None = None
        """The key of the command that ends this process, and until when it waits to be told."""

    @property
    def busy(self) -> bool:
        """Whether something is to be done better than at the next heartbeat."""
        return self._restart is not None

    # What comes in

    def received(self, event: CommandReceived) -> None:
        """Take a document from a command's topic, or say why not."""
        if event.group is None or event.group in self._settings.device.groups:
            message = event.message
            self._take(Message(message.topic, event.name, event.id, event.group is None, message.payload))
        self._link.acknowledge(event.message.receipt)

    def _take(self, message: Message) -> None:
        decision = decide(message, self._memory, self._waiting, self._settings.fleet, self._now())
        key, command, failure = message.key, decision.command, decision.failure
        if decision.action is Action.CLEAR:
            self._clear(key)
        elif decision.action is Action.REPEAT:
            self._put(self._memory.entries[key].asked_again())
        elif decision.action is Action.ANSWER and failure is not None:
            _log_refusal(message.name, message.id, failure)
            if len(self._unremembered) < MOST_UNREMEMBERED:
                entry = Entry(message.name, message.id, 0.0, Status.FAILED, failure=failure)
                self._unremembered[key] = entry
        elif decision.action is Action.REFUSE and command is not None and failure is not None:
            self._refuse(command, failure)
        elif decision.action is Action.RUN and command is not None:
            self._unremembered.pop(key, None)
            self._accept(command)

    def _accept(self, command: Command) -> None:
        untold = sum(not entry.told for entry in self._memory.entries.values())
        if self._memory.full:
            reason = f"{MOST_ENTRIES} commands that have not expired are remembered"
            failure = Failure(Code.BUSY, reason, "send it again when some have, with times closer by")
            self._unremembered[f"{command.name}/{command.id}"] = Entry(
                command.name, command.id, 0.0, Status.FAILED, failure=failure
            )
            _log_refusal(command.name, command.id, failure)
        elif len(self._waiting) + untold >= MOST_WAITING or (_restarts(command) and self._restart is not None):
            self._refuse(command, Failure(Code.BUSY, "other commands run and wait", "wait for their answers"))
        elif command.name in LIMIT_SECONDS:
            self._waiting[f"{command.name}/{command.id}"] = command
        else:
            self._begin(command)

    def _begin(self, command: Command) -> None:
        """Run a command whose turn it is, once it is on disk that it ran."""
        entry = taken(command)
        if not self._write(self._memory.put(entry)):
            self._refuse(command, _NOT_KEPT)
            return
        log.info("command_begins", command=entry.name, id=entry.id)
        if _restarts(command):
            self._restart = entry.key, time.monotonic() + TOLD_SECONDS
        elif command.name == "logs":
            self._end(entry, _log_lines(command.asked.lines, command.asked.level))
        else:
            try:
                self._worker.start(command.name, command.fields)
            except OSError as error:
                self._end(entry, reason=f"no process can be started: {error.strerror}")
            else:
                self._running = entry.key, time.monotonic() + LIMIT_SECONDS[command.name]

    def _refuse(self, command: Command, failure: Failure) -> None:
        _log_refusal(command.name, command.id, failure)
        self._put(refused(command, failure))

    def _clear(self, key: str) -> None:
        """Its document was removed: a command that waits does not run, and none is answered."""
        self._unremembered.pop(key, None)
        if (command := self._waiting.pop(key, None)) is not None:
            self._put(refused(command, Failure(Code.INTERRUPTED, "its document was removed", _AGAIN)).clear())
        elif (entry := self._memory.entries.get(key)) is not None and not (entry.ended and entry.told):
            self._put(entry.clear())
        if self._announced.pop(key, None) is not None:
            self._outbox.forget(self._topics.command(*key.split("/")))

    def worker_ended(self, event: WorkerEnded) -> None:
        """The process of a command has ended."""
        if self._worker.ended(event) and self._running is not None:
            entry = self._memory.entries[self._running[0]]
            self._running = None
            self._end(entry, event.result, event.reason)

    def reload_refused(self, reason: str) -> None:
        """The daemon goes on with the settings that it has."""
        if self._restart is not None:
            entry = self._memory.entries[self._restart[0]]
            self._restart = None
            self._end(entry, reason=f"the settings file is wrong: {reason}", hint="correct it: edged goes on as it is")

    # What goes on

    def update(self, status: DaemonStatus) -> None:
        """Let time pass; call about every second."""
        now, monotonic = self._now(), time.monotonic()
        if now.synchronised:
            self._memory = self._memory.past(now.wall)
        if self._running is not None and monotonic >= self._running[1]:
            entry = self._memory.entries[self._running[0]]
            self._worker.stop()
            self._running = None
            seconds = LIMIT_SECONDS[entry.name]
            self._end(entry, code=Code.TIMED_OUT, reason=f"it took longer than {seconds:.0f} s")
        if status.state is DaemonState.ONLINE:
            while self._running is None and self._waiting:
                self._begin(self._waiting.pop(next(iter(self._waiting))))
        self._answer()
        if self._memory != self._written and monotonic >= self._write_again_at:
            self._write(self._memory)
        if self._restart is not None and status.state is DaemonState.ONLINE:
            entry, until = self._memory.entries[self._restart[0]], self._restart[1]
            if entry.told or monotonic >= until:
                self._reload(entry.name == "restart")

    def publish_again(self) -> None:
        """Publish what the broker has not confirmed at the next turn: the connection is a new one."""
        self._announced.clear()

    def stop(self) -> None:
        """The daemon ends, and what runs with it: the next process says so."""
        self._worker.stop()

    def _answer(self) -> None:
        """Publish answers, and take note of those that the broker has."""
        for key, entry in [*self._memory.entries.items(), *self._unremembered.items()]:
            topic = self._topics.command(entry.name, entry.id)
            if entry.told:
                continue
            if self._announced.get(key) is not entry:
                document = {**answer(entry, self._topics.device), "time": format_time(self._clock.wall())}
                if self._outbox.announce(topic, document):
                    self._announced[key] = entry
            elif self._outbox.has_confirmed(topic):
                self._outbox.forget(topic)
                del self._announced[key]
                if self._unremembered.pop(key, None) is None:
                    self._put(entry.as_told())

    def _end(
        self,
        entry: Entry,
        result: Mapping[str, Any] | None = None,
        reason: str = "",
        code: Code = Code.FAILED,
        hint: str = "",
    ) -> None:
        """A command has ended; with a result, it has succeeded."""
        if result is not None and size_of(result) > MOST_RESULT_BYTES:
            result, reason = None, f"its result has {size_of(result)} bytes: up to {MOST_RESULT_BYTES} are published"
        ended = entry.succeed(result) if result is not None else entry.fail(Failure(code, reason[:1000], hint))
        _log_end(ended)
        self._put(ended)

    # What is kept

    def _now(self) -> Now:
        return Now(self._clock.wall(), self._clock.synchronised())

    def _put(self, entry: Entry) -> None:
        """Remember this state; it is on disk after the next turn."""
        self._memory = self._memory.put(entry)

    def _write(self, memory: Memory) -> bool:
        """Go on with this memory, once it is on disk; False where that fails."""
        try:
            write_memory(self._file, memory)
        except OSError as error:
            self._write_again_at = time.monotonic() + WRITE_PAUSE
            log.warning("command_not_kept", file=str(self._file), reason=error.strerror, hint=_NOT_KEPT.hint)
            return False
        self._memory = self._written = memory
        return True


_NOT_KEPT = Failure(Code.NOT_KEPT, "state_dir cannot be written, and no command runs twice", "make state_dir writable")


def _restarts(command: Command) -> bool:
    return command.name in ("restart", "reload")


def _log_lines(count: int, level: str) -> dict[str, Any]:
    """The newest lines of the log that fit an answer, and how many of those asked for do not."""
    lines = logs.memory.newest(count, level)
    room, kept = MOST_RESULT_BYTES - 100, 0
    for line in reversed(lines):
        room -= size_of(line) + 2
        if room < 0:
            break
        kept += 1
    return {"lines": lines[len(lines) - kept :], "left_out": len(lines) - kept}


def _log_end(entry: Entry) -> None:
    failure = entry.failure
    code, reason = (None, None) if failure is None else (failure.code.value, failure.reason)
    log.info("command_ended", command=entry.name, id=entry.id, status=entry.status.value, code=code, reason=reason)


def _log_refusal(name: str, id: str, failure: Failure) -> None:
    told = {"code": failure.code.value, "reason": failure.reason, "hint": failure.hint}
    log.warning("command_refused", command=name, id=id, **told)
