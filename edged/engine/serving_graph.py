"""Rewrites a package's graph so that it computes logits where they are wanted, not after every token of a prompt.

One GatherND before the matrix product that gives the logits takes the hidden states of the wanted tokens, which a new
input names. The weights stay in their files: the new graph is bytes, and onnxruntime finds them by its option
`session.model_external_initializers_file_folder_path`. This takes milliseconds and no other library, so the graph is
made in memory at each load, and none is kept that could be damaged or be another package's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edged.engine.graph import Graph, GraphError, Node, map_file
from edged.engine.onnx_fields import (
    ELEMENTS,
    Bytes,
    copied,
    message,
    name_of,
    named,
    sized,
    tensor_type,
    value_info,
)
from edged.engine.package import POSITIONS, Package, PackageError
from edged.engine.package_files import short
from edged.engine.protobuf import ProtobufError, read_fields, read_text, write_field

LogitsComputed = Literal["wanted", "last", "all"]
_HIDDEN = "edged.hidden"
MOST_BYTES = 64 << 20
"""Largest ONNX file that is rewritten: a larger one has its weights inside, and they would be in memory once more."""
_PRODUCTS = frozenset({"MatMul", "MatMulNBits"})
"""Operators that multiply each token's hidden state by the same weights."""
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Tanh", "Clip", "Cast", "Identity"})
"""Operators that may follow: a bias, a scale, a softcap, another dtype."""
_WITH_SUBGRAPHS = frozenset({"If", "Loop", "Scan"})
_GATHER_ND_OPSET = 11


class NotRewrittenError(ValueError):
    """Why a graph is served as published, on one line."""


@dataclass(frozen=True)
class ServingGraph:
    """What is served of a package.

    `model`: the rewritten graph; None: the package's own file. `logits`: the positions of a step whose logits it
    computes; "last" is the model builder's prune_lm_head. `reason`: on one line why they are "all".
    """

    model: bytes | None
    logits: LogitsComputed
    reason: str | None = None


def serving_graph(package: Package) -> ServingGraph:
    """The graph that is served of a package. Raises PackageError where its file has become unreadable."""
    file, logits = package.model_file, package.logits_name
    if POSITIONS in package.graph.inputs:  # edged model prepare wrote it
        return ServingGraph(None, "wanted")
    try:
        view = map_file(file)
        dimensions = _dimensions(view, logits)
        if len(dimensions) == 3 and _is_one(dimensions[1]):
            return ServingGraph(None, "last")
        if len(dimensions) != 3:
            raise NotRewrittenError(f"its logits have {len(dimensions)} dimensions, not 3")
        if len(view) > MOST_BYTES:
            raise NotRewrittenError(f"{file.name} is larger than {MOST_BYTES >> 20} MiB")
        return ServingGraph(_rewrite(view, package.graph, logits), "wanted")
    except NotRewrittenError as error:
        return ServingGraph(None, "all", str(error))
    except (OSError, GraphError, ProtobufError, UnicodeDecodeError, IndexError) as error:
        raise PackageError(f"{file.name}: not a whole ONNX model: {error}") from None


def _rewrite(view: memoryview, graph: Graph, logits: str) -> bytes:
    """The ONNX model in `view` with the GatherND in it. Raises NotRewrittenError."""
    product, follow = _find_product(graph, logits)
    parts: list[Bytes] = []
    for number, value in read_fields(view):
        if number == 7 and isinstance(value, memoryview):
            parts += message(7, list(_rewrite_graph(value, product, graph.nodes[product], follow, logits)))
        else:
            if number == 8 and isinstance(value, memoryview):
                _check_opset(value)
            parts += copied(number, value)
    return b"".join(parts)


