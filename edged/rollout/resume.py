"""What a start does about a rollout, before the package is chosen: it puts links and settings as the step wants."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from edged.checked_json import DamagedError
from edged.machine.clock import Clock
from edged.models.store import Store, StoreError, store_of
from edged.rollout.execution import Execution, Now, State, Step
from edged.rollout.memory import FILE, Memory, read_memory, write_memory
from edged.rollout.remote_settings import RemoteSettings
from edged.settings import Settings

log = structlog.get_logger(__name__)

_OPEN = (State.QUEUED, State.IN_PROGRESS, State.FAILED)
"""The package may be tried yet."""
_HINT = "make state_dir writable; the rollout goes on at the next start"


def resume(settings: Settings, clock: Clock, device: str, crash: str | None, remote: RemoteSettings) -> Memory:
    """Read what is remembered, and bring links, settings and memory to where a process may have ended in between.

    `crash`: how the process before crashed by itself. `settings` may be others than those that `remote` has then.
    """
    file, store = settings.state_dir / FILE, store_of(settings)
    try:
        memory = read_memory(file)
    except (DamagedError, OSError) as error:
        hint = "a trial is ended and the documents of the broker are taken anew; sequences start from these"
        log.error("rollout_memory_refused", file=str(file), reason=str(error), hint=hint)
        _end_trial(store, remote)
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
        execution = settle(execution, store, remote, now)
        if execution is not memory.execution:
            memory = replace(memory, execution=execution)
            write_memory(file, memory)
        store.sweep(execution.desired.digest if execution.state in _OPEN else None)
    except (StoreError, OSError) as error:
        log.warning("rollout_not_resumed", rollout=execution.desired.rollout, reason=str(error), hint=_HINT)
    return memory


def settle(execution: Execution, store: Store, remote: RemoteSettings, now: Now) -> Execution:
    """Put links and settings as the step wants them, which may have happened in part. Raises StoreError, OSError."""
    received, candidate = execution.known.received, execution.candidate
    if execution.on_trial:
        if candidate is not None:
            store.try_out(candidate)
        remote.try_out(received)
        return execution
    if execution.step is Step.RETURNING:
        remote.go_back()
        store.go_back()
        if candidate is not None and execution.state is not State.FAILED:  # it is not tried again
            store.drop(candidate)
        return execution.returned(now)
    if execution.state is State.SUCCEEDED:
        if candidate is not None:
            store.adopt(candidate)
        remote.adopt(received)
        return execution.adopted()
    remote.go_back()  # a memory that was lost may have left a trial
    return execution


def _end_trial(store: Store, remote: RemoteSettings) -> None:
    try:
        remote.go_back()
        store.go_back()
    except (StoreError, OSError) as error:
        log.warning("rollout_not_resumed", rollout=None, reason=str(error), hint=_HINT)
