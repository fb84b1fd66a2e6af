"""Forced tokens and guesses beside single steps, in structured answers: the second part of `make bench-structured`.

Both sides are engines over one session in this one process, with an int8 KV cache, and take turns answer by answer.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import Figure
from speculation import Side, tokens_before_repeat

from edged.engine.events import Finished
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.sequence import Request
from edged.engine.steps import StepObserver, StepRecord
from edged.jobs.document import Job
from edged.jobs.preparer import prepare
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "deploy" / "demo-model")]

from frames import COMMAND_FRAMES, LEVELS, LOG_FRAMES  # noqa: E402
from generator import test_samples  # noqa: E402
from schema_oracle import allows  # noqa: E402

DEMO_MODEL = ROOT / "edged" / "demo" / "model"
CASES = 60
LONGEST = 40
"""Characters of a text that has no other bound: a small model never ends some of them."""
TEXT = {"type": "string"}
DEMO_FIELDS: dict[str, dict[str, Any]] = {
    "log": {"severity": {"enum": list(LEVELS)}, "component": TEXT, "action": {"enum": list(LOG_FRAMES)}},
    "command": {
        "intent": {"enum": list(COMMAND_FRAMES)},
        "target": TEXT,
        "value": {"type": ["integer", "null", "string"]},
    },
}
EXTRACTED: Sequence[tuple[Mapping[str, Any], str]] = (
    (
        {"asset": TEXT, "reported_by": TEXT, "error_code": TEXT, "action": {"enum": ["inspect", "repair", "replace"]}},
        "Chiller CH-04, basement of building C. Reported by Maria Keller at 06:45. The compressor trips after 40 "
        "seconds with error code E17. Suction pressure 2.3 bar. Please inspect the fan motor and its capacitor.",
    ),
    (
        {"supplier": TEXT, "dock": {"type": "integer"}, "pallets": {"type": "integer"}, "damaged": {"type": "boolean"}},
        "Delivery 771903 from Frigo Nord arrived at dock 2 at 09:10 with 14 pallets of milk and butter. The logger "
        "showed 6.9 degrees at arrival. Two cartons on pallet 9 were crushed.",
    ),
    (
        {"patient": TEXT, "room": {"type": "integer"}, "destination": TEXT, "wheelchair": {"type": "boolean"}},
        "Transport request: Mr. Albert Hofmann, room 318, to radiology at 10:30. He needs a wheelchair and oxygen at 2 "
        "litres per minute. Contact: ward nurse Petra Lang, extension 4471.",
    ),
    (
        {
            "invoice_number": TEXT,
            "company": TEXT,
            "total_price": {"type": "number"},
            "payment_days": {"type": "integer"},
        },
        "Invoice 2026-0418 of Brenner Metallbau GmbH, dated 18 March 2026: 40 brackets type B-12, in all 136.00. "
        "Payment within 30 days. Please quote the invoice number.",
    ),
    (
        {
            "device": TEXT,
            "severity": {"enum": ["info", "warning", "critical"]},
            "summary": TEXT,
            "affected_devices": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3},
        },
        "04:15 pump-7: pressure low, 3.1 bar measured, 4.2 bar expected. 04:16 pump-7: motor current 12.75 A, limit "
        "11.50 A. 04:20 gateway-3: connection to 10.0.0.17 established.",
    ),
    (
        {"sensor_name": TEXT, "location": TEXT, "temperature": {"type": "number"}, "humidity": {"type": "number"}},
        "Greenhouse sensor GH-12 at the north bed shows 31.5 degrees and 48.2 percent humidity, window motor stuck.",
    ),
)


class Steps(StepObserver):
    """Counts those that computed tokens of answers, and the prompts' last ones, which make the first token."""

    def __init__(self) -> None:
        self.count = 0

    def ended(self, step: StepRecord) -> None:
        self.count += not any(row.prompt for row in step.rows)


@dataclass
class Measured:
    """What became of some answers on both sides, added up over the turns."""

    seconds: tuple[float, float] = (0.0, 0.0)
    """With forcing and without, medians of the turns."""
    tokens: int = 0
    steps: int = 0
    forced: int = 0
    guessed: int = 0

    @property
    def tokens_a_step(self) -> float:
        return self.tokens / self.steps

    @property
    def told(self) -> str:
        shares = f"{self.forced / self.tokens:.0%} forced, {self.guessed / self.tokens:.0%} guessed"
        return f"{self.tokens_a_step:.2f} ({self.tokens} tokens: {shares})"


