"""A real model in edged and in llama.cpp, from the same weights: `make bench-real` prints the table.

Both sides are in this one process and take turns, so that a busy moment of the machine meets both. Compare the ratios
of one run, not its tokens per second.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import llama_cpp
from figures import Figure, show
from peers import LlamaCpp
from turns import take_turns

from edged import logs
from edged.engine.bench import JOINING, JOINING_STALL, Bench
from edged.engine.loaded_model import LoadedModel, load_model
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / ".real-model"
PACKAGE = FOLDER / "SmolLM2-135M-Instruct"
GGUF = FOLDER / "SmolLM2-135M-Instruct.Q4_1.gguf"
PREFILLS, PREFILL_GOAL = (128, 512, 1536), 1.0
ROWS = {1: 1.5, 4: 1.5, 8: 1.45, 16: 1.15}
"""Rows that decode together, and the speed by llama.cpp's that they are to reach."""
PROMPT, CONTEXT = 128, 384
"""Tokens of the prompts that are decoded from; most tokens of prompt and answer."""
WARM_PROMPT = 512
REPEATS = 5
PREFIX_BYTES = 512 << 20


def main() -> None:
    if not (PACKAGE / "genai_config.json").is_file():
        sys.exit("there is no real model here: make real-model")
    logs.configure("error", "auto")
    print(
        f"{PACKAGE.name} — {processor()}, {os.cpu_count()} cores, onnxruntime {version('onnxruntime')}, "
        f"llama-cpp-python {version('llama-cpp-python')} (Q4_0)"
    )
    gguf = q4_0()
    show(prefill_figures(gguf))
    show(decode_figures(gguf))


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def q4_0() -> Path:
    """The GGUF with every matrix in Q4_0, as many bits as in edged's package; made once by llama.cpp's own function."""
    path = GGUF.with_name(GGUF.name.replace("Q4_1", "Q4_0"))
    if not path.exists():
        part = path.with_suffix(".part")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        params.allow_requantize = params.pure = True
        if llama_cpp.llama_model_quantize(str(GGUF).encode(), str(part).encode(), params) != 0:
            sys.exit(f"llama.cpp cannot quantize {GGUF}")
        part.rename(path)
    return path


def serve(rows: int, context: int) -> LoadedModel:
    """The package with prompts read in whole chunks."""
    settings = Settings(model={"rows": rows, "context": context}, cache={"ram_bytes": PREFIX_BYTES})
    return replace(load_model(settings, detect(), available, PACKAGE), max_stall=JOINING_STALL)


def prefill_figures(gguf: Path) -> Iterator[Figure]:
    """Prompts read by one job that is alone, from its arrival to its first token; then one that is mostly known."""
    context = max(PREFILLS) + JOINING
    loaded = serve(1, context)
    with Bench(loaded) as bench:
        llama = LlamaCpp(gguf, loaded.threads, 1, prompt=1, context=context)
        for tokens in PREFILLS:
            pairs = [(bench.first_token([bench.prompt(tokens)]), llama.prefill(tokens)) for _ in range(REPEATS + 1)]
            edged, other = (statistics.median(side) for side in zip(*pairs[1:], strict=True))  # the first took memory
            ratio = other / edged
            text = f"{ratio:.2f} ({tokens / edged:.0f} / {tokens / other:.0f} tok/s)"
            name = f"prefill of {tokens} tokens: edged / llama.cpp Q4_0"
            yield Figure(name, text, f"≥ {PREFILL_GOAL}", ratio >= PREFILL_GOAL)
        llama.close()
        times = []
        for _ in range(REPEATS):
            prompt = bench.prompt(WARM_PROMPT)
            times.append((bench.first_token([prompt]), bench.first_token([bench.similar(prompt)])))
        cold, warm = (statistics.median(side) for side in zip(*times, strict=True))
        text = f"{cold * 1e3:.0f} ms / {warm * 1e3:.0f} ms = {cold / warm:.1f}"
        yield Figure(f"first token of {WARM_PROMPT} tokens, unknown / seen before", text)


def decode_figures(gguf: Path) -> Iterator[Figure]:
    """Rows that decode together."""
    for rows, least in ROWS.items():
        loaded = serve(rows, CONTEXT)
        with Bench(loaded) as bench:
            llama = LlamaCpp(gguf, loaded.threads, rows, PROMPT, CONTEXT)
            turns = take_turns(bench, rows, PROMPT, llama.step)
            llama.close()
        text = f"{turns.ratio:.2f} ({rows / turns.edged:.0f} / {rows / turns.other:.0f} tok/s)"
        name = f"decode, {rows} row{'s' if rows > 1 else ''}: edged / llama.cpp Q4_0"
        yield Figure(name, text, f"≥ {least}", turns.ratio >= least)


if __name__ == "__main__":
    main()
