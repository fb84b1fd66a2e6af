"""What writes meet: a power cut before any of them, or a card that is full. Files lie in a folder in memory.

What edged makes durable it syncs, so a cut is put before each sync and before each change of a name: what was done
before is there afterwards, and what comes after is not. Contents that are torn are the business of `make power`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_NEEDS_SPACE = ("fsync", "mkdir", "symlink")
_CHANGES = ("fsync", "mkdir", "rename", "replace", "symlink", "unlink")


class PowerCutError(BaseException):
    """The power is gone: nothing of the process runs any further."""


class Card(Protocol):
    """The storage of the board whose code runs."""

    full: bool

    def step(self) -> None:
        """Count a write or a publication; raises PowerCutError where it is the one before which the power goes."""


class Disk:
    """`card`: that of the board whose code runs now; None: the simulator's own files."""

    def __init__(self) -> None:
        self.card: Card | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let all changes of files meet the card."""
        originals = {name: getattr(os, name) for name in _CHANGES}
        for name, original in originals.items():
            setattr(os, name, self._meeting(name, original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _meeting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*values: Any, **more: Any) -> Any:
            card = self.card
            if card is None:
                return None if name == "fsync" else original(*values, **more)
            card.step()
            if card.full and name in _NEEDS_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return None if name == "fsync" else original(*values, **more)

        return change
