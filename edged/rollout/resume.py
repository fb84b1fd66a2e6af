"""What a start does about a rollout, before the package is chosen: it puts the links as the step on disk wants them."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from edged.checked_json import DamagedError
from edged.machine.clock import Clock
from edged.models.store import Store, StoreError, store_of
from edged.rollout.execution import Execution, Now, State, Step
from edged.rollout.memory import FILE, Memory, read_memory, write_memory
from edged.settings import Settings

log = structlog.get_logger(__name__)

_OPEN = (State.QUEUED, State.IN_PROGRESS, State.FAILED)
"""The package may be tried yet."""
_HINT = "make state_dir writable; the rollout goes on at the next start"


def resume(settings: Settings, clock: Clock, device: str, crash: str | None) -> Memory:
    """Read what is remembered, and bring links and memory to where a process may have ended in between.

    `crash`: how the process before crashed by itself.
    """
    file, store = settings.state_dir / FILE, store_of(settings)
    try:
        memory = read_memory(file)
    except (DamagedError, OSError) as error:
        hint = "a trial is ended and the documents of the broker are taken anew; sequences start from these"
        log.error("rollout_memory_refused", file=str(file), reason=str(error), hint=hint)
        _end_trial(store)
        return Memory()
    if memory.execution is None:
        return memory
    now = Now(clock.wall(), time.monotonic(), clock.synchronised(), device)
    execution = memory.execution.starting(now, crash)
    if settings.model.path is not None:
        execution = execution.path_was_set(now)
    memory = replace(memory, execution=execution)
    try:
        write_memory(file, memory)
        execution = settle(execution, store, now)
        if execution is not memory.execution:
            memory = replace(memory, execution=execution)
            write_memory(file, memory)
        store.sweep(execution.desired.model.digest if execution.state in _OPEN else None)
    except (StoreError, OSError) as error:
        log.warning("rollout_not_resumed", rollout=execution.desired.rollout, reason=str(error), hint=_HINT)
    return memory


def settle(execution: Execution, store: Store, now: Now) -> Execution:
    """Put the links as the step wants them, which may have happened in part. Raises StoreError."""
    if execution.candidate is None:
        return execution
    if execution.on_trial:
        store.try_out(execution.candidate)
    elif execution.step is Step.RETURNING:
        store.go_back()
        if execution.state is not State.FAILED:  # it is not tried again
            store.drop(execution.candidate)
        return execution.returned(now)
    elif execution.state is State.SUCCEEDED:
        store.adopt(execution.candidate)
        return execution.adopted()
    return execution


def _end_trial(store: Store) -> None:
    try:
        store.go_back()
    except StoreError as error:
        log.warning("rollout_not_resumed", rollout=None, reason=str(error), hint=_HINT)
