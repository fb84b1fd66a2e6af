"""The messages of onnx.proto that edged's edits of a graph read and write (github.com/onnx/onnx, onnx/onnx.proto)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edged.engine.protobuf import field_head, read_fields, read_text, write_field

Bytes = bytes | memoryview
ELEMENTS = {"float32": 1, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
"""TensorProto.DataType."""


def copied(number: int, value: int | memoryview) -> list[Bytes]:
    """A field as it was."""
    if isinstance(value, int):
        return [write_field(number, value)]
    return [field_head(number, len(value)), value]


def message(number: int, parts: Sequence[Bytes]) -> list[Bytes]:
    """A field that holds a message, in pieces: large ones are not copied."""
    return [field_head(number, sum(map(len, parts))), *parts]


def inner(view: memoryview, number: int) -> memoryview:
    """The message in one field, empty without it."""
    value = dict(read_fields(view)).get(number)
    return value if isinstance(value, memoryview) else memoryview(b"")


def name_of(view: memoryview) -> str:
    """The name of a ValueInfoProto or an AttributeProto."""
    return read_text(inner(view, 1))


def tensor_type(view: memoryview) -> tuple[int, list[memoryview]]:
    """The dtype (TensorProto.DataType) and the dimensions of a ValueInfoProto."""
    tensor = inner(inner(view, 2), 1)
    dtype = dict(read_fields(tensor)).get(1)
    dimensions = [one for number, one in read_fields(inner(tensor, 2)) if number == 1 and isinstance(one, memoryview)]
    return dtype if isinstance(dtype, int) else 0, dimensions


def value_info(name: str, dtype: int, dimensions: Iterable[Bytes]) -> bytes:
    """A ValueInfoProto of a tensor. `dimensions`: each a TensorShapeProto.Dimension."""
    shape = b"".join(write_field(1, bytes(dimension)) for dimension in dimensions)
    tensor = write_field(1, dtype) + write_field(2, shape)
    return write_field(1, name.encode()) + write_field(2, write_field(1, tensor))


def shaped(name: str, dtype: int, shape: Sequence[int | None]) -> bytes:
    """A ValueInfoProto of a tensor of this shape. A size that is None may be any."""
    names = itertools.count()
    sizes = [sized(size) if size is not None else named(f"{name}{next(names)}") for size in shape]
    return value_info(name, dtype, sizes)


def sized(size: int) -> bytes:
    """A TensorShapeProto.Dimension of this size."""
    return write_field(1, size)


def named(name: str) -> bytes:
    """A TensorShapeProto.Dimension of any size."""
    return write_field(2, name.encode())


def attribute(name: str, value: float | str) -> bytes:
    """An AttributeProto of type FLOAT (1), INT (2) or STRING (3)."""
    if isinstance(value, str):
        return write_field(1, name.encode()) + write_field(4, value.encode()) + write_field(20, 3)
    if isinstance(value, int):
        return write_field(1, name.encode()) + write_field(3, value % (1 << 64)) + write_field(20, 2)
    return write_field(1, name.encode()) + b"\x15" + struct.pack("<f", value) + write_field(20, 1)


def float_tensor(name: str, values: NDArray[np.float32]) -> bytes:
    """A TensorProto of float32 with its data inside."""
    sizes = b"".join(write_field(1, size) for size in values.shape)
    data = np.ascontiguousarray(values, "<f4").tobytes()
    return sizes + write_field(2, ELEMENTS["float32"]) + write_field(8, name.encode()) + write_field(9, data)
