"""Opens a model package, the folder that onnxruntime-genai's model builder writes, and checks it before it is loaded.

Everything in a package is data: nothing in it is executed, and no path in it may leave the folder.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.engine.graph import Graph, GraphError, read_graph
from edged.engine.package_files import TEXTS, PackageError, check_size, inside, read_json, short
from edged.engine.package_texts import TextFiles, read_texts
from edged.engine.providers import MadeFor, made_for

__all__ = ["Package", "PackageError", "SearchDefaults", "open_package", "read_json", "signature"]

_BYTES_PER_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
_HASHED_BYTES = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 4096
_UNHEEDED: dict[str, object] = {
    "diversity_penalty": 0.0,
    "min_length": 0,
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "random_seed": -1,
}
"""Entries of `search` that edged does not heed, and the value of each that asks for nothing."""
_SILENT = {
    *("do_sample", "repetition_penalty", "temperature", "top_k", "top_p"),
    *("early_stopping", "length_penalty"),
    *("batch_size", "chunk_size", "past_present_share_buffer"),
}
"""Entries of which nothing is said by their name alone: heeded, of beam search, and how onnxruntime-genai computes."""
_MOST_UNHEEDED = 32
_PAGED = {"block_table", "cumulative_sequence_lengths", "past_sequence_lengths"}
"""Inputs of graphs that onnxruntime-genai's model builder makes for a paged KV cache."""
_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "logits_indices")
"""The last one: [wanted], the tokens of each row whose logits the graph computes, by their place in the step."""
POSITIONS = "edged.positions"
"""Input of a graph that edged rewrote: [wanted, 1, 2] int64, row and token of each wanted position. Its logits are
[wanted, 1, vocabulary]."""


@dataclass(frozen=True)
class SearchDefaults:
    """What `search` in genai_config.json sets: top_k and top_p for jobs that sample, the penalty for all jobs."""

    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    unheeded: tuple[str, ...] = ()
    """Entries that ask for something edged does not do, such as "num_beams = 4"."""


