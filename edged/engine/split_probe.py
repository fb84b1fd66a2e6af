"""Finds where prompts may be split on this processor, by the attention operator of a package alone.

Only attention looks at more than one token, so only there a token's bits can depend on the chunk that it is read in.
onnxruntime's flash attention takes queries and keys in blocks (onnxruntime/core/mlas/lib/flashattn.cpp), whose sizes
depend on the processor's cache and the head's width. Products of matrices are summed in an order that depends on their
shape, which the end of the chunk decides (heads of 256: up to 64 keys in a block, or more). A prompt for a whole model
would take minutes on a small board; one head of attention takes milliseconds.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edged.engine import ort
from edged.engine.kv_layout import NUMPY_DTYPES
from edged.engine.package import Package
from edged.engine.protobuf import write_field as _field
from edged.engine.providers import CPU
from edged.engine.session import one_line
from edged.engine.splits import SplitRule

log = structlog.get_logger(__name__)

_TOKENS = 576
"""Of the prompt that is split: two blocks of the largest cache and a rest."""
_LONGEST = 4096
"""Most tokens of the probe's cache, which must hold a window. A longer window hides none of _TOKENS either."""
_GRAINS = (32, 64, 128, 256, 512)
_L2_KIB = (128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 3072, 4096)
"""Second-level caches that processors have; onnxruntime sizes its blocks by them."""
_ROTARY = ("do_rotary", "rotary_interleaved")
"""Attributes that change each token by itself."""
_FINE = (24, 40, 3)
"""Sizes of the chunks that a prompt is read in where any may do."""
_ELEMENTS = {"float32": 1, "float16": 10}
"""onnx.proto: TensorProto.DataType."""
_INT32 = 6


def find_split_rule(package: Package, providers: Sequence[str], threads: int) -> SplitRule:
    """The finest rule under which attention gives the same bits, in one piece and in chunks.

    A GPU, which serves one row, a package without GroupQueryAttention, and one with a quantized cache get the rule
    without limits. A failure is logged; no rule holds then.
    """
    if providers[0] != CPU or package.kv_dtype not in _ELEMENTS:
        return SplitRule()
    try:
        probes = [_Attention(numbers, package, threads) for numbers in package.graph.attentions]
        lone = max((_find_lone(probe) for probe in probes), default=0)
        held = (rule for rule in _candidates(lone) if all(_holds(probe, rule) for probe in probes))
        return next(held, SplitRule(holds=False))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        log.warning("splits_not_probed", model=package.name, reason=one_line(error))
        return SplitRule(holds=False)


def _candidates(lone: int) -> Iterator[SplitRule]:
    yield SplitRule(lone=lone)
    for grain in sorted({*_GRAINS, lone} - {0}):
        if not lone or grain % lone == 0:
            # A token is alone in its block where it is in the prompt in one piece, and only there.
            yield SplitRule(grain)
        elif lone % grain == 0:
            yield SplitRule(grain, lone)


