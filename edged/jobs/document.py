"""The job document and the result document: what may stand in them, and the words for what may not."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edged.mqtt.topics import ID_ALLOWED, is_id
from edged.settings.keys import allowed

MAX_MESSAGES = 1000
MAX_STOPS = 16
MAX_DEPTH = 64
"""Levels of nesting. Far below what json and pydantic survive, which differs with how deep the stack is already: what
was accepted once must be readable for ever."""
MAX_READ = 4 << 20
"""Bytes. A larger payload is refused unread: parsed, it would take many times its size in memory."""
MAX_FAULTS, MAX_LOOKED = 5, 50
"""What a refusal names, and out of how many: a list of a million wrong items has as many."""
MAX_TTL = 10 * 365 * 86400
"""Seconds."""
_MAX_DIGITS = 300
_STOP_ALLOWED = f"text or a list of up to {MAX_STOPS} texts, each of 1 to 256 characters"
_TIME_ALLOWED = "an RFC 3339 time with its offset, such as 2027-01-31T18:00:00Z"
_TURN = '{"role": "user", "content": "…"}'
_EXAMPLE = f'{{"id": "a", "messages": [{_TURN}]}}'
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


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


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]{1,32}$")] = Field(
        description="who speaks: system, user, assistant, or what the chat template knows",
        json_schema_extra={"allowed": "a word of up to 32 letters, such as system, user or assistant"},
    )
    content: str = Field(description="what is said", json_schema_extra={"allowed": "text"})


class ResponseFormat(BaseModel):
    """A structured answer; read so that its absence from this version can be told apart from a mistake."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    type: Literal["text", "json_schema", "json_object", "regex", "choice"]


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
    prompt: str | list[int] | None = Field(
        default=None,
        description="in place of messages: text without a template, or exactly these token ids",
        json_schema_extra={"allowed": "text or a list of token ids"},
    )
    max_tokens: int = Field(
        default=256,
        ge=1,
        le=1 << 24,
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
    top_k: int | None = Field(default=None, ge=0, le=1 << 24, description="when sampling; default: the package's")
    seed: int | None = Field(
        default=None, ge=0, le=(1 << 63) - 1, description="when sampling; default: derived from the id"
    )
    stop: str | list[str] | None = Field(
        default=None,
        description=f"up to {MAX_STOPS} texts that end the answer and are not part of it",
        json_schema_extra={"allowed": _STOP_ALLOWED},
    )
    response_format: ResponseFormat | None = Field(
        default=None,
        description="structured answers; this version serves {'type': 'text'} only",
        json_schema_extra={"allowed": 'an object, {"type": "text"}'},
    )
    logprobs: int | None = Field(default=None, ge=0, le=20, description="not served by this version")
    stream: bool = Field(default=False, description="send pieces of the answer as it is made")
    priority: int = Field(default=5, ge=0, le=9, description="0 to 9, higher first")
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
        json_schema_extra={"allowed": _TIME_ALLOWED},
    )
    return_token_ids: bool = Field(default=False, description="put the answer's token ids in the result")
    ignore_eos: bool = Field(default=False, description="go on to max_tokens; for tests and benchmarks")

    @model_validator(mode="before")
    @classmethod
    def _one_limit(cls, value: Any) -> Any:
        if isinstance(value, dict) and {"max_tokens", "max_completion_tokens"} <= value.keys():
            _refuse("max_completion_tokens", "stands there beside its other name max_tokens: send one of them")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        if self.id is not None and not is_id(self.id):
            _refuse("id", f"must be {ID_ALLOWED}")
        if self.messages is None and self.prompt is None:
            _refuse("messages", f"or prompt must be there, such as {_EXAMPLE}")
        if self.messages is not None and self.prompt is not None:
            _refuse("messages", "and prompt are both there: send one of them")
        if isinstance(self.prompt, (str, list)) and not self.prompt:
            _refuse("prompt", "must not be empty")
        if len(self.stops) > MAX_STOPS or not all(1 <= len(stop) <= 256 for stop in self.stops):
            _refuse("stop", f"must be {_STOP_ALLOWED}")
        if self.deadline is not None:
            parse_time(self.deadline)
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def deadline_time(self) -> float | None:
        """The deadline as Unix time in seconds."""
        return None if self.deadline is None else parse_time(self.deadline)


