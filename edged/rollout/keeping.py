"""What is kept of rollouts while the daemon runs: written before it counts, and put in its place. Main thread only."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from edged.faults import Fault
from edged.models.store import StoreError, store_of
from edged.rollout.execution import UNDONE, Execution, Now, Package, Step
from edged.rollout.memory import FILE, Memory, write_memory
from edged.rollout.precedence import Documents
from edged.rollout.remote_settings import RemoteSettings
from edged.rollout.resume import settle
from edged.settings import Settings

log = structlog.get_logger(__name__)

COUNT_SECONDS = 60.0
"""How often the time of a download or a trial is written down."""
WRITE_PAUSE = 30.0
"""Seconds before the next try after the memory could not be written."""
NO_CLOCK = Fault(
    "rollout_waits_for_clock",
    "not_before, expires or window need the time of day, and the clock is not synchronised",
    "let the board reach a time server: timedatectl timesync-status",
)


class Keeper:
    """The memory of rollouts, its file, and the packages and settings on the disk."""

    def __init__(self, settings: Settings, memory: Memory, remote: RemoteSettings) -> None:
        """`memory`, `remote`: as resume() left them."""
        self.memory = memory
        self.remote = remote
        self._file = settings.state_dir / FILE
        self._store = store_of(settings)
        self._write_again_at = float("-inf")

    @property
    def execution(self) -> Execution | None:
        """The rollout that is followed."""
        return self.memory.execution

    @property
    def unsettled(self) -> bool:
        """Whether a trial is over, and something is left to do on the disk."""
        execution = self.memory.execution
        if execution is None or execution.on_trial:
            return False
        return execution.step is Step.RETURNING or execution.candidate is not None or self.remote.on_trial

    @property
    def may_write(self) -> bool:
        """Whether the disk takes writes, or has not been asked for a while."""
        return time.monotonic() >= self._write_again_at

    def keep_documents(self, documents: Documents) -> None:
        """Take new documents. Where they cannot be written they count for this process: the broker has them."""
        if documents != self.memory.documents:
            self.memory = replace(self.memory, documents=documents)
            self._write(self.memory)

    def go_on(self, execution: Execution, former: Package | None = None) -> bool:
        """Go on with this execution, once it is on disk; False, and nothing changed, where that fails."""
        before = self.memory.execution
        if execution.waiting_for == "clock" and (before is None or before.waiting_for != "clock"):
            rollout, reason, hint = execution.desired.rollout, NO_CLOCK.message, NO_CLOCK.hint
            log.warning("rollout_waits_for_clock", rollout=rollout, reason=reason, hint=hint)
        memory = replace(self.memory, execution=execution, former=former or self.memory.former)
        if before is not None and _kept(before) == _kept(execution):
            self.memory = memory
            return True
        if not self.may_write or not self._write(memory):
            return False
        self.memory = memory
        if before is None or (before.state, before.step) != (execution.state, execution.step):
            _tell(execution)
        return True

    def put_in_place(self, now: Now) -> None:
        """Let what lies on the disk be as the execution's step wants it. Raises StoreError, OSError."""
        execution = self.memory.execution
        if execution is not None:
            self.go_on(settle(execution, self._store, self.remote, now))

    def settle(self, now: Now) -> None:
        """The same; where it fails, it is tried again."""
        try:
            self.put_in_place(now)
        except (StoreError, OSError) as error:
            self._not_written(str(error))

    def _write(self, memory: Memory) -> bool:
        try:
            write_memory(self._file, memory)
        except OSError as error:
            self._not_written(error.strerror or str(error))
            return False
        return True

    def _not_written(self, reason: str) -> None:
        self._write_again_at = time.monotonic() + WRITE_PAUSE
        hint = "make state_dir writable: the rollout goes on then"
        log.warning("rollout_not_kept", file=str(self._file), reason=reason, hint=hint)


def _tell(execution: Execution) -> None:
    told = {"rollout": execution.desired.rollout, "state": execution.state.value, "step": execution.step}
    fault = execution.fault
    if execution.state in UNDONE and fault is not None:
        log.warning("rollout_failed", **told, code=fault.code, reason=fault.message, hint=fault.hint)
    else:
        log.info("rollout_state", **told, waiting_for=execution.waiting_for)


def _kept(execution: Execution) -> Execution:
    """What of an execution is worth a write."""
    seconds, proved = execution.seconds // COUNT_SECONDS, execution.proved // COUNT_SECONDS
    return replace(execution, pulls=0, retry_at=None, counted_at=None, seconds=seconds, proved=proved)
