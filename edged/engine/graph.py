"""Parses an ONNX file before onnxruntime opens it: inputs, outputs, operators, and the location of weights.

Reads the few fields of onnx.proto that are needed here. It maps the file, skips weights without reading them, and
checks every bound.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from edged.engine.protobuf import ProtobufError, read_fields, read_text, read_varint

_MAX_DEPTH = 8

# onnx.proto: TensorProto.DataType, and the bytes of one element (4-bit types count half).
DTYPE_NAMES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
_INT32, _INT64 = 6, 7
_TABLES = {"GroupQueryAttention": 7, "RotaryEmbedding": 2}
"""Operators that rotate queries and keys, and the place of a table of cosines or sines among their inputs: [tokens,
half of the rotated channels]."""


class GraphError(ValueError):
    """The file is not a complete ONNX model."""


@dataclass(frozen=True)
class ExternalTensor:
    """A weight outside the ONNX file: `length` bytes at `offset` of `location`, a path relative to the ONNX file."""

    name: str
    location: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Node:
    """One operator of the main graph and the names of the tensors that it reads and writes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """The parsed graph. `inputs` and `outputs` map names to dtypes; `operators` counts those of subgraphs too."""

    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    nodes: list[Node] = field(default_factory=list)
    """Those of the main graph, in the file's order."""
    uses: Counter[str] = field(default_factory=Counter)
    """How often an operator reads each tensor, in subgraphs too."""
    initializers: set[str] = field(default_factory=set)
    """Names of the main graph's weights, in this file and beside it."""
    external: list[ExternalTensor] = field(default_factory=list)
    looked_up: set[str] = field(default_factory=set)
    """Inputs of Gather operators, which read single rows: one token's embedding, not the table."""
    computed_with: set[str] = field(default_factory=set)
    """Inputs of all other operators."""
    attentions: list[dict[str, float]] = field(default_factory=list)
    """The numbers among the attributes of each kind of GroupQueryAttention."""
    widths: dict[str, int] = field(default_factory=dict)
    """Columns of each constant matrix, in subgraphs too; a name that an `If` gives has those of its first branch."""
    rotations: set[tuple[str, bool]] = field(default_factory=set)
    """Tables that rotate queries and keys, and whether neighbours are pairs, not channels half the width apart."""
    rope_switch: int | None = None
    """Total length beyond which a LongRoPE graph uses its long table (its `If` compares with this), else None."""


def read_graph(path: Path) -> Graph:
    """Parse the graph in `path`.

    Raises GraphError when the file is truncated, not ONNX or nested too deeply; OSError as open does.
    """
    view = map_file(path)
    try:
        return _read_model(view)
    except (IndexError, struct.error, UnicodeDecodeError, ProtobufError) as error:
        raise GraphError(f"not a whole ONNX model: {error}") from None


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped. Raises GraphError where it is empty; OSError as open does."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise GraphError("the file is empty")
        # Not closed explicitly: the last view into the mapping frees it.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_model(view: memoryview) -> Graph:
    graph = Graph()
    scalars: dict[str, int] = {}
    comparisons: dict[str, str] = {}
    conditions: list[str] = []
    seen = False
    for number, value in read_fields(view):
        if number == 7 and isinstance(value, memoryview):
            seen = True
            _read_graph(value, graph, scalars, comparisons, conditions, depth=0)
    if not seen:
        raise GraphError("not a whole ONNX model: no graph in it")
    for condition in conditions:
        bound = scalars.get(comparisons.get(condition, ""))
        if bound is not None:
            graph.rope_switch = bound
    return graph


def _read_graph(
    view: memoryview,
    graph: Graph,
    scalars: dict[str, int],
    comparisons: dict[str, str],
    conditions: list[str],
    depth: int,
) -> list[str]:
    """Returns the names of the graph's outputs."""
    given = []
    if depth > _MAX_DEPTH:
        raise GraphError("graphs nested too deeply")
    for number, value in read_fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            _read_node(value, graph, scalars, comparisons, conditions, depth)
        elif number == 5:
            name = _read_tensor(value, graph, scalars)
            if depth == 0:
                graph.initializers.add(name)
        elif number in (11, 12):
            name, dtype = _read_value_info(value)
            if depth == 0:
                (graph.inputs if number == 11 else graph.outputs)[name] = dtype
            elif number == 12:
                given.append(name)
    return given


