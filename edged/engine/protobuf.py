"""The protobuf wire format, read and written field by field (protobuf.dev/programming-guides/encoding).

An ONNX file is one protobuf message. Only a few of its fields concern edged, so there are no generated classes.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ProtobufError(ValueError):
    """The bytes are not a message."""


def read_fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message; a value that is no varint is a view into `view`.

    Raises ProtobufError, or IndexError where the bytes end in a varint.
    """
    at, end = 0, len(view)
    while at < end:
        tag, at = read_varint(view, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            integer, at = read_varint(view, at)
            yield number, integer
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            if wire == _BYTES:
                length, at = read_varint(view, at)
            else:
                length = 8 if wire == _FIXED64 else 4
            if at + length > end:
                raise ProtobufError("it ends in the middle of a field")
            yield number, view[at : at + length]
            at += length
        else:
            raise ProtobufError(f"a field of wire type {wire}")


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next byte is. Raises ProtobufError, IndexError."""
    result = shift = 0
    while True:
        byte = view[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ProtobufError("a number of more than 64 bits")


def read_text(view: memoryview) -> str:
    """A string. Raises UnicodeDecodeError."""
    return bytes(view).decode()


def write_field(number: int, value: int | bytes) -> bytes:
    """One field: a number from 0 to 2**64 - 1 as a varint, else bytes (a string, a message)."""
    if isinstance(value, int):
        return _write_varint(number << 3) + _write_varint(value)
    return field_head(number, len(value)) + value


def field_head(number: int, length: int) -> bytes:
    """What stands before the `length` bytes of a field."""
    return _write_varint(number << 3 | _BYTES) + _write_varint(length)


def _write_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
