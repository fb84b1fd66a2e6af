"""Rewrites a graph so that its KV cache is int8, quantized per channel, with the scales as constants.

GroupQueryAttention quantizes the keys and values that it appends and reads them back by the same scales
(com.microsoft.GroupQueryAttention, onnxruntime's docs/ContribOperators.md: inputs k_scale and v_scale, attributes
k_quant_type, v_quant_type and kv_cache_bit_width). onnxruntime does so on the CPU from 1.27 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edged.engine.graph import map_file
from edged.engine.kv_layout import KVLayout
from edged.engine.onnx_fields import (
    ELEMENTS,
    Bytes,
    attribute,
    copied,
    float_tensor,
    message,
    name_of,
    tensor_type,
    value_info,
)
from edged.engine.package import Package
from edged.engine.package_files import short
from edged.engine.protobuf import read_fields, read_text, write_field
from edged.engine.serving_graph import MOST_BYTES, NotRewrittenError, ServingGraph

Scales = dict[str, NDArray[np.float32]]
"""For each input of the graph with cached keys or values the size of one step of its int8 numbers, [heads, size]."""
_OPERATOR = b"GroupQueryAttention"
_PAST_KEY, _PAST_VALUE, _K_SCALE, _V_SCALE = 3, 4, 12, 13
"""Places among the operator's inputs."""
_QUANTIZATION: dict[str, str | int] = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}


def int8_served(package: Package, graph: ServingGraph, scales: Scales) -> ServingGraph:
    """`graph`, which is what is served of the package, with an int8 cache. Raises NotRewrittenError, OSError."""
    view = memoryview(graph.model) if graph.model is not None else map_file(package.model_file)
    if len(view) > MOST_BYTES:
        raise NotRewrittenError(f"{package.model_file.name} is larger than {MOST_BYTES >> 20} MiB")
    outputs = {plane.present for plane in KVLayout.of(package).planes}
    return replace(graph, model=with_int8_cache(view, scales, outputs))


def with_int8_cache(view: memoryview, scales: Scales, outputs: set[str]) -> bytes:
    """The ONNX model in `view` with an int8 cache. `outputs`: names of those that hold the cache after a step.

    Raises NotRewrittenError where other operators use the cache, or where it is quantized already; ProtobufError,
    UnicodeDecodeError, IndexError where `view` is no model.
    """
    parts: list[Bytes] = []
    for number, value in read_fields(view):
        if number == 7 and isinstance(value, memoryview):
            parts += message(7, list(_with_int8_cache(value, scales, outputs)))
        else:
            parts += copied(number, value)
    return b"".join(parts)


def _with_int8_cache(view: memoryview, scales: Scales, outputs: set[str]) -> Iterator[Bytes]:
    """onnx.proto: GraphProto, in pieces."""
    left, planes = set(scales), outputs | scales.keys()
    for number, value in read_fields(view):
        if number == 1 and isinstance(value, memoryview):
            inputs, operator = _signature(value)
            cached = [name for name in inputs if name in scales]
            if cached:
                if operator != _OPERATOR or cached != inputs[_PAST_KEY : _PAST_VALUE + 1]:
                    raise NotRewrittenError(f"its KV cache is read by {short(operator.decode('ascii', 'replace'))}")
                left.difference_update(cached)
                value = memoryview(_quantized(value, inputs))
        elif number in (11, 12, 13) and isinstance(value, memoryview) and name_of(value) in planes:
            value = memoryview(value_info(name_of(value), ELEMENTS["int8"], tensor_type(value)[1]))
        yield from copied(number, value)
    if left:
        raise NotRewrittenError(f"no attention in it reads {short(min(left))}")
    for name, scale in scales.items():
        heads, size = scale.shape
        yield write_field(5, float_tensor(_scale_name(name), scale.reshape(1, heads, 1, size)))


def _signature(view: memoryview) -> tuple[list[str], bytes]:
    """The inputs and the operator of a NodeProto."""
    inputs, operator = [], b""
    for number, value in read_fields(view):
        if number == 1 and isinstance(value, memoryview):
            inputs.append(read_text(value))
        elif number == 4 and isinstance(value, memoryview):
            operator = bytes(value)
    return inputs, operator


def _quantized(view: memoryview, inputs: list[str]) -> bytes:
    """The NodeProto of an attention with its scales."""
    if any(inputs[_K_SCALE : _V_SCALE + 1]):
        raise NotRewrittenError("its KV cache is quantized already")
    inputs = inputs + [""] * (_V_SCALE + 1 - len(inputs))
    inputs[_K_SCALE], inputs[_V_SCALE] = _scale_name(inputs[_PAST_KEY]), _scale_name(inputs[_PAST_VALUE])
    parts: list[Bytes] = [write_field(1, name.encode()) for name in inputs]
    for number, value in read_fields(view):
        replaced = number == 5 and isinstance(value, memoryview) and name_of(value) in _QUANTIZATION
        if number != 1 and not replaced:
            parts += copied(number, value)
    parts += [write_field(5, attribute(name, value)) for name, value in _QUANTIZATION.items()]
    return b"".join(parts)


def _scale_name(past: str) -> str:
    return f"edged.{past}.scale"
