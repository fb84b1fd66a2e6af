"""What the engine makes of a full-size package, beside onnxruntime alone: `make bench MODEL=FOLDER` prints the table.

All in one run on one machine, the two sides in turn, ratios of medians: a busy machine slows both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
from bare import Bare
from figures import Figure, forget_pages, gib, show
from identity import identity
from prefixes import prefix_figures
from turns import take_turns

import edged
from edged import logs
from edged.engine.bench import JOINING_STALL, Bench
from edged.engine.known_answers import (
    BUDGET,
    FILE,
    KnownAnswers,
    Question,
    RecordedWith,
    Sample,
    answer_logits,
    write_known_answers,
)
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import open_package
from edged.engine.serving_graph import serving_graph
from edged.machine import cgroup
from edged.machine.board import detect
from edged.machine.memory import Available, available
from edged.settings import Settings

PROMPT, CONTEXT = 128, 384  # two models and two caches of 8 rows must fit into memory together
LOADS, PREFILLS = 3, 5
LOAD_RATIO, MEMORY_RATIO = 1.15, 1.4
RUNNING, LONG_PROMPT, LONG_PROMPTS = 3, 256, 3


def main() -> None:
    logs.configure("error", "auto")
    if len(sys.argv) == 5 and sys.argv[1] == "--load":
        load_here(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    if len(sys.argv) != 2 or not Path(sys.argv[1], "genai_config.json").is_file():
        sys.exit("give the folder of a model package: make bench MODEL=FOLDER")
    package = Path(sys.argv[1])
    print(
        f"edged engine — {psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, {package}"
    )
    show(itertools.chain(load_figures(package), speed_figures(package), prefix_figures(package)))


def load_here(side: str, package: Path, bits: Path) -> None:
    """In a process of its own: load once, print the seconds that took and VmHWM in bytes.

    `bits`: the file that keeps what a package's first load measures.
    """
    if side == "bare":
        seconds = Bare(package, threads()).load_seconds
    else:
        # The load alone is to be seen: what rows would need besides is not counted against a group's limit here.
        whole = Available(psutil.virtual_memory().available, "memory")
        settings = Settings(model={"rows": 1, "context": 256})
        serving = load_model(settings, detect(), lambda: whole, package, bits_file=bits)
        seconds = serving.load_seconds
        serving.close()
    status = Path("/proc/self/status").read_text()
    print(seconds, int(status.split("VmHWM:")[1].split()[0]) << 10)
    sys.stdout.flush()
    os._exit(0)  # nothing to be put in order, and freeing takes a while


def load_figures(package: Path) -> Iterator[Figure]:
    times: dict[str, list[float]] = {"bare": [], "edged": []}
    with with_known_answers(package) as answering:
        size = forget_pages(answering)
        cold, resident, peak = load_in_child("edged", answering)
        for _ in range(LOADS):
            times["bare"].append(load_in_child("bare", package)[0])
            times["edged"].append(load_in_child("edged", answering)[0])
        limited = load_in_child("edged", answering, limit=int(size * MEMORY_RATIO))
    bare, edged = (statistics.median(times[side]) for side in ("bare", "edged"))
    ratio = edged / bare
    text = f"{ratio:.2f} ({edged:.1f} / {bare:.1f} s, {BUDGET} tokens compared)"
    yield Figure("load + known answers / bare session load", text, f"≤ {LOAD_RATIO}", ratio <= LOAD_RATIO)
    ratio = resident / size
    text = f"{ratio:.2f} ({gib(resident)})"
    yield Figure("peak memory of load (VmHWM) / bytes of the package", text, f"≤ {MEMORY_RATIO}", ratio <= MEMORY_RATIO)
    if peak is not None and limited[2] is not None:
        # The kernel takes the pages of the package's files back when it needs them.
        text = f"{peak / size:.2f} ({gib(peak)}, page cache and all), in {cold:.1f} s"
        yield Figure("the same by a control group without a limit", text)
        text = f"{limited[2] / size:.2f}, in {limited[0]:.1f} s"
        yield Figure(f"the same by one with a limit of {MEMORY_RATIO} x the package", text, "loads", True)


@contextlib.contextmanager
def with_known_answers(package: Path) -> Iterator[Path]:
    """The package, linked, with answers of the whole budget of tokens that this runtime gives.

    Random weights are sure of nothing, so `edged model verify --record` refuses them: what is measured is the cost.
    """
    with tempfile.TemporaryDirectory(dir=package.resolve().parent) as folder:
        linked = Path(folder, "package")
        linked.mkdir()
        for file in package.iterdir():
            if file.is_file() and file.name != FILE:
                os.link(file, linked / file.name)
        serving = serve(linked, rows=1, context=256)
        prompt = [n % serving.package.vocabulary for n in range(3, 2 + BUDGET)]
        answer = [int(np.argmax(logits)) for logits in answer_logits(serving.session, prompt, [0], serving.chunk)]
        text = serving.tokenizer.decode(answer)
        known = KnownAnswers(
            recorded_with=RecordedWith(edged=edged.__version__, onnxruntime=onnxruntime.__version__),
            tokenizer=Sample(text="edged", ids=serving.tokenizer.encode_text("edged")),
            questions=[Question(prompt=prompt, answer=answer, margins=[1.0], text=text)],
        )
        write_known_answers(linked, known)
        serving.close()
        del serving
        yield linked


def load_in_child(side: str, package: Path, limit: int | None = None) -> tuple[float, int, int | None]:
    """Seconds, VmHWM and, where a control group can be had for the child alone, that group's peak; both in bytes.

    `limit`: the most bytes that the group may have, its pages of files included.
    """
    group = own_group()
    command = [sys.executable, __file__, "--load", side, str(package), str(package.parent / "bits.json")]
    enter = (lambda: (group / "cgroup.procs").write_text("0")) if group else None
    if group and limit is not None:
        forget_pages(package)
        file = next(group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists())
        file.write_text(str(limit))
    out = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=enter).stdout.split()
    peak = None
    if group:
        files = [group / name for name in ("memory.peak", "memory.max_usage_in_bytes")]
        peak = next(int(file.read_text()) for file in files if file.exists())
        group.rmdir()
    return float(out[0]), int(out[1]), peak


def own_group() -> Path | None:
    """A new memory control group below this process's own, None where that is not allowed."""
    for parent in (*cgroup.memory_v1_folders(), *cgroup.folders()):
        group = parent / f"edged-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if any((group / name).exists() for name in ("memory.peak", "memory.max_usage_in_bytes")):
            return group
        group.rmdir()
    return None


