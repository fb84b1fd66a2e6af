"""Scores the demo model's int4 package on the fixed test sets: exact match, greedy, no grammar.

Ends with 1 if a goal is missed. It needs edged with onnxruntime, no torch.
"""

from __future__ import annotations

import argparse
import queue
import sys
import time
from collections import Counter
from pathlib import Path

from generator import TASKS, TEST_CASES, Message, Sample, Task, test_samples

from edged import logs
from edged.engine.engine import Ended, Engine, EngineEvent, Finished
from edged.engine.loaded_model import load_model
from edged.engine.sequence import Request
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

GOALS = {"combinations": 0.98, "frames": 0.90, "outside": 0.95}
SPLIT_NAMES = {"combinations": "unseen combinations", "frames": "unseen frames"}
MAX_NEW_TOKENS = 96


class Package:
    """A model package, answering through edged's own engine, eight conversations at once."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        settings = Settings(model={"rows": 8, "context": 1024, "threads": threads})
        self._loaded = load_model(settings, detect(), available, folder)
        self._events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._engine = Engine(lambda: self._loaded, lambda: "", self._events.put, lambda _keys: None)
        self._engine.start()
        self.tokens = 0

    def answers(self, conversations: list[list[Message]]) -> list[str]:
        """The answer to each conversation, with the likeliest token at each step."""
        for key, messages in enumerate(conversations):
            prompt = tuple(self._loaded.tokenizer.encode_messages(messages))
            self._engine.submit(Request(key=key, prompt=prompt, max_tokens=MAX_NEW_TOKENS))
        answers: dict[int, str] = {}
        while len(answers) < len(conversations):
            event = self._events.get()
            if isinstance(event, Finished):
                answers[event.key] = event.text
                self.tokens += len(event.tokens)
            elif isinstance(event, Ended):
                answers[event.key] = f"<{event.failure}>"
        return [answers[key] for key in range(len(conversations))]


def score(package: Package, samples: list[Sample], wrong: list[tuple[Sample, str]]) -> float:
    """The share that is answered exactly right; the others are added to `wrong`."""
    answers = package.answers([sample.messages for sample in samples])
    misses = [(sample, given) for sample, given in zip(samples, answers, strict=True) if given != sample.answer]
    wrong += misses
    return 1 - len(misses) / len(samples)


def main() -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=here.parents[1] / "edged" / "demo" / "model")
    parser.add_argument("--cases", type=int, default=TEST_CASES, help="cases of each test set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers of each set")
    arguments = parser.parse_args()

    logs.configure("error", "auto")
    package = Package(arguments.package, arguments.threads)
    began = time.monotonic()
    missed = False
    rows: list[tuple[Task, str, float, str]] = []
    for task in TASKS:
        rows += [(task, split, GOALS[split], SPLIT_NAMES[split]) for split in ("combinations", "frames")]
    rows.append(("outside", "frames", GOALS["outside"], "unseen kinds of text"))

    print(f"{'task':10}{'test set':24}{'cases':>7}{'exact match':>14}{'goal':>9}")
    for task, split, goal, title in rows:
        wrong: list[tuple[Sample, str]] = []
        samples = test_samples(task, split, arguments.cases)
        share = score(package, samples, wrong)
        missed |= share < goal
        verdict = "" if share >= goal else "  MISSED"
        print(f"{task:10}{title:24}{len(samples):7}{share:13.1%} {goal:8.0%}{verdict}", flush=True)
        for sample, given in wrong[: arguments.show_wrong]:
            asked = " / ".join(message["content"] for message in sample.messages)
            print(f"    {asked!r}\n      should be {sample.answer}\n      but is    {given}")
        if arguments.show_wrong:
            print("    by frame:", Counter(sample.frame for sample, _ in wrong).most_common(8))
    seconds = time.monotonic() - began
    print(f"{package.tokens} tokens in {seconds:.0f} s, {package.tokens / seconds:.0f} tokens/s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
