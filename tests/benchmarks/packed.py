"""Steps that mix a prompt's chunk with single tokens of other rows: `make bench-packed` prints what they would cost.

edged computes a chunk of one row in one step and a token for each of several rows in the next, so that no step has
padding. Here both are computed in one step, by three graphs, beside the two steps of today's graph:

- padded: rows × widest tokens go through the whole graph, `query_seqlens` tells GroupQueryAttention which are real;
- packed: the real tokens go through the products, and are gathered to rows × widest around GroupQueryAttention only;
- divided: the real tokens go through the products, and each layer has one GroupQueryAttention for the single tokens
  and one for the chunk. This needs no `query_seqlens`.

All sessions are in this one process and take turns, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, show
from numpy.typing import NDArray

from edged.engine import ort
from edged.engine.int8_graph import with_int8_cache
from edged.engine.kv_cache import KVCache
from edged.engine.kv_layout import KVLayout
from edged.engine.onnx_fields import ELEMENTS, Bytes, attribute, copied, message, named, sized, value_info
from edged.engine.opening import thread_count
from edged.engine.package import Package, open_package
from edged.engine.protobuf import read_fields, read_text, write_field
from edged.engine.serving_graph import POSITIONS, serving_graph
from edged.machine.board import detect
from edged.settings import Settings

REAL_MODEL = Path(__file__).resolve().parents[2] / ".real-model/SmolLM2-135M-Instruct"
SINGLE, CHUNK = 7, 128
"""Rows of one token, and tokens of the chunk."""
PAST = 256
"""Tokens that each row has in the cache."""
TURNS = 5
STEP = 1 / 30
"""Of an int8 cache: the scale of random numbers, of which 4.2 standard deviations fit."""
_ROWS, _FLAT, _COUNTS, _LAST, _TOTAL, _SPLIT = (
    f"bench.{name}" for name in ("rows", "flat", "counts", "last", "total", "split")
)
"""Inputs of the rewritten graphs."""
_QUERY_SEQLENS = 16
"""Place among the inputs of GroupQueryAttention."""


@dataclass(frozen=True)
class Attention:
    """A GroupQueryAttention node: its inputs, its outputs, and its other fields."""

    inputs: list[str]
    outputs: list[str]
    rest: bytes
    heads: tuple[int, int]
    """Queries' and keys'."""

    @classmethod
    def of(cls, view: memoryview, heads: tuple[int, int]) -> Attention | None:
        inputs, outputs, operator, rest = [], [], "", b""
        for number, value in read_fields(view):
            if number == 1 and isinstance(value, memoryview):
                inputs.append(read_text(value))
            elif number == 2 and isinstance(value, memoryview):
                outputs.append(read_text(value))
            else:
                operator = read_text(value) if number == 4 and isinstance(value, memoryview) else operator
                rest += b"" if number == 3 else b"".join(copied(number, value))
        return cls(inputs, outputs, rest, heads) if operator == "GroupQueryAttention" else None

    def node(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        names = [write_field(1, name.encode()) for name in inputs] + [write_field(2, name.encode()) for name in outputs]
        return b"".join(names) + self.rest


Rewrite = Callable[[Attention], list[bytes]]


def node(operator: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    names = [write_field(1, name.encode()) for name in inputs]
    numbers = [write_field(5, attribute(name, number)) for name, number in attributes.items()]
    return b"".join([*names, write_field(2, output.encode()), write_field(4, operator.encode()), *numbers])


def padded(one: Attention) -> list[bytes]:
    return [one.node(with_counts(one.inputs), one.outputs)]


def with_counts(inputs: list[str]) -> list[str]:
    return inputs + [""] * (_QUERY_SEQLENS - len(inputs)) + [_COUNTS]


def packed(one: Attention) -> list[bytes]:
    """GatherND before and behind."""
    given = [f"{name}.rows" if name else "" for name in one.inputs[:3]]
    nodes = [node("GatherND", (name, _ROWS), f"{name}.rows") for name in one.inputs[:3] if name]
    out = f"{one.outputs[0]}.rows"
    nodes.append(one.node(with_counts(given + one.inputs[3:]), [out, *one.outputs[1:]]))
    return [*nodes, node("GatherND", (out, _FLAT), one.outputs[0])]


def divided(one: Attention) -> list[bytes]:
    """Split, two attentions, Concat. The rows' single tokens come first."""
    nodes, single, chunk = [], [], []
    for place, name in enumerate(one.inputs[:3]):
        if name:
            heads = one.heads[0] + 2 * one.heads[1] if not one.inputs[1] else one.heads[place > 0]
            parts = write_field(1, name.encode()) + write_field(1, _SPLIT.encode())
            parts += write_field(2, f"{name}.flat".encode()) + write_field(2, f"{name}.chunk".encode())
            nodes.append(parts + write_field(4, b"Split") + write_field(5, attribute("axis", 1)))
            nodes.append(node("Reshape", (f"{name}.flat", f"bench.rows{heads}"), f"{name}.single"))
        single.append(f"{name}.single" if name else "")
        chunk.append(f"{name}.chunk" if name else "")
    out = one.outputs[0]
    nodes.append(one.node([*single, *one.inputs[3:]], [f"{out}.single", *one.outputs[1:]]))
    other = [*chunk, *(f"bench.{name}" for name in one.inputs[3:5]), _LAST, _TOTAL, *one.inputs[7:]]
    nodes.append(one.node(other, [f"{out}.chunk", *(f"bench.{name}" for name in one.outputs[1:])]))
    nodes.append(node("Reshape", (f"{out}.single", f"bench.flat{one.heads[0]}"), f"{out}.flat"))
    return [*nodes, node("Concat", (f"{out}.flat", f"{out}.chunk"), out, axis=1)]


