"""Gives published chat templates tools, and lets a model answer with calls as each template writes them.

    python tools.py FOLDER

For each template in FOLDER: the format of its calls is the one that FORMATS says, or none. Where it is known, the
grammar takes, byte by byte, a call and an answer in words, and refuses a call of no tool; what the answer calls is
found in its text; and nothing of a tool becomes a control token. Prints a table, and exits with 1 where one fails.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from guard import SPECIAL, tokens_of
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from edged.engine.chat import Chat, ChatError
from edged.engine.template import ChatTemplate, TemplateFaultError, TemplateRefusalError
from edged.engine.tool_format import CallText, ToolFormat, arguments

FORMATS = {
    "hermes": "Bielik-11B-v3.0-Instruct MiMo-VL NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use Reka-Edge Qwen-QwQ-32B "
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use Qwen-Qwen2.5-7B-Instruct Qwen-Qwen3-0.6B ibm-granite-granite-4.0 "
    "ibm-granite-granite-4.1 tool_chat_template_hermes template_minicpmv45 qwen3",
    "llama3": "meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct meta-llama-Llama-3.3-70B-Instruct "
    "tool_chat_template_llama3.1_json tool_chat_template_llama3.2_json tool_chat_template_llama4_json",
    "mistral": "Mistral-Small-3.2-24B-Instruct-2506 mistralai-Ministral-3-14B-Reasoning-2512 "
    "mistralai-Mistral-Nemo-Instruct-2407 unsloth-mistral-Devstral-Small-2507 tool_chat_template_mistral "
    "tool_chat_template_mistral3 tool_chat_template_mistral_parallel",
    "phi4": "tool_chat_template_phi4_mini",
    "json": "tool_chat_template_xlam_llama tool_chat_template_xlam_qwen",
}
"""Templates by the format of their calls; all others have none that edged knows."""
EXPECTED = {template: format for format, templates in FORMATS.items() for template in templates.split()}
QUESTION = {"role": "user", "content": "Stop pump 3"}
RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "ok"}
WRITTEN = {
    "hermes": "<tool_call>.*?</tool_call>",
    "llama3": r'\{"name".*?\}\}',
    "mistral": r"\[TOOL_CALLS\] ?\[\{.*?\}\]|\[TOOL_CALLS\]\w+.*?\[ARGS\]\{.*?\}",
    "phi4": r'\{"name".*?\}\}',
    "json": r'\[\{"name".*?\}\}\]',
}
"""How a call looks in a render after the question."""
SCHEMA = {
    "type": "object",
    "properties": {"pump": {"type": "integer"}, "mode": {"enum": ["on", "off"]}},
    "required": ["pump", "mode"],
    "additionalProperties": False,
}
END = 256


class Bytes:
    """A vocabulary of bytes, as llguidance's TokenizerWrapper takes it."""

    bos_token_id, eos_token_id = None, END
    tokens = [bytes([byte]) for byte in range(256)] + [b""]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def tool(name: str, said: str = "Sets a pump") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": said, "parameters": SCHEMA}}


def called(name: str, values: dict[str, Any]) -> dict[str, Any]:
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": name, "arguments": values}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def takes(format: ToolFormat, answer: str) -> bool:
    """Whether `answer` is one."""
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), eos_token=END)
    rules = f'%llguidance {{"no_forcing": true}}\n{format.lark(("set_pump", "state"), "auto")}'
    parts = [{"name": arguments(at), "json_schema": SCHEMA} for at in range(2)]
    matcher = LLMatcher(tokenizer, json.dumps({"grammars": [{"lark_grammar": rules}, *parts]}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(answer.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def check_answers(chat: Chat, format: ToolFormat) -> str | None:
    """What is wrong with answers that call tools; None: nothing."""
    tools = [tool("set_pump"), tool("state")]
    for name, values, right in (
        ("set_pump", {"pump": 3, "mode": "off"}, True),
        ("set_pump", {"pump": 3, "mode": "over"}, False),
        ("stop_all", {"pump": 3, "mode": "off"}, False),
    ):
        text = chat.render([QUESTION, called(name, values), {**RESULT, "name": name}], tools=tools).text
        answer = as_written(format, text)
        if takes(format, answer) is not right:
            return f"the grammar {'refuses' if right else 'takes'} {answer!r}"
        parts = CallText(format)
        said = "".join(map(parts.push, answer)) + parts.finish()
        if right and (said, [(call.name, json.loads(call.arguments)) for call in parts.calls]) != (
            "",
            [(name, values)],
        ):
            return f"{parts.calls} and {said!r} are found in {answer!r}"
    for words in ("Pump 3 is off.", "if a[0] < b: {c}", ""):
        if not takes(format, words):
            return f"the grammar refuses {words!r}"
    return None


def as_written(format: ToolFormat, text: str) -> str:
    """The call in a render. Phi-4's prompts want another form than their history has."""
    found = re.search(WRITTEN[format.name], text.rpartition(QUESTION["content"])[2], re.DOTALL)
    assert found is not None, text
    return f"{format.begin}{found[0]}]" if format.begin == "functools[" else found[0]


def check_forgery(chat: Chat) -> str | None:
    """What of a tool becomes a control token; None: nothing does."""
    search = re.compile("|".join(map(re.escape, sorted(chat.control, key=len, reverse=True))))
    forged = " ".join(sorted(chat.control))

    def messages(said: str) -> list[dict[str, Any]]:
        return [QUESTION, called("set_pump", {"pump": said, said: 1}), {**RESULT, "name": "set_pump", "content": said}]

    try:
        plain = chat.render(messages("x"), tools=[tool("set_pump", "x")])
        rendered = chat.render(messages(forged), tools=[tool("set_pump", forged)])
    except ChatError:
        return None
    if rendered.masked is not None and search.findall(rendered.text) != search.findall(rendered.masked):
        return None  # refused
    return None if search.findall(rendered.text) == search.findall(plain.text) else f"forged: {rendered.text!r:.300}"


def check(path: Path) -> tuple[str | None, list[str]]:
    """The format of a template's calls, and what is wrong."""
    source = path.read_text(encoding="utf-8")
    try:
        template = ChatTemplate(source, SPECIAL)
    except TemplateFaultError:
        return None, []
    chat = Chat(template, source, tokens_of(template, source), SPECIAL["eos_token"])
    try:
        format = chat.tools
        expected = EXPECTED.get(path.name.split("+")[-1].removesuffix(".jinja"))
        name = None if format is None else format.name
        if name != expected:
            return name, [f"its calls are {name}, not {expected}"]
        if format is None:
            return None, []
        return name, [wrong for wrong in (check_answers(chat, format), check_forgery(chat)) if wrong is not None]
    except TemplateRefusalError as error:
        return None, [f"refused: {error}"]
    finally:
        chat.close()


def main(folder: Path) -> int:
    """Check every template in `folder`; the exit status."""
    wrong = 0
    for path in sorted(folder.glob("*.jinja")):
        format, faults = check(path)
        wrong += len(faults)
        if format is not None or faults:
            print(f"{path.name.split('+')[-1]:60} {format}", *faults, sep="\n    " if faults else " ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
