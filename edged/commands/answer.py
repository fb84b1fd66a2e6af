"""The document that answers a command, on the device's own topic (pure)."""

from __future__ import annotations

import json
from typing import Any

from edged.commands.memory import Entry

MOST_RESULT_BYTES = 32_768
"""The largest result of a command, as JSON."""


def answer(entry: Entry, device: str) -> dict[str, Any]:
    """The document but for its time. A repeated question hears how it ended, without the result."""
    document: dict[str, Any] = {"status": entry.status.value, "device": device}
    if entry.result:
        document["result"] = dict(entry.result)
    if entry.failure is not None:
        failure = entry.failure
        document |= {"code": failure.code.value, "reason": failure.reason, "hint": failure.hint}
    return document


def size_of(result: Any) -> int:
    """Bytes of a result, or of a part of it, as JSON in UTF-8."""
    return len(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))