@dataclass(frozen=True)
class Submission:
    """A job as it came: checked, with its id, and the digest that tells a repeat from a conflict."""

    id: str
    job: Job
    canonical: bytes
    digest: bytes


def parse_time(text: str) -> float:
    """Unix time of an RFC 3339 date-time."""
    if not _RFC3339.fullmatch(text):
        _refuse("deadline", f"must be {_TIME_ALLOWED}")
    try:
        # Python 3.10 knows neither Z nor more than six digits of a second.
        return datetime.fromisoformat(
            re.sub(r"(\.\d{1,6})\d*", lambda m: m[1].ljust(7, "0"), text.upper()).replace("Z", "+00:00")
        ).timestamp()
    except (ValueError, OverflowError):
        _refuse("deadline", "is not a time that exists")


def format_time(moment: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def derived_id(response_topic: str, correlation: bytes) -> str:
    """The id of a job that gives none: the same for every redelivery of its message."""
    name = response_topic.encode("utf-8", "surrogatepass") + b"\0" + correlation
    return "r-" + hashlib.sha256(name).hexdigest()[:32]


def invalid_id() -> str:
    """An id to answer a payload under that has none that can be used."""
    return f"invalid-{uuid.uuid4().hex}"


def read_submission(
    payload: bytes, limit: int, response_topic: str | None = None, correlation: bytes | None = None
) -> Submission:
    """Check a job message's payload (`limit` in bytes) and give it its id. Raises JobError."""
    fallback = derived_id(response_topic, correlation) if response_topic and correlation else None
    if len(payload) > max(limit, MAX_READ):
        raise JobError(Code.TOO_LARGE, _too_large(payload, limit), fallback)
    document = _read_object(payload, fallback)
    given = document.get("id")
    id = fallback if given is None else given if isinstance(given, str) and is_id(given) else None
    if len(payload) > limit:
        raise JobError(Code.TOO_LARGE, _too_large(payload, limit), id)
    try:
        canonical = canonical_json(document)
        job = Job.model_validate(document)
    except UnicodeEncodeError:
        raise JobError(Code.INVALID_JOB, "a text holds a lone surrogate, which no UTF-8 can carry", id) from None
    except ValidationError as error:
        raise JobError(Code.INVALID_JOB, explain(error), id) from None
    if id is None:
        raise JobError(
            Code.INVALID_JOB,
            "id must be there, or the message must have a Response Topic and Correlation Data",
        )
    if job.response_format is not None and job.response_format.type != "text":
        raise JobError(
            Code.UNSUPPORTED,
            f"response_format {job.response_format.type!r} is not served by this version: leave it out",
            id,
        )
    if job.logprobs is not None:
        raise JobError(Code.UNSUPPORTED, "logprobs are not served by this version: leave them out", id)
    return Submission(id, job, canonical, hashlib.sha256(canonical).digest())


def canonical_json(document: object) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8. Raises UnicodeEncodeError for a lone surrogate."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def explain(error: ValidationError) -> str:
    """A validation error as one line: the first fields, what each must be, and what it is."""
    found: dict[str, tuple[int, str]] = {}
    for detail in error.errors(include_url=False)[:MAX_LOOKED]:
        if detail["type"] == "edged":
            found[""] = 0, detail["msg"]
            continue
        # Members of a union stand in `loc` like fields: str, list[int], list[str]. What is below them is one field.
        parts = [str(part) for part in detail["loc"]]
        where = ".".join(part for part in parts if part not in _UNION_TAGS)
        field = ".".join(itertools.takewhile(lambda part: part not in _UNION_TAGS, parts))
        field = re.sub(r"\.\d+$", "", field)
        if detail["type"] == "extra_forbidden":
            told = _unknown(parts)
        elif detail["type"] == "missing":
            told = f"{where} is missing: it must be {_ALLOWED[parts[-1]]}"
        else:
            value, is_ = detail["input"], "is" if where == field else f"but {where} is"
            shown = _shown(value) if detail["type"] == "literal_error" and isinstance(value, str) else _what(value)
            told = f"{field} must be {_ALLOWED[field.rpartition('.')[2]]}, {is_} {shown}"
        # Of a union's members the one that was read furthest was meant.
        if field not in found or found[field][0] < len(parts):
            found[field] = len(parts), told
    return "; ".join(told for _, told in list(found.values())[:MAX_FAULTS])[:1000]


def _unknown(parts: list[str]) -> str:
    owner = parts[0] if len(parts) > 1 else ""
    near = difflib.get_close_matches(parts[-1], _FIELDS[owner], 1)
    place = f" in {'.'.join(parts[:-1])}" if len(parts) > 1 else ""
    return f"unknown field {_shown(parts[-1])}{place}" + (f"; did you mean {near[0]!r}?" if near else ": leave it out")


def _what(value: object) -> str:
    """A value's kind, and itself where it is a number: a text may be private."""
    if isinstance(value, str):
        return f"text of {len(value)} characters" if len(value) > 80 else "text"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return "an object" if isinstance(value, dict) else json.dumps(value)[:40]


_UNION_TAGS = ("str", "list[int]", "list[str]")
_FIELDS = {"": Job.model_fields, "messages": Message.model_fields, "cache": Cache.model_fields}
"""The fields that may stand in the document, and in a field of it."""
_ALLOWED = {
    name: allowed(schema)
    for model in (Job, Message, ResponseFormat, Cache)
    for name, schema in model.model_json_schema()["properties"].items()
}
_ALLOWED["max_completion_tokens"] = _ALLOWED["max_tokens"]


def _refuse(field: str, reason: str) -> NoReturn:
    raise PydanticCustomError("edged", "{text}", {"text": f"{field} {reason}"})


def _too_large(payload: bytes, limit: int) -> str:
    return f"the job has {len(payload)} bytes, this device takes up to {limit}"


def _read_object(payload: bytes, id: str | None) -> dict[str, Any]:
    try:
        document = json.loads(
            payload.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        reason = f"the payload is not UTF-8: {error.reason} at byte {error.start}"
    except RecursionError:
        reason = _TOO_DEEP
    except json.JSONDecodeError as error:
        reason = f"the payload is {_not_json(error)}: send an object such as {_EXAMPLE}"
    except ValueError as error:
        reason = str(error)
    else:
        if isinstance(document, dict) and _deeper_than(document, MAX_DEPTH):
            reason = _TOO_DEEP
        elif isinstance(document, dict):
            return document
        else:
            reason = f"the payload must be a JSON object such as {_EXAMPLE}, is {_what(document)}"
    raise JobError(Code.INVALID_JOB, reason, id) from None


_TOO_DEEP = f"the payload is nested too deeply: up to {MAX_DEPTH} levels are taken"


def _not_json(error: json.JSONDecodeError) -> str:
    if not error.doc.strip():
        return "empty"
    return f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno} column {error.colno}"


def _deeper_than(document: object, levels: int) -> bool:
    """Whether `document` has more levels; level by level, since recursion is what is to be feared."""
    level = [document]
    for _ in range(levels):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {_shown(twice)} stands there twice: send it once")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is beyond what a number can be, at most about 1.8e308")
    return number


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits: up to {_MAX_DIGITS} are taken")
    return int(text)


def _shown(name: str) -> str:
    """A name of the sender's for a message: quoted, escaped, cut."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


@dataclass(frozen=True)
class Usage:
    """Tokens of a job."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


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
