"""Renders a job's messages so that their text stays text: no message is lost, none becomes a control token.

A template cannot be trusted to keep what it is given. It may know no system role, or skip a role silently; and a job's
text may hold the very tokens that the template marks turns with. Here messages are fitted to the template and checked.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edged.engine.template import ChatTemplate, TemplateRefusalError
from edged.engine.tool_format import ToolFormat
from edged.engine.tool_probe import ToolsFound, find_tools

SystemText = Literal["template", "first_user_message"]
Turns = Literal["control_tokens", "plain_text"]
Message = Mapping[str, Any]

_PRIVATE_USE = range(0xE000, 0xF8FF)
_MASK = "\uf8ff"
_LOOKALIKES = (*range(0x2000, 0x2100), *range(0xFE30, 0xFFF0))
"""Code points of the blocks whose characters normalization turns into ASCII punctuation."""
_UNTELLING = "_-.,"
"""Punctuation that control tokens have, but ordinary text too."""
_REMEMBERED = 256
"""Role sequences, with variables, whose check is remembered."""
_LONGEST_GIVEN = 500
"""Characters of JSON that the variables of one of them may have."""
_QUESTION = "Is the pump running?"


class ChatError(ValueError):
    """These messages cannot be given to the model as they are; the message says why and what would be right."""


@dataclass(frozen=True)
class Rendered:
    """A rendered chat.

    `separator`, where there is one, is a character that was put into control tokens in the job's text, so that the
    tokenizer does not see them: its tokens are to be left out. `masked`, where there is one, is the same chat with the
    job's punctuation replaced: its control tokens are the template's own, and `text` must have the same.
    """

    text: str
    separator: str | None = None
    masked: str | None = None


class Chat:
    """A chat template with what was found out about it. Thread-safe. Close the template with close()."""

    def __init__(self, template: ChatTemplate, source: str, added: Mapping[str, bool], eos: str | None) -> None:
        """Ask the template how it treats roles. Raises TemplateFaultError.

        `source`: the template's text. `added`: the tokenizer's added tokens, and whether each is special or ends an
        answer. `eos`: the text of the end-of-sequence token.
        """
        self._template = template
        self._known: dict[tuple[str, ...], int | None] = {}
        self._typed = False
        self.system: SystemText = "template"
        self.refusal: str | None = None
        """Why the template does not render a plain question, None where it does."""
        self._probe()
        found = find_tools(self._ask) if "tool" in source else None
        self.tools: ToolFormat | None = None if found is None else found.format
        """How the model writes calls of tools; None where the template gives it none, or in a format unknown here."""
        control, self.turns = self._control_tokens(added, eos)
        control |= _around_calls(found, added) if found is not None else set()
        self.control = frozenset(control)
        """Texts of the tokens that a job's text may not become."""
        self._pattern = (
            re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True)))) if control else None
        )
        self._telling, self._masking = _masking(control, source)

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        continue_final: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Rendered:
        """Render `messages`; `variables` are what else the template may use.

        With `continue_final` the text ends with the content of the last message, which is text, and no new turn begins.
        `tools` that the model may call, and calls in messages, are for a template with self.tools. The arguments of
        these calls are JSON objects.

        Raises ChatError where the template would drop a message, TemplateRefusalError, TemplateFaultError.
        """
        messages = _system_first(messages) if self.system == "first_user_message" else messages
        variables = {**(variables or {}), "add_generation_prompt": False} if continue_final else (variables or {})
        if self.tools is not None:
            messages, given_tools = self.tools.fitted(messages, tools)
            variables = {**variables, **given_tools}
        self._check_kept(messages, variables)
        fitted = self._fitted(messages)
        strings = list(_strings([[_without_role(message) for message in fitted], list(variables.values())]))
        separator = self._separator(strings)
        separate = self._separate(separator) if separator is not None else _unchanged
        end = _End(strings, str(messages[-1]["content"])) if continue_final else None

        def render(change: Callable[[str], str]) -> str:
            given = [{**_mapped(_without_role(message), change), "role": message["role"]} for message in fitted]
            if self.tools is not None and self.tools.calls_in_content:
                given = [dict(self.tools.with_calls(message)) for message in given]
            if end is not None:
                given[-1]["content"] = end.marked(given[-1]["content"])
            text = self._template.render(given, **{name: _mapped(value, change) for name, value in variables.items()})
            if separator is not None:
                text = text.replace(_escaped(separator), separator)
            return text if end is None else end.cut(text)

        text = render(separate)
        if not any(self._telling(string) for string in strings):
            return Rendered(text, separator)
        try:
            masked = render(lambda string: self._masking(separate(string)))
        except TemplateRefusalError:
            masked = ""
        return Rendered(text, separator, masked)

    def close(self) -> None:
        """End the template's process."""
        self._template.close()

    def _fitted(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with contents of the type that the template takes."""
        return [_typed(message) for message in messages] if self._typed else messages

    def _ask(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Render as it is. Raises TemplateRefusalError, TemplateFaultError."""
        return self._template.render(self._fitted(messages), **variables)

    def _probe(self) -> None:
        """Find out how the template takes a user's content, and whether it keeps system text."""
        question = [{"role": "user", "content": _marker(0)}]
        try:
            if _marker(0) not in self._template.render(question):
                self._typed = _marker(0) in self._template.render([_typed(question[0])])
                if not self._typed:
                    self.refusal = "it leaves out what the user says"
                    return
        except TemplateRefusalError as error:
            self.refusal = str(error)
            return
        chat = [{"role": "system", "content": _marker(0)}, {"role": "user", "content": _marker(1)}]
        try:
            text = self._ask(chat, {})
        except TemplateRefusalError:
            text = ""
        if _marker(0) not in text:
            self.system = "first_user_message"

    def _check_kept(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> None:
        """Raise ChatError where the template would drop what a message says."""
        roles = tuple(str(message["role"]) for message in messages)
        case = (json.dumps(variables, sort_keys=True), *roles)
        plain = all(message.keys() == {"role", "content"} for message in messages) and len(case[0]) <= _LONGEST_GIVEN
        if plain and case in self._known:
            dropped = self._known[case]
        else:
            dropped = self._dropped(messages, variables)
            if plain:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[case] = dropped
        if dropped is not None and messages[dropped]["content"]:
            right = "send prompt in place of messages" if roles[dropped] == "user" else "use another role, such as user"
            right = "leave out the content beside its tool_calls" if "tool_calls" in messages[dropped] else right
            reason = f"leaves out what role {roles[dropped]!r} says in message {dropped + 1}"
            raise ChatError(f"the model's chat template {reason}: {right}")

    def _dropped(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> int | None:
        """The first message whose content is not in the render, by markers in place of contents."""
        marked = [
            {**message, "content": _marker(at)}
            if isinstance(content := message.get("content"), str)
            # A template may write calls only where nothing is said.
            and (content or "tool_calls" not in message)
            else message
            for at, message in enumerate(messages)
        ]
        try:
            text = self._ask(marked, variables)
        except TemplateRefusalError:
            return None  # the render of the messages themselves says so
        return next((at for at in range(len(marked)) if self._is_lost(marked[at], text, at)), None)

    @staticmethod
    def _is_lost(message: Message, text: str, at: int) -> bool:
        return message.get("content") == _marker(at) and _marker(at) not in text

    def _control_tokens(self, added: Mapping[str, bool], eos: str | None) -> tuple[set[str], Turns]:
        """The control tokens, and how the template marks turns.

        Special tokens are control tokens; so are other added tokens that the template marks turns with (DeepSeek's).
        Turns are marked by control tokens where one other than eos stands at each change of speaker: after eos alone,
        a speaker is named in plain text (Zephyr).
        """
        special = {text for text, is_special in added.items() if is_special and len(text) > 1}
        if self.refusal is not None:
            return special, "plain_text"
        roles = ("user", "assistant", "user")
        text, count = "", 0
        for count in (3, 1):
            chat = [{"role": role, "content": _marker(at)} for at, role in enumerate(roles[:count])]
            try:
                text = self._ask(chat, {})
                break
            except TemplateRefusalError:
                continue
        turns, rest = [], text
        for at in range(count):
            turn, _, rest = rest.partition(_marker(at))
            turns.append(turn)
        control = special | {
            token
            for token in added
            if len(token) > 1 and not re.fullmatch(r"[\w\s]*", token) and any(token in turn for turn in turns)
        }
        gaps = [*turns[1:], rest] if count > 1 else [rest]
        guarded = all(any(token in gap for token in control if token != eos) for gap in gaps)
        return control, "control_tokens" if guarded else "plain_text"

    def _separator(self, strings: Sequence[str]) -> str | None:
        """A character that no string has, None where no string has a control token."""
        if self._pattern is None or not any(self._pattern.search(string) for string in strings):
            return None
        for code in _PRIVATE_USE:
            if not any(chr(code) in string or _escaped(chr(code)) in string for string in strings):
                return chr(code)
        raise ChatError(
            "the messages have control tokens and every private-use character: leave the control tokens out"
        )

    def _separate(self, separator: str) -> Callable[[str], str]:
        pattern = self._pattern
        assert pattern is not None
        return lambda string: pattern.sub(lambda found: found[0][0] + separator + found[0][1:], string)


class _End:
    """Finds where the last message's content ends in a render: a mark behind it is rendered along, and cut off there.

    As transformers does for continue_final_message: a template that trims contents is taken at its word.
    """

    def __init__(self, strings: Sequence[str], content: str) -> None:
        """`strings`: all that the template is given; the mark is in none. `content`: that of the last message."""
        self._mark = next(
            mark for at in itertools.count() if not any((mark := _marker(at)) in string for string in strings)
        )
        self._tail = content[len(content.rstrip()) :]

    def marked(self, content: Any) -> Any:
        """The content, text or a list with one part of text, with the mark and a space behind it."""
        if isinstance(content, str):
            return f"{content}{self._mark} "
        return [{**content[0], "text": f"{content[0]['text']}{self._mark} "}]

    def cut(self, text: str) -> str:
        """What comes before the mark. Raises ChatError where the template has left it out, or given it twice."""
        kept, *rest = text.split(self._mark)
        if len(rest) != 1:
            raise ChatError(
                "the model's chat template leaves out the end of the last message, or repeats it: leave "
                "continue_final_message out"
            )
        return kept if rest[0].startswith(" ") else kept.removesuffix(self._tail)


def _masking(control: Iterable[str], source: str) -> tuple[Callable[[str], bool], Callable[[str], str]]:
    """Whether a text could become part of a control token, and the text with its telling characters masked.

    Telling is the punctuation of control tokens, and what normalization turns into it. What the template itself looks
    for (`content.split('</think>')`) is not masked, so that a masked render takes the same way through the template.
    """
    telling: set[str] = set()
    for token in control:
        punctuation = {character for character in token if not character.isalnum() and not character.isspace()}
        telling |= punctuation - set(_UNTELLING) or punctuation
    telling |= {chr(code) for code in _LOOKALIKES if telling & set(unicodedata.normalize("NFKC", chr(code)))}
    if not telling:
        return (lambda _: False), _unchanged
    one = "[" + "".join(map(re.escape, sorted(telling))) + "]"
    quoted = re.findall(r"'((?:[^'\\\n]|\\.)*)'|\"((?:[^\"\\\n]|\\.)*)\"", source)
    pieces = {piece for pair in quoted for literal in pair for piece in re.split(r"\\.", literal)}
    kept = sorted(
        (
            piece
            for piece in pieces
            if re.search(one, piece)
            and re.search(r"[^\W\d_]{2}", piece)
            and not any(piece in token or token in piece for token in control)
        ),
        key=len,
        reverse=True,
    )
    pattern = re.compile("|".join([*map(re.escape, kept), one]))
    search = re.compile(one).search

    def mask(text: str) -> str:
        return pattern.sub(lambda found: found[0] if len(found[0]) > 1 else _MASK, text)

    return (lambda text: search(text) is not None), mask


def _around_calls(found: ToolsFound, added: Mapping[str, bool]) -> set[str]:
    """Added tokens that stand around calls and their results, so that no text can forge them."""
    result = re.split("|".join(re.escape(text) for text, special in added.items() if special) or "$^", found.after)[0]
    tokens = {text for text in added if len(text) > 1 and not re.fullmatch(r"[\w\s]*", text)}
    return {text for text in tokens if text in found.before or text in result or text in found.format.markers}


def _system_first(messages: Sequence[Message]) -> list[Message]:
    """System text put before the user message that follows it, as llama.cpp does for a template without that role."""
    fitted: list[Message] = []
    pending: list[str] = []
    for message in messages:
        if message["role"] == "system":
            pending.append(_text(message.get("content")))
            continue
        if pending and message["role"] == "user":
            content = _text(message.get("content"))
            message = {**message, "content": "\n".join([*pending, content] if content else pending)}
        elif pending:
            fitted.append({"role": "user", "content": "\n".join(pending)})
        pending = []
        fitted.append(message)
    if pending:
        fitted.append({"role": "user", "content": "\n".join(pending)})
    return fitted


def _text(content: object) -> str:
    """Content as one text, also where it is a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _typed(message: Message) -> dict[str, Any]:
    """The message with its content as a list of parts, for a template that takes no text."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


def _marker(at: int) -> str:
    """A text that no template changes, or has."""
    return f"70{at:05d}53186"


def _escaped(character: str) -> str:
    """How JSON in ASCII writes the character."""
    return f"\\u{ord(character):04x}"


def _unchanged(text: str) -> str:
    return text


def _without_role(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "role"}


def _strings(value: object) -> Iterable[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The JSON value with every string changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value
