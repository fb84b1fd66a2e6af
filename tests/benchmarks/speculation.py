"""Speculation beside single steps, with an int8 KV cache: `make bench-speculation` prints the table.

Both are engines over one session in this one process and take turns, job by job or group by group, so that a busy
moment of the machine meets both. A small model repeats itself in long answers, which drafts find easily: so each answer
is cut where its first ten tokens in a row come again.
"""

from __future__ import annotations

import os
import platform
import queue
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime
from figures import Figure, show

from edged import logs
from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.sequence import Request
from edged.engine.steps import StepObserver
from edged.engine.tokenizer import Tokenizer
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

REAL_MODEL = Path(__file__).resolve().parents[2] / ".real-model/SmolLM2-135M-Instruct"
ROWS, CONTEXT, TURNS = 8, 1024, 3
REPEATED = 10
"""Tokens in a row that end an answer where they come again."""
REPORTS = (
    "04:12 gateway-3: connection to 10.0.0.17 refused, retrying in 30 s\n"
    "04:13 gateway-3: connection to 10.0.0.17 refused, retrying in 60 s\n"
    "04:15 pump-7: pressure low, 3.1 bar measured, 4.2 bar expected\n"
    "04:16 pump-7: motor current 12.75 A, limit 11.50 A\n"
    "04:20 gateway-3: connection to 10.0.0.17 established",
    "Work order 88-2041. Asset: chiller CH-04 in the basement of building C. Reported by Maria Keller at 06:45. The "
    "compressor starts and trips after about 40 seconds with error code E17. The oil level is normal. Suction pressure "
    "2.3 bar, discharge pressure 17.9 bar. The condenser fan on the left side does not turn. Please inspect the fan "
    "motor and its capacitor, and replace the capacitor if its value is below 8 microfarad.",
    "Delivery 771903 from Frigo Nord arrived at dock 2 at 09:10 with 14 pallets: 6 pallets of milk, 5 pallets of "
    "yoghurt and 3 pallets of butter. The logger showed 3.8 degrees at loading and 6.9 degrees at arrival. Two cartons "
    "of yoghurt on pallet 9 were crushed. The driver, Jonas Brandt, signed the delivery note under protest.",
    "Patient transport request: Mr. Albert Hofmann, born 12 May 1947, room 318, to radiology at 10:30. He needs a "
    "wheelchair and oxygen at 2 litres per minute. Contact for questions: ward nurse Petra Lang, extension 4471. "
    "Return to room 318 after the examination, expected at 11:15.",
    "Invoice 2026-0418 of Brenner Metallbau GmbH, dated 18 March 2026. Position 1: 40 brackets type B-12 at 3.40 each. "
    "Position 2: 12 rails of 2,000 mm at 18.90 each. Position 3: delivery to Lindau at 45.00. Payment within 30 days "
    "to account DE44 7001 0080 0123 4567 89. Please quote the invoice number 2026-0418.",
    '{"device": "pump-7", "hall": 7, "pressure_bar": 3.1, "motor_current_a": 12.75, "alarms": ["low pressure", '
    '"filter due"], "last_service": "2025-11-02", "technician": "Maria Keller", "note": "bearing noise since Monday, '
    'grease ordered, replacement planned for week 14"}',
    "Meeting notes, Tuesday. Anna Weiss: the new sensor board draws 180 mW while idle, 40 mW more than planned. Tom "
    "Okafor: the supplier of the battery moves the delivery from 3 April to 17 April. Lea Marti: the enclosure passed "
    "the drop test from 1.5 m, the gasket failed the water test at 30 minutes. Next meeting on Thursday at 14:00.",
    "def read_pressure(bus, address=0x28):\n    raw = bus.read_i2c_block_data(address, 0, 2)\n"
    "    counts = (raw[0] << 8) | raw[1]\n    pressure = (counts - 1638) * 10.0 / (14745 - 1638)\n"
    "    if not 0.0 <= pressure <= 10.0:\n        raise ValueError(f'pressure out of range: {pressure}')\n"
    "    return pressure",
)
EXTRACT = "Copy the following text word for word, with every number, and write nothing else:\n\n"
CHATS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three primary colours.",
    "Explain what a vaccine does, in two sentences.",
    "Write a haiku about rain.",
    "Give me a recipe for pancakes.",
    "Write a Python function that adds two numbers.",
    "What is the difference between TCP and UDP?",
    "Tell me a short story about a lighthouse keeper.",
    "How do I change the tyre of a bicycle?",
    "What does HTTP status 404 mean?",
    "Describe the water cycle.",
    "Give me three ideas for a birthday present.",
    "What should I pack for a week in the mountains?",
    "Explain to a child why leaves fall in autumn.",
    "Write a short letter of thanks to a neighbour.",
)


