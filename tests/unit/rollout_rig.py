"""Desired documents for tests."""

from __future__ import annotations

import json
from typing import Any

from edged.rollout.desired import Received, read_desired
from edged.rollout.execution import Now, Package
from edged.rollout.precedence import Known

DIGEST, OTHER = "ab" * 32, "cd" * 32


def document(**fields: Any) -> dict[str, Any]:
    """A desired document; a field that is None is left out."""
    model = {"source": "/media/stick/phi3", "digest": DIGEST}
    told = {"rollout": "r1", "sequence": 1, "model": model, **fields}
    return {name: value for name, value in told.items() if value is not None}


def received(target: str = "device", **fields: Any) -> Received:
    return read_desired(json.dumps(document(**fields)).encode(), target)


def known(target: str = "device", **fields: Any) -> Known:
    one = received(target, **fields)
    return Known(one, one.desired.percent)


def now(seconds: float = 0.0, **fields: Any) -> Now:
    """2027-01-31T12:00:00Z and so many seconds, on a board with a right clock that serves another package."""
    moment: dict[str, Any] = {"synchronised": True, "device": "board", "serving": Package("old", OTHER), **fields}
    return Now(1801396800.0 + seconds, 1000.0 + seconds, **moment)
