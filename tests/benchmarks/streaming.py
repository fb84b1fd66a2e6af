"""What a token costs on its way to text, beside the window of tokens that was decoded anew for each before.

python tests/benchmarks/streaming.py [FOLDER …]: packages, or other folders with a tokenizer.json; without any, the demo
model and byte-level and byte-fallback tokenizers made here. For each: English, Khmer with emoji, and random tokens.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "unit"), str(HERE.parent / "broker")]

from test_detokenizer import KINDS  # noqa: E402
from text_rig import EMOJI, KHMER, special_of  # noqa: E402

from edged.engine.detokenizer import TextStream, detokenizers  # noqa: E402

TOKENS, ROUNDS = 2000, 5
GOAL = 10.0
"""Microseconds. Tokenizers of an unknown kind have none: their library decodes each token in its own time."""
ENGLISH = "The pump in hall three is off. Switch on the fan, and tell me when the temperature is below 81 degrees. "
STOP = ("\n\n", "User:", "the end of it")


class Window:
    """The stream as it was: pieces only where the newest tokens, decoded after the few before, end with a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = self._read = 0

    def push(self, token: int) -> str:
        self._tokens.append(token)
        new = self._unread()
        if new.endswith("\ufffd"):
            return self._give_up_bytes(new)
        if new:
            self._context, self._read = self._read, len(self._tokens)
        return new

    def _unread(self) -> str:
        before = self._decode(self._tokens[self._context : self._read])
        after = self._decode(self._tokens[self._context :])
        if after.startswith(before):
            return after[len(before) :]
        self._context = self._read
        return self._decode(self._tokens[self._read :])

    def _give_up_bytes(self, new: str) -> str:
        split = len(self._tokens) - 3
        if split <= self._read:
            return ""
        hopeless = self._decode(self._tokens[self._read : split])
        if hopeless + self._decode(self._tokens[split:]) != new:
            return ""
        self._context = self._read = split
        return hopeless


def cost(push: Callable[[int], str], ids: Sequence[int]) -> tuple[float, int]:
    """(microseconds of this thread's processor time a token, tokens until the first text)."""
    first = 0
    began = time.thread_time()
    for count, token in enumerate(ids, 1):
        if push(token) and not first:
            first = count
    return (time.thread_time() - began) / len(ids) * 1e6, first


def samples(tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    special, chance = special_of(tokenizer), random.Random(0)
    for name, text in (("English", ENGLISH), ("Khmer, emoji", KHMER + EMOJI), ("ក ក ក …", "ក")):
        ids = [token for token in tokenizer.encode(text * TOKENS).ids if token not in special]
        yield name, ids[:TOKENS]
    plain = sorted(set(range(tokenizer.get_vocab_size())) - special)
    yield "random", chance.choices(plain, k=TOKENS)


def measure(name: str, tokenizer: Tokenizer) -> bool:
    """Print a tokenizer's rows; whether all meet the goal."""
    met, make = True, detokenizers(tokenizer)
    for sample, ids in samples(tokenizer):
        now, before, stops = (
            min(cost(one(), ids) for _ in range(ROUNDS))
            for one in (
                lambda: TextStream(make(())).push,
                lambda: Window(lambda some: str(tokenizer.decode(list(some)))).push,
                lambda: TextStream(make(()), STOP).push,
            )
        )
        held = now[0] <= GOAL or name.startswith("unknown")
        met = met and held
        print(
            f"{name:<22} {sample:<14} {before[0]:>9.1f} {now[0]:>7.1f} {stops[0]:>9.1f} {before[1] or '-':>12} "
            f"{now[1] or '-':>6}  {'met' if now[0] <= GOAL else 'no goal' if held else 'MISSED'}",
            flush=True,
        )
    return met


def main() -> None:
    """Measure, and exit with 1 where a goal was missed."""
    found = {Path(folder).name: Tokenizer.from_file(f"{folder}/tokenizer.json") for folder in sys.argv[1:]}
    print(f"µs a token over {TOKENS:,} tokens (goal: {GOAL:.0f}), and after how many tokens the first text came")
    print(f"{'tokenizer':<22} {'text':<14} {'before':>9} {'now':>7} {'3 stops':>9} {'first before':>12} {'now':>6}")
    results = [measure(name, tokenizer) for name, tokenizer in (found or KINDS).items()]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
