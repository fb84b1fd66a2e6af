"""Turns a job into the engine's request: its prompt in tokens, its limits checked against the model that serves."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import structlog

from edged.engine.sampler import Sampling
from edged.engine.scheduler import Request
from edged.engine.serving import Serving
from edged.engine.template import TemplateFaultError, TemplateRefusalError
from edged.engine.tokenizer import PromptError
from edged.jobs.document import Code, Job, JobError

log = structlog.get_logger(__name__)


def prepare(job: Job, key: int, id: str, serving: Serving, received: float = 0.0) -> Request:
    """The request for `job`, `received` as in Request. Raises JobError where this model cannot run it."""
    if job.model is not None and job.model != serving.package.name:
        raise JobError(
            Code.MODEL_MISMATCH,
            f"the job wants model {job.model!r}, this device serves {serving.package.name!r}",
            id,
        )
    prompt = _encode(job, id, serving)
    if len(prompt) + job.max_tokens > serving.context:
        raise JobError(
            Code.CONTEXT_EXCEEDED,
            f"the prompt has {len(prompt)} tokens and max_tokens is {job.max_tokens}, together more than this device's "
            f"context of {serving.context}: shorten the prompt or lower max_tokens",
            id,
        )
    defaults = serving.package.search
    return Request(
        key=key,
        prompt=tuple(prompt),
        max_tokens=job.max_tokens,
        sampling=Sampling(
            temperature=job.temperature,
            top_p=defaults.top_p if job.top_p is None else job.top_p,
            top_k=defaults.top_k if job.top_k is None else job.top_k,
            seed=derived_seed(id) if job.seed is None else job.seed,
            repetition_penalty=defaults.repetition_penalty,
        ),
        stop=job.stops,
        priority=job.priority,
        received=received,
        stream=job.stream,
        ignore_eos=job.ignore_eos,
        store=job.store,
        pin=job.cache is not None and job.cache.pin,
    )


def pinned(texts: Sequence[str], serving: Serving, key: int) -> Iterator[Request]:
    """Requests that read instructions as jobs will begin with them, each one token long, from `key` downwards.

    What such jobs share is what two chats with the same system message and other questions have in common; where the
    template knows no system messages, the beginning of the user's.
    """
    for number, text in enumerate(texts):
        try:
            tokens = _shared(text, serving)
        except (PromptError, TemplateRefusalError, TemplateFaultError) as error:
            log.warning("pinned_instruction_refused", number=number + 1, reason=str(error))
            continue
        if len(tokens) >= serving.context:
            log.warning("pinned_instruction_refused", number=number + 1, reason="it is longer than the context")
            continue
        yield Request(key=key - number, prompt=tuple(tokens), max_tokens=1, priority=9, pin=True)


def _shared(text: str, serving: Serving) -> list[int]:
    def ask(question: str, system: bool) -> list[int]:
        first = [{"role": "system", "content": text}] if system else []
        content = question if system else f"{text}{question}"
        return serving.tokenizer.encode_messages([*first, {"role": "user", "content": content}])

    try:
        one, other = ask("a", True), ask("0", True)
    except TemplateRefusalError:
        one, other = ask("a", False), ask("0", False)
    return [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def derived_seed(id: str) -> int:
    """The seed of a job that gives none: from its id, so that a run after a crash says the same."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1


def _encode(job: Job, id: str, serving: Serving) -> list[int]:
    tokenizer = serving.tokenizer
    try:
        if job.messages is not None:
            return tokenizer.encode_messages([message.model_dump() for message in job.messages])
        if isinstance(job.prompt, str):
            return tokenizer.encode_text(job.prompt)
        return tokenizer.check_ids(job.prompt or [])
    except PromptError as error:
        raise JobError(Code.INVALID_JOB, str(error), id) from None
    except TemplateRefusalError as error:
        raise JobError(Code.INVALID_JOB, f"the model's chat template refuses these messages: {error}", id) from None
    except TemplateFaultError as error:
        raise JobError(Code.INTERNAL, str(error), id) from None
