"""Puts together the result document of a job that the engine ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edged.engine.engine import Finished
from edged.jobs.document import Job, State, result_document
from edged.machine.clock import format_time


@dataclass(frozen=True)
class Course:
    """What is known of a job's course when it ends. `received` is wall-clock seconds; `waited` the seconds from
    receipt to its row, 0 if it never had one."""

    id: str
    device: str
    model: str | None
    received: float
    waited: float
    attempts: int
    unjudged_deadline: bool


def speed(finished: Finished) -> dict[str, float]:
    """Tokens per second of an answer: of its prompt's `prefill`, and of `decode` from its second token on."""
    prefill, decode = finished.first_token - finished.started, finished.ended - finished.first_token
    speeds = {}
    if prefill > 0:
        speeds["prefill"] = round((finished.prompt_tokens - finished.cached_tokens) / prefill, 2)
    if len(finished.tokens) > 1 and decode > 0:
        speeds["decode"] = round((len(finished.tokens) - 1) / decode, 2)
    return speeds


def success(job: Job, course: Course, finished: Finished, now: float) -> bytes:
    """The result of an answer; `now` is wall-clock seconds."""
    return result_document(
        course.id,
        course.device,
        State.SUCCEEDED,
        model=course.model,
        metadata=job.metadata,
        text=finished.text,
        token_ids=list(finished.tokens) if job.return_token_ids else None,
        finish_reason=finished.reason,
        usage={
            "prompt_tokens": finished.prompt_tokens,
            "cached_tokens": finished.cached_tokens,
            "completion_tokens": len(finished.tokens),
        },
        timings={
            "queued": round(course.waited, 4),
            "first_token": round(course.waited + finished.first_token - finished.started, 4),
            "total": round(course.waited + finished.ended - finished.started, 4),
        },
        tokens_per_second=speed(finished) or None,
        attempts=course.attempts,
        received=format_time(course.received),
        started=format_time(now - (finished.ended - finished.started)),
        finished=format_time(now),
        deadline_judged=False if course.unjudged_deadline else None,
    )
