"""Scores the demo model's int4 package on the fixed test sets: exact match, greedy, no grammar.

Ends with 1 if a goal is missed. It needs numpy, onnxruntime, tokenizers and jinja2, no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
import onnxruntime
from generator import TASKS, TEST_CASES, Message, Sample, Task, test_samples
from tokenizers import Tokenizer

GOALS = {"combinations": 0.98, "frames": 0.90, "outside": 0.95}
SPLIT_NAMES = {"combinations": "unseen combinations", "frames": "unseen frames"}
MAX_NEW_TOKENS = 96


class Package:
    """A model package, answering one conversation at a time with the likeliest token at each step."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = config["decoder"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / decoder["filename"]), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self._template = jinja2.Environment().from_string(template)
        self._ends = set(np.atleast_1d(config["eos_token_id"]).tolist())
        shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        self._caches = [
            name % layer
            for layer in range(decoder["num_hidden_layers"])
            for name in (decoder["inputs"]["past_key_names"], decoder["inputs"]["past_value_names"])
        ]
        self._outputs = ["logits"] + [name.replace("past_key_values", "present") for name in self._caches]
        self._empty = {name: np.zeros(shape, np.float32) for name in self._caches}
        self.tokens = 0

    def answer_ids(self, messages: list[Message]) -> list[int]:
        prompt = self._template.render(messages=messages, add_generation_prompt=True)
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        caches = self._empty
        inputs, total, answer = ids, len(ids), []
        while len(answer) < MAX_NEW_TOKENS:
            feeds = {
                "input_ids": np.array([inputs], np.int64),
                "attention_mask": np.ones((1, total), np.int64),
                **caches,
            }
            logits, *presents = self._session.run(self._outputs, feeds)
            caches = dict(zip(self._caches, presents, strict=True))
            token = int(logits[0, -1].argmax())
            self.tokens += 1
            if token in self._ends:
                break
            answer.append(token)
            inputs, total = [token], total + 1
        return answer

    def answer(self, messages: list[Message]) -> str:
        return self._tokenizer.decode(self.answer_ids(messages), skip_special_tokens=False)


_package: Package | None = None


def answer(messages: list[Message]) -> str:
    """The package's answer to a conversation: the one place where another engine could be put."""
    assert _package is not None
    return _package.answer(messages)


def score(samples: list[Sample], wrong: list[tuple[Sample, str]]) -> float:
    """The share that is answered exactly right; the others are added to `wrong`."""
    misses = [(sample, given) for sample in samples if (given := answer(sample.messages)) != sample.answer]
    wrong += misses
    return 1 - len(misses) / len(samples)


def main() -> int:
    global _package
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=here.parents[1] / "edged" / "demo" / "model")
    parser.add_argument("--cases", type=int, default=TEST_CASES, help="cases of each test set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers of each set")
    arguments = parser.parse_args()

    _package = Package(arguments.package, arguments.threads)
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
        share = score(samples, wrong)
        missed |= share < goal
        verdict = "" if share >= goal else "  MISSED"
        print(f"{task:10}{title:24}{len(samples):7}{share:13.1%} {goal:8.0%}{verdict}", flush=True)
        for sample, given in wrong[: arguments.show_wrong]:
            asked = " / ".join(message["content"] for message in sample.messages)
            print(f"    {asked!r}\n      should be {sample.answer}\n      but is    {given}")
        if arguments.show_wrong:
            print("    by frame:", Counter(sample.frame for sample, _ in wrong).most_common(8))
    seconds = time.monotonic() - began
    print(f"{_package.tokens} tokens in {seconds:.0f} s, {_package.tokens / seconds:.0f} tokens/s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
