"""What structured answers cost: `make bench-structured` prints the table.

A choice among labels and a ranking of documents beside reading, with the real model; then what forced tokens bring.
Both sides of a ratio run in one process and take turns; the median of the turns is shown.
"""

from __future__ import annotations

import queue
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, show
from forced import demo, extraction

from edged import logs
from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.sequence import Request
from edged.jobs.document import Job
from edged.jobs.preparer import prepare
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

PACKAGE = Path(__file__).resolve().parents[2] / ".real-model" / "SmolLM2-135M-Instruct"
PROMPT, LABELS = 200, ("pump", "valve", "sensor", "motor", "filter", "heater", "fan", "other")
DOCUMENTS, TOKENS = 50, 100
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")


class Runner:
    """An engine with the real model that keeps nothing of prompts."""

    def __init__(self, rows: int = 1, package: Path = PACKAGE) -> None:
        settings = Settings(model={"rows": rows, "context": 1024}, cache={"ram_bytes": 0})
        self.loaded: LoadedModel = load_model(settings, detect(), available, package)
        self._events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._engine = Engine(lambda: self.loaded, lambda: "", self._events.put, lambda _keys: None)
        self._engine.start()

    def run(self, requests: Sequence[Request]) -> tuple[float, list[Finished]]:
        """Seconds until all have ended, and how, in the order in which they did."""
        began, ends = time.monotonic(), list[Finished]()
        for request in requests:
            self._engine.submit(request)
        while len(ends) < len(requests):
            event = self._events.get()
            if isinstance(event, Ended):
                sys.exit(f"the engine failed: {event.failure}")
            if isinstance(event, Finished):
                ends.append(event)
        return time.monotonic() - began, ends

    def seconds(self, requests: Sequence[Request]) -> float:
        """Until all have ended."""
        return self.run(requests)[0]

    def close(self) -> None:
        self._engine.stop()


def prepared(loaded: LoadedModel, number: int = 1, **fields: Any) -> Request:
    return prepare(Job(id="a", **fields), number, "a", loaded)


def reading(key: int, prompt: Sequence[int]) -> Request:
    """A request that reads a prompt and makes the token after it."""
    return Request(key, tuple(prompt), 1, ignore_eos=True)


def ratio(one: Callable[[], float], other: Callable[[], float], turns: int) -> tuple[float, float]:
    """Median seconds of both, which take turns."""
    pairs = [(one(), other()) for _ in range(turns + 1)][1:]  # the first take memory
    mine, others = (statistics.median(side) for side in zip(*pairs, strict=True))
    return mine, others


def choice(runner: Runner) -> Figure:
    ids = runner.loaded.tokenizer.encode_text(TEXT)[:PROMPT]
    form = {"type": "choice", "choice": list(LABELS)}
    request = prepared(runner.loaded, prompt=ids, response_format=form)
    assert request.labels is not None
    mine, other = ratio(lambda: runner.seconds([request]), lambda: runner.seconds([reading(1, ids)]), 9)
    text = f"{mine / other:.2f} ({mine * 1e3:.0f} / {other * 1e3:.0f} ms, {len(request.labels.nodes)} nodes)"
    rows = runner.loaded.rows
    name = f"choice among {len(LABELS)} labels, {PROMPT}-token prompt, {rows} row{'s' * (rows > 1)} / one prefill"
    return Figure(name, text, "<= 1.3", mine / other <= 1.3)


def rank(runner: Runner) -> Iterator[Figure]:
    loaded = runner.loaded
    tokens = loaded.tokenizer.encode_text(TEXT)
    parts = [tokens[at * TOKENS : (at + 1) * TOKENS] for at in range(DOCUMENTS)]
    documents = [loaded.tokenizer.decode(part) for part in parts]
    began = time.monotonic()
    request = prepared(loaded, query="How is a damaged spool mended?", documents=documents)
    preparing = time.monotonic() - began
    assert request.ranking is not None
    alone = [reading(key, part) for key, part in enumerate(parts)]
    mine, other = ratio(lambda: runner.seconds([request]), lambda: runner.seconds(alone), 3)
    more = request.ranking.tokens - sum(map(len, parts))
    text = f"{mine / other:.2f} ({mine:.2f} / {other:.2f} s, {len(request.prompt)} + {more} tokens more)"
    name = f"rank, {DOCUMENTS} documents of {TOKENS} tokens / reading them"
    yield Figure(name, text, "<= 1.2", mine / other <= 1.2)
    yield Figure("rank: rendering and tokenizing, before", f"{preparing * 1e3:.0f} ms")


def sharing(runner: Runner) -> Figure:
    """What documents could gain by sharing steps: processor time of a token in chunks of as many tokens."""
    session, ids = runner.loaded.session, runner.loaded.tokenizer.encode_text(TEXT)
    taken = {}
    for count in (16, TOKENS, 4 * TOKENS):
        chunk, each = np.array([ids[:count]], np.int64), list[float]()
        for _ in range(6):
            began = time.process_time()
            session.step(0, chunk, [0], count)
            each.append((time.process_time() - began) / count)
        taken[count] = statistics.median(each[1:])
    text = ", ".join(f"{seconds * 1e3:.2f} ms of {count}" for count, seconds in taken.items())
    return Figure("processor time of a token in a chunk", text)


def main() -> None:
    if not (PACKAGE / "genai_config.json").is_file():
        sys.exit("there is no real model here: make real-model")
    logs.configure("error", "auto")
    for rows in (8, 1):
        runner = Runner(rows)
        show([choice(runner)])
        if rows == 1:
            show(rank(runner))
            show([sharing(runner)])
        runner.close()
    show(demo())
    show(extraction(PACKAGE, Path(sys.argv[1]) if len(sys.argv) > 1 else None))


if __name__ == "__main__":
    main()
