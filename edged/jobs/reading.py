"""Reads a job message's payload into a job, or says what is wrong with it and what would be right."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from edged import strict_json
from edged.jobs import tools
from edged.jobs.document import EXAMPLE, Cache, Code, Job, JobError
from edged.jobs.messages import Message
from edged.jobs.nesting import MAX_DEPTH, deeper_than
from edged.jobs.response_format import JsonSchema, ResponseFormat
from edged.mqtt.topics import is_id
from edged.settings.keys import allowed
from edged.strict_json import shown

MAX_READ = 4 << 20
"""Bytes. A larger payload is refused unread: parsed, it would take many times its size in memory."""
MAX_FAULTS, MAX_LOOKED = 5, 50
"""What a refusal names, and out of how many: a list of a million wrong items has as many."""


@dataclass(frozen=True)
class Submission:
    """A job as it came: checked, with its id, and the digest that tells a repeat from a conflict."""

    id: str
    job: Job
    canonical: bytes
    digest: bytes


def derived_id(response_topic: str, correlation: bytes) -> str:
    """The id of a job that gives none: the same for every redelivery of its message."""
    name = response_topic.encode("utf-8", "surrogatepass") + b"\0" + correlation
    return "r-" + hashlib.sha256(name).hexdigest()[:32]


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
    except UnicodeEncodeError:
        raise JobError(Code.INVALID_JOB, "a text holds a lone surrogate, which no UTF-8 can carry", id) from None
    job = read_job(document, id)
    if id is None:
        raise JobError(
            Code.INVALID_JOB,
            "id must be there, or the message must have a Response Topic and Correlation Data",
        )
    check_served(job, id)
    return Submission(id, job, canonical, hashlib.sha256(canonical).digest())


def read_stored(canonical: bytes, id: str) -> Job:
    """Read the document of a job that was accepted earlier, perhaps by another version of edged.

    Raises JobError where this version does not know, or does not serve, something in it.
    """
    job = read_job(json.loads(canonical), id)
    check_served(job, id)
    return job


def read_job(document: dict[str, Any], id: str | None) -> Job:
    """Check the fields of a job document. Raises JobError."""
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        raise JobError(Code.INVALID_JOB, explain(error), id) from None


def check_served(job: Job, id: str) -> None:
    """Raise JobError for a field that is valid but not served by this version."""
    for place, message in enumerate(job.messages or ()):
        if message.foreign_part is not None:
            raise JobError(
                Code.UNSUPPORTED,
                f"messages.{place}.content has a part of type {shown(message.foreign_part)}: this version serves text",
                id,
            )


def canonical_json(document: object) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8. Raises UnicodeEncodeError for a lone surrogate.

    The keys of a job's response_format and tools stay in their order: an answer has its properties in the schema's.
    """
    if isinstance(document, dict) and not _ORDERED.isdisjoint(document):
        parts = [f"{_compact(name)}:{_compact(document[name], name not in _ORDERED)}" for name in sorted(document)]
        return f"{{{','.join(parts)}}}".encode()
    return _compact(document).encode()


def _compact(value: object, sort_keys: bool = True) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False)


_ORDERED = frozenset({"response_format", "tools"})


def explain(error: ValidationError) -> str:
    """A validation error as one line: the first fields, what each must be, and what it is."""
    found: dict[str, tuple[int, str]] = {}
    for detail in error.errors(include_url=False)[:MAX_LOOKED]:
        if detail["type"] == "edged":
            found[""] = 0, detail["msg"]
            continue
        # Members of a union stand in `loc` like fields: str, list[int]. What is below them is one field.
        parts = [str(part) for part in detail["loc"]]
        where = ".".join(part for part in parts if not _is_union_tag(part))
        field = ".".join(itertools.takewhile(lambda part: not _is_union_tag(part), parts))
        field = re.sub(r"\.\d+$", "", field)
        if detail["type"] == "extra_forbidden":
            told = _unknown(parts)
        elif detail["type"] == "missing":
            told = f"{where} is missing: it must be {_ALLOWED[_path(parts)]}"
        else:
            value, is_ = detail["input"], "is" if where == field else f"but {where} is"
            told_value = shown(value) if detail["type"] == "literal_error" and isinstance(value, str) else _what(value)
            told = f"{field} must be {_ALLOWED[_path(field.split('.'))]}, {is_} {told_value}"
        # Of a union's members the one that was read furthest was meant.
        if field not in found or found[field][0] < len(parts):
            found[field] = len(parts), told
    return "; ".join(told for _, told in list(found.values())[:MAX_FAULTS])[:1000]


def _unknown(parts: list[str]) -> str:
    meant = _meant(parts[-1], _path(parts[:-1]))
    place = f" in {'.'.join(parts[:-1])}" if len(parts) > 1 else ""
    return f"unknown field {shown(parts[-1])}{place}" + (f"; did you mean {meant!r}?" if meant else ": leave it out")


