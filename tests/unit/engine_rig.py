"""What the engine's tests share: fixture packages, a real engine around them, and requests run to their end."""

from __future__ import annotations

import json
import platform
import queue
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from patience import PATIENCE, eventually

from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished, ModelChanged, Piece
from edged.engine.kv_cache import KVCache
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import open_package
from edged.engine.sequence import Request
from edged.engine.session import ModelSession
from edged.engine.steps import StepObserver, StepRecord
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

MODELS = Path(__file__).parents[1] / "fixtures" / "models"
NAMES = ("phi3", "phi3-longrope", "llama3", "qwen3", "gemma2", "llama-position-ids")
"""The packages that have a reference.json; family_rig knows all."""


RUNTIME = tuple(int(part) for part in ort.__version__.split(".")[:2])


def has_the_oracles_kernels() -> bool:
    """Whether this machine rounds as the one where the oracle was made: then every id must be the same."""
    flags = Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
    return "avx512_vnni" in flags and RUNTIME >= (1, 30)


def recorded_reference(name: str) -> list[dict[str, Any]]:
    """Prompts with the greedy ids that onnxruntime-genai gave on the oracle's machine, eos not stopping it."""
    return list(json.loads((MODELS / name / "reference.json").read_text()))


@cache
def reference(name: str) -> list[dict[str, Any]]:
    """The same prompts with the greedy ids that are right on this machine.

    Where kernels round otherwise than the oracle's, those are what a job gives alone; test_engine.py checks that they
    leave the recorded ones at near ties only.
    """
    answers = recorded_reference(name)
    if not has_the_oracles_kernels():
        with running(serving(name)) as rig:
            for answer in answers:
                made = rig.run(request(0, answer["prompt_ids"], len(answer["output_ids"])))[0]
                answer["output_ids"] = ids(made)
    return answers


def load(path: Path, prefix_bytes: int = 0, disk: Path | None = None, **model: Any) -> LoadedModel:
    """Bring up a package as the daemon does, on one thread; without a prefix cache unless it gets bytes."""
    settings = Settings(model={"threads": 1, **model}, cache={"ram_bytes": prefix_bytes})
    return load_model(settings, detect(), available, path, prefix_folder=disk)


@cache
def serving(name: str, rows: int = 1, chunk: int = 256) -> LoadedModel:
    """A fixture package in service, kept for the tests that follow: an engine leaves nothing behind in it."""
    return load(MODELS / name, rows=rows, prefill_chunk=chunk)


def copy_package(name: str, folder: Path, **model: Any) -> Path:
    """A copy of a fixture package that may be spoilt; `model` overrides keys of genai_config.json's model section."""
    package = folder / name
    shutil.copytree(MODELS / name, package, copy_function=shutil.copyfile)
    config = json.loads((package / "genai_config.json").read_text())
    config["model"].update(model)
    (package / "genai_config.json").write_text(json.dumps(config))
    return package


def greedy_by_fresh_prefill(name: str, prompt: Iterable[int], count: int) -> list[int]:
    """The oracle: every token from a prefill of all tokens before it, by nothing but a session."""
    package = open_package(MODELS / name)
    session = ModelSession(package, ["CPUExecutionProvider"], 1)
    session.use(KVCache(package, 1, package.context_length))
    tokens = list(prompt)
    start = len(tokens)
    for _ in range(count):
        logits = session.step(0, np.array([tokens], np.int64), [0], len(tokens))
        tokens.append(int(np.argmax(logits[0])))
    return tokens[start:]


