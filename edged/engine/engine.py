"""The engine: a thread that owns the model and turns requests into tokens, step by step.

Requests come in through a queue and events go out through a callable. Other threads share nothing with it but `status`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edged.engine import lifecycle
from edged.engine.backlog import Backlog
from edged.engine.branches import copy_row, longest_copy, with_branches
from edged.engine.constraint import ConstraintError
from edged.engine.events import Ended, EngineEvent, Finished, ModelChanged, Piece, Started
from edged.engine.lifecycle import ModelLifecycle
from edged.engine.loaded_model import LoadedModel
from edged.engine.prefix_store import DiskEvent
from edged.engine.sampler import NotFiniteError
from edged.engine.scheduler import ChunkBudget, StepPlan, schedule, token_steps
from edged.engine.sequence import Request, Sequence
from edged.engine.session import one_line
from edged.engine.slots import Slots
from edged.engine.speculation import Speculation
from edged.engine.status import EngineStatus
from edged.engine.step_inputs import inputs_of, told_of
from edged.engine.steps import EngineLimit, StepObserver, StepRecord

log = structlog.get_logger(__name__)

MOST_REST = 10.0
"""The longest pause after a step, in seconds: the next token of a job comes, however long its step was."""


@dataclass(frozen=True)
class _Cancel:
    key: int


@dataclass(frozen=True)
class _CheckAgain:
    pass


_Command = Request | _Cancel | _CheckAgain | DiskEvent | None


@dataclass(frozen=True)
class _ActiveModel:
    """A loaded model, and what the engine keeps for it."""

    model: LoadedModel
    slots: Slots
    budget: ChunkBudget


class Engine:
    """Runs requests on a model that `load` brings up; every event goes to `deliver`, called on the engine's thread."""

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        watch: Callable[[], str],
        deliver: Callable[[EngineEvent], None],
        note_running: Callable[[Iterable[int]], None],
        observer: StepObserver | None = None,
    ) -> None:
        """`load` raises PackageError when the model cannot be served; `watch` gives a signature of its files.

        `note_running` gets the keys that have rows, before their first step and whenever one leaves: a crash of the
        process then finds its suspects written down. `observer` hears of each step.
        """
        self._lifecycle = ModelLifecycle(load, watch, deliver)
        self._deliver = deliver
        self._note_running = note_running
        self._observer = observer or StepObserver()
        self.limit = EngineLimit()
        """Any thread may replace it; rows that are there go on."""
        self._step_seconds = 0.0
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._active: _ActiveModel | None = None
        self._backlog = Backlog()
        self._speculation = Speculation()
        self._steps = 0
        self._last_chunk = 0
        """Number of the last step that read a chunk."""
        self._prompt_tokens = self._generated_tokens = 0
        self._stopping = False
        self.status = EngineStatus()
        """Replaced as a whole by the engine's thread. Any thread may read it."""

    def start(self) -> None:
        """Start the thread; it loads the model first."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its step. Requests in flight end without an event."""
        self._commands.put(None)
        self._thread.join(timeout)

    @property
    def ended(self) -> bool:
        """Whether the thread was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def rows(self) -> list[Sequence]:
        """The sequences that have a row, by slot. For the engine's thread alone, as in `deliver`."""
        return self._active.slots.rows if self._active is not None else []

    def submit(self, request: Request) -> None:
        """Queue a request. It ends with Finished or Ended."""
        self._commands.put(request)

    def cancel(self, key: int) -> None:
        """End a request at the next step; unknown keys are ignored, since it may just have finished."""
        self._commands.put(_Cancel(key))

    def check_again(self) -> None:
        """Load the model anew, since its files may have decayed. Sequences that have a row go on with the new load."""
        self._commands.put(_CheckAgain())

    # The loop

    def _run(self) -> None:
        try:
            while not self._stopping:
                if self._active is not None:
                    self._turn(self._active)
                elif self._lifecycle.due:
                    self._bring_up()
                else:
                    self._wait(lifecycle.POLL_SECONDS)
            self._lifecycle.close()
        except BaseException as error:
            self._publish(failed=one_line(error), busy_since=None, loading_since=None)
            log.exception("engine_ended", reason=one_line(error))

    def _turn(self, active: _ActiveModel) -> None:
        self._take_commands(active)
        if self._stopping or self._active is None:  # a command gave it up
            return
        self._step_seconds = 0.0
        try:
            self._admit(active)
            self._step(active)
        except Exception as error:  # our own fault; any row may have caused it, waiting requests go on
            self._fail(active, list(active.slots.rows), f"the engine failed: {one_line(error)}", exc_info=True)
        self._publish_use(active)
        self._rest()

    def _rest(self) -> None:
        """Pause after a step, so that the engine computes for its share of the time, and follow commands meanwhile."""
        until = time.monotonic() + min(MOST_REST, self._step_seconds * (1 / self.limit.duty - 1))
        while self.limit.duty < 1 and not self._stopping and (left := until - time.monotonic()) > 0:
            self._wait(left)

    def _bring_up(self) -> None:
        self._publish(loading_since=time.monotonic(), rows=0, batch_rows=0, kv_used_ratio=0.0)
        try:
            model = self._lifecycle.bring_up()
        finally:
            self._publish(loading_since=None)
        if model is not None:
            model.prefixes.start(self._commands.put)
            budget = ChunkBudget(model.max_stall, model.splits.least)
            self._active = _ActiveModel(model, Slots(model.cache, model.rows), budget)
            self._publish_use(self._active)
            self._deliver(ModelChanged("serving", loaded=model))

    def _step(self, active: _ActiveModel) -> None:
        """Schedule, run, advance."""
        self._arrange(active)
        plan = self._schedule(active)
        if plan is None:
            return
        self._steps += 1
        logits = self._compute(active, plan)
        if logits is not None:
            self._advance(active, plan, logits)

    # Commands

    def _take_commands(self, active: _ActiveModel) -> None:
        rows, free = active.slots.rows, active.slots.free
        idle = not (free and self._backlog) and all(row.reading for row in rows)
        if idle and not rows:
            self._publish_use(active)
            active.model.prefixes.write_back()
        while not self._stopping:
            try:
                command = self._commands.get() if idle else self._commands.get_nowait()
            except queue.Empty:
                return
            idle = False
            self._apply(command)

    def _wait(self, seconds: float) -> None:
        try:
            self._apply(self._commands.get(timeout=seconds))
        except queue.Empty:
            return

    def _apply(self, command: _Command) -> None:
        """Follow one command. One that fails costs its own request at most."""
        try:
            if command is None:
                self._stopping = True
            elif isinstance(command, Request):
                self._backlog.add(command)
            elif isinstance(command, _Cancel):
                self._cancel(command.key)
            elif isinstance(command, _CheckAgain):
                if self._active is not None:
                    self._lose(self._active)
            elif self._active is not None:  # else of a session that is gone
                self._active.model.prefixes.apply(command, self._active.slots.rows)
        except Exception as error:
            log.exception("engine_command_failed", command=type(command).__name__, reason=one_line(error))

    def _cancel(self, key: int) -> None:
        for ended in self._backlog.remove(key):
            self._write_running()
            self._deliver(ended)
        if self._active is not None:
            for row in [row for row in self._active.slots.rows if row.request.key == key]:
                self._deliver(Ended(key, tokens=row.made))
                self._leave(self._active, row)

    # Admission

    def _admit(self, active: _ActiveModel) -> None:
        """Give free rows to sequences that had one before the session was lost, then to requests of the lowest rank."""
        model, slots = active.model, active.slots
        slots.most = self.limit.rows or model.rows
        while slots.free and (parked := self._backlog.take_parked(model)) is not None:
            if isinstance(parked, Sequence):
                slots.place(parked)
            else:
                self._write_running()
                self._deliver(parked)
        while slots.free and (waiting := self._backlog.take_waiting(model)) is not None:
            if isinstance(waiting, Sequence):
                slots.place(waiting)
                self._write_running()
                self._deliver(Started(waiting.request.key))
            else:
                self._deliver(waiting)

    # One step

    def _arrange(self, active: _ActiveModel) -> None:
        """Let rows take over computed prefixes, and make rows that may share a step neighbours."""
        package, slots = active.model.package, active.slots
        for slot, row in enumerate(slots.rows):
            row.settle_rope(package.rope_switch)
            if row.behind and not row.reading:
                active.model.prefixes.look_up(row, slot)
        if package.batches_ragged_rows:
            slots.arrange()
        active.budget.note_moves(slots.take_move_seconds())

    def _schedule(self, active: _ActiveModel) -> StepPlan | None:
        model, rows = active.model, active.slots.rows
        chunk = active.budget.chunk(model.chunk, token_steps(rows))
        switch, pad = model.package.rope_switch, model.bits.lone_row_differs
        plan = schedule(rows, chunk, switch, self._last_chunk, pad, model.splits)
        if plan is not None and model.drafts:
            plan = self._speculation.with_drafts(plan, rows, switch, self._steps + 1)
        return plan and with_branches(plan, rows, active.slots.free, longest_copy(model.package, model.cache), switch)

    def _compute(self, active: _ActiveModel, plan: StepPlan) -> NDArray[np.floating] | None:
        """The logits, [rows + branches, vocabulary], with drafts [1, 1 + drafts, vocabulary]; None: the step failed."""
        rows = active.slots.rows[plan.first : plan.first + plan.rows]
        (ids, past), told = inputs_of(plan, rows), told_of(plan, rows)
        for row in rows:
            row.look_ahead(plan.drafts)
        began = time.monotonic()
        self._publish(busy_since=began)
        self._observer.began(began)
        try:
            copy_row(plan, rows[0], active.model.cache)
            session = active.model.session
            logits = (session.forward if plan.drafts else session.step)(plan.first, ids, past, plan.width)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            self._note_step(StepRecord(began, time.monotonic(), told))
            self._publish(busy_since=None)
            self._step_failed(active, rows, one_line(error))
            return None
        self._publish(busy_since=None, batch_rows=self.status.batch_rows if plan.chunk else plan.rows)
        ended = time.monotonic()
        self._note_step(StepRecord(began, ended, told))
        kept = active.budget.kept
        active.budget.note(plan, ended - began)
        if kept > active.budget.kept:
            log.warning("max_stall_exceeded", max_stall=active.model.max_stall, tokens=active.model.splits.least)
        return logits

    def _note_step(self, step: StepRecord) -> None:
        self._step_seconds = step.ended - step.began
        self._observer.ended(step)

    def _advance(self, active: _ActiveModel, plan: StepPlan, logits: NDArray[np.floating]) -> None:
        slots, prefixes = active.slots, active.model.prefixes
        rows = slots.rows[plan.first : plan.first + plan.rows]
        self._prompt_tokens += sum(max(0, min(plan.known, row.given - row.computed)) for row in rows)
        # All rows first: one that ends below moves another, with as much of its cache as `computed` says.
        for slot, row in enumerate(rows, plan.first):
            before, row.computed = row.computed, row.computed + plan.known
            row.last_step = self._steps
            if plan.chunk:
                self._last_chunk = self._steps
                prefixes.remember(row, slot, before)
            else:
                prefixes.hold(row, slot, most=1)
        for row, row_logits in zip(rows, logits[: len(rows)], strict=True):
            try:
                row.note_branches(plan.branches, logits[len(rows) :])
                self._generated_tokens += len(self._speculation.advance(row, row_logits, plan.drafts))
            except (NotFiniteError, ConstraintError) as error:
                self._fail(active, [row], f"{error} at token {row.made + 1}")
                continue
            self._tell(active, row)

    def _tell(self, active: _ActiveModel, row: Sequence) -> None:
        """Deliver a row's new text, and its answer if it has ended."""
        request = row.request
        text = row.take_text()
        if text and request.stream:
            self._deliver(Piece(request.key, text))
        if row.finish_reason is None:
            return
        self._deliver(Finished.of(row))
        active.model.prefixes.hold(row, active.slots.rows.index(row))
        self._leave(active, row)

    # Faults

    def _step_failed(self, active: _ActiveModel, rows: list[Sequence], reason: str) -> None:
        """Find out which row is to blame: rows that shared the step run again by themselves, a row alone fails."""
        if len(rows) > 1:
            log.error("engine_step_failed", jobs=len(rows), reason=reason, then="each runs again alone")
            for row in rows:
                row.alone = True
            return
        self._fail(active, rows, f"the model failed at a step: {reason}")
        fault = active.model.session.probe(len(active.slots.rows))
        if fault is not None:
            log.error("session_lost", reason=fault, jobs=len(active.slots.rows))
            self._lose(active)

    def _lose(self, active: _ActiveModel) -> None:
        """Give the session up. Its rows go on with the next one."""
        self._backlog.park(active.slots.rows)
        self._active = None
        self._lifecycle.lose()

    def _fail(self, active: _ActiveModel, rows: list[Sequence], reason: str, *, exc_info: bool = False) -> None:
        log.error("engine_step_failed", jobs=len(rows), reason=reason, exc_info=exc_info)
        for row in rows:
            self._deliver(Ended(row.request.key, failure=reason, tokens=row.made))
            self._leave(active, row)

    # Small things

    def _leave(self, active: _ActiveModel, row: Sequence) -> None:
        active.slots.remove(row)
        self._write_running()

    def _write_running(self) -> None:
        self._note_running(row.request.key for row in (*self.rows, *self._backlog.parked))

    def _publish_use(self, active: _ActiveModel) -> None:
        model, rows = active.model, active.slots.rows
        self._publish(
            rows=len(rows),
            batch_rows=self.status.batch_rows if rows else 0,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            accepted_drafts=self._speculation.accepted,
            rejected_drafts=self._speculation.rejected,
            forced_tokens=self._speculation.forced,
            kv_used_ratio=sum(row.computed for row in rows) / (model.rows * model.context),
            prefixes=model.prefixes.status,
            max_stall_kept=active.budget.kept,
        )

    def _publish(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
