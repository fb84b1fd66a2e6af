"""What rounds alike on this processor, by package, as lines of JSON: bits.py PACKAGE …. Runs on Arm.

Each package runs in the engine: jobs alone, then among seven others with their prompts in chunks of 16 tokens.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path

import numpy as np

from edged import logs
from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.kv_cache import KVCache
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.package import PackageError
from edged.engine.sequence import Request
from edged.engine.session import ModelSession
from edged.engine.splits import SplitRule
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

ROWS, TOKENS = 8, 16
PROMPTS = (20, 66, 100, 129, 150, 40, 32, 65)
"""Tokens of each job's prompt."""
SPLIT = (100, 129)
"""Tokens of the prompts that are read whole and in chunks."""
FREE = 40


def main() -> None:
    logs.configure("error", "auto")
    for folder in map(Path, sys.argv[1:]):
        try:
            print(json.dumps({"package": folder.name, **facts(folder)}), flush=True)
        except PackageError as error:
            print(json.dumps({"package": folder.name, "refused": str(error)}), flush=True)


def facts(folder: Path) -> dict[str, object]:
    """What the load measured, what chunks change, and whether jobs have the same ids in company."""
    file = folder / "bits.json"  # what the first load measures, the second one need not
    company = load(folder, ROWS, 16, file)
    bits, rule = company.bits, company.splits
    found: dict[str, object] = {
        "lone_row_differs": bits.lone_row_differs,
        "batches_differ": bits.batches_differ,
        "rule": [rule.grain, rule.lone],
        "promised": company.same_ids_in_any_company,
        "ids": answers(company),
        "by_rule": split_alike(company.session, rule),
        "anywhere": split_alike(company.session, SplitRule()),
    }
    company.release()
    alone = load(folder, 1, 1024, file)
    found["ids"] = found["ids"] == answers(alone)
    alone.release()
    return found


def load(folder: Path, rows: int, chunk: int, file: Path) -> LoadedModel:
    settings = Settings(model={"rows": rows, "prefill_chunk": chunk, "threads": 1}, cache={"ram_bytes": 0})
    return load_model(settings, detect(), available, folder, bits_file=file)


def prompt(tokens: int) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(tokens).integers(7, 1000, tokens))


def answers(model: LoadedModel) -> list[list[int]]:
    """The greedy ids of all jobs, which are there at once."""
    inbox: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    engine = Engine(lambda: model, lambda: "", inbox.put, lambda _keys: None)
    engine.start()
    for key, tokens in enumerate(PROMPTS):
        engine.submit(Request(key=key, prompt=prompt(tokens), max_tokens=TOKENS, ignore_eos=True))
    done: dict[int, list[int]] = {}
    while len(done) < len(PROMPTS):
        event = inbox.get(timeout=3600)
        if isinstance(event, Finished):
            done[event.key] = list(event.tokens)
        elif isinstance(event, Ended):
            raise SystemExit(f"{model.package.name}: {event.failure}")
    engine.stop(timeout=60.0)
    return [done[key] for key in range(len(PROMPTS))]


def split_alike(session: ModelSession, rule: SplitRule) -> list[bool]:
    """For each prompt, whether chunks of FREE tokens, or what `rule` makes of them, have the bits of the whole."""
    return [last_logits(session, rule, tokens, tokens) == last_logits(session, rule, tokens, FREE) for tokens in SPLIT]


def last_logits(session: ModelSession, rule: SplitRule, tokens: int, most: int) -> bytes:
    session.use(KVCache(session.package, 1, tokens + 1))
    ids, past = np.array([prompt(tokens)], np.int64), 0
    while past < tokens:
        count = rule.chunk(past, tokens - past, most)
        logits = session.step(0, ids[:, past : past + count], [past], past + count)
        past += count
    return logits.tobytes()


if __name__ == "__main__":
    main()