class Steps(StepObserver):
    """Keeps what it hears of steps."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.records: list[StepRecord] = []

    def began(self, at: float) -> None:
        assert len(self.begun) == len(self.records)
        self.begun.append(at)

    def ended(self, step: StepRecord) -> None:
        self.records.append(step)


class Rig:
    """An engine whose events are kept in order. `hook` sees each event on the engine's thread, right after it."""

    def __init__(self, bring: Callable[[], LoadedModel], watch: Callable[[], str] = lambda: "") -> None:
        self.events: list[EngineEvent] = []
        self.running: list[tuple[int, ...]] = []
        self.hook: Callable[[EngineEvent], None] = lambda _event: None
        self._inbox: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self.steps = Steps()
        self.engine = Engine(bring, watch, self._deliver, lambda keys: self.running.append(tuple(keys)), self.steps)

    def _deliver(self, event: EngineEvent) -> None:
        self.events.append(event)
        self.hook(event)
        self._inbox.put(event)

    def wait_for(self, wanted: Callable[[EngineEvent], bool], seconds: float = PATIENCE) -> EngineEvent:
        """The next event that `wanted` accepts."""
        end = time.monotonic() + seconds
        while True:
            event = self._inbox.get(timeout=max(0.001, end - time.monotonic()))
            if wanted(event):
                return event

    @property
    def loaded(self) -> LoadedModel:
        """The model that serves."""
        return next(
            event.loaded
            for event in reversed(self.events)
            if isinstance(event, ModelChanged) and event.loaded is not None
        )

    def wait_for_state(self, state: str) -> ModelChanged:
        event = self.wait_for(lambda e: isinstance(e, ModelChanged) and e.state == state)
        assert isinstance(event, ModelChanged)
        return event

    def ends(self, count: int) -> dict[int, Finished | Ended]:
        """The next `count` ends, by key."""
        found: dict[int, Finished | Ended] = {}
        while len(found) < count:
            event = self.wait_for(lambda e: isinstance(e, (Finished, Ended)))
            assert isinstance(event, (Finished, Ended))
            assert event.key not in found
            found[event.key] = event
        return found

    def run(self, *requests: Request) -> dict[int, Finished | Ended]:
        """Submit all, and wait until each has ended."""
        for request in requests:
            self.engine.submit(request)
        return self.ends(len(requests))

    def of(self, key: int) -> list[EngineEvent]:
        """The events of one request, in order."""
        return [event for event in self.events if getattr(event, "key", None) == key]

    def pieces(self, key: int) -> list[str]:
        return [event.text for event in self.of(key) if isinstance(event, Piece)]


@contextmanager
def running(bring: LoadedModel | Callable[[], LoadedModel], watch: Callable[[], str] = lambda: "") -> Iterator[Rig]:
    """A started engine, stopped at the end."""
    rig = Rig((lambda: bring) if isinstance(bring, LoadedModel) else bring, watch)
    rig.engine.start()
    try:
        yield rig
    finally:
        rig.hook = lambda _event: None
        rig.engine.stop(timeout=PATIENCE)


def request(key: int, prompt: Iterable[int], max_tokens: int = 32, **more: Any) -> Request:
    """A request that runs to max_tokens unless told otherwise."""
    return Request(key=key, prompt=tuple(prompt), max_tokens=max_tokens, **{"ignore_eos": True, **more})


def random_prompt(seed: int, tokens: int) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(seed).integers(7, 1000, tokens))


def ids(end: Finished | Ended) -> list[int]:
    assert isinstance(end, Finished), end
    return list(end.tokens)


def run_at_random(
    rig: Rig, jobs: list[Request], chance: random.Random, cancelled: set[int]
) -> dict[int, Finished | Ended]:
    """Jobs come while others run, and some are cancelled at their third piece."""
    waiting = list(jobs)
    pieces: dict[int, int] = {}

    def join_or_leave(event: EngineEvent) -> None:
        if waiting and (isinstance(event, (Finished, Ended)) or chance.random() < 0.3):
            rig.engine.submit(waiting.pop())
        if isinstance(event, Piece):
            pieces[event.key] = pieces.get(event.key, 0) + 1
            if event.key in cancelled and pieces[event.key] == 3:
                rig.engine.cancel(event.key)

    rig.hook = join_or_leave
    for _ in range(3):
        rig.engine.submit(waiting.pop())
    return rig.ends(len(jobs))


def wait_until_written(rig: Rig, blocks: int | None = None) -> None:
    """Until the idle engine has written what is worth it (or so many blocks)."""

    def written() -> bool:
        prefixes = rig.loaded.prefixes
        done = prefixes.written_back if blocks is None else prefixes.blocks_on_disk >= blocks
        # A row leaves after what it took from disk is held in memory, its end is told before.
        return done and rig.engine.status.rows == 0

    eventually(written, "written")
