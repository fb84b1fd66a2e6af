"""How a model writes calls of tools: the known formats, the grammar of an answer in each, and the calls of an answer.

A call is the tool's name and a JSON object of arguments. What stands around these differs between models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

FormatName = Literal["hermes", "llama3", "mistral", "phi4", "json"]
ToolChoice = Literal["auto", "required"]
Given = Literal["variable", "system_message"]
Message = Mapping[str, Any]
NAME = r"[A-Za-z0-9_-]{1,64}"
"""What the name of a tool matches."""
_ID = "[A-Za-z0-9]{9}"
"""What the id of a call matches: the form that Mistral's templates want, and no other template minds."""


@dataclass(frozen=True)
class Call:
    """One call. `arguments`: a JSON object as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """A way to write calls. `opens`, `between` and `closes` are in Lark's syntax, with the calls in their midst.

    Answers that begin with one of `first` are calls where there is no `begin`, a text before which an answer may
    say something.
    """

    name: FormatName
    begin: str = ""
    opens: str = ""
    between: str | None = None
    """None: an answer has one call."""
    closes: str = ""
    first: str = "{"
    head: str = r'\{{"name": ?"{name}", ?"arguments": ?'
    """Regular expression for what comes before the arguments of a call; doubled braces are single ones."""
    tail: str = '"}"'
    markers: tuple[str, ...] = ()
    """Texts that are one token in the models of this format."""
    given: Given = "variable"
    """How the template is given tools: as the variable `tools`, or as text in the field `tools` of a system message."""
    arguments_as_text: bool = False
    """The template wants a call's arguments as JSON text."""
    calls_in_content: bool = False
    """The template leaves out calls: they are written into the message's content."""

    def lark(self, tools: Sequence[str], choice: ToolChoice, several: bool = True) -> str:
        """The grammar of an answer, in which the rule @arguments_N is that of the N-th tool's arguments.

        `tools`: their names. `choice` "auto": the answer is text, or ends with calls; "required": it is calls.
        `several`: whether there may be more than one call.
        """
        rules = [f"calls: {self.opens} call ({self.between} call)* {self.closes}"]
        if self.between is None or not several:
            rules = [f"calls: {self.opens} call {self.closes}"]
        heads = range(len(tools))
        rules.append("call: " + " | ".join(f"HEAD_{at} @{arguments(at)} {self.tail}" for at in heads))
        rules += [f"HEAD_{at}: /{self.head.format(name=name)}/" for at, name in enumerate(tools)]
        rules.append(r"SPACE: /[ \t\r\n]{1,4}/")
        begin = json.dumps(self.begin) if self.begin else ""
        if choice == "required":
            rules.append(f"start: SPACE? {begin} calls")
        elif self.begin:
            # Lazy: the first place where calls begin is one where they do.
            rules += ["start: TEXT | lead calls", f"lead[lazy]: /(?s:.*){_escaped(self.begin)}/", "TEXT: /(?s:.*)/"]
        else:
            rules += ["start: TEXT? | SPACE? calls", rf"TEXT: /[ \t\r\n]*[^ \t\r\n{_escaped(self.first)}](?s:.*)/"]
        return "\n".join(rules)

    def calls(self, text: str) -> tuple[Call, ...]:
        """The whole calls of `text`, what an answer says from where its calls begin."""
        found, at = [], 0
        head = re.compile(self.head.format(name=f"({NAME})"))
        decoder = json.JSONDecoder()
        while (begun := head.search(text, at)) is not None:
            try:
                _, at = decoder.raw_decode(text, begun.end())
            except (ValueError, RecursionError):  # cut off, or nested without end
                break
            found.append(Call(begun[1], text[begun.end() : at]))
        return tuple(found)

    def fitted(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[Sequence[Message], dict[str, Any]]:
        """Messages and variables that give the template `tools`, and the arguments of calls as it takes them."""
        if self.arguments_as_text:
            messages = [_with_text(message) for message in messages]
        if not tools:
            return messages, {}
        if self.given == "variable":
            return messages, {"tools": list(tools)}
        text = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
        if messages[0]["role"] == "system":
            return [{**messages[0], "tools": text}, *messages[1:]], {}
        return [{"role": "system", "content": "", "tools": text}, *messages], {}

    def with_calls(self, message: Message) -> Message:
        """The message with its calls in its content, as the model writes them, for `calls_in_content`."""
        if "tool_calls" not in message:
            return message
        calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message["tool_calls"]]
        begin, end = self.markers
        return {**message, "content": f"{message['content']}{begin}{json.dumps(calls, ensure_ascii=False)}{end}"}


