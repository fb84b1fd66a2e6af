"""onnxruntime with nothing around it: how fast a package can be here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edged.engine.package import POSITIONS


class Bare:
    """A session and the cheapest way to call it. `load_seconds` is the session's own load."""

    def __init__(self, package: Path, threads: int, graph: bytes | None = None) -> None:
        """`graph`: in place of the package's own, with the same weights."""
        model = json.loads((package / "genai_config.json").read_text())["model"]
        decoder = model["decoder"]
        self.vocabulary = model["vocab_size"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        began = time.perf_counter()
        if graph is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(package))
        source = package / decoder["filename"] if graph is None else graph
        self._session = ort.InferenceSession(source, options, ["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - began
        self._random = np.random.default_rng(1)
        self._heads, self._size = decoder["num_key_value_heads"], decoder["head_size"]
        self._inputs = {i.name for i in self._session.get_inputs()}
        pairs = (("past_key_names", "present_key_names"), ("past_value_names", "present_value_names"))
        self._names = [
            (decoder["inputs"][past] % layer, decoder["outputs"][present] % layer)
            for layer in range(decoder["num_hidden_layers"])
            for past, present in pairs
        ]
        self._cache: list[np.ndarray] = []

    def room(self, rows: int, tokens: int) -> None:
        """Take a float32 cache of `rows` rows of up to `tokens` tokens; its pages are touched here, not in a step."""
        shape = (rows, self._heads, tokens, self._size)
        self._cache = [np.full(shape, 0.01, np.float32) for _ in self._names]
        self._binding = self._session.io_binding()

    def step(self, past: int, new: int) -> float:
        """Seconds of one step of `new` random tokens for each row of the cache, behind `past` that it has already."""
        rows = self._cache[0].shape[0]
        ids = self._random.integers(3, self.vocabulary, (rows, new))
        began = time.perf_counter()
        binding = self._binding
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((rows, past + new), np.int64))
        if "position_ids" in self._inputs:
            binding.bind_cpu_input("position_ids", np.tile(np.arange(past, past + new), (rows, 1)))
        if POSITIONS in self._inputs:
            binding.bind_cpu_input(POSITIONS, np.array([[[row, new - 1]] for row in range(rows)], np.int64))
        for (before, after), array in zip(self._names, self._cache, strict=True):
            for bind, name in ((binding.bind_input, before), (binding.bind_output, after)):
                bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        return time.perf_counter() - began