def int64_tensor(name: str, values: Sequence[int]) -> bytes:
    data = np.array(values, "<i8").tobytes()
    return write_field(1, len(values)) + write_field(2, 7) + write_field(8, name.encode()) + write_field(9, data)


def rewritten(view: memoryview, package: Package, rewrite: Rewrite, layout: KVLayout) -> bytes:
    """The model in `view` with other attention, and with the inputs and outputs that it takes."""
    parts: list[Bytes] = []
    for number, value in read_fields(view):
        if number == 7 and isinstance(value, memoryview):
            parts += message(7, list(_graph(value, package, rewrite, layout)))
        else:
            parts += copied(number, value)
    return b"".join(parts)


def _graph(view: memoryview, package: Package, rewrite: Rewrite, layout: KVLayout) -> Iterator[Bytes]:
    numbers = package.graph.attentions[0]
    heads, kv_heads, size = int(numbers["num_heads"]), int(numbers["kv_num_heads"]), package.head_size
    for number, value in read_fields(view):
        one = Attention.of(value, (heads, kv_heads)) if number == 1 and isinstance(value, memoryview) else None
        for changed in rewrite(one) if one is not None else []:
            yield write_field(1, changed)
        if one is None and number != 13:  # shapes are others now
            yield from copied(number, value)
    wanted: dict[str, tuple[int, list[bytes]]] = {}
    if rewrite is not divided:
        wanted[_COUNTS] = ELEMENTS["int32"], [named("rows")]
    if rewrite is packed:
        wanted[_ROWS] = ELEMENTS["int64"], [named("rows"), named("widest"), sized(2)]
        wanted[_FLAT] = ELEMENTS["int64"], [sized(1), named("tokens"), sized(2)]
    if rewrite is divided:
        wanted |= {_LAST: (ELEMENTS["int32"], [sized(1)]), _TOTAL: (ELEMENTS["int32"], [])}
        wanted[_SPLIT] = ELEMENTS["int64"], [sized(2)]
        for count in {heads, kv_heads, heads + 2 * kv_heads}:
            yield write_field(5, int64_tensor(f"bench.rows{count}", (-1, 1, count * size)))
            yield write_field(5, int64_tensor(f"bench.flat{count}", (1, -1, count * size)))
        for plane in layout.planes:
            shape = [sized(1), sized(plane.heads), named("room"), sized(plane.size)]
            wanted[f"bench.{plane.past}"] = ELEMENTS[plane.dtype], shape
            yield write_field(12, value_info(f"bench.{plane.present}", ELEMENTS[plane.dtype], shape))
    for name, (dtype, dimensions) in wanted.items():
        yield write_field(11, value_info(name, dtype, dimensions))