def threads() -> int:
    return len(detect().performance_cores(os.sched_getaffinity(0)))


def serve(package: Path, rows: int, context: int = CONTEXT) -> LoadedModel:
    return load_model(Settings(model={"rows": rows, "context": context}), detect(), available, package)


def speed_figures(package: Path) -> Iterator[Figure]:
    with Bench(serve(package, rows=RUNNING + 1)) as bench:
        yield waits(bench)
    bare = Bare(package, threads(), serving_graph(open_package(package)).model)
    with Bench(replace(serve(package, rows=8), max_stall=JOINING_STALL)) as bench:
        yield prefill(bench, bare)
        for rows in (1, 8):
            yield from decode(bench, bare, rows, 0.97)
        yield identity(bench, rows=8)


def prefill(bench: Bench, bare: Bare) -> Figure:
    bare.room(1, CONTEXT)
    times = []
    for _ in range(PREFILLS + 1):
        times.append((bench.first_token([bench.prompt(PROMPT)]), bare.step(0, PROMPT)))
    edged, alone = (statistics.median(side) for side in zip(*times[1:], strict=True))  # the first took memory
    ratio = alone / edged
    text = f"{ratio:.3f} ({PROMPT / edged:.1f} / {PROMPT / alone:.1f} tok/s)"
    return Figure(f"prefill of {PROMPT} tokens: edged / bare loop", text, "≥ 0.97", ratio >= 0.97)


def decode(bench: Bench, bare: Bare, rows: int, least: float) -> Iterator[Figure]:
    bare.room(rows, CONTEXT)
    turns = take_turns(bench, rows, PROMPT, lambda past: bare.step(past, 1))
    name = f"decode, {rows} row{'s' if rows > 1 else ''}"
    text = f"{turns.ratio:.3f} ({rows / turns.edged:.2f} / {rows / turns.other:.2f} tok/s)"
    yield Figure(f"{name}: edged / bare loop", text, f"≥ {least}", turns.ratio >= least)
    text = f"{turns.edged * 1e3:.2f} ms, {(turns.edged - turns.session) * 1e3:.2f} ms"
    yield Figure(f"{name}: a step, and what of it is not the session's", text)


def waits(bench: Bench) -> Figure:
    """Rows are decoding when long prompts come, one after another: how long does each wait for its next token?"""
    name = f"wait for the next token while prompts of {LONG_PROMPT} are read"
    decoding = threading.Event()
    bench.stopwatch.hook = lambda step: decoding.set() if step.rows == RUNNING and step.count == 1 else None
    running = [bench.submit(bench.prompt(16), CONTEXT - 16) for _ in range(RUNNING)]
    decoding.wait()
    bench.stopwatch.steps.clear()
    bench.ends([bench.submit(bench.prompt(LONG_PROMPT), 1) for _ in range(LONG_PROMPTS)])
    bench.cancel(running)
    bench.ends(running)
    tokens = [n for n, step in enumerate(bench.stopwatch.steps) if step.count == 1 and step.rows >= RUNNING]
    waited = [
        bench.stopwatch.steps[after].ended - bench.stopwatch.steps[before].ended
        for before, after in itertools.pairwise(tokens)
        if after > before + 1  # a piece of a prompt was read in between
    ]
    p50, p99 = np.percentile(waited, [50, 99])
    text = f"p50 {p50:.2f} s, p99 {p99:.2f} s, max {max(waited):.2f} s ({len(waited)} waits)"
    limit = Settings().model.max_stall
    return Figure(name, text, f"≤ {limit:g} s", p99 <= limit)


if __name__ == "__main__":
    main()
