"""Prompts read through the served graph and through the published one: `make bench-prefill` prints the table.

Both are in this one process and take turns, so that a busy moment of the machine meets both; loads have a process each.
Compare the ratios of one run.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime
import psutil
from figures import Figure, show

from edged import logs
from edged.engine import loaded_model
from edged.engine.bench import JOINING, JOINING_STALL, Bench
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import Package, open_package
from edged.engine.serving_graph import ServingGraph, serving_graph
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

PROMPTS = (128, 512, 1536)
REPEATS, LOADS = 5, 9
LARGE_VOCABULARY, PREFILL_GOAL, LOAD_GOAL = 262_144, 2.0, 1.05
MODES = ("served", "published")


def main() -> None:
    logs.configure("error", "auto")
    if len(sys.argv) == 4 and sys.argv[1] == "--load":
        print(serve(Path(sys.argv[2]), sys.argv[3], 256).load_seconds, flush=True)
        os._exit(0)  # nothing to be put in order, and freeing takes a while
    folders = [Path(folder) for folder in sys.argv[1:]]
    if not folders or not all((folder / "genai_config.json").is_file() for folder in folders):
        sys.exit("give the folders of model packages: make bench-prefill MODEL=FOLDER")
    print(
        f"prompts, served graph / as published — {psutil.cpu_count()} cores, {platform.machine()}, "
        f"onnxruntime {onnxruntime.__version__}"
    )
    for folder in folders:
        show(figures(folder))


def serve(folder: Path, mode: str, context: int) -> LoadedModel:
    """The package with prompts read in whole chunks, through the graph that `mode` names."""
    published = ServingGraph(None, "all", "to be compared with")

    def graph(package: Package) -> ServingGraph:
        return serving_graph(package) if mode == "served" else published

    loaded_model.serving_graph = graph
    settings = Settings(model={"rows": 1, "context": context}, cache={"ram_bytes": 0})
    loaded = load_model(settings, detect(), available, folder)
    assert loaded.session.logits_computed == ("wanted" if mode == "served" else "all")
    return replace(loaded, max_stall=JOINING_STALL)


def figures(folder: Path) -> Iterator[Figure]:
    new, old = (serve(folder, mode, max(PROMPTS) + JOINING) for mode in MODES)
    name, vocabulary = new.package.name, new.package.vocabulary
    yield Figure(f"{name}: vocabulary; tokens of a chunk", f"{vocabulary}; {new.chunk} / {old.chunk}")
    with Bench(new) as one, Bench(old) as other:
        for tokens in PROMPTS:
            pairs = []
            for _ in range(REPEATS + 1):
                prompt = one.prompt(tokens)
                pairs.append((one.first_token([prompt]), other.first_token([prompt])))
            mine, theirs = (statistics.median(side) for side in zip(*pairs[1:], strict=True))  # the first took memory
            # Of pairs, which meet the same busy moment.
            ratio = statistics.median(published / served for served, published in pairs[1:])
            text = f"{ratio:.2f} ({tokens / mine:.0f} / {tokens / theirs:.0f} tok/s)"
            goal = (f"≥ {PREFILL_GOAL}", ratio >= PREFILL_GOAL) if vocabulary >= LARGE_VOCABULARY else ()
            yield Figure(f"prefill of {tokens} tokens", text, *goal)
    yield from load_figures(folder)


def load_figures(folder: Path) -> Iterator[Figure]:
    """Loads that edit the graph, and those of a package that has the edit, beside loads of the graph as it is."""
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent) as place:
        prepared = Path(place, folder.name)
        prepared.mkdir()
        package = open_package(folder)
        for file in package.files:
            os.link(folder.resolve() / file, prepared / file)
        (prepared / package.model_file.name).unlink()
        (prepared / package.model_file.name).write_bytes(serving_graph(package).model or b"")
        sides = {"edited": (folder, "served"), "prepared": (prepared, "served"), "published": (folder, "published")}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(LOADS):
            for side, (path, mode) in sides.items():
                command = [sys.executable, __file__, "--load", str(path), mode]
                times[side].append(float(subprocess.check_output(command, text=True)))
    for side, name in (("edited", "load"), ("prepared", "load of what edged model prepare writes")):
        mine, theirs = (statistics.median(times[one]) for one in (side, "published"))
        text = f"{mine / theirs:.3f} ({mine:.2f} / {theirs:.2f} s)"
        yield Figure(name, text, f"≤ {LOAD_GOAL}", mine / theirs <= LOAD_GOAL)


if __name__ == "__main__":
    main()
