"""Each field of a job that changes what is chosen or asked, beside its reference: `make fields` prints the table.

References are the definitions, computed in float64 token by token (tests/unit/test_sampler.py names their sources), and
for chats jinja2 alone. Where a number that is drawn is within rounding of a border, a case is not compared.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "unit"), str(HERE.parent / "broker")]

from engine_rig import copy_package  # noqa: E402
from test_chat import THINKING, turn, written  # noqa: E402
from test_sampler import reference, reference_choice  # noqa: E402

from edged.engine.package import open_package  # noqa: E402
from edged.engine.sampler import Draws, LogitsProcessor, Sampling, sample  # noqa: E402
from edged.engine.tokenizer import Tokenizer  # noqa: E402
from edged.jobs.document import JobError  # noqa: E402
from edged.jobs.reading import read_submission  # noqa: E402

CASES, VOCABULARIES = 300, (50, 1000, 20_000)
Row = tuple[str, str, "Counter[str]", str]
Some = Callable[[random.Random], Any]


def penalties() -> Iterator[Row]:
    """Logits after penalties and bias, all of them."""
    fields: dict[str, tuple[str, Some]] = {
        "repetition_penalty": ("transformers, vLLM", lambda chance: chance.uniform(0.5, 2)),
        "presence_penalty": ("OpenAI, vLLM", lambda chance: chance.uniform(-2, 2)),
        "frequency_penalty": ("OpenAI, vLLM", lambda chance: chance.uniform(-2, 2)),
        "logit_bias": ("OpenAI, vLLM", lambda chance: tuple((n, chance.uniform(-100, 100)) for n in range(0, 50, 3))),
    }
    sources = {field: source for field, (source, _) in fields.items()}
    for field, source in {**sources, "all four": "vLLM's order"}.items():
        counts, largest, chance = Counter[str](), 0.0, random.Random(field)
        for n in range(CASES):
            size = VOCABULARIES[n % 2]
            wanted = {name: one(chance) for name, (_, one) in fields.items() if field in (name, "all four")}
            prompt, answer = ([chance.randrange(size) for _ in range(chance.randrange(80))] for _ in range(2))
            sampling = Sampling(**wanted)
            logits = np.random.default_rng(n).normal(-1, 4, size).astype(np.float32)
            expected = reference(logits, sampling, prompt, answer)
            processor = LogitsProcessor(sampling, prompt)
            for token in answer:
                processor.note(token)
            processor.apply(logits)
            difference = float(abs(logits - expected).max())
            counts["same" if difference < 1e-4 else "different"] += 1
            largest = max(largest, difference)
        yield field, source, counts, f"largest difference of a logit {largest:.1e}"


def choices() -> Iterator[Row]:
    """The token, for the same numbers drawn."""
    fields: dict[str, tuple[str, Some]] = {
        "temperature": ("softmax", lambda _: 1.0),
        "top_k": ("transformers", lambda chance: chance.randint(1, 100)),
        "top_p": ("transformers", lambda chance: chance.random()),
        "min_p": ("transformers", lambda chance: chance.random() ** 3),
    }
    sources = {field: source for field, (source, _) in fields.items()}
    for field, source in {**sources, "all four": "transformers' order"}.items():
        counts, chance = Counter[str](), random.Random(field)
        for n in range(CASES):
            wanted = {name: some(chance) for name, (_, some) in fields.items() if field in (name, "all four")}
            sampling = Sampling(**{**wanted, "temperature": chance.uniform(0.1, 2)}, seed=n)
            size = VOCABULARIES[n % len(VOCABULARIES)]
            logits = np.random.default_rng(n).normal(0, chance.uniform(0.5, 6), size).astype(np.float32)
            expected = reference_choice(logits, sampling)
            chosen = sample(logits, sampling, Draws(n))
            counts["too near" if expected is None else "same" if chosen == expected else "different"] += 1
        yield field, source, counts, "the token chosen"


def chats(tokenizer: Tokenizer) -> Iterator[Row]:
    """Prompts of chats, as text."""
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(THINKING)
    words = ("The pump", " is", " on", "\n", "é", " 펌프", "<|end|>", " 40 Hz", "…", "  ")
    rows = {
        "content of parts": "joined by line breaks",
        "chat_template_kwargs": "jinja2",
        "continue_final_message": "transformers: cut after its content",
    }
    for field, source in rows.items():
        counts, chance = Counter[str](), random.Random(field)
        for _ in range(CASES):
            parts = ["x" + "".join(chance.choices(words, k=4)) for _ in range(3)]
            chat = [turn(text, role) for text, role in zip(parts, ("user", "assistant", "user"), strict=True)]
            kwargs: dict[str, Any] = {}
            if field == "content of parts":
                content = [{"type": "text", "text": text} for text in parts]
                said = {"id": "a", "messages": [{"role": "user", "content": content}]}
                read = read_submission(json.dumps(said).encode(), 1 << 20).job
                chat = [turn(message.text, message.role) for message in read.messages or ()]
                expected = template.render(messages=[turn("\n".join(parts))], add_generation_prompt=True)
            elif field == "chat_template_kwargs":
                kwargs = {"enable_thinking": chance.choice([True, False])}
                expected = template.render(messages=chat, add_generation_prompt=True, **kwargs)
            else:
                chat = chat[:2]
                whole = template.render(messages=chat, add_generation_prompt=False)
                expected = whole[: whole.rindex(parts[1]) + len(parts[1])]
            text = written(tokenizer.encode_messages(chat, kwargs, field == "continue_final_message"))
            counts["same" if text == expected else "different"] += 1
        yield field, source, counts, "the prompt as text"


def documents() -> Iterator[Row]:
    """What a job document is read as, and what a refusal says."""
    counts = Counter[str]()
    for name in ("max_tokens", "top_k", "seed", "priority"):
        for number in range(1, 10):
            one, other = (
                read_submission(f'{{"id": "a", "prompt": "x", "{name}": {text}}}'.encode(), 1 << 20).job
                for text in (f"{number}.0", str(number))
            )
            counts["same" if one == other else "different"] += 1
    yield "whole numbers written 5.0", "the same written 5", counts, "the job as read"
    counts = Counter[str]()
    ours = {"temp": "temperature", "top-p": "top_p", "promt": "prompt", "repeat_penalty": "repetition_penalty"}
    for wrong, right in {
        **ours,
        "stop_sequences": "stop",
        "max_new_tokens": "max_tokens",
        "guided_json": "response_format",
    }.items():
        counts["same" if refusal(wrong).endswith(f"did you mean '{right}'?") else "different"] += 1
    for known in ("best_of", "modalities", "audio"):
        counts["same" if refusal(known).endswith("leave it out") else "different"] += 1
    yield "unknown fields", "a field that helps, or none", counts, "the advice"


def refusal(name: str) -> str:
    try:
        read_submission(json.dumps({"id": "a", "prompt": "x", name: 1}).encode(), 1 << 20)
    except JobError as error:
        return str(error)
    return "accepted"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = copy_package("phi3", Path(folder))
        (package / "chat_template.jinja").write_text(THINKING)
        tokenizer = Tokenizer(open_package(package), {})
        rows = [*penalties(), *choices(), *chats(tokenizer), *documents()]
        tokenizer.close()
    print(f"{'field':<27} {'reference':<36} {'same':>5} {'different':>10} {'too near':>9}  compared")
    for field, source, counts, what in rows:
        numbers = f"{counts['same']:>5} {counts['different']:>10} {counts['too near']:>9}"
        print(f"{field:<27} {source:<36} {numbers}  {what}")
    sys.exit(any(counts["different"] for _, _, counts, _ in rows))


if __name__ == "__main__":
    main()