class Sides:
    """Engines over one model: with forcing, and in single steps."""

    def __init__(self, folder: Path) -> None:
        model = {"kv_cache": "int8", "speculation": "on", "rows": 1, "context": 1024}
        self.loaded: LoadedModel = load_model(
            Settings(model=model, cache={"ram_bytes": 0}), detect(), available, folder
        )
        if self.loaded.drafts is None:
            sys.exit(f"no drafts are tried here: {self.loaded.speculation_reason}")
        self._steps = Steps()
        self.on = Side.of(self.loaded, self._steps)
        self.off = Side.of(replace(self.loaded, drafts=None))

    def close(self) -> None:
        self.on.engine.stop()
        self.off.engine.stop()
        self.loaded.close()

    def request(self, key: int, text: Sequence[Mapping[str, Any]], schema: Any, max_tokens: int = 400) -> Request:
        """Greedy; without a schema the answer is free."""
        form = {"type": "text"} if schema is None else {"type": "json_schema", "json_schema": {"schema": schema}}
        job = Job(id="a", messages=list(text), max_tokens=max_tokens, response_format=form)  # type: ignore[arg-type]
        return prepare(job, key, "a", self.loaded)

    def measure(self, jobs: Sequence[Request], measured: Measured, turns: int) -> list[Finished]:
        """Runs each job on both sides so many times; the answers with forcing."""
        ends = []
        for job in jobs:
            taken: dict[Side, list[float]] = {self.on: [], self.off: []}
            for turn in range(turns):
                for side in (self.on, self.off)[:: 1 if (turn + job.key) % 2 else -1]:
                    before = self._steps.count
                    seconds, answers = side.run([job])
                    taken[side].append(seconds)
                    if side is self.on:
                        end, steps = answers[job.key], self._steps.count - before
            ends.append(end)
            measured.seconds = (
                measured.seconds[0] + statistics.median(taken[self.on]),
                measured.seconds[1] + statistics.median(taken[self.off]),
            )
            measured.tokens += len(end.tokens)
            measured.steps += steps + 1  # the first token comes with the prompt
            measured.forced += end.forced or 0
            measured.guessed += end.speculated or 0
        return ends


def object_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of an object with all of these, each text of which has a bound."""
    return bounded(
        {"type": "object", "additionalProperties": False, "required": list(fields), "properties": dict(fields)}
    )


def bounded(schema: Any) -> Any:
    """The schema with a bound of each text that has none."""
    if not isinstance(schema, dict):
        return schema
    schema = {keyword: bounded(value) for keyword, value in schema.items()}
    return {"maxLength": LONGEST, **schema} if schema.get("type") == "string" and "pattern" not in schema else schema


def wall(measured: Measured) -> str:
    on, off = measured.seconds
    return f"{on / off:.2f} ({on:.2f} / {off:.2f} s)"


def demo() -> Iterator[Figure]:
    """The demo model's JSON tasks."""
    sides = Sides(DEMO_MODEL)
    with closing(sides):
        measured, exact, free, count = Measured(), 0, 0, 0
        for task in ("log", "command"):
            samples = test_samples(task, "combinations", CASES)
            schema = object_of(DEMO_FIELDS[task])
            jobs = [sides.request(key, sample.messages, schema, 96) for key, sample in enumerate(samples)]
            ends = sides.measure(jobs, measured, 3)
            exact += sum(end.text == sample.answer for end, sample in zip(ends, samples, strict=True))
            for key, sample in enumerate(samples):
                _, answers = sides.off.run([sides.request(key, sample.messages, None, 96)])
                free += answers[key].text == sample.answer
            count += len(samples)
    name = "demo model's JSON tasks"
    yield Figure(f"{name}: tokens a step", measured.told, "≥ 2.5", measured.tokens_a_step >= 2.5)
    yield Figure(f"{name}: exact match; unconstrained", f"{exact} of {count}; {free}", "no lower", exact >= free)
    yield Figure(f"{name}: wall time forcing / plain", wall(measured))


def extraction(package: Path, file: Path | None) -> Iterator[Figure]:
    """A real model extracts from documents: EXTRACTED, or those of `file`, JSON with `schemas` by name and `cases`."""
    cases = [(object_of(fields), document) for fields, document in EXTRACTED]
    if file is not None:
        given = json.loads(file.read_text(encoding="utf-8"))
        cases = [(bounded(given["schemas"][case["schema"]]), case["document"]) for case in given["cases"]]
    sides = Sides(package)
    with closing(sides):
        jobs = []
        for key, (schema, document) in enumerate(cases):
            ask = "Extract the data of this text as JSON.\n\n" + document
            jobs.append(sides.request(key, [{"role": "user", "content": ask}], schema))
        measured, cut = Measured(), Measured()
        ends = sides.measure(jobs, measured, 1)
        valid = sum(
            end.reason == "stop" and allows(schema, json.loads(end.text))
            for (schema, _), end in zip(cases, ends, strict=True)
        )
        lengths = [tokens_before_repeat(end.tokens) for end in ends]
        shorter = [replace(job, max_tokens=length) for job, length in zip(jobs, lengths, strict=True)]
        sides.measure(shorter, cut, 1)
    name = f"{package.name.split('-')[0]}, extraction"
    yield Figure(f"{name}: tokens a step", measured.told, "≥ 2.0", measured.tokens_a_step >= 2)
    yield Figure(f"{name}: valid answers", f"{valid} of {len(cases)}", "all", valid == len(cases))
    yield Figure(f"{name}: wall time forcing / plain", wall(measured))
    yield Figure(f"{name}, cut where it repeats: tokens a step", cut.told)
    yield Figure(f"{name}, cut where it repeats: wall time", wall(cut))
