"""A snapshot of the engine that any thread may read."""

from __future__ import annotations

from dataclasses import dataclass

from edged.status import PrefixStatus


@dataclass(frozen=True)
class EngineStatus:
    """The engine at one moment. Times are CLOCK_MONOTONIC seconds."""

    busy_since: float | None = None
    """When the step that runs now began, None between steps."""
    loading_since: float | None = None
    """When the load that runs now began."""
    rows: int = 0
    """Sequences that have a row."""
    batch_rows: int = 0
    """Rows of the last step of single tokens, 0 when idle."""
    prompt_tokens: int = 0
    """Tokens of prompts that were computed since the start; those from the prefix cache are not among them."""
    generated_tokens: int = 0
    """Tokens that were made since the start, also of answers that are not finished."""
    accepted_drafts: int = 0
    """Tokens of drafts since the start that became tokens of answers."""
    rejected_drafts: int = 0
    """Those that did not."""
    forced_tokens: int = 0
    """Tokens since the start that were in a draft because a grammar forced them."""
    kv_used_ratio: float = 0.0
    """Share of the KV cache that holds tokens."""
    prefixes: PrefixStatus = PrefixStatus()  # noqa: RUF009  (frozen)
    max_stall_kept: bool = True
    """False once the shortest chunks of prompts were seen to take longer than model.max_stall."""
    failed: str | None = None
    """Why the thread has ended though nobody stopped it."""
