"""The job document and the result document: what may stand in them."""

from __future__ import annotations

import json
import re
import uuid
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from edged.jobs import response_format
from edged.jobs import tools as tools_field
from edged.jobs.messages import MAX_MESSAGES, Message, check_messages
from edged.jobs.ranking import DOCUMENTS_ALLOWED, GO_TOGETHER, INSTRUCTION, MAX_DOCUMENTS, check_documents
from edged.jobs.refusals import refuse
from edged.jobs.response_format import ResponseFormat
from edged.jobs.tools import NamedTool, Tool
from edged.machine.clock import TIME_ALLOWED, parse_time
from edged.mqtt.topics import ID_ALLOWED, is_id
from edged.settings import template_kwargs

MAX_BIASES = 1024
MAX_STOPS = 16
MAX_STOP_IDS = 256
MAX_TTL = 10 * 365 * 86400
"""Seconds."""
_STOP_ALLOWED = f"text or a list of up to {MAX_STOPS} texts, each of 1 to 256 characters"
_STOP_IDS_ALLOWED = f"a list of up to {MAX_STOP_IDS} token ids"
_BIAS_ALLOWED = (
    f'an object of up to {MAX_BIASES} token ids with what is added to their logits, -100 to 100, such as {{"42": -100}}'
)
_OF_TOKENS = "top_p top_k min_p repetition_penalty presence_penalty frequency_penalty logit_bias logprobs".split()
"""Fields for how tokens are chosen; a choice draws a label."""
_TURN = '{"role": "user", "content": "…"}'
EXAMPLE = f'{{"id": "a", "messages": [{_TURN}]}}'


class Code(str, Enum):
    """Error codes of a result document."""

    INVALID_JOB = "invalid_job"
    ID_CONFLICT = "id_conflict"
    TOO_LARGE = "too_large"
    CONTEXT_EXCEEDED = "context_exceeded"
    UNSUPPORTED = "unsupported"
    MODEL_MISMATCH = "model_mismatch"
    MODEL_UNAVAILABLE = "model_unavailable"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CRASH_LOOP = "crash_loop"
    RESULT_TOO_LARGE = "result_too_large"
    INTERNAL = "internal"


