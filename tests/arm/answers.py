"""Answers every sample of the demo; prints runtime, processor, texts and token ids as JSON. Run here and on Arm."""

from __future__ import annotations

import json
import platform
import queue
from pathlib import Path

from edged import logs
from edged.engine import ort
from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.loaded_model import load_model
from edged.jobs.preparer import prepare
from edged.jobs.reading import read_submission
from edged.machine.board import detect
from edged.machine.memory import available
from edged.models.store import DEMO_FOLDER, DEMO_NAME
from edged.settings import load


def main() -> None:
    logs.configure("error", "auto")
    settings = load(Path("/dev/null"), {}).settings
    serving = load_model(settings, detect(), available, path=DEMO_FOLDER, name=DEMO_NAME)
    samples = json.loads((DEMO_FOLDER / "samples.json").read_text("utf-8"))
    inbox: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    engine = Engine(lambda: serving, lambda: "", inbox.put, lambda _keys: None)
    engine.start()
    for key, sample in enumerate(samples):
        job = {"id": str(key), "messages": sample["messages"], "max_tokens": 96}
        engine.submit(prepare(read_submission(json.dumps(job).encode(), 1 << 20).job, key, str(key), serving))
    done: dict[int, Finished] = {}
    while len(done) < len(samples):
        event = inbox.get(timeout=300)
        if isinstance(event, Finished):
            done[event.key] = event
        elif isinstance(event, Ended):
            raise SystemExit(event.failure)
    engine.stop(timeout=2.0)
    print(
        json.dumps(
            {
                "onnxruntime": ort.__version__,
                "machine": platform.machine(),
                "verified": serving.verified.compared if serving.verified else 0,
                "load_seconds": serving.load_seconds,
                "expected": [sample["answer"] for sample in samples],
                "texts": [done[key].text for key in sorted(done)],
                "ids": [done[key].tokens for key in sorted(done)],
            }
        )
    )


if __name__ == "__main__":
    main()
