"""The engine: one thread that owns the session and turns requests into tokens, step by step.

Commands come in through a queue and events go out through a callable, so nothing is shared with other threads.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import structlog

from edged.engine.package import PackageError
from edged.engine.sampler import NotFiniteError, choose
from edged.engine.scheduler import Request, Row, schedule
from edged.engine.serving import Serving
from edged.engine.session import one_line

log = structlog.get_logger(__name__)

MEND_POLL_SECONDS = 2.0
"""How often a package that could not be served is looked at for a change."""


@dataclass(frozen=True)
class ModelChanged:
    """The model is loading, serving, or unavailable for `reason`."""

    state: Literal["loading", "serving", "unavailable"]
    reason: str = ""
    serving: Serving | None = None


@dataclass(frozen=True)
class Started:
    """The job has a row."""

    key: int


@dataclass(frozen=True)
class Piece:
    """New text of a job that streams."""

    key: int
    text: str


@dataclass(frozen=True)
class Finished:
    """An answer. Times are CLOCK_MONOTONIC seconds; `tokens` holds all that the model made, an ending eos too."""

    key: int
    text: str
    tokens: tuple[int, ...]
    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    started: float
    first_token: float
    ended: float


@dataclass(frozen=True)
class Ended:
    """A job that left the engine without an answer: cancelled, or failed with a message."""

    key: int
    failure: str | None = None
    tokens: int = 0


EngineEvent = ModelChanged | Started | Piece | Finished | Ended


@dataclass(frozen=True)
class _Cancel:
    key: int


class Engine:
    """Runs requests on a model that `load` brings up; every event goes to `deliver`, called on the engine's thread."""

    def __init__(
        self,
        load: Callable[[], Serving],
        watch: Callable[[], str],
        deliver: Callable[[EngineEvent], None],
        note_running: Callable[[Iterable[int]], None],
    ) -> None:
        """`load` raises PackageError when the model cannot be served; `watch` gives a signature of what it loads.

        `note_running` is told the keys that have rows before their first step and whenever one leaves, so that a crash
        of the process finds its suspects written down.
        """
        self._load = load
        self._watch = watch
        self._deliver = deliver
        self._note_running = note_running
        self._commands: queue.SimpleQueue[Request | _Cancel | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._serving: Serving | None = None
        self._waiting: list[Request] = []
        self._rows: list[Row] = []
        self._decode_next = False
        self._steps = 0
        self._stopping = False
        self.busy_since: float | None = None
        """When the step or load that is running now began (CLOCK_MONOTONIC), None between them. Any thread may read."""
        self.loading = False

    def start(self) -> None:
        """Start the thread; it loads the model first."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its step. What is in flight ends without an event."""
        self._commands.put(None)
        self._thread.join(timeout)

    def submit(self, request: Request) -> None:
        """Queue a request. It ends with Finished or Ended."""
        self._commands.put(request)

    def cancel(self, key: int) -> None:
        """End a request at the next step; unknown keys are ignored, since it may just have finished."""
        self._commands.put(_Cancel(key))

    def _run(self) -> None:
        self._bring_up()
        while not self._stopping:
            self._take_commands()
            if self._stopping:
                break
            self._admit()
            try:
                self._step()
            except Exception as error:  # our own fault; whoever has a row may have met it, the others go on
                log.exception("engine_step_failed")
                self._fail(list(self._rows), f"the engine failed: {one_line(error)}")
        if self._serving is not None:
            self._serving.close()

    def _bring_up(self) -> None:
        """Load until it works; a package that cannot be served is tried again when its files change."""
        while not self._stopping:
            self._deliver(ModelChanged("loading"))
            seen = self._watch()
            self.busy_since, self.loading = time.monotonic(), True
            try:
                self._serving = self._load()
            except PackageError as error:
                log.error("model_unavailable", reason=str(error))
                self._deliver(ModelChanged("unavailable", str(error)))
            except Exception as error:  # a package must never take the daemon down
                log.exception("model_unavailable", reason=one_line(error))
                self._deliver(ModelChanged("unavailable", f"loading failed unexpectedly: {one_line(error)}"))
            finally:
                self.busy_since, self.loading = None, False
            if self._serving is not None:
                self._deliver(ModelChanged("serving", serving=self._serving))
                return
            while not self._stopping and self._watch() == seen:
                try:
                    command = self._commands.get(timeout=MEND_POLL_SECONDS)
                except queue.Empty:
                    continue
                self._obey(command)

    def _take_commands(self) -> None:
        idle = not self._rows and not self._waiting
        while not self._stopping:
            try:
                command = self._commands.get() if idle else self._commands.get_nowait()
            except queue.Empty:
                return
            idle = False
            self._obey(command)

    def _obey(self, command: Request | _Cancel | None) -> None:
        if command is None:
            self._stopping = True
        elif isinstance(command, Request):
            self._waiting.append(command)
        elif isinstance(command, _Cancel):
            for request in [r for r in self._waiting if r.key == command.key]:
                self._waiting.remove(request)
                self._deliver(Ended(request.key))
            for slot in [s for s, row in enumerate(self._rows) if row.request.key == command.key]:
                self._deliver(Ended(command.key, tokens=self._rows[slot].made))
                self._leave(slot)

    def _admit(self) -> None:
        """Give free rows to the most urgent requests, the earlier first."""
        assert self._serving is not None
        while self._waiting and len(self._rows) < self._serving.rows:
            request = max(self._waiting, key=lambda r: r.priority)  # the first among equals
            self._waiting.remove(request)
            if not request.prompt or len(request.prompt) + request.max_tokens > self._serving.context:
                # Callers check this too; a row that writes past its cache would spoil its neighbour, silently.
                reason = f"prompt and max_tokens must be 1 to {self._serving.context} tokens, the context, together"
                self._deliver(Ended(request.key, failure=reason))
                continue
            self._rows.append(
                Row(
                    request=request,
                    text=self._serving.tokenizer.stream(request.stop),
                    generator=np.random.default_rng(request.sampling.seed),
                    tokens=list(request.prompt),
                    started=time.monotonic(),
                )
            )
            self._write_running()
            self._deliver(Started(request.key))

    def _step(self) -> None:
        serving = self._serving
        assert serving is not None
        package = serving.package
        step = schedule(self._rows, serving.chunk, package.rope_switch, self._decode_next, package.batches_ragged_rows)
        if step is None:
            return
        self._decode_next = step.prefill
        self._steps += 1
        rows = self._rows[step.first : step.first + step.rows]
        ids = np.array([row.tokens[row.cached : row.cached + step.count] for row in rows], np.int64)
        self.busy_since = time.monotonic()
        try:
            logits = serving.session.step(step.first, ids, [row.cached for row in rows], step.width)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            self._fail(rows, f"the model failed at a step: {one_line(error)}")
            return
        finally:
            self.busy_since = None
        # All rows first: one that ends below moves another, with as much of its cache as `cached` says.
        for row in rows:
            row.cached += step.count
            row.last_step = self._steps
        for row, row_logits in zip(rows, logits, strict=True):
            if row.pending == 0:
                try:
                    token = choose(row_logits, row.request.sampling, row.generator, row.tokens)
                except NotFiniteError as error:
                    self._fail([row], f"{error} at token {row.made + 1}")
                    continue
                self._append(row, token)

    def _append(self, row: Row, token: int) -> None:
        assert self._serving is not None
        if row.made == 0:
            row.first_token = time.monotonic()
        row.tokens.append(token)
        request = row.request
        ended = token in self._serving.package.eos and not request.ignore_eos
        full = row.made >= request.max_tokens
        piece = "" if ended else row.text.push(token)
        if ended or full:
            piece += row.text.finish()
        if piece:
            row.pieces.append(piece)
            if request.stream:
                self._deliver(Piece(request.key, piece))
        if ended or full or row.text.stopped:
            self._deliver(
                Finished(
                    key=request.key,
                    text="".join(row.pieces),
                    tokens=tuple(row.generated),
                    reason="stop" if ended or row.text.stopped else "length",
                    prompt_tokens=len(request.prompt),
                    cached_tokens=0,
                    started=row.started,
                    first_token=row.first_token,
                    ended=time.monotonic(),
                )
            )
            self._leave(self._rows.index(row))

    def _leave(self, slot: int) -> None:
        """Free a row; the last one moves into the gap, so that rows stay neighbours."""
        assert self._serving is not None
        last = self._rows.pop()
        if slot < len(self._rows):
            self._rows[slot] = last
            self._serving.cache.move(len(self._rows), slot, last.cached)
        self._write_running()

    def _write_running(self) -> None:
        self._note_running(row.request.key for row in self._rows)

    def _fail(self, rows: list[Row], reason: str) -> None:
        log.error("engine_step_failed", jobs=len(rows), reason=reason)
        for row in rows:
            self._deliver(Ended(row.request.key, failure=reason, tokens=row.made))
            self._leave(self._rows.index(row))
