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
"""Package.attention_dtype of those that can be probed."""
_LONGEST = 4096
"""Most tokens of the probe's cache, which must hold a window. A longer window hides none of TOKENS either."""
_LEFT_OUT = ("do_rotary", "rotary_interleaved", "kv_cache_bit_width")
"""Attributes that change each token by itself, and one that an int8 cache brings."""
_PAST, _PRESENT = ("pk", "pv"), ("nk", "nv")
MOST_NEW = 32
"""Most tokens that DecodeProbe computes in a step."""
_STEPS = 30
"""int8 numbers in one standard deviation of the random keys and values; 4.2 fit."""
_LARGEST_CACHE = 4 << 20
"""The largest second-level cache of a processor, in bytes: onnxruntime sizes its blocks of keys by it."""
INT8_SINCE = "1.27"
"""The first onnxruntime whose CPU kernel takes an int8 cache."""
_LARGEST_ERROR = 0.05
"""Of attention on an int8 cache, against float32: root of the mean square, in that of the output. 0.01 was measured."""


class AttentionProbe:
    """One head of a package's attention over a prompt of random numbers."""

    def __init__(self, numbers: dict[str, float], package: Package, threads: int, int8: bool = False) -> None:
        """`numbers`: the operator's attributes. `int8`: with an int8 cache. Raises what onnxruntime raises."""
        self.head = package.head_size
        self._dtype = NUMPY_DTYPES[package.attention_dtype]
        length = max(TOKENS, min(package.sliding_window, _LONGEST))
        random = np.random.default_rng(0).standard_normal((3, length, self.head), np.float32).astype(self._dtype)
        self._queries, self._keys, self._values = random
        self._past = [random[plane][None, None].copy() for plane in (1, 2)]
        self._session = _session({**numbers, "num_heads": 1, "kv_num_heads": 1}, package, threads, int8)
        if int8:
            self._past = [np.zeros(plane.shape, np.int8) for plane in self._past]
            self.read(0, TOKENS)  # fills the cache

    @cached_property
    def whole(self) -> NDArray[Any]:
        """Attention to the prompt in one piece, [TOKENS, head]."""
        return self.read(0, TOKENS)

    def read(self, start: int, end: int) -> NDArray[Any]:
        """Attention of tokens start … end-1 after those before them, [end - start, head]."""
        inputs = {
            "query": self._queries[None, start:end],
            "key": self._keys[None, start:end],
            "value": self._values[None, start:end],
            "last": np.array([end - 1], np.int32),
            "total": np.array(end, np.int32),
        }
        # The cache holds the keys and values of all tokens already; the operator writes the chunk's over themselves.
        out = np.empty((1, end - start, self.head), self._dtype)
        _run(self._session, inputs, self._past, out)
        result: NDArray[Any] = out[0]
        return result


class DecodeProbe:
    """A package's attention with all heads over a prompt of random numbers, whose last tokens it computes."""

    def __init__(self, numbers: dict[str, float], package: Package, threads: int, int8: bool = False) -> None:
        """As AttentionProbe."""
        heads, kv_heads, size = int(numbers["num_heads"]), int(numbers["kv_num_heads"]), package.head_size
        # More than one block of keys, so that they can be shared out among threads.
        self._length = max(_LARGEST_CACHE // (32 * size) + 2, min(package.sliding_window, _LONGEST))
        self._dtype = NUMPY_DTYPES[package.attention_dtype]
        chance = np.random.default_rng(0)

        def normal(*shape: int) -> NDArray[Any]:
            return chance.standard_normal((1, *shape), np.float32)

        widths = {"query": heads * size, "key": kv_heads * size, "value": kv_heads * size}
        self._inputs = {name: normal(MOST_NEW, width).astype(self._dtype) for name, width in widths.items()}
        cached, scale = (np.int8, _STEPS) if int8 else (self._dtype, 1)
        self._past = [(scale * normal(kv_heads, self._length, size)).astype(cached) for _ in _PAST]
        self._session = _session(numbers, package, threads, int8)
        self.read(1, MOST_NEW)  # fills the cache

    def read(self, rows: int, new: int = 1) -> NDArray[Any]:
        """Attention of the last token, which `rows` equal rows compute in a step of `new` tokens, [rows, heads * size].

        Several tokens are for one row only.
        """
        inputs = {name: np.repeat(array[:, MOST_NEW - new :], rows, axis=0) for name, array in self._inputs.items()}
        inputs["last"] = np.full(rows, self._length - 1, np.int32)
        inputs["total"] = np.array(self._length, np.int32)
        # np.repeat would copy for one row too, whose cache is to be filled.
        past = self._past if rows == 1 else [np.repeat(plane, rows, axis=0) for plane in self._past]
        out = np.empty((rows, new, self._inputs["query"].shape[2]), self._dtype)
        _run(self._session, inputs, past, out)
        result: NDArray[Any] = out[:, -1]
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


def _session(numbers: dict[str, float], package: Package, threads: int, int8: bool) -> Any:
    """A session of the operator with these attributes, but for _LEFT_OUT."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4 if int8 else 3  # that it cannot is no error here
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    kept = {name: number for name, number in numbers.items() if name not in _LEFT_OUT}
    if kept.get("local_window_size", 0) > _LONGEST:
        kept["local_window_size"] = _LONGEST
    model = _model(kept, package.head_size, ELEMENTS[package.attention_dtype])
    if int8:
        scales = np.full((int(kept["kv_num_heads"]), package.head_size), 1 / _STEPS, np.float32)
        model = with_int8_cache(memoryview(model), dict.fromkeys(_PAST, scales), set(_PRESENT))
    return ort.InferenceSession(model, options, providers=[CPU])


def _run(session: Any, inputs: dict[str, NDArray[Any]], past: list[NDArray[Any]], out: NDArray[Any]) -> None:
    """One step, with `past` for the present too, and `out` for the output."""
    binding = session.io_binding()
    inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for before, after, array in zip(_PAST, _PRESENT, past, strict=True):
        place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        binding.bind_input(before, *place)
        binding.bind_output(after, *place)
    binding.bind_output("out", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding)


def _model(numbers: dict[str, float], head: int, element: int) -> bytes:
    """An ONNX model of one operator (onnx.proto)."""
    inputs = ("query", "key", "value", *_PAST, "last", "total")
    node = b"".join(_field(1, name.encode()) for name in inputs)
    node += b"".join(_field(2, name.encode()) for name in ("out", *_PRESENT))
    node += _field(4, b"GroupQueryAttention") + _field(7, b"com.microsoft")
    node += b"".join(_field(5, attribute(name, number)) for name, number in numbers.items())
    heads, kv_heads = int(numbers["num_heads"]), int(numbers["kv_num_heads"])
    tokens, others, planes = [None, None, heads * head], [None, None, kv_heads * head], [None, kv_heads, None, head]
    graph = _field(1, node) + _field(2, b"attention")
    shapes: dict[str, tuple[int, Sequence[int | None]]] = {
        "query": (element, tokens),
        **dict.fromkeys(("key", "value"), (element, others)),
        **dict.fromkeys(_PAST, (element, planes)),
        "last": (ELEMENTS["int32"], [None]),
        "total": (ELEMENTS["int32"], []),
    }
    graph += b"".join(_field(11, shaped(name, *shapes[name])) for name in inputs)
    for name, shape in {"out": tokens, **dict.fromkeys(_PRESENT, planes)}.items():
        graph += _field(12, shaped(name, element, shape))
    opsets = _field(8, _field(2, 21)) + _field(8, _field(1, b"com.microsoft") + _field(2, 1))
    return _field(1, 10) + _field(7, graph) + opsets
