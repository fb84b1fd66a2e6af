"""One head of a package's attention operator over a prompt of random numbers: it shows how a processor computes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.engine import ort
from edged.engine.int8_graph import with_int8_cache
from edged.engine.kv_layout import NUMPY_DTYPES
from edged.engine.onnx_fields import ELEMENTS, attribute, shaped
from edged.engine.package import Package
from edged.engine.protobuf import write_field as _field
from edged.engine.providers import CPU
from edged.engine.session import one_line

TOKENS = 576
"""Of the prompt: two blocks of the largest cache and a rest."""
PROBED = ("float32", "float16")
"""Caches of packages whose attention can be probed."""
_LONGEST = 4096
"""Most tokens of the probe's cache, which must hold a window. A longer window hides none of TOKENS either."""
_ROTARY = ("do_rotary", "rotary_interleaved")
"""Attributes that change each token by itself."""
_PAST, _PRESENT = ("pk", "pv"), ("nk", "nv")
INT8_SINCE = "1.27"
"""The first onnxruntime whose CPU kernel takes an int8 cache."""
_LARGEST_ERROR = 0.05
"""Of attention on an int8 cache, against float32: root of the mean square, in that of the output. 0.01 was measured."""


class AttentionProbe:
    """One head of a package's attention over a prompt of random numbers."""

    def __init__(self, numbers: dict[str, float], package: Package, threads: int, int8: bool = False) -> None:
        """`numbers`: the operator's attributes. `int8`: with an int8 cache. Raises what onnxruntime raises."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4 if int8 else 3  # that it cannot is no error here
        kept = {name: number for name, number in numbers.items() if name not in _ROTARY}
        if kept.get("local_window_size", 0) > _LONGEST:
            kept["local_window_size"] = _LONGEST
        self.head = package.head_size
        self._dtype = NUMPY_DTYPES[package.kv_dtype]
        length = max(TOKENS, min(package.sliding_window, _LONGEST))
        random = np.random.default_rng(0).standard_normal((3, length, self.head), np.float32).astype(self._dtype)
        self._queries, self._keys, self._values = random
        self._past = [random[plane][None, None].copy() for plane in (1, 2)]
        model = _model({**kept, "num_heads": 1, "kv_num_heads": 1}, self.head, ELEMENTS[package.kv_dtype])
        if int8:
            scales = {
                name: np.abs(plane[0, 0]).max(axis=0, keepdims=True) / 127
                for name, plane in zip(_PAST, self._past, strict=True)
            }
            model = with_int8_cache(memoryview(model), scales, set(_PRESENT))
            self._past = [np.zeros(plane.shape, np.int8) for plane in self._past]
        self._session = ort.InferenceSession(model, options, providers=[CPU])
        if int8:
            self.read(0, TOKENS)  # fills the cache

    @cached_property
    def whole(self) -> NDArray[Any]:
        """Attention to the prompt in one piece, [TOKENS, head]."""
        return self.read(0, TOKENS)

    def read(self, start: int, end: int) -> NDArray[Any]:
        """Attention of tokens start … end-1 after those before them, [end - start, head]."""
        binding = self._session.io_binding()
        inputs = {
            "query": self._queries[None, start:end],
            "key": self._keys[None, start:end],
            "value": self._values[None, start:end],
            "last": np.array([end - 1], np.int32),
            "total": np.array(end, np.int32),
        }
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        # The cache holds the keys and values of all tokens already; the operator writes the chunk's over themselves.
        for past, present, array in zip(_PAST, _PRESENT, self._past, strict=True):
            place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        out = np.empty((1, end - start, self.head), self._dtype)
        binding.bind_output("out", "cpu", 0, self._dtype, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
        result: NDArray[Any] = out[0]
        return result


def int8_attention_fault(package: Package, threads: int) -> str | None:
    """Why this onnxruntime cannot serve the package's attention on an int8 cache: one line, None where it can."""
    try:
        for numbers in package.graph.attentions:
            exact, coarse = (AttentionProbe(numbers, package, threads, int8).whole for int8 in (False, True))
            error = float(np.square(coarse - exact).mean() ** 0.5 / np.square(exact).mean() ** 0.5)
            if not error < _LARGEST_ERROR:
                return f"onnxruntime {ort.__version__} computes attention on an int8 cache wrongly here"
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        hint = f"install {INT8_SINCE} or newer"
        return (
            f"onnxruntime {ort.__version__} cannot compute attention on an int8 cache: {hint} ({one_line(error)[:120]})"
        )
    return None


def _model(numbers: dict[str, float], head: int, element: int) -> bytes:
    """An ONNX model of one operator (onnx.proto)."""
    inputs = ("query", "key", "value", *_PAST, "last", "total")
    node = b"".join(_field(1, name.encode()) for name in inputs)
    node += b"".join(_field(2, name.encode()) for name in ("out", *_PRESENT))
    node += _field(4, b"GroupQueryAttention") + _field(7, b"com.microsoft")
    node += b"".join(_field(5, attribute(name, number)) for name, number in numbers.items())
    tokens, planes = [None, None, head], [None, 1, None, head]
    graph = _field(1, node) + _field(2, b"attention")
    shapes: dict[str, tuple[int, Sequence[int | None]]] = {
        **dict.fromkeys(("query", "key", "value"), (element, tokens)),
        **dict.fromkeys(_PAST, (element, planes)),
        "last": (ELEMENTS["int32"], [None]),
        "total": (ELEMENTS["int32"], []),
    }
    graph += b"".join(_field(11, shaped(name, *shapes[name])) for name in inputs)
    for name, shape in {"out": tokens, **dict.fromkeys(_PRESENT, planes)}.items():
        graph += _field(12, shaped(name, element, shape))
    opsets = _field(8, _field(2, 21)) + _field(8, _field(1, b"com.microsoft") + _field(2, 1))
    return _field(1, 10) + _field(7, graph) + opsets
