"""An int8 KV cache beside the published one: memory, perplexity and speed. `make bench-int8` prints the table.

Both are in this one process and take turns, so that a busy moment of the machine meets both. Compare the ratios of one
run. Perplexity is that of the real model on Python's own documentation, which comes with Python.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import onnxruntime
from figures import Figure, show
from numpy.typing import NDArray

from edged import logs
from edged.engine.calibration import calibrate, calibration_ids
from edged.engine.int8_graph import int8_served
from edged.engine.kv_cache import KVCache
from edged.engine.opening import int8_fault, thread_count
from edged.engine.package import Package, open_package
from edged.engine.providers import CPU, ProviderChoice
from edged.engine.serving_graph import serving_graph
from edged.engine.session import ModelSession
from edged.engine.tokenizer import Tokenizer
from edged.machine.board import detect
from edged.settings import Settings

REAL_MODEL = Path(__file__).resolve().parents[2] / ".real-model/SmolLM2-135M-Instruct"
TOKENS, WINDOW = 20_480, 2_048
"""Tokens whose perplexity is computed, and of each piece of text that is read without what comes before it."""
CONTEXT, ROWS, CHUNK = 1_024, 8, 256
STEPS = 7


@dataclass(frozen=True)
class Sides:
    """The two sessions over a package, each with a cache of ROWS rows that hold CONTEXT tokens."""

    package: Package
    published: ModelSession
    int8: ModelSession


def main() -> None:
    logs.configure("error", "auto")
    folders = [Path(folder) for folder in sys.argv[1:]] or [REAL_MODEL]
    if not all((folder / "genai_config.json").is_file() for folder in (*folders, REAL_MODEL)):
        sys.exit(
            "give the folder of a model package: make bench-int8 MODEL=FOLDER; make real-model builds the other one"
        )
    print(
        f"KV cache int8 / as published — {os.cpu_count()} cores, {platform.machine()}, "
        f"onnxruntime {onnxruntime.__version__}"
    )
    show(perplexity_figures(open_sides(REAL_MODEL)))
    for folder in folders:
        show(speed_figures(open_sides(folder)))


def open_sides(folder: Path) -> Sides:
    """Both sessions, the scales measured as at a load."""
    package, threads = open_package(folder), thread_count(Settings(), detect())
    if (fault := int8_fault(package, ProviderChoice((CPU,), "", False), threads)) is not None:
        sys.exit(fault)
    graph = serving_graph(package)
    published = ModelSession(package, [CPU], threads, graph)
    with closing(Tokenizer(package)) as tokenizer:
        began = time.monotonic()
        scales = calibrate(published, calibration_ids(tokenizer, None), CHUNK)
        print(f"{package.name}: scales measured in {time.monotonic() - began:.1f} s, {threads} threads")
    return Sides(package, published, ModelSession(package, [CPU], threads, int8_served(package, graph, scales)))


def perplexity_figures(sides: Sides) -> Iterator[Figure]:
    with closing(Tokenizer(sides.package)) as tokenizer:
        text = tokenizer.encode_text("\n\n".join(topics[name] for name in sorted(topics)))[:TOKENS]
    if len(text) < TOKENS:
        sys.exit(f"this Python's documentation has {len(text)} tokens only")
    costs: dict[str, list[float]] = {"published": [], "int8": []}
    same = 0
    for start in range(0, TOKENS, WINDOW):
        piece = [*text[max(0, start - 1) : start + WINDOW]]
        likeliest = []
        for side, session in (("published", sides.published), ("int8", sides.int8)):
            session.use(session.make_cache(1, len(piece)))
            found, best = read_piece(session, piece)
            costs[side] += found
            likeliest.append(best)
        same += int((likeliest[0] == likeliest[1]).sum())
    mine, theirs = (float(np.exp(np.mean(costs[side]))) for side in ("int8", "published"))
    text_of = f"{mine / theirs:.4f} ({mine:.3f} / {theirs:.3f}, {len(costs['int8'])} tokens)"
    yield Figure("perplexity on Python's documentation", text_of, "≤ 1.01", mine / theirs <= 1.01)
    yield Figure("the likeliest token is the same", f"{same / len(costs['int8']):.1%}")


def read_piece(session: ModelSession, piece: Sequence[int]) -> tuple[list[float], NDArray[np.int64]]:
    """The negative log-likelihood of each token but the first, and the likeliest token in its place."""
    tokens, costs, best = np.array([piece], np.int64), [], []
    for start, end in pairwise([*range(0, len(piece) - 1, CHUNK), len(piece) - 1]):
        logits = session.forward(0, tokens[:, start:end], [start], end)[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        totals = np.log(np.exp(logits).sum(axis=1))
        costs += list(totals - logits[np.arange(end - start), tokens[0, start + 1 : end + 1]])
        best.append(logits.argmax(axis=1))
    return costs, np.concatenate(best)


def speed_figures(sides: Sides) -> Iterator[Figure]:
    name, layouts = sides.package.name, (sides.int8.layout, sides.published.layout)
    mine, theirs = (layout.token_bytes for layout in layouts)
    yield Figure(
        f"{name}: bytes of a token", f"{mine / theirs:.3f} ({mine} / {theirs})", "≤ 0.27", mine / theirs <= 0.27
    )
    sessions = (sides.int8, sides.published)
    for session in sessions:
        cache = session.make_cache(ROWS, CONTEXT + STEPS + 1)
        fill(cache, CONTEXT)
        session.use(cache)
    chance = np.random.default_rng(1)
    times: list[list[float]] = [[], []]
    for step in range(STEPS + 1):
        ids = chance.integers(0, sides.package.vocabulary, (ROWS, 1))
        for taken, session in zip(times, sessions, strict=True):
            past = CONTEXT + step
            taken.append(timed(session, ids, [past] * ROWS, past + 1))
    mine, theirs = (statistics.median(taken[1:]) for taken in times)
    text = f"{theirs / mine:.2f} ({ROWS / mine:.1f} / {ROWS / theirs:.1f} tok/s)"
    yield Figure(f"decode, {ROWS} rows, context {CONTEXT}", text, "≥ 1.4", theirs / mine >= 1.4)
    times = [[], []]
    for past in range(0, CONTEXT, CHUNK):
        ids = chance.integers(0, sides.package.vocabulary, (1, CHUNK))
        for taken, session in zip(times, sessions, strict=True):
            taken.append(timed(session, ids, [past], past + CHUNK))
    mine, theirs = map(sum, times)
    text = f"{theirs / mine:.2f} ({CONTEXT / mine:.0f} / {CONTEXT / theirs:.0f} tok/s)"
    yield Figure(f"prefill of {CONTEXT} tokens, chunks of {CHUNK}", text, "≥ 0.9", theirs / mine >= 0.9)


def fill(cache: KVCache, tokens: int) -> None:
    """Put random numbers into each row: pages that were never written would all be one page of zeros."""
    chance = np.random.default_rng(0)
    numbers = chance.standard_normal(cache.layout.block_bytes(32) // cache.layout.planes[0].numpy_dtype().itemsize)
    scale = 30 if cache.layout.dtype == "int8" else 1
    block = (scale * numbers).astype(cache.layout.planes[0].numpy_dtype).view(np.uint8)
    for row in range(cache.rows):
        for start in range(0, tokens, 32):
            cache.write(row, start, block)


def timed(session: ModelSession, ids: NDArray[np.int64], past: list[int], width: int) -> float:
    began = time.perf_counter()
    session.step(0, ids, past, width)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
