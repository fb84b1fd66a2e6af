"""The fields tools and tool_choice of a job, calls in its messages, and those of its answer. Names are OpenAI's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from edged.engine.tool_format import NAME, Call
from edged.jobs.nesting import MAX_DEPTH, deeper_than
from edged.jobs.refusals import refuse
from edged.strict_json import no_constant

MAX_TOOLS = MAX_CALLS = 128
"""Tools of a job, and calls of a message."""
_NAME_ALLOWED = "1 to 64 characters out of A-Z a-z 0-9 _ -"
_TOOL = '{"type": "function", "function": {"name": "…", "parameters": {…}}}'
_CALL = '{"id": "…", "type": "function", "function": {"name": "…", "arguments": "{…}"}}'
TOOLS_ALLOWED = f"a list of 1 to {MAX_TOOLS} tools such as {_TOOL}"
CALLS_ALLOWED = f"a list of 1 to {MAX_CALLS} calls such as {_CALL}"
CHOICE_ALLOWED = '"none", "auto", "required" or {"type": "function", "function": {"name": "…"}}'
CALL_ID_ALLOWED = "the id of a call in an earlier message, 1 to 128 characters"
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name = Field(description="the name, different for each tool", json_schema_extra={"allowed": _NAME_ALLOWED})
    description: str | None = Field(
        default=None, description="what it does, for the model", json_schema_extra={"allowed": "text"}
    )
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="JSON schema of an object: its arguments; absent: it takes none",
        json_schema_extra={"allowed": "a JSON schema of an object"},
    )
    strict: bool | None = Field(
        default=None,
        description="changes nothing: all arguments keep to the schema",
        json_schema_extra={"allowed": "true or false"},
    )

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """What the arguments of a call keep to."""
        return _NO_PARAMETERS if self.parameters is None else {"type": "object", **self.parameters}


class Tool(BaseModel):
    """A tool of a job."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["function"] = Field(description="what kind of tool it is")
    function: Function = Field(
        description="the function", json_schema_extra={"allowed": 'an object, {"name": "…", "parameters": {…}}'}
    )

    @property
    def given(self) -> dict[str, Any]:
        """The tool as chat templates are given it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": {**function, "parameters": self.function.parameters or _NO_PARAMETERS}}


class FunctionName(BaseModel):
    """The function that is to be called."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name = Field(description="the name of a tool", json_schema_extra={"allowed": _NAME_ALLOWED})


class NamedTool(BaseModel):
    """The tool that is to be called."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["function"] = Field(description="what kind of tool it is")
    function: FunctionName = Field(
        description="the function", json_schema_extra={"allowed": 'an object, {"name": "…"}'}
    )


class CalledFunction(BaseModel):
    """The function that a message calls."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name = Field(description="the name", json_schema_extra={"allowed": _NAME_ALLOWED})
    arguments: str = Field(
        description="the arguments, a JSON object as text", json_schema_extra={"allowed": "a JSON object as text"}
    )


class ToolCall(BaseModel):
    """A call in a message of the assistant."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: CallId = Field(
        description="what the message with its result names",
        json_schema_extra={"allowed": "text of 1 to 128 characters"},
    )
    type: Literal["function"] = Field(description="what kind of tool it is")
    function: CalledFunction = Field(
        description="the function",
        json_schema_extra={"allowed": 'an object, {"name": "…", "arguments": "{…}"}'},
    )

    @property
    def given(self) -> dict[str, Any]:
        """The call as chat templates are given it. Raises ValueError where the arguments are no JSON object."""
        arguments = read_arguments(self.function.arguments)
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


def check_tools(tools: Sequence[Tool], choice: object) -> None:
    """Refuse, within a validator, tools and a tool_choice that do not fit together."""
    names = [tool.function.name for tool in tools]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        refuse("tools", f"has two of the name {twice!r}: give each a name of its own")
    for place, tool in enumerate(tools):
        if tool.function.schema_of_arguments["type"] != "object":
            refuse(f"tools.{place}.function.parameters", 'must be a JSON schema of an object, {"type": "object", …}')
    if choice is not None and not names:
        refuse("tool_choice", "needs tools: send them, or leave it out")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        refuse("tool_choice", f"names {choice.function.name!r}, which is none of the tools")


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments of a call. Raises ValueError."""
    try:
        value = json.loads(text, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(value, dict) or deeper_than(value, MAX_DEPTH):
        raise ValueError("no object, or too deep")
    return value


def document_of(calls: Sequence[Call], id: str) -> list[dict[str, Any]] | None:
    """The calls of an answer as they stand in the result of the job with this id; None without any."""
    return [
        {
            "id": call_id(id, at),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for at, call in enumerate(calls)
    ] or None


def call_id(id: str, at: int) -> str:
    """The id of a job's call number `at`: nine letters and digits, as Mistral's templates want it.

    It goes with the job, so that a run after a crash gives the same.
    """
    return hashlib.sha256(f"{id}\0{at}".encode()).hexdigest()[:9]
