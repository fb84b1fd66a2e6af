"""Tells, after a start, how the process before this one ended and which jobs were running then.

Nothing here is synced to disk: a file that the kernel still holds survives the death of a process, and after a power
cut, when it may be lost, nobody is to blame anyway. So the accounting costs no write of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_OWN_SIGNALS = {"SEGV", "ABRT", "ILL", "BUS", "FPE"}
_OWN_RESULTS = {"core-dump", "watchdog", "oom-kill"}
_RUNNING_BYTES = 4096


@dataclass(frozen=True)
class LastEnd:
    """How the last process ended. `crash` is None unless it was of the process's own making."""

    crash: str | None
    running: tuple[int, ...]


class CrashLedger:
    """The running jobs, written down as they change, and the last words of a process that crashes."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        """Read what the last process left in `folder`, then begin anew. Raises OSError."""
        self._boot_id = boot_id
        self._lock = threading.Lock()
        self._closed = False
        self.last_end = _read_last_end(folder, boot_id)
        (folder / "last-exit").unlink(missing_ok=True)
        # Python writes the signal's name and every thread's stack here on SIGSEGV, SIGABRT, SIGILL, SIGBUS and SIGFPE.
        # The name comes first: while it reads the stacks of threads that go on, it may crash itself, by SIGSEGV.
        self._last_words = (folder / "crash.txt").open("w")
        faulthandler.enable(self._last_words, all_threads=True)
        self._running = os.open(folder / "running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.write_running(())

    def write_running(self, numbers: Iterable[int]) -> None:
        """Note which jobs run now (numbers in the spool). Nothing after close(): the engine may outlast it.

        On a disk that takes no writes the note stays as it was: the spool says so, and the accounting must not end
        the engine's thread.
        """
        line = json.dumps({"boot_id": self._boot_id, "jobs": list(numbers)}).encode()
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    os.pwrite(self._running, line.ljust(_RUNNING_BYTES)[:_RUNNING_BYTES], 0)

    def note_crash(self, reason: str) -> None:
        """Why the process is about to abort, on one line: what the next one is told instead of the signal's name."""
        self._last_words.write(f"{reason}\n")
        self._last_words.flush()

    def close(self) -> None:
        """Leave no trace: the end was in order."""
        self.write_running(())
        with self._lock:
            self._closed = True
        faulthandler.disable()
        self._last_words.close()
        os.close(self._running)


def _read_last_end(folder: Path, boot_id: str) -> LastEnd:
    try:
        note = json.loads((folder / "running").read_bytes())
        running, same_boot = tuple(int(number) for number in note["jobs"]), note["boot_id"] == boot_id
    except (OSError, ValueError, KeyError, TypeError):
        running, same_boot = (), False
    return LastEnd(_own_crash(folder) if same_boot else None, running)


def _own_crash(folder: Path) -> str | None:
    """Why the last process crashed by itself: its own last words, or what systemd saw (ExecStopPost's last-exit)."""
    try:
        words = (folder / "crash.txt").read_text(errors="replace").splitlines()
        if words:
            return words[0][:200]
    except OSError:
        pass
    try:
        # $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS, systemd.exec(5).
        result, _code, status = [*(folder / "last-exit").read_text().split(), "", "", ""][:3]
    except OSError:
        return None
    if result in _OWN_RESULTS or status in _OWN_SIGNALS:
        return f"{result} {status}".strip()
    return None