def _meant(name: str, owner: str) -> str | None:
    """The field that an unknown one stands for: its name elsewhere, its beginning, or a slip of the finger."""
    if not owner and name in _ELSEWHERE:
        return _ELSEWHERE[name]
    fields = list(_MODELS[owner].model_fields)
    begun = [field for field in fields if len(name) >= 3 and field.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), fields, 1, 0.8)
    return near[0] if near else None


def _what(value: object) -> str:
    """A value's kind, and itself where it is a number: a text may be private."""
    if isinstance(value, str):
        return f"text of {len(value)} characters" if len(value) > 80 else "text"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return "an object" if isinstance(value, dict) else json.dumps(value)[:40]


def _is_union_tag(part: str) -> bool:
    return part in ("str", "NamedTool") or part.startswith(("list[", "literal["))


def _path(parts: list[str]) -> str:
    """A place in the document without places in lists and members of unions: a key of _MODELS, or a field of one."""
    return ".".join(part for part in parts if not part.isdecimal() and not _is_union_tag(part))


_MODELS: dict[str, type[BaseModel]] = {
    "": Job,
    "messages": Message,
    "messages.tool_calls": tools.ToolCall,
    "messages.tool_calls.function": tools.CalledFunction,
    "tools": tools.Tool,
    "tools.function": tools.Function,
    "tool_choice": tools.NamedTool,
    "tool_choice.function": tools.FunctionName,
    "cache": Cache,
    "response_format": ResponseFormat,
    "response_format.json_schema": JsonSchema,
}
"""The document, and objects in it, by their places."""
_ELSEWHERE: dict[str, str | None] = {
    **dict.fromkeys(
        "max_new_tokens max_output_tokens max_gen_len n_predict num_predict max_length".split(), "max_tokens"
    ),
    **dict.fromkeys("repeat_penalty rep_pen rep_penalty".split(), "repetition_penalty"),
    **dict.fromkeys("stop_sequences stop_strings stop_words".split(), "stop"),
    **dict.fromkeys("enable_thinking template_kwargs".split(), "chat_template_kwargs"),
    **dict.fromkeys("input inputs".split(), "prompt"),
    **dict.fromkeys("request_id job_id".split(), "id"),
    **dict.fromkeys(
        "format json_schema guided_json guided_regex guided_choice guided_grammar structured_outputs".split(),
        "response_format",
    ),
    "random_seed": "seed",
    "functions": "tools",
    "function_call": "tool_choice",
    # What edged has not, though a field of another meaning is called almost so.
    **dict.fromkeys("min_tokens top_a top_n min_k return_tokens stream_options".split()),
}
"""The fields by their names in other servers; None: edged has no such field."""
_ALLOWED = {
    f"{place}.{name}".removeprefix("."): allowed(schema)
    for place, model in _MODELS.items()
    for name, schema in model.model_json_schema()["properties"].items()
}
_ALLOWED["max_completion_tokens"] = _ALLOWED["max_tokens"]


def _too_large(payload: bytes, limit: int) -> str:
    return f"the job has {len(payload)} bytes, this device takes up to {limit}"


def _read_object(payload: bytes, id: str | None) -> dict[str, Any]:
    readable = False
    try:
        document = strict_json.loads(payload.decode())
    except UnicodeDecodeError as error:
        reason = f"the payload is not UTF-8: {error.reason} at byte {error.start}"
    except RecursionError:
        reason = _TOO_DEEP
    except json.JSONDecodeError as error:
        reason = f"the payload is {_not_json(error)}: send an object such as {EXAMPLE}"
    except ValueError as error:
        reason, readable = str(error), True
    else:
        if isinstance(document, dict) and deeper_than(document, MAX_DEPTH):
            reason = _TOO_DEEP
        elif isinstance(document, dict):
            return document
        else:
            reason = f"the payload must be a JSON object such as {EXAMPLE}, is {_what(document)}"
    # Not within `except`: what was read so far is freed first.
    raise JobError(Code.INVALID_JOB, reason, (_only_id(payload) if readable else None) or id)


class _Ids(list[Any]):
    """What is kept of an object in a payload that is refused: the first two values of its key `id`."""


def _only_id(payload: bytes) -> str | None:
    """The id of a document with a broken number or a doubled key; None without one usable id."""
    try:
        document = json.loads(
            payload.decode(),
            object_pairs_hook=lambda pairs: _Ids(itertools.islice((value for name, value in pairs if name == "id"), 2)),
            parse_constant=_no_value,
            parse_float=_no_value,
            parse_int=_no_value,
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, _Ids) or len(document) != 1:
        return None
    (id,) = document
    return id if isinstance(id, str) and is_id(id) else None


def _no_value(_text: str) -> None:
    return None


_TOO_DEEP = f"the payload is nested too deeply: up to {MAX_DEPTH} levels are taken"


def _not_json(error: json.JSONDecodeError) -> str:
    if not error.doc.strip():
        return "empty"
    return f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno} column {error.colno}"