@dataclass(frozen=True)
class Side:
    """An engine, with drafts or without."""

    engine: Engine
    events: queue.SimpleQueue[EngineEvent]

    @classmethod
    def of(cls, loaded: LoadedModel, observer: StepObserver | None = None) -> Side:
        """A started engine over the session of `loaded`."""
        events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        engine = Engine(lambda: loaded, lambda: "", events.put, lambda _keys: None, observer)
        engine.start()
        return cls(engine, events)

    def run(self, jobs: Sequence[Request]) -> tuple[float, dict[int, Finished]]:
        """All jobs at once: seconds until the last has ended, and the answers by key."""
        began, ends = time.perf_counter(), dict[int, Finished]()
        for job in jobs:
            self.engine.submit(job)
        while len(ends) < len(jobs):
            event = self.events.get()
            if isinstance(event, Ended):
                sys.exit(f"a job failed: {event.failure}")
            if isinstance(event, Finished):
                ends[event.key] = event
        return time.perf_counter() - began, ends


def main() -> None:
    logs.configure("error", "auto")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REAL_MODEL
    if not (folder / "genai_config.json").is_file():
        sys.exit("give the folder of a model package: make bench-speculation MODEL=FOLDER; make real-model builds one")
    model = {"kv_cache": "int8", "speculation": "on", "rows": ROWS, "context": CONTEXT}
    loaded = load_model(Settings(model=model, cache={"ram_bytes": 0}), detect(), available, folder)
    if loaded.drafts is None:
        sys.exit(f"no drafts are tried here: {loaded.speculation_reason}")
    print(
        f"speculation on / off, int8 KV cache, {loaded.package.name} — {os.cpu_count()} cores, {platform.machine()}, "
        f"onnxruntime {onnxruntime.__version__}, {loaded.threads} threads"
    )
    off, on = Side.of(replace(loaded, drafts=None)), Side.of(loaded)
    with closing(loaded):
        extract = jobs_of(loaded.tokenizer, [EXTRACT + report for report in REPORTS], 256, off)
        chats = jobs_of(loaded.tokenizer, CHATS, 128, off)
        show(figures("extraction that copies, 1 row", [[job] for job in extract], off, on, 0.7))
        show(figures("plain chat, 1 row", [[job] for job in chats], off, on, 1.03))
        groups = [chats[start : start + ROWS] for start in range(0, len(chats), ROWS)]
        show(figures(f"plain chat, {ROWS} rows", groups, off, on, 1.03))
        off.engine.stop()
        on.engine.stop()


def jobs_of(tokenizer: Tokenizer, texts: Sequence[str], most: int, off: Side) -> list[Request]:
    """Greedy jobs whose answers end before they repeat themselves."""
    jobs = []
    for key, text in enumerate(texts):
        prompt = tokenizer.encode_messages([{"role": "user", "content": text}])
        job = Request(key, tuple(prompt), most)
        _, ends = off.run([job])
        jobs.append(replace(job, max_tokens=tokens_before_repeat(ends[key].tokens)))
    return jobs


def tokens_before_repeat(tokens: Sequence[int]) -> int:
    """How many tokens there are before REPEATED of them come a second time."""
    seen = set()
    for end in range(REPEATED, len(tokens) + 1):
        gram = tuple(tokens[end - REPEATED : end])
        if gram in seen:
            return end - REPEATED
        seen.add(gram)
    return len(tokens)


def figures(name: str, groups: Sequence[Sequence[Request]], off: Side, on: Side, goal: float) -> Iterator[Figure]:
    """Wall time of all groups of jobs, each run by both sides in turn, TURNS times."""
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    made = guessed = same = 0
    rejected = on.engine.status.rejected_drafts
    for group in groups:
        taken: dict[str, list[float]] = {"off": [], "on": []}
        for turn in range(TURNS):
            answers = {}
            for side, engine in [("off", off), ("on", on)][:: 1 if turn % 2 else -1]:
                time_taken, answers[side] = engine.run(group)
                taken[side].append(time_taken)
            same += sum(answers["on"][job.key].tokens == answers["off"][job.key].tokens for job in group)
        made += sum(len(end.tokens) for end in answers["on"].values())
        guessed += sum(end.speculated or 0 for end in answers["on"].values())
        for side, times in taken.items():
            seconds[side].append(statistics.median(times))
    ratio = sum(seconds["on"]) / sum(seconds["off"])
    text = f"{ratio:.2f} ({sum(seconds['on']):.2f} / {sum(seconds['off']):.2f} s, {made} tokens)"
    yield Figure(f"{name}: wall time on / off", text, f"≤ {goal}", ratio <= goal)
    wrong = (on.engine.status.rejected_drafts - rejected) / TURNS
    yield Figure(f"{name}: guessed right; wrong", f"{guessed / made:.0%} of the tokens; {wrong / made:.0%}")
    count = TURNS * sum(map(len, groups))
    yield Figure(f"{name}: answers with the same ids", f"{same} of {count}", "all", same == count)


if __name__ == "__main__":
    main()
