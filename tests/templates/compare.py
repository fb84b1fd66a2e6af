"""Renders published chat templates with edged and with transformers, and says where they differ.

    python compare.py FOLDER

For each template in FOLDER and each conversation the text must be identical, or both must refuse. Prints a table, and
exits with 1 where a template that DIFFERENT does not list differs, or a listed one no longer does.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from edged.engine.template import ChatTemplate, TemplateFaultError, TemplateRefusalError

DIFFERENT: dict[str, str] = {}
"""Templates that may differ, each with the reason."""

SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "image_token": "<image>",
    "additional_special_tokens": ["<a>", "<b>"],
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place: 날씨 <now> & 'later'",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town"},
                "days": {"type": "integer", "enum": [1, 2, 3]},
            },
            "required": ["place"],
        },
    },
}


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(arguments: Any, id: str = "abcdef123") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


Q, A = turn("user", "Is the pump running?"), turn("assistant", "Yes, at 40 Hz.")
SYSTEM = turn("system", "Answer briefly.")
CALLED = turn("assistant", "", tool_calls=[call({"place": "Busan", "days": 2})])
ANSWERED = turn("tool", '{"degrees": 21.5}', tool_call_id="abcdef123", name="weather")
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "question": ([Q], {}),
    "system": ([SYSTEM, Q], {}),
    "turns": ([Q, A, turn("user", "Stop it.")], {}),
    "system and turns": ([SYSTEM, Q, A, turn("user", "Stop it."), A, Q], {}),
    "ends with assistant": ([Q, A], {}),
    "system alone": ([SYSTEM], {}),
    "system late": ([Q, A, SYSTEM, Q], {}),
    "two systems": ([SYSTEM, turn("system", "In Korean."), Q], {}),
    "developer": ([turn("developer", "Answer briefly."), Q], {}),
    "unknown role": ([turn("narrator", "It rains."), Q], {}),
    "two questions": ([Q, Q], {}),
    "assistant first": ([A, Q], {}),
    "nothing": ([], {}),
    "empty content": ([turn("system", ""), turn("user", "")], {}),
    "spaces": ([turn("system", "  a \n"), turn("user", "\n b\t\n"), turn("assistant", " c "), turn("user", " d ")], {}),
    "other scripts": ([turn("user", "밸브를 닫으세요 — 水泵 Größe 🙂 \u2028 \"quoted\" 'so' \\n <&>")], {}),
    "control tokens": ([turn("user", "</s><|im_end|>\n<|im_start|>system\n[INST] {{ 1 }} {% if %}")], {}),
    "thinking": ([Q, turn("assistant", "<think>\nhm\n</think>\n\nYes."), turn("user", "Sure?")], {}),
    "reasoning": ([Q, turn("assistant", "Yes.", reasoning_content="hm"), turn("user", "Sure?")], {}),
    "parts": (
        [turn("system", [{"type": "text", "text": "Brief."}]), turn("user", [{"type": "text", "text": "On?"}])],
        {},
    ),
    "tools": ([SYSTEM, Q], {"tools": [WEATHER]}),
    "two tools": ([Q], {"tools": [WEATHER, {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}]}),
    "no tools": ([Q], {"tools": []}),
    "tool call": ([Q, CALLED, ANSWERED], {"tools": [WEATHER]}),
    "tool call, then an answer": ([SYSTEM, Q, CALLED, ANSWERED, A, Q], {"tools": [WEATHER]}),
    "arguments as text": (
        [Q, turn("assistant", "", tool_calls=[call('{"place": "Busan"}')]), ANSWERED],
        {"tools": [WEATHER]},
    ),
    "no content beside a call": ([Q, {"role": "assistant", "tool_calls": [call({})]}, ANSWERED], {"tools": [WEATHER]}),
    "documents": ([Q], {"documents": [{"title": "Manual", "text": "It runs at night."}]}),
    "thinking on": ([Q], {"enable_thinking": True}),
    "thinking off": ([SYSTEM, Q], {"enable_thinking": False}),
}


def transformers_render(template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str | None:
    """The text, None where transformers refuses."""
    given = {**SPECIAL, **variables}
    try:
        texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **given)
    except Exception:
        return None
    return str(texts[0])


def compare(path: Path) -> Counter[str]:
    """How the conversations of one template compare; prints each difference."""
    counts: Counter[str] = Counter()
    template = path.read_text(encoding="utf-8")
    try:
        ours: ChatTemplate | None = ChatTemplate(template, SPECIAL)
    except TemplateFaultError:
        ours = None
    for name, (messages, variables) in CONVERSATIONS.items():
        expected = transformers_render(template, messages, variables)
        try:
            text = ours.render(messages, **variables) if ours else None
        except (TemplateRefusalError, TemplateFaultError):
            text = None
        if text != expected:
            counts["different"] += 1
            print(f"\n{path.name}, {name}:\n  transformers {expected!r:.300}\n  edged        {text!r:.300}")
        else:
            counts["both refuse" if text is None else "identical"] += 1
    if ours is not None:
        ours.close()
    return counts


def main(folder: Path) -> int:
    """Compare every template in `folder`; the exit status."""
    total: Counter[str] = Counter()
    templates: Counter[str] = Counter()
    different: set[str] = set()
    paths = sorted(folder.glob("*.jinja"))
    for path in paths:
        counts = compare(path)
        total += counts
        source = path.name.split("+")[0]
        if counts["different"]:
            different.add(path.name)
        templates[source, "different" if counts["different"] else "same"] += 1
    print(f"\n{'templates':20} {'same':>6} {'different':>10}")
    for source in sorted({source for source, _ in templates}):
        print(f"{source:20} {templates[source, 'same']:6} {templates[source, 'different']:10}")
    print(f"\n{len(paths)} templates with {len(CONVERSATIONS)} conversations each: ", end="")
    print(", ".join(f"{count} {kind}" for kind, count in sorted(total.items())))
    for name in sorted(different & DIFFERENT.keys()):
        print(f"may differ: {name}: {DIFFERENT[name]}")
    unlisted, stale = different - DIFFERENT.keys(), DIFFERENT.keys() - different
    for name in sorted(unlisted):
        print(f"differs: {name}")
    for name in sorted(stale):
        print(f"listed but does not differ: {name}")
    return bool(unlisted or stale)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
