"""How long tests wait: for what must come, and for what must not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0
"""Seconds until a test gives up. No passing test waits as long, so a busy machine costs time and fails nothing."""
QUIET = 0.4
"""Seconds to watch for what must not come. On a busy machine the test proves less; it does not fail."""
LONGEST_PAUSE = 0.1


def eventually(check: Callable[[], Any], what: str | Callable[[], str] = "", timeout: float = PATIENCE) -> Any:
    """Poll until `check()` is true and return its value; for states that send no event.

    `what` describes the failure; a callable is evaluated when the test gives up, so that it tells the last state.
    """
    until, pause = time.monotonic() + timeout, 0.01
    while not (found := check()):
        if time.monotonic() >= until:
            raise AssertionError(f"not within {timeout:g} s: {what() if callable(what) else what or check}")
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.2)
    return found