@dataclass(frozen=True)
class Mixed:
    """What a step computes: `single` tokens of as many rows, and a chunk of the row after them, all on `past` tokens.

    Either may be empty.
    """

    single: NDArray[np.int64]
    chunk: NDArray[np.int64]
    past: int

    @property
    def counts(self) -> list[int]:
        """Tokens of each row."""
        return [1] * len(self.single) + [len(self.chunk)] * (len(self.chunk) > 0)

    @property
    def first(self) -> int:
        """The first row of the cache."""
        return 0 if len(self.single) else SINGLE

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row after the step."""
        return [self.past + count for count in self.counts]


class Side:
    """A session of one of the graphs. All sessions share a cache."""

    def __init__(self, package: Package, model: bytes, cache: KVCache, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        folder = str(package.model_file.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._package, self._cache = package, cache

    def run(
        self,
        first: int,
        ids: NDArray[np.int64],
        lengths: Sequence[int],
        wanted: Sequence[tuple[int, int]],
        more: dict[str, NDArray[Any]] | None = None,
        chunk_row: int | None = None,
    ) -> NDArray[np.float32]:
        """The logits at `wanted`. `lengths`: tokens after the step of each row of the cache, from row `first` on."""
        binding = self._session.io_binding()
        self._cache.bind(binding, first, len(lengths))
        if chunk_row is not None:
            self._cache.bind(SecondCache(binding), chunk_row, 1)
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            POSITIONS: np.array(wanted, np.int64)[:, None],
            **(more or {}),
        }
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        logits = np.empty((len(wanted), 1, self._package.vocabulary), np.float32)
        binding.bind_output(self._package.logits_name, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        result: NDArray[np.float32] = logits[:, 0]
        return result


class SecondCache:
    """Binds the cache of the attention for the chunk."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def bind_input(self, name: str, *place: Any) -> None:
        self._binding.bind_input(f"bench.{name}", *place)

    def bind_output(self, name: str, *place: Any) -> None:
        self._binding.bind_output(f"bench.{name}", *place)


