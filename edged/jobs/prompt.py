"""Turns a job into the engine's request: its prompt in tokens, its limits checked against the model that serves.

On a thread of its own: a chat template from outside may take seconds, a tokenizer too, and nobody else should wait.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from edged.engine.loaded_model import LoadedModel
from edged.engine.sampler import Sampling
from edged.engine.sequence import Request
from edged.engine.template import TemplateFaultError, TemplateRefusalError
from edged.engine.tokenizer import PromptError
from edged.jobs.document import Code, Job, JobError

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What became of a job (`key`: its number) that was prepared for `serving`: a request, or why there is none."""

    key: int
    loaded: LoadedModel
    outcome: Request | JobError


class Preparer:
    """Prepares one job after another; what comes of each goes to `deliver`, called on the thread."""

    def __init__(self, deliver: Callable[[Prepared], None]) -> None:
        self._deliver = deliver
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="preparer", daemon=True)
        self.busy_since: float | None = None
        """When the work that is under way began (CLOCK_MONOTONIC), None between. Any thread may read."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after its work."""
        self._work.put(None)

    def submit(self, job: Job, key: int, id: str, loaded: LoadedModel, received: float) -> None:
        """Prepare a job; arguments as for prepare()."""
        self._work.put(lambda: self._deliver(Prepared(key, loaded, _outcome(job, key, id, loaded, received))))

    def pin(self, texts: Sequence[str], loaded: LoadedModel, key: int, submit: Callable[[Request], None]) -> None:
        """Prepare pinned instructions, as for pinned(), and give each to `submit`, called on the thread."""

        def work() -> None:
            for request in pinned(texts, loaded, key):
                submit(request)

        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self.busy_since = time.monotonic()
            work()
            self.busy_since = None


def _outcome(job: Job, key: int, id: str, loaded: LoadedModel, received: float) -> Request | JobError:
    try:
        return prepare(job, key, id, loaded, received)
    except JobError as error:
        return error
    except Exception as error:  # raised again after every start, it would keep the daemon down for good
        kind = type(error).__name__  # its text may hold the prompt
        log.error("job_unpreparable", job=id, error=kind)
        return JobError(Code.INTERNAL, f"preparing the prompt failed: {kind}", id)


def prepare(job: Job, key: int, id: str, loaded: LoadedModel, received: float = 0.0) -> Request:
    """The request for `job`, `received` as in Request. Raises JobError where this model cannot run it."""
    if job.model is not None and job.model != loaded.package.name:
        raise JobError(
            Code.MODEL_MISMATCH,
            f"the job wants model {job.model!r}, this device serves {loaded.package.name!r}",
            id,
        )
    prompt = _encode(job, id, loaded)
    if len(prompt) + job.max_tokens > loaded.context:
        raise JobError(
            Code.CONTEXT_EXCEEDED,
            f"the prompt has {len(prompt)} tokens and max_tokens is {job.max_tokens}, together more than this device's "
            f"context of {loaded.context}: shorten the prompt or lower max_tokens",
            id,
        )
    defaults = loaded.package.search
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
        signature=loaded.signature,
    )


def pinned(texts: Sequence[str], loaded: LoadedModel, key: int) -> Iterator[Request]:
    """Requests that read instructions as jobs will begin with them, each one token long, from `key` downwards.

    What such jobs share is what two chats with the same system message and other questions have in common; where the
    template knows no system messages, the beginning of the user's.
    """
    for number, text in enumerate(texts):
        try:
            tokens = _shared(text, loaded)
        except Exception as error:  # whatever a template or a tokenizer from outside comes up with
            log.warning("pinned_instruction_refused", number=number + 1, reason=str(error))
            continue
        if len(tokens) >= loaded.context:
            log.warning("pinned_instruction_refused", number=number + 1, reason="it is longer than the context")
            continue
        yield Request(key=key - number, prompt=tuple(tokens), max_tokens=1, priority=9, pin=True)


def _shared(text: str, loaded: LoadedModel) -> list[int]:
    def ask(question: str, system: bool) -> list[int]:
        first = [{"role": "system", "content": text}] if system else []
        content = question if system else f"{text}{question}"
        return loaded.tokenizer.encode_messages([*first, {"role": "user", "content": content}])

    try:
        one, other = ask("a", True), ask("0", True)
    except TemplateRefusalError:
        one, other = ask("a", False), ask("0", False)
    return [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def derived_seed(id: str) -> int:
    """The seed of a job that gives none: from its id, so that a run after a crash says the same."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1


def _encode(job: Job, id: str, loaded: LoadedModel) -> list[int]:
    tokenizer = loaded.tokenizer
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
