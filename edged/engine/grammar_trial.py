"""Compiles a grammar on trial, in a process that a bomb may kill: jobs' grammars are untrusted."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMPILE_BYTES, COMPILE_SECONDS = 192 << 20, 5
"""Most memory and processor time that a grammar may take to compile: other work on the board changes neither."""
_WALL_SECONDS = 60.0
"""The same by the clock. A slow board with a cold SD card takes many seconds to start Python."""
_STACK = 4 << 20
"""Half of what the daemon's threads have, where the grammar is compiled again."""
_REMEMBERED = 1024
"""Grammars of which it is remembered that they compile."""


class BombError(ValueError):
    """The grammar takes too much to compile; the message says of what."""


class Trial:
    """Tries grammars, each once. For one thread."""

    def __init__(self, memory: int = COMPILE_BYTES, seconds: int = COMPILE_SECONDS) -> None:
        """`memory` in bytes, `seconds` of processor time."""
        self._memory, self._seconds = memory, seconds
        self._passed: dict[bytes, None] = {}
        """Digests, the oldest first."""

    def reason(self, grammar: str, limits: Mapping[str, Any]) -> str:
        """llguidance's reason for refusing a grammar, "" where it compiles within its `limits`. Raises BombError."""
        digest = hashlib.sha256(grammar.encode()).digest()
        if digest in self._passed:
            return ""
        question = {
            "grammar": grammar,
            "limits": dict(limits),
            "bytes": self._memory,
            "seconds": self._seconds,
            "stack": _STACK,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(Path(__file__).with_name("grammar_worker.py"))],
                input=json.dumps(question).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_WALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BombError(f"it does not compile within {_WALL_SECONDS:.0f} s") from None
        if done.returncode != 0:
            most = f"{self._seconds} s of processor time or {self._memory >> 20} MiB"
            raise BombError(f"it takes more than {most} to compile")
        reason = str(json.loads(done.stdout))
        if not reason:
            self._passed[digest] = None
            if len(self._passed) > _REMEMBERED:
                del self._passed[next(iter(self._passed))]
        return reason
