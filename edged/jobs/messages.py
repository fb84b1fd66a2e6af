"""The messages of a job: a chat, with calls of tools and their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from edged.jobs import tools
from edged.jobs.refusals import refuse
from edged.jobs.tools import CallId, ToolCall

MAX_MESSAGES = MAX_PARTS = 1000
_PARTS_ALLOWED = f'text or a list of 1 to {MAX_PARTS} parts such as {{"type": "text", "text": "…"}}'


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]{1,32}$")] = Field(
        description="who speaks: system, user, assistant, or what the chat template knows",
        json_schema_extra={"allowed": "a word of up to 32 letters, such as system, user or assistant"},
    )
    content: str | list[dict[str, Any]] | None = Field(
        default=None,
        description="what is said: text, or parts of it, which are joined by line breaks; null beside tool_calls",
        json_schema_extra={"allowed": _PARTS_ALLOWED},
    )
    tool_calls: list[ToolCall] | None = Field(
        default=None,
        min_length=1,
        max_length=tools.MAX_CALLS,
        description="calls of tools, of the assistant",
        json_schema_extra={"allowed": tools.CALLS_ALLOWED},
    )
    tool_call_id: CallId | None = Field(
        default=None,
        description="the call whose result a message of role tool has",
        json_schema_extra={"allowed": tools.CALL_ID_ALLOWED},
    )

    @property
    def text(self) -> str:
        """What is said, as one text. vLLM and llama.cpp join parts the same way."""
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content)
        return self.content or ""

    @property
    def is_well_formed(self) -> bool:
        """Whether a list of parts has the form that it must have. Parts of other types than text may have any."""
        if not isinstance(self.content, list):
            return True
        return 1 <= len(self.content) <= MAX_PARTS and all(
            isinstance(part.get("type"), str)
            and (part["type"] != "text" or (part.keys() == {"type", "text"} and isinstance(part["text"], str)))
            for part in self.content
        )

    @property
    def foreign_part(self) -> str | None:
        """The type of the first part that is no text, None without one."""
        parts = self.content if isinstance(self.content, list) else []
        return next((part["type"] for part in parts if part["type"] != "text"), None)


def chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates are given them."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    given: list[dict[str, Any]] = []
    for message in messages:
        given.append({"role": message.role, "content": message.text})
        if message.tool_calls is not None:
            given[-1]["tool_calls"] = [call.given for call in message.tool_calls]
        if message.tool_call_id is not None:
            given[-1] |= {"tool_call_id": message.tool_call_id, "name": names[message.tool_call_id]}
    return given


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse, within a validator, what a chat template cannot be given."""
    called: set[str] = set()
    for place, message in enumerate(messages):
        field = f"messages.{place}"
        if message.content is None and message.tool_calls is None:
            is_ = "must be {}, is null" if "content" in message.model_fields_set else "is missing: it must be {}"
            refuse(f"{field}.content", is_.format(_PARTS_ALLOWED))
        if not message.is_well_formed:
            refuse(f"{field}.content", f"must be {_PARTS_ALLOWED}")
        _check_calls(field, message, called)
        called |= {call.id for call in message.tool_calls or ()}


def _check_calls(field: str, message: Message, called: set[str]) -> None:
    """`called`: ids of the calls before this message."""
    if message.tool_calls is not None and message.role != "assistant":
        refuse(f"{field}.tool_calls", f"is for the role assistant, not {message.role}")
    if message.tool_call_id is not None and message.role != "tool":
        refuse(f"{field}.tool_call_id", f"is for the role tool, not {message.role}")
    if message.tool_call_id is not None and message.tool_call_id not in called:
        refuse(f"{field}.tool_call_id", f"must be {tools.CALL_ID_ALLOWED}")
    for at, call in enumerate(message.tool_calls or ()):
        try:
            tools.read_arguments(call.function.arguments)
        except ValueError:
            refuse(f"{field}.tool_calls.{at}.function.arguments", "must be a JSON object as text")