class _Attention:
    """One head of a package's attention over a prompt of random numbers."""

    def __init__(self, numbers: dict[str, float], package: Package, threads: int) -> None:
        """`numbers`: the operator's attributes. Raises what onnxruntime raises."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        kept = {name: number for name, number in numbers.items() if name not in _ROTARY}
        if kept.get("local_window_size", 0) > _LONGEST:
            kept["local_window_size"] = _LONGEST
        model = _model({**kept, "num_heads": 1, "kv_num_heads": 1}, package.head_size, _ELEMENTS[package.kv_dtype])
        self.head = package.head_size
        self._session = ort.InferenceSession(model, options, providers=[CPU])
        self._dtype = NUMPY_DTYPES[package.kv_dtype]
        length = max(_TOKENS, min(package.sliding_window, _LONGEST))
        random = np.random.default_rng(0).standard_normal((3, length, self.head), np.float32).astype(self._dtype)
        self._queries, self._keys, self._values = random
        self._past = [random[plane][None, None].copy() for plane in (1, 2)]

    @cached_property
    def whole(self) -> NDArray[Any]:
        """Attention to the prompt in one piece, [_TOKENS, head]."""
        return self.read(0, _TOKENS)

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
        for past, present, array in zip(("pk", "pv"), ("nk", "nv"), self._past, strict=True):
            place = ("cpu", 0, self._dtype, array.shape, array.ctypes.data)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        out = np.empty((1, end - start, self.head), self._dtype)
        binding.bind_output("out", "cpu", 0, self._dtype, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
        result: NDArray[Any] = out[0]
        return result


def _find_lone(probe: _Attention) -> int:
    """The queries of a block, if the last one of a chunk has other bits when it is alone in its block, else 0."""
    blocks = {min((kib << 10) // (32 * probe.head), 2 * probe.head) for kib in _L2_KIB}
    for block in sorted(block for block in blocks if block >= 4):
        if not _same_bits(probe.read(0, block + 1)[-1], probe.read(block - 1, block + 1)[-1]):
            return block
    return 0


def _holds(probe: _Attention, rule: SplitRule) -> bool:
    """Whether prompts read in various chunks under the rule have the bits that they have in one piece."""
    ends = [_TOKENS]
    if not rule.lone and 1 < rule.grain < _TOKENS // 2:  # the last token is alone in its block, however it is split
        ends.append(2 * rule.grain + 1)
    for end in ends:
        whole = probe.whole if end == _TOKENS else probe.read(0, end)
        for most in _FINE if rule.grain == 1 else (rule.grain, 3 * rule.grain):
            for start, stop in _chunks(rule, end, most):
                if not _same_bits(probe.read(start, stop), whole[start:stop]):
                    return False
    return True


def _chunks(rule: SplitRule, tokens: int, most: int) -> Iterator[tuple[int, int]]:
    computed = 0
    while computed < tokens:
        count = rule.chunk(computed, tokens - computed, most)
        yield computed, computed + count
        computed += count


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.tobytes() == other.tobytes()


# An ONNX model of one operator (onnx.proto).


def _model(numbers: dict[str, float], head: int, element: int) -> bytes:
    inputs = ("query", "key", "value", "pk", "pv", "last", "total")
    node = b"".join(_field(1, name.encode()) for name in inputs)
    node += b"".join(_field(2, name.encode()) for name in ("out", "nk", "nv"))
    node += _field(4, b"GroupQueryAttention") + _field(7, b"com.microsoft")
    node += b"".join(_field(5, _attribute(name, number)) for name, number in numbers.items())
    tokens, planes = [None, None, head], [None, 1, None, head]
    graph = _field(1, node) + _field(2, b"attention")
    shapes: dict[str, tuple[int, Sequence[int | None]]] = {
        **dict.fromkeys(("query", "key", "value"), (element, tokens)),
        **dict.fromkeys(("pk", "pv"), (element, planes)),
        "last": (_INT32, [None]),
        "total": (_INT32, []),
    }
    graph += b"".join(_field(11, _value(name, *shapes[name])) for name in inputs)
    for name, shape in {"out": tokens, "nk": planes, "nv": planes}.items():
        graph += _field(12, _value(name, element, shape))
    opsets = _field(8, _field(2, 21)) + _field(8, _field(1, b"com.microsoft") + _field(2, 1))
    return _field(1, 10) + _field(7, graph) + opsets


def _attribute(name: str, number: float) -> bytes:
    """onnx.proto: AttributeProto, of type FLOAT (1) or INT (2)."""
    if isinstance(number, int):
        return _field(1, name.encode()) + _field(3, number % (1 << 64)) + _field(20, 2)
    return _field(1, name.encode()) + b"\x15" + struct.pack("<f", number) + _field(20, 1)


def _value(name: str, element: int, shape: Sequence[int | None]) -> bytes:
    """onnx.proto: ValueInfoProto of a tensor. A size that is None may be any."""
    names = itertools.count()
    sizes = b"".join(
        _field(1, _field(1, size) if size is not None else _field(2, f"{name}{next(names)}".encode())) for size in shape
    )
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, element) + _field(2, sizes)))
