"""Prepares requests for the engine: renders and tokenizes a job's prompt, and checks its limits against the model.

It has a thread of its own, since a chat template or a tokenizer from outside may take seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import structlog

import edged
from edged.engine.constraint import Grammar
from edged.engine.grammar import ToolSource
from edged.engine.labels import MAX_NODES, Labels
from edged.engine.loaded_model import LoadedModel
from edged.engine.sampler import Sampling
from edged.engine.schema_form import GrammarError, UnservedGrammarError
from edged.engine.sequence import Request
from edged.engine.template import TemplateFaultError, TemplateRefusalError
from edged.engine.tokenizer import PromptError
from edged.engine.tool_format import ToolChoice
from edged.jobs.document import Code, Job, JobError
from edged.jobs.messages import chat
from edged.jobs.ranking import INSTRUCTION, UnrankableError, messages_about, ranking_of
from edged.jobs.tools import NamedTool

log = structlog.get_logger(__name__)

_GIVEN_UP_HINT = (
    "the process crashed too often while it ran this instruction of cache.pinned alone; it is tried again once its "
    "text, the model or edged is another"
)


@dataclass(frozen=True)
class Prepared:
    """The request of a job or a pinned prompt (number below zero), prepared for `loaded`, or why there is none."""

    number: int
    loaded: LoadedModel
    outcome: Request | JobError


@dataclass(frozen=True)
class PreparerStatus:
    """The preparer at one moment."""

    number: int | None = None
    """The number of the prompt that is being prepared; so one that never ends, or crashes the process, can be named."""
    busy_since: float | None = None
    """When its preparation began (CLOCK_MONOTONIC seconds), None between two prompts."""


class Preparer:
    """Prepares one prompt after another; each result goes to `deliver`, called on the thread."""

    def __init__(self, deliver: Callable[[Prepared], None]) -> None:
        self._deliver = deliver
        self._work: queue.SimpleQueue[Callable[[], Iterator[Prepared]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="preparer", daemon=True)
        self.status = PreparerStatus()
        """The newest snapshot. Any thread may read it."""

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

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread; whether it came within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, job: Job, number: int, id: str, loaded: LoadedModel, received: float) -> None:
        """Prepare a job; arguments as for prepare()."""

        def work() -> Iterator[Prepared]:
            self._begin(number)
            yield Prepared(number, loaded, _outcome(job, number, id, loaded, received))

        self._work.put(work)

    def pin(self, texts: Sequence[str], loaded: LoadedModel, given_up: Container[int]) -> None:
        """Prepare pinned instructions, so that the model has read them before a job needs them.

        `given_up`: numbers of those that must not run again. Refused instructions are logged and skipped.
        """

        def work() -> Iterator[Prepared]:
            for place, text in enumerate(texts, 1):
                number = pinned_number(text, loaded.package.name)
                self._begin(number)
                if number in given_up:
                    log.warning("pinned_instruction_given_up", number=place, hint=_GIVEN_UP_HINT)
                elif (request := pinned(text, place, number, loaded)) is not None:
                    yield Prepared(number, loaded, request)

        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            for prepared in work():
                self._deliver(prepared)
            self.status = PreparerStatus()

    def _begin(self, number: int) -> None:
        self.status = PreparerStatus(number, time.monotonic())


def _outcome(job: Job, number: int, id: str, loaded: LoadedModel, received: float) -> Request | JobError:
    try:
        return prepare(job, number, id, loaded, received)
    except JobError as error:
        return error
    except Exception as error:  # raised again after every start, it would keep the daemon down for good
        kind = type(error).__name__  # its text may hold the prompt
        log.error("job_unpreparable", job=id, error=kind)
        return JobError(Code.INTERNAL, f"preparing the prompt failed: {kind}", id)


def prepare(job: Job, number: int, id: str, loaded: LoadedModel, received: float = 0.0) -> Request:
    """The request for `job`, `received` as in Request. Raises JobError where this model cannot run it."""
    if job.model is not None and job.model != loaded.package.name:
        raise JobError(
            Code.MODEL_MISMATCH,
            f"the job wants model {job.model!r}, this device serves {loaded.package.name!r}",
            id,
        )
    if job.documents is not None:
        return _rank(job, number, id, loaded, received)
    prompt = _encode(job, id, loaded)
    if len(prompt) + job.max_tokens > loaded.context:
        raise JobError(
            Code.CONTEXT_EXCEEDED,
            f"the prompt has {len(prompt)} tokens and max_tokens is {job.max_tokens}, together more than this device's "
            f"context of {loaded.context}: shorten the prompt or lower max_tokens",
            id,
        )
    defaults = loaded.package.search
    continued = job.prompt is not None or job.continue_final_message
    return Request(
        key=number,
        prompt=tuple(prompt),
        max_tokens=job.max_tokens,
        sampling=Sampling(
            temperature=job.temperature,
            top_p=defaults.top_p if job.top_p is None else job.top_p,
            top_k=defaults.top_k if job.top_k is None else job.top_k,
            seed=derived_seed(id) if job.seed is None else job.seed,
            repetition_penalty=(
                defaults.repetition_penalty if job.repetition_penalty is None else job.repetition_penalty
            ),
            presence_penalty=job.presence_penalty,
            frequency_penalty=job.frequency_penalty,
            min_p=job.min_p,
            logit_bias=_biases(job, id, loaded),
        ),
        stop=job.stops,
        stop_tokens=_stop_tokens(job, id, loaded),
        priority=job.priority,
        received=received,
        stream=job.stream,
        ignore_eos=job.ignore_eos,
        continued=continued,
        grammar=_grammar(job, id, loaded, prompt if continued else []) or _tools_grammar(job, id, loaded),
        labels=_labels(job, id, loaded, prompt if continued else []),
        store=job.store,
        pin=job.cache is not None and job.cache.pin,
        tools=loaded.tokenizer.tools if job.offered else None,
        top_logprobs=(job.top_logprobs or 0) if job.logprobs else None,
        signature=loaded.signature,
    )


def _rank(job: Job, number: int, id: str, loaded: LoadedModel, received: float) -> Request:
    """The request of a job that ranks documents."""
    query, instruction = job.query or "", job.instruction or INSTRUCTION
    if loaded.tokenizer.chat is None or "refuses" in loaded.tokenizer.chat:
        raise JobError(
            Code.UNSUPPORTED, "ranking needs a chat template, and the model's package has none that works", id
        )
    prompts = []
    for at, document in enumerate(job.documents or ()):
        with _refusals(id):
            about = messages_about(document, query, instruction)
            prompts.append(loaded.tokenizer.encode_messages(about, job.chat_template_kwargs))
        # At once: a query that is too long by itself would be read anew with each of a hundred documents.
        if len(prompts[at]) > loaded.context:
            reason = (
                f"documents.{at} with instruction and query has {len(prompts[at])} tokens, more than this device's "
                f"context of {loaded.context}: shorten it or them, and others as long"
            )
            raise JobError(Code.CONTEXT_EXCEEDED, reason, id)
    try:
        begun, ranking = ranking_of(prompts, loaded)
    except UnrankableError as error:
        raise JobError(Code.UNSUPPORTED, f"ranking is not served with this model: {error}", id) from None
    return Request(
        key=number,
        prompt=begun,
        max_tokens=max(map(len, ranking.documents)),
        priority=job.priority,
        received=received,
        ranking=ranking,
        store=job.store,
        pin=job.cache is not None and job.cache.pin,
        signature=loaded.signature,
    )


def pinned(text: str, place: int, number: int, loaded: LoadedModel) -> Request | None:
    """A request, one token long, that reads the tokens with which jobs begin that use this instruction.

    These are the tokens that two chats with the same system message and different questions share. `place` in the
    settings' list, from 1, is what a warning names if the instruction is refused; then None is returned.
    """
    try:
        tokens = _shared(text, loaded)
    except Exception as error:  # a template or a tokenizer from outside may raise anything
        log.warning("pinned_instruction_refused", number=place, reason=str(error))
        return None
    if len(tokens) >= loaded.context:
        log.warning("pinned_instruction_refused", number=place, reason="it is longer than the context")
        return None
    return Request(key=number, prompt=tuple(tokens), max_tokens=1, priority=9, pin=True, signature=loaded.signature)


def pinned_number(text: str, model: str) -> int:
    """The number of a pinned instruction: below zero, the same after a restart, and another for another model or
    version of edged."""
    name = "\0".join((edged.__version__, model, text)).encode("utf-8", "surrogatepass")
    return -1 - int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


def _shared(text: str, loaded: LoadedModel) -> list[int]:
    def ask(question: str) -> list[int]:
        return loaded.tokenizer.encode_messages(
            [{"role": "system", "content": text}, {"role": "user", "content": question}]
        )

    pairs = zip(ask("a"), ask("0"), strict=False)
    return [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def derived_seed(id: str) -> int:
    """The seed of a job that gives none: derived from its id, so that a run after a crash gives the same answer."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1


