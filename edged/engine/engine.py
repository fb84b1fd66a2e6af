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

from edged.engine.loaded_model import LoadedModel
from edged.engine.package import PackageError
from edged.engine.prefix_store import DiskEvent
from edged.engine.sampler import NotFiniteError, sample
from edged.engine.scheduler import ChunkBudget, Request, Sequence, schedule, settle_rope, swaps
from edged.engine.session import one_line

log = structlog.get_logger(__name__)

MEND_POLL_SECONDS = 2.0
"""How often a package that could not be served is looked at for a change."""


@dataclass(frozen=True)
class ModelChanged:
    """The model is loading, serving, or unavailable for `reason`."""

    state: Literal["loading", "serving", "unavailable"]
    reason: str = ""
    loaded: LoadedModel | None = None


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
    """An answer. `tokens` holds all that the model made, an ending eos too, `token_times` when each was made.

    Times are CLOCK_MONOTONIC seconds.
    """

    key: int
    text: str
    tokens: tuple[int, ...]
    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    started: float
    token_times: tuple[float, ...]
    ended: float

    @property
    def first_token(self) -> float:
        """When the first token was made."""
        return self.token_times[0]


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


_Command = Request | _Cancel | DiskEvent | None


class Engine:
    """Runs requests on a model that `load` brings up; every event goes to `deliver`, called on the engine's thread."""

    def __init__(
        self,
        load: Callable[[], LoadedModel],
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
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loaded: LoadedModel | None = None
        self._waiting: list[Request] = []
        self._rows: list[Sequence] = []
        self._parked: list[Sequence] = []
        """Rows whose session is being rebuilt."""
        self._pace = ChunkBudget(0.0)
        self._steps = 0
        self._last_prefill = 0
        self._stopping = False
        self.batch_rows = 0
        """Rows of the last decoding step, 0 when idle. Any thread may read this and what follows."""
        self.kv_used_ratio = 0.0
        """Share of the KV cache that holds tokens."""
        self.busy_since: float | None = None
        """When the step that is running now began (CLOCK_MONOTONIC), None between steps. Any thread may read."""
        self.loading_since: float | None = None
        """The same of a load."""

    def start(self) -> None:
        """Start the thread; it loads the model first."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its step. What is in flight ends without an event."""
        self._commands.put(None)
        self._thread.join(timeout)

    @property
    def ended(self) -> bool:
        """Whether the thread was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

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
        self._let_go()

    def _let_go(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _bring_up(self) -> None:
        """Load until it works; a package that cannot be served is tried again when its files change."""
        while not self._stopping:
            self._deliver(ModelChanged("loading"))
            self._let_go()  # only now: who prepares a prompt for it knows by then that it is gone
            seen = self._watch()
            self.loading_since = time.monotonic()
            try:
                self._loaded = self._load()
            except PackageError as error:
                log.error("model_unavailable", reason=str(error))
                self._deliver(ModelChanged("unavailable", str(error)))
            except Exception as error:  # a package must never take the daemon down
                log.exception("model_unavailable", reason=one_line(error))
                self._deliver(ModelChanged("unavailable", f"loading failed unexpectedly: {one_line(error)}"))
            finally:
                self.loading_since = None
            if self._loaded is not None:
                self._pace = ChunkBudget(self._loaded.max_stall)
                self._loaded.prefixes.start(self._commands.put)
                self._deliver(ModelChanged("serving", loaded=self._loaded))
                return
            while not self._stopping and self._watch() == seen:
                try:
                    command = self._commands.get(timeout=MEND_POLL_SECONDS)
                except queue.Empty:
                    continue
                self._obey(command)

    def _take_commands(self) -> None:
        assert self._loaded is not None
        free = len(self._rows) < self._loaded.rows
        idle = not (free and (self._waiting or self._parked)) and all(row.reading for row in self._rows)
        if idle and not self._rows:
            self.batch_rows, self.kv_used_ratio = 0, 0.0
            self._loaded.prefixes.write_back()
        while not self._stopping:
            try:
                command = self._commands.get() if idle else self._commands.get_nowait()
            except queue.Empty:
                return
            idle = False
            self._obey(command)

    def _obey(self, command: _Command) -> None:
        if command is None:
            self._stopping = True
        elif isinstance(command, Request):
            self._waiting.append(command)
        elif isinstance(command, _Cancel):
            self._cancel(command.key)
        elif self._loaded is not None:  # else of a session that is gone
            self._loaded.prefixes.obey(command, self._rows)

    def _cancel(self, key: int) -> None:
        for request in [r for r in self._waiting if r.key == key]:
            self._waiting.remove(request)
            self._deliver(Ended(key))
        for parked in [row for row in self._parked if row.request.key == key]:
            self._parked.remove(parked)
            self._write_running()
            self._deliver(Ended(key, tokens=parked.made))
        for slot in [s for s, row in enumerate(self._rows) if row.request.key == key]:
            self._deliver(Ended(key, tokens=self._rows[slot].made))
            self._leave(slot)

    def _admit(self) -> None:
        """Give free rows to those that had one before the session was rebuilt, then to the requests of lowest rank."""
        assert self._loaded is not None
        while self._parked and len(self._rows) < self._loaded.rows:
            self._rows.append(self._parked.pop(0))
        while self._waiting and len(self._rows) < self._loaded.rows:
            request = min(self._waiting, key=lambda r: r.rank)  # the first among equals
            self._waiting.remove(request)
            if not request.prompt or len(request.prompt) + request.max_tokens > self._loaded.context:
                # Callers check this too; a row that writes past its cache would spoil its neighbour, silently.
                reason = f"prompt and max_tokens must be 1 to {self._loaded.context} tokens, the context, together"
                self._deliver(Ended(request.key, failure=reason))
                continue
            self._rows.append(
                Sequence(
                    request=request,
                    text=self._loaded.tokenizer.stream(request.stop),
                    generator=np.random.default_rng(request.sampling.seed),
                    tokens=list(request.prompt),
                    started=time.monotonic(),
                )
            )
            self._write_running()
            self._deliver(Started(request.key))

    def _step(self) -> None:
        loaded = self._loaded
        assert loaded is not None
        package = loaded.package
        ragged = package.batches_ragged_rows
        self._share()
        decoding = [row for row in self._rows if row.pending == 1]
        most = self._pace.chunk(loaded.chunk, _decode_steps(decoding, ragged))
        pad = loaded.bits.lone_row_differs
        step = schedule(self._rows, most, package.rope_switch, self._last_prefill, ragged, pad)
        if step is None:
            return
        self._steps += 1
        rows = self._rows[step.first : step.first + step.rows]
        ids = np.array([row.tokens[row.cached : row.cached + step.count] for row in rows], np.int64)
        past = [row.cached for row in rows]
        if step.companion is not None:
            past.append(step.companion)
        self.busy_since = began = time.monotonic()
        try:
            logits = loaded.session.step(step.first, ids, past, step.width)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            self._step_failed(rows, one_line(error))
            return
        finally:
            self.busy_since = None
        self._pace.note(step, time.monotonic() - began)
        if step.prefill:
            self._last_prefill = self._steps
            rows[0].cached += step.count
            loaded.prefixes.remember(rows[0], step.first, rows[0].cached - step.count)
        else:
            self.batch_rows = step.rows
            # All rows first: one that ends below moves another, with as much of its cache as `cached` says.
            for slot, row in enumerate(rows, step.first):
                row.cached += 1
                loaded.prefixes.hold(row, slot, most=1)
        self.kv_used_ratio = sum(row.cached for row in self._rows) / (loaded.rows * loaded.context)
        for row, row_logits in zip(rows, logits, strict=True):
            row.last_step = self._steps
            row.alone = False
            if row.pending == 0:
                try:
                    token = sample(row_logits, row.request.sampling, row.generator, row.tokens)
                except NotFiniteError as error:
                    self._fail([row], f"{error} at token {row.made + 1}")
                    continue
                self._append(row, token)

    def _share(self) -> None:
        """Let rows take over what others have computed, and make rows that may share a step neighbours."""
        assert self._loaded is not None
        switch = self._loaded.package.rope_switch
        for slot, row in enumerate(self._rows):
            settle_rope(row, switch)
            if row.prefilling and not row.reading:
                self._loaded.prefixes.look_up(row, slot)
        if self._loaded.package.batches_ragged_rows:
            for one, other in swaps(self._rows):
                tokens = max(self._rows[one].cached, self._rows[other].cached)
                self._loaded.cache.swap(one, other, tokens)
                self._rows[one], self._rows[other] = self._rows[other], self._rows[one]

    def _step_failed(self, rows: list[Sequence], reason: str) -> None:
        """Find out who is to blame: rows that shared the step run again by themselves, one alone fails."""
        if len(rows) > 1:
            log.error("engine_step_failed", jobs=len(rows), reason=reason, then="each runs again alone")
            for row in rows:
                row.alone = True
            return
        self._fail(rows, f"the model failed at a step: {reason}")
        assert self._loaded is not None
        fault = self._loaded.session.probe(len(self._rows))
        if fault is not None:
            log.error("session_lost", reason=fault, jobs=len(self._rows))
            for row in self._rows:
                row.cached, row.reading = 0, False
                row.unheld.clear()
            self._parked, self._rows = self._rows, []
            self._bring_up()

    def _append(self, row: Sequence, token: int) -> None:
        assert self._loaded is not None
        row.token_times.append(time.monotonic())
        row.tokens.append(token)
        request = row.request
        ended = token in self._loaded.package.eos and not request.ignore_eos
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
                    cached_tokens=row.reused,
                    started=row.started,
                    token_times=tuple(row.token_times),
                    ended=time.monotonic(),
                )
            )
            slot = self._rows.index(row)
            self._loaded.prefixes.hold(row, slot)
            self._leave(slot)

    def _leave(self, slot: int) -> None:
        """Free a row; the last one moves into the gap, so that rows stay neighbours."""
        assert self._loaded is not None
        last = self._rows.pop()
        if slot < len(self._rows):
            self._rows[slot] = last
            self._loaded.cache.move(len(self._rows), slot, last.cached)
        self._write_running()

    def _write_running(self) -> None:
        self._note_running(row.request.key for row in (*self._rows, *self._parked))

    def _fail(self, rows: list[Sequence], reason: str) -> None:
        log.error("engine_step_failed", jobs=len(rows), reason=reason)
        for row in rows:
            self._deliver(Ended(row.request.key, failure=reason, tokens=row.made))
            self._leave(self._rows.index(row))


def _decode_steps(decoding: list[Sequence], ragged: bool) -> int:
    """How many steps give each of these rows one token."""
    if not ragged:
        return len(decoding)
    shared = {row.long_rope for row in decoding if not row.alone}
    return len(shared) + sum(row.alone for row in decoding)
