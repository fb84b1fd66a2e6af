"""Runs a command that takes its time in a process of its own (cli/command_worker.py), one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from edged.settings import Settings

MODULE = "edged.cli.command_worker"
_MOST_BYTES = 1 << 20
"""Of what it says."""


@dataclass(frozen=True)
class WorkerEnded:
    """The process has ended. `result` None: it failed, for this `reason`. `run`: which run that was."""

    run: object
    result: Mapping[str, Any] | None
    reason: str = ""


class Worker:
    """One process at a time. Its thread calls `deliver`."""

    def __init__(self, settings: Settings, deliver: Callable[[WorkerEnded], None]) -> None:
        self._settings = settings
        self._deliver = deliver
        self._process: subprocess.Popen[str] | None = None
        self.run: object | None = None
        """Names the run under way."""

    def start(self, command: str, fields: Mapping[str, Any]) -> None:
        """Start a command with its fields. Raises OSError."""
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._process, self.run = process, object()
        order = {"command": command, "fields": dict(fields), "settings": self._settings.model_dump()}
        line = json.dumps(order, default=_plain) + "\n"
        threading.Thread(target=self._listen, args=(process, self.run, line), name="command", daemon=True).start()

    def stop(self) -> None:
        """End the command under way."""
        if self._process is not None:
            self._process.kill()
            self._process = self.run = None

    def ended(self, event: WorkerEnded) -> bool:
        """Take note of an end; False where it is that of a run that was stopped."""
        if event.run is not self.run:
            return False
        self._process = self.run = None
        return True

    def _listen(self, process: subprocess.Popen[str], run: object, line: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        end = WorkerEnded(run, None, "its process ended without a word: it was killed, or memory was short")
        try:
            process.stdin.write(line)
            process.stdin.flush()
            said = json.loads(process.stdout.read(_MOST_BYTES))
            end = WorkerEnded(run, said.get("result"), said.get("failed", ""))
        except (OSError, ValueError):  # it was killed, or said too much
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        self._deliver(end)


def _plain(value: object) -> str:
    """A value of the settings that JSON has not."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    assert isinstance(value, Path)
    return str(value)