class CallText:
    """Divides the text of an answer, while it comes, into what it says and its calls. Space alone says nothing."""

    def __init__(self, format: ToolFormat) -> None:
        self._format = format
        self._held = ""
        """Text that may be the beginning of calls, and then all of them."""
        self._begun = False
        self._says = False
        """The answer says something."""

    def push(self, text: str) -> str:
        """What the answer says, of the text that comes next."""
        self._held += text
        if self._begun or (not self._says and self._held.isspace()):
            return ""
        at = self._begin()
        said, self._held = self._held[:at], self._held[at:]
        if not self._says and said.isspace():
            said, self._held = ("", self._held) if self._begun else ("", said + self._held)
        self._says |= said != ""
        return said

    def _begin(self) -> int:
        """Where in the text held calls begin, or may begin."""
        begin = self._format.begin
        if not begin:
            self._begun = not self._says and self._held.lstrip()[:1] in self._format.first
            return 0 if self._begun else len(self._held)
        at = self._held.find(begin)
        self._begun = at >= 0
        return at if self._begun else len(self._held) - _overlap(self._held, begin)

    def finish(self) -> str:
        """What the answer says with the text held back, once no more comes."""
        if self._begun:
            return ""
        said, self._held = self._held, ""
        return said

    @property
    def calls(self) -> tuple[Call, ...]:
        """The whole calls so far."""
        return self._format.calls(self._held) if self._begun else ()


def arguments(at: int) -> str:
    """Name of the rule for the arguments of a tool, by its place in the list."""
    return f"arguments_{at}"


def _overlap(text: str, begin: str) -> int:
    """Length of the longest end of `text` that `begin` begins with."""
    return next((count for count in range(min(len(text), len(begin)), 0, -1) if begin.startswith(text[-count:])), 0)


def _escaped(text: str) -> str:
    """A text within a regular expression of Lark's."""
    return re.escape(text).replace("/", r"\/")


def _with_text(message: Message) -> Message:
    """The message with the arguments of its calls as JSON text."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        text = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}


HERMES = ToolFormat(
    "hermes",
    begin="<tool_call>",
    opens=r'"\n"?',
    between=r'"\n"? "</tool_call>" "\n"? "<tool_call>" "\n"?',
    closes=r'"\n"? "</tool_call>"',
    markers=("<tool_call>", "</tool_call>"),
)
LLAMA_3 = ToolFormat("llama3", head=r'\{{"name": ?"{name}", ?"parameters": ?')
MISTRAL = ToolFormat(
    "mistral",
    begin="[TOOL_CALLS]",
    opens='" "? "["',
    between='"," " "?',
    closes='"]"',
    tail=f'(/, ?"id": ?"{_ID}"/)? "}}"',
    markers=("[TOOL_CALLS]",),
)
MISTRAL_NAMED = replace(
    MISTRAL,
    opens="",
    between='"[TOOL_CALLS]"',
    closes="",
    head=rf"{{name}}(?:\[CALL_ID\]{_ID.replace('{', '{{').replace('}', '}}')})?\[ARGS\]",
    tail="",
    markers=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
)
PHI_4 = ToolFormat(
    "phi4",
    begin="<|tool_call|>",
    opens='"["',
    between='"," " "?',
    closes='"]" "<|/tool_call|>"',
    markers=("<|tool_call|>", "<|/tool_call|>"),
    given="system_message",
    calls_in_content=True,
)
PHI_4_FUNCTOOLS = ToolFormat("phi4", begin="functools[", between='"," " "?', closes='"]"')
JSON_OBJECT = ToolFormat("json")
JSON_LIST = ToolFormat("json", opens='"["', between='"," " "?', closes='"]"', first="[")
