"""Pulls a rollout's package in a process of its own (pull_worker.py), and tells how it goes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Order:
    """What to pull: `source` as `edged model pull` takes it; `name` None: as at the source."""

    source: str
    name: str | None
    digest: str


@dataclass(frozen=True)
class PullProgress:
    """Bytes that are on the disk, of how many."""

    order: Order
    done: int
    total: int


@dataclass(frozen=True)
class PullEnded:
    """The pull is over. `version`: the path of the package below the store; None: it failed."""

    order: Order
    version: str | None
    reason: str = ""
    by: Literal["network", "content", "package"] = "network"
    """What is at fault: `network` for all that may pass."""


PullEvent: TypeAlias = PullProgress | PullEnded


class Puller:
    """One pull at a time. Its thread calls `deliver`."""

    def __init__(self, state_dir: Path, deliver: Callable[[PullEvent], None], rate: int | None = None) -> None:
        """`rate`: most bytes per second; None: no limit."""
        self._state_dir = state_dir
        self._rate = rate
        self._deliver = deliver
        self._process: subprocess.Popen[str] | None = None
        self.order: Order | None = None
        """The pull under way."""

    def start(self, order: Order) -> None:
        """Start a pull. Raises OSError."""
        process = subprocess.Popen(
            [sys.executable, "-m", "edged.rollout.pull_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._process, self.order = process, order
        threading.Thread(target=self._listen, args=(process, order), name="pull", daemon=True).start()

    def stop(self) -> None:
        """End the pull under way; what it has brought stays for the next one."""
        if self._process is not None:
            self._process.kill()
            self._process = self.order = None

    def ended(self, event: PullEnded) -> bool:
        """Take note of an end; False where it is that of a pull that was stopped."""
        if event.order is not self.order:
            return False
        self._process = self.order = None
        return True

    def _listen(self, process: subprocess.Popen[str], order: Order) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        end = PullEnded(order, None, "the process that pulls ended without a word: it was killed, or memory was short")
        settled = {"state_dir": str(self._state_dir.absolute()), "source": order.source, "name": order.name}
        try:
            process.stdin.write(json.dumps({**settled, "digest": order.digest, "rate": self._rate}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                if "done" in said:
                    self._deliver(PullProgress(order, said["done"], said["total"]))
                else:
                    end = PullEnded(order, said.get("version"), said.get("failed", ""), said.get("by", "network"))
        except (OSError, ValueError):  # it was killed
            pass
        process.wait()
        process.stdin.close()
        process.stdout.close()
        self._deliver(end)