class State(str, Enum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class JobError(ValueError):
    """A job that is refused. `id` is its id where one could be read; the message says what would be right."""

    def __init__(self, code: Code, message: str, id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.id = id


def _whole(value: object) -> object:
    """Read a whole number that is written as 5.0: JSON has one kind of number, and so have some senders."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63 else value


_WHOLE = BeforeValidator(_whole)
"""Stands after the bounds: those that follow a validator are missing in the JSON schema."""


class Cache(BaseModel):
    """What the job wants of the prefix cache."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    pin: bool = Field(default=False, description="keep the prompt's prefix on disk from now on")


class Job(BaseModel):
    """A job document. Field names are OpenAI's where one exists."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    id: str | None = Field(
        default=None,
        description=f"{ID_ALLOWED}; may be absent where the message has a Response Topic and Correlation Data",
        json_schema_extra={"allowed": ID_ALLOWED},
    )
    messages: list[Message] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MESSAGES,
        description="a chat, rendered by the package's template",
        json_schema_extra={"allowed": f"a list of 1 to {MAX_MESSAGES} turns such as {_TURN}"},
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description="variables for the chat template, beside those of the setting model.chat_template_kwargs",
        json_schema_extra={"allowed": template_kwargs.ALLOWED},
    )
    continue_final_message: bool = Field(
        default=False, description="the answer continues the last message, which is the assistant's"
    )
    prompt: str | list[Annotated[int, _WHOLE]] | None = Field(
        default=None,
        description="in place of messages: text without a template, or exactly these token ids",
        json_schema_extra={"allowed": "text or a list of token ids"},
    )
    query: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        default=None, description="what the documents are ranked for", json_schema_extra={"allowed": "text"}
    )
    documents: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_DOCUMENTS,
        description="in place of messages: texts to rank by whether they answer the query",
        json_schema_extra={"allowed": DOCUMENTS_ALLOWED},
    )
    instruction: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        default=None,
        description=f"what to ask of each document, to be answered with yes or no; default: {INSTRUCTION}",
        json_schema_extra={"allowed": "text that is not empty"},
    )
    max_tokens: Annotated[int, Field(ge=1, le=1 << 24), _WHOLE] = Field(
        default=256,
        validation_alias=AliasChoices("max_tokens", "max_completion_tokens"),
        description="most tokens of the answer (alias max_completion_tokens)",
    )
    temperature: float = Field(default=0.0, ge=0.0, le=10.0, allow_inf_nan=False, description="0 is greedy")
    top_p: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="when sampling; default: the package's",
        json_schema_extra={"allowed": "a number above 0 and up to 1"},
    )
    top_k: Annotated[int, Field(ge=0, le=1 << 24), _WHOLE] | None = Field(
        default=None, description="when sampling; default: the package's"
    )
    min_p: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="when sampling: tokens below this share of the best's probability are left out",
    )
    repetition_penalty: float | None = Field(
        default=None,
        ge=0.01,
        le=100.0,
        allow_inf_nan=False,
        description="for tokens of prompt and answer; 1: none; default: the package's",
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2.0, le=2.0, allow_inf_nan=False, description="for tokens that the answer has"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2.0, le=2.0, allow_inf_nan=False, description="for tokens of the answer, each time anew"
    )
    logit_bias: dict[str, Any] | None = Field(
        default=None,
        description="what is added to the logits of token ids",
        json_schema_extra={"allowed": _BIAS_ALLOWED},
    )
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1), _WHOLE] | None = Field(
        default=None, description="when sampling; default: derived from the id"
    )
    stop: str | list[str] | None = Field(
        default=None,
        description=f"up to {MAX_STOPS} texts that end the answer and are not part of it",
        json_schema_extra={"allowed": _STOP_ALLOWED},
    )
    stop_token_ids: list[Annotated[int, Field(ge=0), _WHOLE]] | None = Field(
        default=None,
        max_length=MAX_STOP_IDS,
        description=f"up to {MAX_STOP_IDS} token ids that end the answer and are not part of its text",
        json_schema_extra={"allowed": _STOP_IDS_ALLOWED},
    )
    tools: list[Tool] | None = Field(
        default=None,
        min_length=1,
        max_length=tools_field.MAX_TOOLS,
        description="tools that the model may call",
        json_schema_extra={"allowed": tools_field.TOOLS_ALLOWED},
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None,
        description="none: no call; auto (default): text or calls; required: calls; a tool: one call of it",
        json_schema_extra={"allowed": tools_field.CHOICE_ALLOWED},
    )
    response_format: ResponseFormat | None = Field(
        default=None,
        description="the structure that the answer must have",
        json_schema_extra={"allowed": response_format.ALLOWED},
    )
    logprobs: bool = Field(default=False, description="put the probability of each token of the answer in the result")
    top_logprobs: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = Field(
        default=None, description="with logprobs: so many of the likeliest tokens at each place"
    )
    stream: bool = Field(default=False, description="send pieces of the answer as it is made")
    priority: Annotated[int, Field(ge=0, le=9), _WHOLE] = Field(default=5, description="0 to 9, higher first")
    store: bool = Field(default=True, description="false: nothing is kept once the result is delivered")
    cache: Cache | None = Field(
        default=None,
        description='{"pin": true} keeps the prompt\'s prefix on disk, where the device allows it',
        json_schema_extra={"allowed": 'an object, {"pin": true}'},
    )
    metadata: dict[str, Any] | None = Field(
        default=None, description="returned untouched in the result", json_schema_extra={"allowed": "an object"}
    )
    model: str | None = Field(
        default=None,
        max_length=256,
        description="refused where this is not the model's name",
        json_schema_extra={"allowed": "a name of up to 256 characters"},
    )
    ttl: float | None = Field(
        default=None,
        gt=0.0,
        le=MAX_TTL,
        allow_inf_nan=False,
        description="seconds from receipt",
        json_schema_extra={"allowed": f"a number of seconds above 0 and up to {MAX_TTL}"},
    )
    deadline: str | None = Field(
        default=None,
        description="RFC 3339; judged only while the clock is synchronised",
        json_schema_extra={"allowed": TIME_ALLOWED},
    )
    return_token_ids: bool = Field(default=False, description="put the answer's token ids in the result")
    ignore_eos: bool = Field(default=False, description="go on to max_tokens; for tests and benchmarks")

    @model_validator(mode="before")
    @classmethod
    def _one_limit(cls, value: Any) -> Any:
        if isinstance(value, dict) and {"max_tokens", "max_completion_tokens"} <= value.keys():
            refuse("max_completion_tokens", "stands there beside its other name max_tokens: send one of them")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        if self.id is not None and not is_id(self.id):
            refuse("id", f"must be {ID_ALLOWED}")
        check_documents(self.query, self.documents, self.instruction)
        if self.documents is not None:
            self._check_ranking()
        if self.messages is None and self.prompt is None and self.documents is None:
            refuse("messages", f"or prompt must be there, such as {EXAMPLE}")
        if self.messages is not None and self.prompt is not None:
            refuse("messages", "and prompt are both there: send one of them")
        if isinstance(self.prompt, (str, list)) and not self.prompt:
            refuse("prompt", "must not be empty")
        if len(self.stops) > MAX_STOPS or not all(1 <= len(stop) <= 256 for stop in self.stops):
            refuse("stop", f"must be {_STOP_ALLOWED}")
        if self.logit_bias is not None and not _is_bias(self.logit_bias):
            refuse("logit_bias", f"must be {_BIAS_ALLOWED}")
        self._check_structure()
        self._check_chat()
        if self.top_logprobs is not None and not self.logprobs:
            refuse("top_logprobs", "needs logprobs: true beside it")
        if self.deadline is not None:
            try:
                parse_time(self.deadline)
            except ValueError as error:
                refuse("deadline", str(error))
        return self

    def _check_ranking(self) -> None:
        """Refuse what has no meaning without an answer."""
        for field, told in type(self).model_fields.items():
            if field not in GO_TOGETHER and getattr(self, field) != told.get_default():
                refuse(field, "does not go with documents, which are ranked in place of an answer")

    def _check_structure(self) -> None:
        """Refuse what would end a structured answer where its structure does not."""
        structured = self.response_format is not None and self.response_format.type != "text"
        unfit: tuple[str, ...] = ("stop", "stop_token_ids", "ignore_eos") if structured or self.offered else ()
        beside = "tools"
        if self.response_format is not None and structured:
            beside = f"a response_format of type {self.response_format.type!r}"
            unfit += tuple(_OF_TOKENS) if self.response_format.type == "choice" else ()
        if self.offered:
            unfit += ("continue_final_message", *(("response_format",) if structured else ()))
        for field in unfit:
            if getattr(self, field) not in (None, False, 0, [], {}):
                refuse(field, f"does not go with {'tools' if field == 'response_format' else beside}")

    def _check_chat(self) -> None:
        """Refuse what a chat template cannot be given."""
        check_messages(self.messages or ())
        tools_field.check_tools(self.tools or (), self.tool_choice)
        for field in ("chat_template_kwargs", "continue_final_message", "tools"):
            if getattr(self, field) and self.messages is None and self.documents is None:
                refuse(field, "is for messages, which a chat template renders: leave it out beside prompt")
        wrong = template_kwargs.refusal(self.chat_template_kwargs or {})
        if wrong is not None:
            refuse("chat_template_kwargs", wrong)
        if self.continue_final_message and self.messages is not None:
            last = self.messages[-1]
            if last.role != "assistant" or (last.foreign_part is None and not last.text.strip()):
                refuse("continue_final_message", "needs a last message of role assistant that says something")

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Token ids with what is added to their logits."""
        return tuple((int(token), float(bias)) for token, bias in (self.logit_bias or {}).items())

    @property
    def deadline_time(self) -> float | None:
        """The deadline as Unix time in seconds."""
        return None if self.deadline is None else parse_time(self.deadline)


def _is_bias(value: dict[str, Any]) -> bool:
    return len(value) <= MAX_BIASES and all(
        re.fullmatch(r"0|[1-9][0-9]{0,8}", token)
        and isinstance(bias, (int, float))
        and not isinstance(bias, bool)
        and -100 <= bias <= 100
        for token, bias in value.items()
    )


def invalid_id() -> str:
    """An id to answer a payload under that has none that can be used."""
    return f"invalid-{uuid.uuid4().hex}"


def result_document(
    id: str,
    device: str,
    state: State,
    *,
    model: str | None = None,
    error: tuple[Code, str] | None = None,
    metadata: dict[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """A result document as it goes on the wire. `fields` holds what only some results have; None is left out."""
    document: dict[str, Any] = {"id": id, "device": device, "model": model, "state": state.value}
    document.update(fields)
    if error is not None:
        document["error"] = {"code": error[0].value, "message": error[1]}
    document["metadata"] = metadata
    return json.dumps({k: v for k, v in document.items() if v is not None}, ensure_ascii=False).encode()
