"""Gives published chat templates messages that hold their control tokens, and messages that only look like it.

    python guard.py FOLDER

For each template in FOLDER: a forged control token must not come out of the render as one, or the job must be refused;
a message without one must neither be refused nor change. The control tokens are those that the template's text and its
render have. Prints a table, and exits with 1 where one of them fails.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from edged.engine.chat import Chat, ChatError
from edged.engine.template import ChatTemplate, TemplateFaultError, TemplateRefusalError

TOKENS = re.compile(
    r"<\|[^|<>\s']{1,40}\|?>|<[a-z_]{2,20}\|>|<｜[^｜<>\s']{1,40}｜>|\[/?[A-Z_]{3,30}\]|</?s>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos)>|<seed:[a-z_]+>|\]~!?[a-z]+!?[\[\]]|<SPECIAL_\d+>"
)
"""What control tokens of published models look like."""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CLEAN = (
    "Is the pump running?",
    "  spaces \n\n around\n",
    "if a[0] < b and c > d: print(f'{x|y}')  # <not> [a] token",
    '{"a": [1, 2], "b": "</x> & <y/>"}',
    "<think>\nhm\n</think>\n\nYes.",
    "밸브를 닫으세요 — 🙂",
    "<tool_call>\n{}\n</tool_call> <b>bold</b> ## Heading ### Instruction:",
)
Chats = list[list[dict[str, str]]]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chats(text: str) -> Chats:
    return [
        [turn("user", text)],
        [turn("system", text), turn("user", "Is it on?")],
        [turn("user", "Is it on?"), turn("assistant", text), turn("user", text)],
    ]


def tokens_of(template: ChatTemplate, source: str) -> dict[str, bool]:
    """Control tokens of the model that the template is for, as far as the template tells them."""
    texts = [source]
    for chat in chats("x"):
        try:
            texts.append(template.render(chat))
        except TemplateRefusalError:
            continue
    found = {token for text in texts for token in TOKENS.findall(text)}
    return dict.fromkeys(found | set(SPECIAL.values()), True)


def check(path: Path) -> tuple[Counter[str], str]:
    """How the messages fared, and how the template marks turns; prints each failure."""
    counts: Counter[str] = Counter()
    source = path.read_text(encoding="utf-8")
    try:
        template = ChatTemplate(source, SPECIAL)
    except TemplateFaultError:
        return counts, "does not compile"
    tokens = tokens_of(template, source)
    chat = Chat(template, source, tokens, SPECIAL["eos_token"])
    search = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    def controls(text: str) -> list[str]:
        return search.findall(text)

    def tell(kind: str, messages: list[dict[str, str]], text: object) -> None:
        counts[kind] += 1
        print(f"{path.name}: {kind}: {messages!r:.200} -> {text!r:.300}")

    for content in CLEAN:
        for messages in chats(content):
            try:
                rendered = chat.render(messages)
            except TemplateRefusalError:
                counts["refused by the template"] += 1
                continue
            except ChatError as error:
                counts["would be dropped"] += 1
                if not source.count("system"):
                    print(f"{path.name}: {error}")
                continue
            if rendered.separator is not None:
                tell("clean, taken for forged", messages, rendered.text)
            elif rendered.masked is not None and controls(rendered.text) != controls(rendered.masked):
                tell("clean, refused", messages, rendered.masked)
            else:
                counts["clean, accepted"] += 1
    for token in sorted(chat.control):
        for content in (f"a {token}\n b{token}", token.upper(), token.lower(), token[:2] + "#" + token[2:], token[:-1]):
            for messages in chats(content):
                bland = [{**message, "content": "Is it on?"} for message in messages]
                try:
                    rendered, expected = chat.render(messages), template.render(bland)
                except (TemplateRefusalError, ChatError):
                    counts["refused by the template"] += 1
                    continue
                if rendered.masked is not None and controls(rendered.text) != controls(rendered.masked):
                    counts["forged, refused"] += 1
                elif chat.system == "template" and controls(rendered.text) != controls(expected):
                    tell("forged, came through", messages, rendered.text)
                else:
                    counts["forged, is text"] += 1
    chat.close()
    return counts, chat.turns


def main(folder: Path) -> int:
    """Check every template in `folder`; the exit status."""
    total: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jinja")):
        counts, kind = check(path)
        total += counts
        turns[kind] += 1
    print(f"\n{sum(turns.values())} templates:", ", ".join(f"{n} {kind}" for kind, n in sorted(turns.items())))
    for kind, count in sorted(total.items()):
        print(f"{count:8} {kind}")
    return bool(sum(total[kind] for kind in ("clean, taken for forged", "clean, refused", "forged, came through")))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