def _read_node(
    view: memoryview,
    graph: Graph,
    scalars: dict[str, int],
    comparisons: dict[str, str],
    conditions: list[str],
    depth: int,
) -> None:
    operator, inputs, outputs = "", [], []
    attributes: list[memoryview] = []
    for number, value in read_fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            inputs.append(read_text(value))
        elif number == 2:
            outputs.append(read_text(value))
        elif number == 4:
            operator = read_text(value)
        elif number == 5:
            attributes.append(value)
    graph.operators[operator] += 1
    graph.uses.update(inputs)
    if depth == 0:
        graph.nodes.append(Node(operator, tuple(inputs), tuple(outputs)))
    (graph.looked_up if operator.startswith("Gather") else graph.computed_with).update(inputs)
    if operator == "Greater" and len(inputs) == 2 and outputs:
        comparisons[outputs[0]] = inputs[1]
    elif operator == "If" and inputs:
        conditions.append(inputs[0])
    elif operator in _TABLES:
        numbers = dict(filter(None, map(_read_number, attributes)))
        if operator == "GroupQueryAttention" and numbers not in graph.attentions:
            graph.attentions.append(numbers)
        table = inputs[_TABLES[operator] : _TABLES[operator] + 1]
        if any(table):
            graph.rotations.add((table[0], bool(numbers.get("rotary_interleaved") or numbers.get("interleaved"))))
    for attribute in attributes:
        for number, value in read_fields(attribute):
            if not isinstance(value, memoryview):
                continue
            if number in (6, 11):  # g, graphs
                given = _read_graph(value, graph, scalars, comparisons, conditions, depth + 1)
                for outer, within in zip(outputs, given, strict=False):
                    if within in graph.widths:
                        graph.widths.setdefault(outer, graph.widths[within])
            elif number == 5:  # t: the value of a Constant node
                _read_tensor(value, graph, scalars, name=outputs[0] if outputs else "")


def _read_number(view: memoryview) -> tuple[str, float] | None:
    """The name and the value of an attribute that is a number."""
    name, number = "", None
    for key, value in read_fields(view):
        if key == 1 and isinstance(value, memoryview):
            name = read_text(value)
        elif key == 2 and isinstance(value, memoryview):
            number = struct.unpack("<f", value)[0]
        elif key == 3 and isinstance(value, int):
            number = value - (1 << 64) if value >> 63 else value
    return None if number is None else (name, number)


def _read_tensor(view: memoryview, graph: Graph, scalars: dict[str, int], name: str = "") -> str:
    """Returns the tensor's name; `name` goes before the one in the tensor."""
    dtype, external, entries = 0, False, {}
    scalar: int | None = None
    raw: memoryview | None = None
    sizes: list[int] = []
    for number, value in read_fields(view):
        if number == 1:
            sizes += [value] if isinstance(value, int) else _read_varints(value)
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8 and isinstance(value, memoryview) and not name:
            name = read_text(value)
        elif number == 9 and isinstance(value, memoryview):
            raw = value
        elif number == 7:
            scalar = value if isinstance(value, int) else read_varint(value, 0)[0]
        elif number == 13 and isinstance(value, memoryview):
            pair = {n: read_text(v) for n, v in read_fields(value) if isinstance(v, memoryview)}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:
            external = value == 1
    if external:
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries["length"]) if entries.get("length") else None
        except ValueError:
            raise GraphError(f"weight {name[:60]!r} has no readable place in its data file") from None
        if offset < 0 or (length or 0) < 0:
            raise GraphError(f"weight {name[:60]!r} has a negative place in its data file")
        graph.external.append(ExternalTensor(name, entries.get("location", ""), offset, length))
    elif raw is not None and dtype == _INT64 and len(raw) == 8:
        scalar = struct.unpack("<q", raw)[0]
    elif raw is not None and dtype == _INT32 and len(raw) == 4:
        scalar = struct.unpack("<i", raw)[0]
    if scalar is not None:
        scalars[name] = scalar
    if len(sizes) == 2:
        graph.widths[name] = sizes[1]
    return name


def _read_varints(view: memoryview) -> list[int]:
    """The numbers of a packed field."""
    found, at = [], 0
    while at < len(view):
        number, at = read_varint(view, at)
        found.append(number)
    return found


def _read_value_info(view: memoryview) -> tuple[str, str]:
    name, dtype = "", "unknown"
    for number, value in read_fields(view):
        if number == 1 and isinstance(value, memoryview):
            name = read_text(value)
        elif number == 2 and isinstance(value, memoryview):
            for kind, tensor in read_fields(value):
                if kind == 1 and isinstance(tensor, memoryview):
                    for part, element in read_fields(tensor):
                        if part == 1 and isinstance(element, int):
                            dtype = DTYPE_NAMES.get(element, f"type {element}")
    return name, dtype
