"""The chats that `edged demo` sends: those of the built-in model with its answers, and some for any instruct model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A chat. `answer` is the whole right answer; None where models may rightly answer otherwise."""

    messages: list[dict[str, str]]
    answer: str | None = None


INSTRUCT_QUESTIONS = (
    "What is the capital of France?",
    "Translate to French: Good morning, my friend.",
    "Extract the name and the age as JSON: 'Maria Keller, 34 years old, has worked in Bern since 2019.'",
    "Classify this log line as info, warning or error:\n"
    "2026-03-01T04:12:09Z gateway-3 mqttd[812]: connection to 10.0.0.17 refused, giving up",
)
INSTRUCT_SAMPLES = tuple(Sample([{"role": "user", "content": question}]) for question in INSTRUCT_QUESTIONS)


def demo_model_samples(folder: Path) -> tuple[Sample, ...]:
    """The samples beside the demo model in `folder`."""
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return tuple(Sample(one["messages"], one["answer"]) for one in samples)
