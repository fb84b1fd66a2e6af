"""Writes a package of random weights in a shape that no fixture has: as the model builder does for int4 on a CPU."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edged.engine.protobuf import write_field

TEXTS = Path(__file__).parents[1] / "fixtures" / "models" / "llama3"
VOCABULARY, CONTEXT = 1000, 512
"""The fixtures' tokenizer has as many tokens."""
_BLOCK = 32
"""Weights that share a scale."""
# onnx.proto: TensorProto.DataType.
_UINT8, _INT32, _INT64 = 2, 6, 7
_ELEMENTS = {"float32": 1, "float16": 10}


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder.

    `dtype`: of activations, cache and logits. `residual`: spread of what the layers add up; from some 10,000 on their
    sums go beyond float16.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    layers: int
    dtype: str = "float32"
    residual: float = 1.0


def write_random_package(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a package of `shape` into the new `folder`. The same seed gives the same weights."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TEXTS / name, folder / name)
    config = json.loads((TEXTS / "genai_config.json").read_text())
    config["model"]["decoder"] |= {
        "head_size": shape.head_size,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }
    (folder / "genai_config.json").write_text(json.dumps(config))
    (folder / "model.onnx").write_bytes(_Decoder(shape, np.random.default_rng(seed)).model())
    return folder


@dataclass
class _Decoder:
    """Collects an ONNX graph: Llama's layers, in onnx.proto's fields of a GraphProto."""

    shape: Shape
    random: np.random.Generator
    nodes: list[bytes] = field(default_factory=list)
    rest: list[bytes] = field(default_factory=list)

    def model(self) -> bytes:
        """onnx.proto: ModelProto."""
        shape, element = self.shape, _ELEMENTS[self.shape.dtype]
        self._value(11, "input_ids", _INT64, ["batch", "new"])
        self._value(11, "attention_mask", _INT64, ["batch", "total"])
        self._lengths()
        self._rotary()
        table = np.clip(shape.residual * self.random.standard_normal((VOCABULARY, shape.hidden)), -60_000, 60_000)
        hidden = self._node("Gather", [self._tensor("embedding", table), "input_ids"], "hidden")
        for layer in range(shape.layers):
            hidden = self._layer(layer, hidden)
        self._product(self._norm("last", hidden), shape.hidden, VOCABULARY, "logits")
        self._value(12, "logits", element, ["batch", "new", VOCABULARY])
        for layer in range(shape.layers):
            for kind in ("key", "value"):
                size = ["batch", shape.kv_heads, "past", shape.head_size]
                self._value(11, f"past_key_values.{layer}.{kind}", element, size)
                self._value(12, f"present.{layer}.{kind}", element, size)
        graph = b"".join([*(write_field(1, node) for node in self.nodes), write_field(2, b"random"), *self.rest])
        opsets = write_field(8, write_field(2, 21)) + write_field(
            8, write_field(1, b"com.microsoft") + write_field(2, 1)
        )
        return write_field(1, 10) + write_field(7, graph) + opsets

    def _lengths(self) -> None:
        """What GroupQueryAttention takes: each row's length less one, and the longest length."""
        one = self._tensor("one", np.array([1], np.int64), _INT64)
        self._node("ReduceSum", ["attention_mask", one], "lengths", attribute("keepdims", 0))
        self._node("Sub", ["lengths", one], "less_one")
        self._node("Cast", ["less_one"], "last", attribute("to", _INT32))
        self._node("Shape", ["attention_mask"], "mask_shape")
        self._node("Gather", ["mask_shape", self._tensor("second", np.array(1, np.int64), _INT64)], "width")
        self._node("Cast", ["width"], "total", attribute("to", _INT32))

    def _rotary(self) -> None:
        half = self.shape.head_size // 2
        angles = np.outer(np.arange(CONTEXT), 10_000.0 ** (-np.arange(half) / half))
        self._tensor("cos", np.cos(angles))
        self._tensor("sin", np.sin(angles))

    def _layer(self, layer: int, hidden: str) -> str:
        shape, at = self.shape, f"{layer}."
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        normed = self._norm(at + "attention", hidden)
        parts = [
            self._product(normed, shape.hidden, size, at + name, gain=1.5)
            for name, size in (("q", queries), ("k", keys), ("v", keys))
        ]
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        numbers = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads, "do_rotary": 1}
        attributes = b"".join(attribute(name, number) for name, number in numbers.items())
        inputs = [*parts, *past, "last", "total", "cos", "sin"]
        attended = self._node("GroupQueryAttention", inputs, at + "attended", attributes, present)
        added = self._product(attended, queries, shape.hidden, at + "o", gain=shape.residual)
        hidden = self._node("Add", [hidden, added], at + "middle")
        normed = self._norm(at + "mlp", hidden)
        gate, up = (self._product(normed, shape.hidden, shape.hidden, at + name) for name in ("gate", "up"))
        self._node("Mul", [gate, self._node("Sigmoid", [gate], at + "sigmoid")], at + "swish")
        wide = self._node("Mul", [at + "swish", up], at + "wide")
        added = self._product(wide, shape.hidden, shape.hidden, at + "down", gain=shape.residual)
        return self._node("Add", [hidden, added], at + "end")

    def _norm(self, name: str, source: str) -> str:
        scale = self._tensor(name + ".scale", 1 + 0.1 * self.random.standard_normal(self.shape.hidden))
        attributes = attribute("epsilon", 1e-5) + attribute("axis", -1)
        return self._node("SimplifiedLayerNormalization", [source, scale], name + ".normed", attributes)

    def _product(self, source: str, inputs: int, outputs: int, name: str, gain: float = 1.0) -> str:
        """`source` times a random matrix of 4-bit weights, which keeps its spread times `gain`."""
        # From -7 to 7: with a mean of their own they would turn every input into the same output.
        low, high = self.random.integers(1, 16, (2, outputs, inputs // _BLOCK, _BLOCK // 2), np.uint8)
        packed = low | high << 4
        spread = np.sqrt((15**2 - 1) / 12 * inputs)
        scales = gain / spread * self.random.uniform(0.8, 1.2, outputs * (inputs // _BLOCK))
        weights = [self._tensor(name + ".weights", packed, _UINT8), self._tensor(name + ".scales", scales)]
        numbers = {"K": inputs, "N": outputs, "bits": 4, "block_size": _BLOCK, "accuracy_level": 4}
        attributes = b"".join(attribute(key, number) for key, number in numbers.items())
        return self._node("MatMulNBits", [source, *weights], name, attributes)

    def _node(
        self, operator: str, inputs: list[str], output: str, attributes: bytes = b"", more: list[str] | None = None
    ) -> str:
        """Add a NodeProto; returns its first output."""
        node = b"".join(write_field(1, name.encode()) for name in inputs)
        node += b"".join(write_field(2, name.encode()) for name in [output, *(more or [])])
        node += write_field(4, operator.encode()) + attributes
        self.nodes.append(node + (write_field(7, b"com.microsoft") if operator in _MICROSOFT else b""))
        return output

    def _tensor(self, name: str, values: np.ndarray, element: int | None = None) -> str:
        """Add a TensorProto of the weights; of the decoder's dtype unless it has an `element`."""
        if element is None:
            values, element = values.astype(self.shape.dtype), _ELEMENTS[self.shape.dtype]
        sizes = b"".join(write_field(1, size) for size in values.shape)
        tensor = sizes + write_field(2, element) + write_field(8, name.encode()) + write_field(9, values.tobytes())
        self.rest.append(write_field(5, tensor))
        return name

    def _value(self, number: int, name: str, element: int, sizes: list[int | str]) -> None:
        """Add a ValueInfoProto: 11 for an input, 12 for an output."""
        dimensions = (
            write_field(1, size) if isinstance(size, int) else write_field(2, size.encode()) for size in sizes
        )
        tensor = write_field(1, element) + write_field(2, b"".join(write_field(1, one) for one in dimensions))
        self.rest.append(write_field(number, write_field(1, name.encode()) + write_field(2, write_field(1, tensor))))


_MICROSOFT = {"GroupQueryAttention", "MatMulNBits"}


def attribute(name: str, number: float) -> bytes:
    """onnx.proto: AttributeProto, of type FLOAT (1) or INT (2), as a field of a node."""
    value = b"\x15" + struct.pack("<f", number) if isinstance(number, float) else write_field(3, number % (1 << 64))
    kind = 1 if isinstance(number, float) else 2
    return write_field(5, write_field(1, name.encode()) + value + write_field(20, kind))
