"""Builds the result documents of jobs that ended. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edged.engine.events import Finished
from edged.engine.logprobs import TokenLogprob
from edged.jobs.document import Code, Job, State, result_document
from edged.jobs.energy import JobEnergy
from edged.jobs.records import Queued
from edged.jobs.tools import document_of
from edged.machine.clock import format_time


@dataclass(frozen=True)
class Reason:
    """Why a job ends without an answer."""

    state: State
    code: Code
    message: str


def speed(finished: Finished) -> dict[str, float]:
    """Tokens per second of an answer: of its prompt's `prefill`, and of `decode` from its second token on."""
    prefill, decode = finished.first_token - finished.started, finished.ended - finished.first_token
    speeds = {}
    if prefill > 0:
        speeds["prefill"] = round((finished.prompt_tokens - finished.cached_tokens) / prefill, 2)
    if len(finished.tokens) > 1 and decode > 0:
        speeds["decode"] = round((len(finished.tokens) - 1) / decode, 2)
    return speeds


def success(
    job: Job,
    finished: Finished,
    *,
    id: str,
    device: str,
    model: str | None,
    received: float,
    now: float,
    waited: float,
    attempts: int = 1,
    deadline_judged: bool = True,
    energy: JobEnergy | None = None,
) -> bytes:
    """The result of an answer.

    `received` and `now` are wall-clock seconds, `waited` the seconds from receipt to the job's row.
    """
    return result_document(
        id,
        device,
        State.SUCCEEDED,
        model=model,
        metadata=job.metadata,
        text=finished.text if finished.scores is None else None,
        ranking=_ranking(finished),
        token_ids=list(finished.tokens) if job.return_token_ids else None,
        logprobs=_logprobs(finished),
        probabilities=_probabilities(job, finished),
        tool_calls=document_of(finished.calls, id),
        finish_reason="tool_calls" if finished.calls and finished.reason == "stop" else finished.reason,
        usage={
            "prompt_tokens": finished.prompt_tokens,
            "cached_tokens": finished.cached_tokens,
            "completion_tokens": len(finished.tokens),
            **({} if finished.speculated is None else {"speculated_tokens": finished.speculated}),
            **({} if finished.forced is None else {"forced_tokens": finished.forced}),
            **({} if energy is None else _energy_fields(energy)),
        },
        timings={
            "queued": round(waited, 4),
            "first_token": round(waited + finished.first_token - finished.started, 4),
            "total": round(waited + finished.ended - finished.started, 4),
        },
        tokens_per_second=speed(finished) or None,
        attempts=attempts,
        received=format_time(received),
        started=format_time(now - (finished.ended - finished.started)),
        finished=format_time(now),
        deadline_judged=None if deadline_judged else False,
    )


def _energy_fields(energy: JobEnergy) -> dict[str, Any]:
    return {"energy_joules": round(energy.joules, 3), "energy_source": energy.source}


def _logprobs(finished: Finished) -> dict[str, Any] | None:
    """The probabilities of tokens as OpenAI has them; None where none were asked for."""
    if finished.logprobs is None:
        return None
    content = [
        {**_logprob(place.chosen), "top_logprobs": [_logprob(one) for one in place.top]} for place in finished.logprobs
    ]
    return {"content": content}


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    token = one.bytes.decode("utf-8", "replace")
    return {"token": token, "logprob": round(one.logprob, 6), "bytes": list(one.bytes)}


def _ranking(finished: Finished) -> list[dict[str, Any]] | None:
    """The documents by score, the best first; None where none were ranked."""
    if finished.scores is None:
        return None
    order = sorted(enumerate(finished.scores), key=lambda ranked: -ranked[1])
    return [{"index": index, "score": round(score, 6)} for index, score in order]


def _probabilities(job: Job, finished: Finished) -> dict[str, float] | None:
    """Each label of a choice with its probability."""
    if finished.probabilities is None or job.response_format is None:
        return None
    return {
        label: round(probability, 6)
        for label, probability in zip(job.response_format.choice or (), finished.probabilities, strict=True)
    }


def too_large(document: bytes) -> bytes:
    """The result in place of `document`, which the broker does not take: without answer and metadata."""
    result = json.loads(document)
    message = (
        f"the result has {len(document)} bytes, more than the broker takes: ask for fewer tokens, send less metadata, "
        "or raise the broker's limit"
    )
    kept = ("attempts", "received", "started", "finished", "usage")
    return result_document(
        result["id"],
        result["device"],
        State.FAILED,
        model=result.get("model"),
        error=(Code.RESULT_TOO_LARGE, message),
        **{name: result.get(name) for name in kept},
    )


def can_shrink(document: bytes) -> bool:
    """Whether `too_large` makes this result smaller, and has not made it."""
    error = json.loads(document).get("error") or {}
    return error.get("code") != Code.RESULT_TOO_LARGE and len(too_large(document)) < len(document)


def without_answer(
    queued: Queued,
    reason: Reason,
    *,
    device: str,
    model: str | None,
    metadata: dict[str, Any] | None,
    attempts: int,
    now: float,
) -> bytes:
    """The result of a job that ends without an answer; `now` is wall-clock seconds."""
    return result_document(
        queued.id,
        device,
        reason.state,
        model=model,
        error=(reason.code, reason.message),
        metadata=metadata,
        attempts=attempts,
        received=format_time(queued.received.wall),
        finished=format_time(now),
    )
