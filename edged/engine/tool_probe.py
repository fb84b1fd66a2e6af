"""Finds out once how a chat template gives tools to the model and writes calls, by rendering a chat that has some."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edged.engine.template import TemplateRefusalError
from edged.engine.tool_format import (
    HERMES,
    JSON_LIST,
    JSON_OBJECT,
    LLAMA_3,
    MISTRAL,
    MISTRAL_NAMED,
    PHI_4,
    PHI_4_FUNCTOOLS,
    ToolFormat,
)

Render = Callable[[Sequence[dict[str, Any]], dict[str, Any]], str]

_TOOL, _PARAMETER, _VALUE = "tool70001", "parameter70002", "value70003"
_QUESTION, _RESULT, _ID = "question70004", "result70005", "call70006"
_NAME = rf'"name": ?"{_TOOL}"'
_ARGUMENTS = rf'\{{\s*"{_PARAMETER}": ?"{_VALUE}"\s*\}}'
_OBJECT = rf'\{{{_NAME}, ?"arguments": ?{_ARGUMENTS}(, ?"id": ?"{_ID}")?\}}'
_WRITTEN: tuple[tuple[ToolFormat, str], ...] = (
    (HERMES, rf"<tool_call>\n?{_OBJECT}\n?</tool_call>"),
    (MISTRAL, rf"\[TOOL_CALLS\] ?\[{_OBJECT}\]"),
    (MISTRAL_NAMED, rf"\[TOOL_CALLS\]{_TOOL}(\[CALL_ID\]{_ID})?\[ARGS\]{_ARGUMENTS}"),
)
"""Formats with a text where calls begin, and how they look in a render."""
_FIRST: tuple[tuple[ToolFormat, str], ...] = (
    (LLAMA_3, rf'\{{{_NAME}, ?"parameters": ?{_ARGUMENTS}\}}'),
    (JSON_OBJECT, _OBJECT),
    (JSON_LIST, rf"\[{_OBJECT}\]"),
)
"""Formats whose calls begin where the answer begins."""


@dataclass(frozen=True)
class ToolsFound:
    """What a template does with tools. `before` and `after`: its text around the result of a call, the call too."""

    format: ToolFormat
    before: str
    after: str = ""


def find_tools(render: Render) -> ToolsFound | None:
    """The format of the calls that a template writes; None where it is none of the known ones, or has no tools.

    `render` takes messages and variables, and raises TemplateRefusalError. Raises TemplateFaultError.
    """
    question = {"role": "user", "content": _QUESTION}
    tools = {"tools": [_tool()]}
    offered = _rendered(render, [question], tools)
    if _TOOL not in offered:
        system = {"role": "system", "content": "", "tools": _TOOL}
        given = _rendered(render, [system, question], {})
        return ToolsFound(PHI_4, given.partition(_QUESTION)[0]) if "<|tool|>" in given and _TOOL in given else None
    for as_text in (False, True):
        chat = [question, _call(as_text), {"role": "tool", "tool_call_id": _ID, "name": _TOOL, "content": _RESULT}]
        text = _rendered(render, chat, tools)
        found = _found(text, offered)
        if found is not None:
            format, written = found
            before, _, after = text[text.find(written) :].partition(_RESULT)
            return ToolsFound(replace(format, arguments_as_text=as_text), before, after)
    return None


def _found(text: str, offered: str) -> tuple[ToolFormat, str] | None:
    """The format of the call in a render, and the call. `offered`: the render up to where the answer begins."""
    for format, pattern in _WRITTEN:
        if (match := re.search(pattern, text)) is not None:
            return format, match[0]
    if not text.startswith(offered):
        return None
    answer = text[len(offered) :].lstrip()
    for format, pattern in _FIRST:
        if (match := re.match(pattern, answer)) is not None:
            return PHI_4_FUNCTOOLS if PHI_4_FUNCTOOLS.begin in offered else format, match[0]
    return None


def _rendered(render: Render, messages: Sequence[dict[str, Any]], variables: dict[str, Any]) -> str:
    """The text, none where the template refuses."""
    try:
        return render(messages, variables)
    except TemplateRefusalError:
        return ""


def _tool() -> dict[str, Any]:
    parameter = {"type": "string", "description": "a text"}
    parameters = {"type": "object", "properties": {_PARAMETER: parameter}, "required": [_PARAMETER]}
    return {"type": "function", "function": {"name": _TOOL, "description": "a tool", "parameters": parameters}}


def _call(as_text: bool) -> dict[str, Any]:
    arguments: Any = f'{{"{_PARAMETER}": "{_VALUE}"}}' if as_text else {_PARAMETER: _VALUE}
    call = {"id": _ID, "type": "function", "function": {"name": _TOOL, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