class Steps:
    """A mixed step by each of the graphs."""

    def __init__(self, package: Package, room: int, *, int8: bool) -> None:
        served = serving_graph(package)
        if served.model is None:
            sys.exit(f"{package.name} is served as published: {served.reason}")
        view, layout = memoryview(served.model), KVLayout.of(package, "int8" if int8 else None)
        chance = np.random.default_rng(0)
        if int8:
            scale = np.full((package.kv_heads, package.head_size), STEP, np.float32)
            outputs = {plane.present for plane in layout.planes}
            view = memoryview(with_int8_cache(view, {plane.past: scale for plane in layout.planes}, outputs))
        cache = KVCache(package, SINGLE + 1, room, layout=layout)
        tokens = chance.standard_normal((PAST, layout.token_bytes // np.dtype(layout.planes[0].numpy_dtype).itemsize))
        filled = tokens / STEP if int8 else 0.3 * tokens
        for row in range(SINGLE + 1):
            cache.write(
                row, 0, np.ascontiguousarray(filled.astype(layout.planes[0].numpy_dtype)).reshape(-1).view(np.uint8)
            )
        threads = thread_count(Settings(), detect())
        self._today = Side(package, bytes(view), cache, threads)
        self._sides = {
            rewrite: Side(package, rewritten(view, package, rewrite, layout), cache, threads)
            for rewrite in (padded, packed, divided)
        }

    def today(self, step: Mixed) -> NDArray[np.float32]:
        """The chunk, then the single tokens."""
        logits = []
        if len(step.chunk):
            end = len(step.chunk)
            both = self._today.run(SINGLE, step.chunk[None], [step.past + end], [(0, end - 2), (0, end - 1)])
            logits.append(both[1:])
        if len(step.single):
            rows = len(step.single)
            wanted = [(row, 0) for row in range(rows)]
            logits.insert(0, self._today.run(0, step.single[:, None], [step.past + 1] * rows, wanted))
        return np.concatenate(logits)

    def padded(self, step: Mixed) -> NDArray[np.float32]:
        """Rows × widest tokens."""
        ids = np.zeros((len(step.counts), max(step.counts)), np.int64)
        ids[: len(step.single), 0] = step.single
        if len(step.chunk):
            ids[-1] = step.chunk
        wanted = [(row, count - 1) for row, count in enumerate(step.counts)]
        more = {_COUNTS: np.array(step.counts, np.int32)}
        return self._sides[padded].run(step.first, ids, step.lengths, wanted, more)

    def packed(self, step: Mixed) -> NDArray[np.float32]:
        """The real tokens, one after another."""
        counts = np.array(step.counts)
        ends = counts.cumsum()
        rows = np.zeros((len(counts), counts.max(), 2), np.int64)
        rows[..., 1] = (ends - counts)[:, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)
        flat = [(row, token) for row, count in enumerate(counts) for token in range(count)]
        more = {_COUNTS: counts.astype(np.int32), _ROWS: rows, _FLAT: np.array([flat], np.int64)}
        ids = np.concatenate([step.single, step.chunk])[None]
        return self._sides[packed].run(step.first, ids, step.lengths, [(0, int(end) - 1) for end in ends], more)

    def divided(self, step: Mixed) -> NDArray[np.float32]:
        """The same, with two attentions. Neither `single` nor `chunk` may be empty."""
        rows, length = len(step.single), step.past + len(step.chunk)
        more: dict[str, NDArray[Any]] = {
            _LAST: np.array([length - 1], np.int32),
            _TOTAL: np.array(length, np.int32),
            _SPLIT: np.array([rows, len(step.chunk)], np.int64),
        }
        ids = np.concatenate([step.single, step.chunk])[None]
        wanted = [(0, token) for token in [*range(rows), ids.size - 1]]
        return self._sides[divided].run(0, ids, [step.past + 1] * rows, wanted, more, chunk_row=rows)


Compute = Callable[[Mixed], NDArray[np.float32]]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REAL_MODEL
    if not (folder / "genai_config.json").is_file():
        sys.exit("give the folder of a model package: make bench-packed MODEL=FOLDER; make real-model builds one")
    package = open_package(folder)
    print(
        f"a chunk of {CHUNK} tokens and single tokens of {SINGLE} rows, on {PAST} tokens each — {package.name}, "
        f"{os.cpu_count()} cores, {platform.machine()}, onnxruntime {ort.__version__}\n"
        "time / that of the graph that edged serves; in brackets, processor time"
    )
    for int8 in (False, True):
        steps = Steps(package, PAST + CHUNK + 1, int8=int8)
        cache = f"{'int8' if int8 else package.kv_dtype} cache"
        show(figures(steps, package.vocabulary, cache))


def figures(steps: Steps, vocabulary: int, cache: str) -> Iterator[Figure]:
    chance = np.random.default_rng(1)
    none = np.empty(0, np.int64)
    single, chunk = (chance.integers(0, vocabulary, count) for count in (SINGLE + 1, CHUNK))
    mixed = Mixed(single[:SINGLE], chunk, PAST)
    sides = {"padded": steps.padded, "packed": steps.packed, "divided": steps.divided}
    own = steps.today(mixed).copy()
    for name, compute in sides.items():
        same = sum(bool(np.array_equal(one, other)) for one, other in zip(own, compute(mixed), strict=True))
        yield Figure(f"{cache}: {name}, rows with the same bits", f"{same} of {len(own)}")
    yield from compared(f"{cache}: both in one step", steps.today, sides, mixed, mixed)
    rows, last, alone = (
        Mixed(one, other, PAST) for one, other in ((single, none), np.split(single, [SINGLE]), (none, chunk))
    )
    count = f"{cache}: {SINGLE + 1} single tokens"
    yield from compared(count, steps.today, {"packed": steps.packed}, rows, rows)
    yield from compared(count, steps.today, {"divided": steps.divided}, rows, last)
    yield from compared(f"{cache}: a chunk alone", steps.today, {"packed": steps.packed}, alone, alone)


def compared(name: str, today: Compute, sides: Mapping[str, Compute], own: Mixed, step: Mixed) -> Iterator[Figure]:
    """Each side on `step` beside today's graph on `own`, in turns."""
    taken: dict[str, list[tuple[float, float]]] = {key: [] for key in ("today", *sides)}
    for _ in range(TURNS + 1):
        taken["today"].append(timed(today, own))
        for key, compute in sides.items():
            taken[key].append(timed(compute, step))
    for key in sides:
        # Of pairs, which meet the same busy moment; the first took memory.
        pairs = list(zip(taken[key][1:], taken["today"][1:], strict=True))
        wall, cpu = (statistics.median(side[part] / base[part] for side, base in pairs) for part in (0, 1))
        times = " / ".join(
            f"{1000 * statistics.median(one for one, _ in taken[side][1:]):.1f}" for side in (key, "today")
        )
        yield Figure(f"{name}: {key}", f"{wall:.2f} ({cpu:.2f}; {times} ms)")


def timed(compute: Compute, step: Mixed) -> tuple[float, float]:
    """Seconds, and seconds of the processor."""
    began, busy = time.perf_counter(), time.process_time()
    compute(step)
    return time.perf_counter() - began, time.process_time() - busy


if __name__ == "__main__":
    main()