def _find_product(graph: Graph, logits: str) -> tuple[int, frozenset[str]]:
    """The place in graph.nodes of the product that gives the logits, and the names of the tensors from there on.

    Raises NotRewrittenError where other operators give them, or where one of these tensors is used elsewhere too.
    """
    producers = {output: at for at, node in enumerate(graph.nodes) for output in node.outputs}
    constants = _constants(graph)
    name, follow = logits, set[str]()
    while name not in follow:
        others = graph.uses[name] if name == logits else graph.uses[name] - 1 + (name in graph.outputs)
        if others:
            raise NotRewrittenError(f"{short(name)} is not used for the logits alone")
        follow.add(name)
        node = graph.nodes[producers[name]] if name in producers else Node("an input", (), ())
        computed = [source for source in node.inputs if source and source not in constants]
        if len(computed) != 1 or node.operator not in _PRODUCTS | _ELEMENTWISE:
            break
        if node.operator in _PRODUCTS:
            if computed[0] != node.inputs[0]:
                break
            return producers[name], frozenset(follow)
        name = computed[0]
    raise NotRewrittenError(
        f"its logits come from {short(node.operator)}, not from a product of hidden states and weights"
    )


def _constants(graph: Graph) -> set[str]:
    """Names of the tensors that depend on no input."""
    constants = set(graph.initializers)
    for node in graph.nodes:  # in an order in which each comes after those that it reads from
        if node.operator not in _WITH_SUBGRAPHS and constants.issuperset(filter(None, node.inputs)):
            constants.update(node.outputs)
    return constants


def _rewrite_graph(view: memoryview, product: int, node: Node, follow: frozenset[str], logits: str) -> Iterator[Bytes]:
    """onnx.proto: GraphProto, in pieces. `product`: the place of `node` among its nodes."""
    count = 0
    yield write_field(11, value_info(POSITIONS, ELEMENTS["int64"], [named("edged.wanted"), sized(1), sized(2)]))
    for number, value in read_fields(view):
        if number == 1 and isinstance(value, memoryview):
            if count == product:
                yield write_field(1, _gather(node.inputs[0]))
                value = memoryview(_with_input(value, node.inputs[0]))
            count += 1
        elif number == 12 and isinstance(value, memoryview) and name_of(value) == logits:
            dtype, dimensions = tensor_type(value)
            shape = [named("edged.wanted"), sized(1), bytes(dimensions[2])]
            value = memoryview(value_info(logits, dtype, shape))
        elif number == 13 and isinstance(value, memoryview) and name_of(value) in follow:
            continue  # its shape is another one now
        yield from copied(number, value)


def _gather(hidden: str) -> bytes:
    """onnx.proto: NodeProto."""
    return (
        write_field(1, hidden.encode())
        + write_field(1, POSITIONS.encode())
        + write_field(2, _HIDDEN.encode())
        + write_field(3, b"edged.gather")
        + write_field(4, b"GatherND")
    )


def _with_input(view: memoryview, replaced: str) -> bytes:
    """The NodeProto with its first input taken from the GatherND."""
    parts: list[Bytes] = []
    first = True
    for number, value in read_fields(view):
        if number == 1 and first and isinstance(value, memoryview):
            if read_text(value) != replaced:
                raise NotRewrittenError("its file was replaced while it was read")
            value, first = memoryview(_HIDDEN.encode()), False
        parts += copied(number, value)
    return b"".join(parts)


def _check_opset(view: memoryview) -> None:
    """onnx.proto: OperatorSetIdProto. Raises NotRewrittenError where the standard operators are too old."""
    values = dict(read_fields(view))
    domain, version = values.get(1, memoryview(b"")), values.get(2, 0)
    standard = isinstance(domain, memoryview) and bytes(domain) in (b"", b"ai.onnx")
    if standard and isinstance(version, int) and version < _GATHER_ND_OPSET:
        raise NotRewrittenError(f"its operator set {version} is older than GatherND, of {_GATHER_ND_OPSET}")


def _dimensions(view: memoryview, output: str) -> list[memoryview]:
    """The dimensions of one of the model's outputs, each a TensorShapeProto.Dimension."""
    for number, graph in read_fields(view):
        if number == 7 and isinstance(graph, memoryview):
            for key, value in read_fields(graph):
                if key == 12 and isinstance(value, memoryview) and name_of(value) == output:
                    return tensor_type(value)[1]
    return []


def _is_one(dimension: memoryview) -> bool:
    return dict(read_fields(dimension)).get(1) == 1
