"""One onnxruntime session over a package: a step in, logits out, the KV cache bound in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.engine import ort
from edged.engine.kv_cache import KVCache
from edged.engine.kv_layout import NUMPY_DTYPES, KVLayout
from edged.engine.package import POSITIONS, Package, PackageError
from edged.engine.serving_graph import LogitsComputed, ServingGraph

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's option (onnxruntime_session_options_config_keys.h): where a graph from memory has its weights."""
LOGITS_BYTES = 64 << 20
"""Most memory for the logits of a step where all are computed; a larger prefill chunk is shortened to fit, as far as it
may be."""


def chunk_limit(vocabulary: int, wanted: int, shortest: int) -> int:
    """Tokens a prefill chunk may have so that its float32 logits stay within LOGITS_BYTES, `shortest` in any case."""
    return max(shortest, min(wanted, LOGITS_BYTES // (4 * vocabulary)))


class ModelSession:
    """Runs steps of a model. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self, package: Package, providers: Sequence[str], threads: int, graph: ServingGraph | None = None
    ) -> None:
        """Load the weights. `threads` compute the operators; the caller waits meanwhile.

        `graph`: what is served of the package; None: its own file.

        Raises PackageError with onnxruntime's reason when it will not load.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Between steps nobody spins: an idle board must be idle.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model: bytes | Path = package.model_file
        if graph is not None and graph.model is not None:
            model = graph.model
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(package.model_file.parent))
        try:
            self._session = ort.InferenceSession(model, options, providers=list(providers))
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise PackageError(f"onnxruntime {ort.__version__} cannot load the model: {one_line(error)}") from None
        self.package = package
        self.threads = threads
        self.providers: list[str] = self._session.get_providers()
        self.device = "cuda" if self.providers[0] in ("CUDAExecutionProvider", "TensorrtExecutionProvider") else "cpu"
        logits = next(o for o in self._session.get_outputs() if o.name == package.logits_name)
        dtype = {"tensor(float)": "float32", "tensor(float16)": "float16"}.get(logits.type)
        if dtype is None:
            raise PackageError(f"the model's logits are {logits.type}: float32 and float16 are served")
        if isinstance(logits.shape[-1], int) and logits.shape[-1] != package.vocabulary:
            raise PackageError(
                f"the model's logits have {logits.shape[-1]} tokens and genai_config.json says vocab_size "
                f"{package.vocabulary}: they are not of the same package"
            )
        self.logits_computed: LogitsComputed = "all"
        """After which tokens of a step the graph computes logits: see ServingGraph."""
        if any(one.name == POSITIONS for one in self._session.get_inputs()):
            self.logits_computed = "wanted"
        elif len(logits.shape) == 3 and logits.shape[1] == 1:
            self.logits_computed = "last"
        past = package.past_names[0] % 0
        quantized = any(one.name == past and one.type == "tensor(int8)" for one in self._session.get_inputs())
        self.layout = KVLayout.of(package, "int8" if quantized else None)
        """Of the KV cache that the graph takes."""
        self._logits_dtype = NUMPY_DTYPES[dtype]
        self._logits = np.empty(0, self._logits_dtype)
        self._bindings: dict[tuple[int, int], Any] = {}
        self._cache: KVCache | None = None

    def release(self) -> None:
        """Free the weights. The session cannot be used afterwards."""
        del self._session
        self._bindings, self._cache = {}, None
        self._logits = np.empty(0, self._logits_dtype)

    def make_cache(self, rows: int, context: int) -> KVCache:
        """A cache of `rows` rows of up to `context` tokens, as the graph takes it. Raises MemoryError."""
        return KVCache(self.package, rows, context, self.device, self.layout)

    def use(self, cache: KVCache) -> None:
        """Take `cache` for the steps that follow."""
        self._cache, self._bindings = cache, {}
        self._logits = np.empty(0, self._logits_dtype)  # the steps before may have wanted more

    def probe(self, row: int) -> str | None:
        """Whether a small step on row `row`, which must be free, still works: None, or on one line why not."""
        try:
            logits = self.step(row, np.zeros((1, 2), np.int64), [0], 2)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            return one_line(error)
        return None if np.isfinite(logits).all() else "the model gives NaN or infinity where numbers are due"

    def step(self, first: int, ids: NDArray[np.int64], past: Sequence[int], width: int) -> NDArray[np.floating]:
        """Run `ids.shape[0]` rows of the cache, from row `first` on, each `ids.shape[1]` tokens further.

        `ids`: [rows, new] int64. `past`: tokens each row already has in the cache. `width`: columns of the attention
        mask, at least the longest row; a LongRoPE graph picks its rope table by it. Several tokens at once on a past
        are right for one row only. Returns the logits after each row's last token, [rows, vocabulary], a view that
        the next step overwrites.

        `past` may have one more entry than `ids` has rows: then the row after them is computed along with the last
        row's tokens. Its logits are dropped and its cache is written from that entry on.
        """
        rows = len(ids)
        if len(past) > rows:
            ids = np.concatenate([ids, ids[-1:]])
        # Some matrix kernels round one row otherwise than several. Two rows give what all tokens of the step would.
        last = 2 if len(ids) == 1 and ids.shape[1] > 1 else 1
        return self.forward(first, ids, past, width, last)[:rows, -1]

    def forward(
        self, first: int, ids: NDArray[np.int64], past: Sequence[int], width: int, last: int | None = None
    ) -> NDArray[np.floating]:
        """As `step`, but returns the logits after the `last` tokens of each row, [rows, last, vocabulary], or of all.

        A graph that computes no others gives all of them, or the last one.
        """
        assert self._cache is not None
        rows, new = ids.shape
        lengths = np.asarray(past, np.int64) + new
        names = self.package.input_names
        binding = self._bindings.get((first, rows))
        if binding is None:
            binding = self._bindings[(first, rows)] = self._session.io_binding()
            self._cache.bind(binding, first, rows)
        if width == lengths.min():
            mask = np.ones((rows, width), np.int64)
        else:
            mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        binding.bind_cpu_input(names["input_ids"], ids)
        binding.bind_cpu_input(names["attention_mask"], mask)
        if "position_ids" in names:
            binding.bind_cpu_input(names["position_ids"], lengths[:, None] - new + np.arange(new, dtype=np.int64))
        if "logits_indices" in names:  # all: the serving graph takes the wanted ones of these
            name = names["logits_indices"]
            binding.bind_cpu_input(name, np.arange(new, dtype=self.package.graph.inputs[name]))
        last = last or new
        if self.logits_computed == "wanted":
            binding.bind_cpu_input(POSITIONS, _positions(rows, new, last))
            given, shape = last, (rows * last, 1, self.package.vocabulary)
        else:
            given = new if self.logits_computed == "all" else 1
            shape = (rows, given, self.package.vocabulary)
        size = rows * given * self.package.vocabulary
        if self._logits.size < size:
            self._logits = np.empty(size, self._logits_dtype)
        binding.bind_output(self.package.logits_name, "cpu", 0, self._logits_dtype, shape, self._logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        result: NDArray[np.floating] = self._logits[:size].reshape(rows, given, self.package.vocabulary)
        return result


def _positions(rows: int, new: int, last: int) -> NDArray[np.int64]:
    """Row and token of the `last` of `new` tokens of each row, [rows * last, 1, 2]."""
    positions = np.empty((rows, last, 2), np.int64)
    positions[..., 0] = np.arange(rows)[:, None]
    positions[..., 1] = np.arange(new - last, new)
    return positions.reshape(rows * last, 1, 2)


def one_line(error: BaseException) -> str:
    """An exception's message on one line, cut to a readable length."""
    return " ".join(str(error).split())[:400] or type(error).__name__