def _biases(job: Job, id: str, loaded: LoadedModel) -> tuple[tuple[int, float], ...]:
    for token, _ in job.biases:
        if token >= loaded.package.vocabulary:
            raise JobError(
                Code.INVALID_JOB,
                f"logit_bias has token id {token}, which is not in the model's vocabulary of "
                f"{loaded.package.vocabulary}",
                id,
            )
    return job.biases


def _stop_tokens(job: Job, id: str, loaded: LoadedModel) -> frozenset[int]:
    tokens = frozenset(job.stop_token_ids or ())
    above = [token for token in tokens if token >= loaded.package.vocabulary]
    if above:
        reason = f"stop_token_ids: {min(above)} is not in the model's vocabulary of {loaded.package.vocabulary}"
        raise JobError(Code.INVALID_JOB, reason, id)
    return tokens


def _grammar(job: Job, id: str, loaded: LoadedModel, continued: list[int]) -> Grammar | None:
    """The grammar of the job's answer. `continued`: the tokens that the answer continues, none where it begins anew."""
    source = None if job.response_format is None else job.response_format.source
    if source is None:
        return None
    _check_whole(id, loaded, continued)
    try:
        return loaded.grammars.compile(source, bool(continued), job.max_tokens)
    except GrammarError as error:
        raise JobError(Code.INVALID_JOB, f"response_format of type {source.kind!r}: {error}", id) from None
    except UnservedGrammarError as error:
        reason = f"response_format of type {source.kind!r} with this content is not served: {error}"
        raise JobError(Code.UNSUPPORTED, reason, id) from None