@dataclass(frozen=True)
class Package:
    """A checked package. Token counts are in tokens, sizes in bytes."""

    folder: Path
    name: str
    architecture: str
    model_file: Path
    graph: Graph
    layers: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_length: int
    sliding_window: int
    """Tokens the widest sliding-window layer looks back, 0 without one. Its cache must be at least as long."""
    eos: frozenset[int]
    """Of genai_config.json and generation_config.json; the tokenizer knows the id of tokenizer_config.json's too."""
    input_names: dict[str, str]
    logits_name: str
    past_names: tuple[str, str]
    present_names: tuple[str, str]
    made_for: MadeFor
    search: SearchDefaults
    weight_bytes: int
    tokenizer_file: Path
    texts: TextFiles

    @property
    def kv_dtype(self) -> str:
        """Name of the KV cache's dtype, as the graph declares it."""
        return self.graph.inputs[self.past_names[0] % 0]

    @property
    def attention_dtype(self) -> str:
        """Name of the dtype of queries, keys and values as attention gets them: an int8 cache quantizes float32."""
        return "float32" if self.kv_dtype == "int8" else self.kv_dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token of one row takes over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * _BYTES_PER_ELEMENT[self.kv_dtype]

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that every step reads, however few its tokens: all but the tables that are looked up."""
        tables = self.graph.looked_up - self.graph.computed_with
        return self.weight_bytes - sum(w.length or 0 for w in self.graph.external if w.name in tables)

    @property
    def rope_switch(self) -> int | None:
        """Tokens beyond which a LongRoPE model takes its long rope table, None for other models."""
        return self.graph.rope_switch

    @property
    def batches_ragged_rows(self) -> bool:
        """False for SparseAttention, whose shorter rows come out wrong, silently, in a batch of unequal lengths."""
        return "SparseAttention" not in self.graph.operators

    @property
    def files(self) -> list[str]:
        """The files that a load reads, relative to the folder: texts, the graph and its weights; no other variants."""
        weights = {self.model_file.parent / tensor.location for tensor in self.graph.external}
        texts = {name for name in TEXTS if (self.folder / name).is_file()}
        return sorted(texts | {file.relative_to(self.folder).as_posix() for file in (self.model_file, *weights)})

    def fingerprint(self) -> bytes:
        """32 bytes that differ between models: of the graph, the configuration and samples of the weights.

        All weights would take as long to read as to load.
        """
        digest = hashlib.sha256(self.model_file.read_bytes()[:_HASHED_BYTES])
        digest.update((self.folder / "genai_config.json").read_bytes())
        for path in sorted({self.model_file.parent / tensor.location for tensor in self.graph.external}):
            size = path.stat().st_size
            digest.update(str(size).encode())
            with path.open("rb") as file:
                for sample in range(_SAMPLES):
                    file.seek(sample * size // _SAMPLES)
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.digest()


def signature(folder: Path) -> str:
    """Changes whenever a file of the package does: from names, sizes and times, not contents, so that it can be polled.

    The folder may be broken or absent.
    """
    digest = hashlib.sha256()
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        return type(error).__name__
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
        except OSError as error:  # a dangling link must not hide changes of the other files
            state = type(error).__name__
        digest.update(os.fsencode(path.name) + f"\0{state}\n".encode())
    return digest.hexdigest()


def open_package(folder: Path, name: str | None = None) -> Package:
    """Read and check the package in `folder`; `name` is what jobs call it (default: the folder's name).

    Raises PackageError: a file is missing or cut, a path leaves the folder, the graph is not a text decoder.
    """
    if not folder.is_dir():
        raise PackageError(f"{folder} is not a folder: model.path must name the folder that holds genai_config.json")
    config = read_json(folder, "genai_config.json")
    model = _section(config, "model")
    if "decoder" not in model:
        raise PackageError(f"genai_config.json has no model.decoder: {short(model.get('type'))} is not a text decoder")
    decoder = _section(model, "decoder")
    for other in ("encoder", "joiner", "vision", "speech", "embedding"):
        if other in model:
            raise PackageError(f"the package has a model.{other} part: only text decoders of one graph are served")
    if "pipeline" in decoder:
        raise PackageError("the decoder is a pipeline of several graphs: only text decoders of one graph are served")
    inputs, outputs = _section(decoder, "inputs", {}), _section(decoder, "outputs", {})
    past = (
        _name(inputs, "past_key_names", "past_key_values.%d.key"),
        _name(inputs, "past_value_names", "past_key_values.%d.value"),
    )
    present = (
        _name(outputs, "present_key_names", "present.%d.key"),
        _name(outputs, "present_value_names", "present.%d.value"),
    )
    for pattern in (*past, *present):
        if pattern.count("%d") != 1 or pattern.count("%") != 1:
            raise PackageError(
                f"genai_config.json: {short(pattern)} must hold %d once, the place of the layer's number"
            )
    input_names = {kind: _name(inputs, kind, kind) for kind in _TOKEN_INPUTS}
    if len({*past, *input_names.values()}) < len(past) + len(input_names) or len(set(present)) < 2:
        raise PackageError("genai_config.json: two of the decoder's inputs or outputs have the same name")
    layers = _number(decoder, "num_hidden_layers", 1, 1024)
    model_file = inside(folder, decoder.get("filename", "model.onnx"), "genai_config.json: filename ")
    try:
        graph = read_graph(model_file)
    except (GraphError, OSError) as error:
        raise PackageError(f"{model_file.name}: {error}") from None
    logits = _name(outputs, "logits", "logits")
    try:
        _check_graph(graph, layers, input_names, past, present, logits)
    except PackageError as error:
        raise PackageError(f"{model_file.name}: {error}") from None
    vocabulary = _number(model, "vocab_size", 1, 1 << 24)
    texts = read_texts(folder)
    tokenizer_file = _tokenizer_file(folder)
    window = _section(decoder, "sliding_window", {})
    context_length = _number(model, "context_length", 16, 1 << 24)
    return Package(
        folder=folder,
        name=name or folder.resolve().name,
        architecture=str(model.get("type", "unknown")),
        model_file=model_file,
        graph=graph,
        layers=layers,
        kv_heads=_number(decoder, "num_key_value_heads", 1, 4096),
        head_size=_number(decoder, "head_size", 1, 4096),
        vocabulary=vocabulary,
        context_length=context_length,
        sliding_window=_number(window, "window_size", 1, 1 << 24) if window.get("layers") else 0,
        eos=_eos(model, vocabulary) | {token for token in texts.eos if token < vocabulary},
        input_names={kind: name for kind, name in input_names.items() if name in graph.inputs},
        logits_name=logits,
        past_names=past,
        present_names=present,
        made_for=_made_for(decoder),
        search=_search(_section(config, "search", {}), context_length),
        weight_bytes=_weight_bytes(model_file, graph),
        tokenizer_file=tokenizer_file,
        texts=texts,
    )


def _section(parent: dict[str, Any], key: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    value = parent.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, dict):
        raise PackageError(f"genai_config.json: {key} must be a section, an object in braces, is {short(value)}")
    return value


def _name(section: dict[str, Any], key: str, default: str) -> str:
    value = section.get(key, default)
    if not isinstance(value, str) or not value:
        raise PackageError(f"genai_config.json: {key} must be a name, is {short(value)}")
    return value


def _number(section: dict[str, Any], key: str, low: int, high: int, default: int | None = None) -> int:
    value = section.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PackageError(f"genai_config.json: {key} must be a whole number from {low} to {high}, is {short(value)}")
    return value


def _real(section: dict[str, Any], key: str, low: float, high: float) -> float:
    value = section.get(key)
    if value is None:
        return 0.0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise PackageError(f"genai_config.json: {key} must be a number from {low:g} to {high:g}, is {short(value)}")
    return float(value)


def _search(search: dict[str, Any], context: int) -> SearchDefaults:
    # 0 and -1 are how some write "off".
    top_k = max(_number(search, "top_k", -1, 1 << 24, default=0), 0)
    top_p = _real(search, "top_p", 0.0, 1.0) or 1.0
    neutral = {**_UNHEEDED, "max_length": context}
    unheeded = [name for name in sorted(search.keys() - _SILENT) if search[name] not in (neutral.get(name), None)]
    if search.get("do_sample") is False:  # written beside a temperature and a top_k that it switches off
        top_k, top_p = 0, 1.0
    elif search.get("temperature", 1.0) not in (1.0, None):
        unheeded.append("temperature")
    return SearchDefaults(
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=_real(search, "repetition_penalty", 0.0, 100.0) or 1.0,
        unheeded=tuple(f"{short(name)[1:-1]} = {short(search[name])}" for name in unheeded[:_MOST_UNHEEDED]),
    )


def _tokenizer_file(folder: Path) -> Path:
    if not (folder / "tokenizer.json").exists() and (folder / "tokenizer.model").exists():
        raise PackageError(
            f"tokenizer.json is missing from the package {folder}, which has a tokenizer.model alone: transformers "
            "makes one of it, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    path = inside(folder, "tokenizer.json")
    check_size(path, path.name)
    return path


def _eos(model: dict[str, Any], vocabulary: int) -> frozenset[int]:
    value = model.get("eos_token_id")
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocabulary for token in tokens):
        raise PackageError(f"genai_config.json: eos_token_id must name tokens below {vocabulary}, is {short(value)}")
    return frozenset(tokens)


def _made_for(decoder: dict[str, Any]) -> MadeFor:
    options = _section(decoder, "session_options", {}).get("provider_options") or []
    if not isinstance(options, list):
        raise PackageError(f"genai_config.json: provider_options must be a list, is {short(options)}")
    return made_for(entry for entry in options if isinstance(entry, dict))


def _check_graph(
    graph: Graph,
    layers: int,
    input_names: dict[str, str],
    past: tuple[str, str],
    present: tuple[str, str],
    logits: str,
) -> None:
    if _PAGED & graph.inputs.keys():
        raise PackageError(
            "the graph was built for a paged KV cache, which is not served: build the package without "
            "use_paged_attention"
        )
    known = set(input_names.values()) | {pattern % layer for pattern in past for layer in range(layers)}
    unknown = sorted(set(graph.inputs) - known - {POSITIONS})
    if unknown:
        raise PackageError(
            f"the graph has an input that edged does not know: {short(unknown[0])} (it knows input_ids, "
            "attention_mask, position_ids, logits_indices, the KV cache's names in genai_config.json, and those of "
            "edged model prepare)"
        )
    needed = {input_names["input_ids"], input_names["attention_mask"]} | (known - set(input_names.values()))
    absent = sorted(needed - set(graph.inputs))
    if absent:
        raise PackageError(f"the graph has no input {short(absent[0])}: it is not a text decoder with a KV cache")
    outputs = {logits} | {pattern % layer for pattern in present for layer in range(layers)}
    absent = sorted(outputs - set(graph.outputs))
    if absent:
        raise PackageError(f"the graph has no output {short(absent[0])}: it is not a text decoder with a KV cache")
    dtypes = {graph.inputs[pattern % layer] for pattern in past for layer in range(layers)}
    if len(dtypes) != 1 or not dtypes <= _BYTES_PER_ELEMENT.keys():
        raise PackageError(f"the KV cache's dtype must be one of {', '.join(_BYTES_PER_ELEMENT)}, is {sorted(dtypes)}")
    if not {"GroupQueryAttention", "SparseAttention"} & graph.operators.keys():
        raise PackageError(
            "the graph has neither GroupQueryAttention nor SparseAttention, so its cache cannot stay in place: "
            "build the package with onnxruntime-genai's model builder for int4, CPU or CUDA"
        )


def _weight_bytes(model_file: Path, graph: Graph) -> int:
    """Bytes of weights inside and beside the graph; checks that each weight lies within its file."""
    sizes: dict[Path, int] = {}
    for tensor in graph.external:
        path = inside(model_file.parent, tensor.location, f"{model_file.name}: weights in ")
        if path not in sizes:
            sizes[path] = path.stat().st_size
        if tensor.offset + (tensor.length or 0) > sizes[path]:
            raise PackageError(
                f"{path.name} is cut: it has {sizes[path]} bytes and weight {short(tensor.name)} needs "
                f"{tensor.offset + (tensor.length or 0)}; copy the package again"
            )
    return model_file.stat().st_size + sum(sizes.values())