def _tools_grammar(job: Job, id: str, loaded: LoadedModel) -> Grammar | None:
    """The grammar of an answer that may call tools; None where the job offers none."""
    offered = job.offered
    format = loaded.tokenizer.tools if offered else None
    if format is None:
        return None
    named = job.tool_choice.function.name if isinstance(job.tool_choice, NamedTool) else None
    schemas = {
        tool.function.name: tool.function.schema_of_arguments for tool in offered if named in (None, tool.function.name)
    }
    must: ToolChoice = "auto" if job.tool_choice in (None, "auto") else "required"
    try:
        return loaded.grammars.compile_tools(ToolSource(format, schemas, must, several=named is None))
    except GrammarError as error:
        raise JobError(Code.INVALID_JOB, f"tools: {error}", id) from None
    except UnservedGrammarError as error:
        raise JobError(Code.UNSUPPORTED, f"tools with these parameters are not served: {error}", id) from None


def _labels(job: Job, id: str, loaded: LoadedModel, continued: list[int]) -> Labels | None:
    """The labels that the job's answer is one of; None where it is no choice. `continued` as for _grammar."""
    texts = None if job.response_format is None else job.response_format.choice
    if texts is None:
        return None
    if not loaded.tokenizer.eos:
        reason = "a choice needs a token that ends an answer, and the model's package names none"
        raise JobError(Code.UNSUPPORTED, reason, id)
    _check_whole(id, loaded, continued)
    tokens = []
    for text in texts:
        spelt = loaded.tokenizer.spell(text, continued)
        if spelt is None:
            reason = f"response_format.choice: this model's tokenizer cannot say {text!a}"
            raise JobError(Code.INVALID_JOB, reason, id)
        if len(spelt) > job.max_tokens:
            reason = f"response_format.choice: {text!a} has {len(spelt)} tokens, max_tokens is {job.max_tokens}"
            raise JobError(Code.INVALID_JOB, reason, id)
        tokens.append(tuple(spelt))
    labels = Labels(tuple(texts), tuple(tokens), tuple(sorted(loaded.tokenizer.eos)))
    if len(labels.nodes) > MAX_NODES:
        reason = f"response_format.choice: the labels have {len(labels.nodes)} different beginnings in tokens, at most "
        raise JobError(Code.INVALID_JOB, f"{reason}{MAX_NODES} are served", id)
    return labels


def _check_whole(id: str, loaded: LoadedModel, continued: list[int]) -> None:
    """Refuse a prompt that ends within a character."""
    if loaded.tokenizer.stream(continued=continued).finish():
        reason = "the prompt ends within a character, which no structured answer can complete"
        raise JobError(Code.INVALID_JOB, reason, id)


def _check_tools_served(id: str, loaded: LoadedModel) -> None:
    if loaded.tokenizer.tools is None:
        reason = (
            "tools are not served with this model: its chat template gives it none, or writes calls in another format "
            "than those of Hermes and Qwen, Llama 3, Mistral, Phi-4 or plain JSON"
        )
        raise JobError(Code.UNSUPPORTED, reason, id)


def _encode(job: Job, id: str, loaded: LoadedModel) -> list[int]:
    tokenizer = loaded.tokenizer
    with _refusals(id):
        if job.messages is not None:
            if job.offered or any(message.tool_calls for message in job.messages):
                _check_tools_served(id, loaded)
            given = job.chat_template_kwargs, job.continue_final_message, [tool.given for tool in job.offered]
            return tokenizer.encode_messages(chat(job.messages), *given)
        if isinstance(job.prompt, str):
            return tokenizer.encode_text(job.prompt)
        return tokenizer.check_ids(job.prompt or [])


@contextlib.contextmanager
def _refusals(id: str) -> Iterator[None]:
    """Turns what goes wrong while a prompt is rendered and tokenized into a JobError."""
    try:
        yield
    except PromptError as error:
        raise JobError(Code.INVALID_JOB, str(error), id) from None
    except TemplateRefusalError as error:
        raise JobError(Code.INVALID_JOB, f"the model's chat template refuses these messages: {error}", id) from None
    except TemplateFaultError as error:
        raise JobError(Code.INTERNAL, str(error), id) from None
