"""edged beside llama.cpp and onnxruntime-genai: `make bench-peers MODEL=FOLDER` prints the table.

All sides have their model in this one process and decode in turn. llama.cpp gets Q4_0 weights of the package's shape,
random as speed does not depend on them.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import onnxruntime_genai as genai
import psutil
from figures import Figure, show
from turns import BLOCK, take_turns

from edged import logs
from edged.engine.bench import JOINING_STALL, Bench
from edged.engine.loaded_model import load_model
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

PROMPT, CONTEXT, ROWS, REPEATS = 128, 384, 8, 5
BATCH = 512
"""Most tokens of one llama_decode, llama.cpp's own default for its physical batch."""
Q4_0_BLOCK = 32


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "genai_config.json").is_file():
        sys.exit("give the folder of a Phi-3 package: make bench-peers MODEL=FOLDER")
    package = Path(sys.argv[1])
    logs.configure("error", "auto")
    print(
        f"edged beside its peers — {psutil.cpu_count()} cores, {platform.machine()}, onnxruntime "
        f"{version('onnxruntime')}, onnxruntime-genai {version('onnxruntime-genai')}, llama-cpp-python "
        f"{version('llama-cpp-python')}, {package}"
    )
    show(compare(package))


def compare(package: Path) -> Iterator[Figure]:
    # The later a session is loaded the faster it is: 5 % from first to second, then 2 or 3 (seen with equal ones).
    # So nobody measures the first, and the peer is there before and after edged.
    threads = len(detect().performance_cores(os.sched_getaffinity(0)))
    loops = [GenAI(package, threads) for _ in range(2)]
    serving = load_model(Settings(model={"rows": ROWS, "context": CONTEXT}), detect(), available, package)
    with Bench(replace(serving, max_stall=JOINING_STALL)) as bench:
        loops.append(GenAI(package, threads))
        peers = ByTurns(loops[1:])
        turns = take_turns(bench, 1, PROMPT, peers.step)
        text = f"{turns.ratio:.3f} ({1 / turns.edged:.2f} / {1 / turns.other:.2f} tok/s)"
        yield Figure("decode, 1 row: edged / onnxruntime-genai", text, "≥ 1.0", turns.ratio >= 1.0)
        del loops, peers
        for rows, least in ((ROWS, 1.5), (1, 1.0)):
            llama = LlamaCpp(q4_0(package), serving.threads, rows)
            turns = take_turns(bench, rows, PROMPT, llama.step)
            text = f"{turns.ratio:.2f} ({rows / turns.edged:.2f} / {rows / turns.other:.2f} tok/s)"
            name = f"decode, {rows} row{'s' if rows > 1 else ''}: edged / llama.cpp Q4_0"
            yield Figure(name, text, f"≥ {least}", turns.ratio >= least)
            if rows == 1:
                yield prefill(bench, llama)
            llama.close()


def prefill(bench: Bench, llama: LlamaCpp) -> Figure:
    """Prompts that nobody has seen, in turn; the first pair took memory."""
    pairs = [(bench.first_token([bench.prompt(PROMPT)]), llama.prefill(PROMPT)) for _ in range(REPEATS + 1)]
    edged, other = (statistics.median(side) for side in zip(*pairs[1:], strict=True))
    text = f"{other / edged:.2f} ({PROMPT / edged:.1f} / {PROMPT / other:.1f} tok/s)"
    return Figure(f"prefill of {PROMPT} tokens: edged / llama.cpp Q4_0", text, "≥ 1.0", other / edged >= 1.0)


class GenAI:
    """onnxruntime-genai's own loop on the same package: a prompt read, then one greedy token a step."""

    def __init__(self, package: Path, threads: int) -> None:
        vocabulary = json.loads((package / "genai_config.json").read_text())["model"]["vocab_size"]
        config = genai.Config(str(package))
        options = {"intra_op_num_threads": threads}
        # Ended by a token of the vocabulary's padding, that is never: steps are wanted, not an answer.
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}, "eos_token_id": vocabulary - 1}}))
        model = genai.Model(config)
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=CONTEXT, do_sample=False, batch_size=1)
        self._generator = genai.Generator(model, params)
        self._generator.append_tokens(np.random.default_rng(2).integers(3, vocabulary, PROMPT).astype(np.int32))

    def step(self, _past: int) -> float:
        """Seconds of one token."""
        began = time.perf_counter()
        self._generator.generate_next_token()
        seconds = time.perf_counter() - began
        assert not self._generator.is_done()
        return seconds


class ByTurns:
    """Several loops of a peer, each for a block of steps."""

    def __init__(self, loops: Sequence[GenAI]) -> None:
        self._loops, self._steps = loops, 0

    def step(self, past: int) -> float:
        """Seconds of one token."""
        loop = self._loops[self._steps // BLOCK % len(self._loops)]
        self._steps += 1
        return loop.step(past)


class LlamaCpp:
    """llama.cpp's low-level loop: `sequences` read prompts of `prompt` tokens, then decode one token each per call.

    `context`: most tokens of a sequence.
    """

    def __init__(self, model: Path, threads: int, sequences: int, prompt: int = PROMPT, context: int = CONTEXT) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = sequences * context, sequences, BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        assert self._context, "llama.cpp cannot make its context"
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._random = np.random.default_rng(3)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        for sequence in range(sequences):
            self._decode([(sequence, position) for position in range(prompt)])
        self._lengths = [prompt] * sequences

    def step(self, _past: int) -> float:
        """Seconds of one token for each sequence."""
        began = time.perf_counter()
        self._decode(list(enumerate(self._lengths)))
        self._lengths = [length + 1 for length in self._lengths]
        return time.perf_counter() - began

    def prefill(self, tokens: int) -> float:
        """Seconds until a prompt of `tokens` tokens is read. All sequences are forgotten before and after."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, True)
        began = time.perf_counter()
        for first in range(0, tokens, BATCH):
            self._decode([(0, position) for position in range(first, min(tokens, first + BATCH))])
        seconds = time.perf_counter() - began
        llama_cpp.llama_memory_clear(memory, True)
        return seconds

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _decode(self, places: list[tuple[int, int]]) -> None:
        """Run random tokens at `places`, pairs of sequence and position; logits for each sequence's last one."""
        batch = self._batch
        batch.n_tokens = len(places)
        for n, (sequence, position) in enumerate(places):
            batch.token[n] = int(self._random.integers(3, self._vocabulary))
            batch.pos[n] = position
            batch.n_seq_id[n] = 1
            batch.seq_id[n][0] = sequence
            batch.logits[n] = n + 1 == len(places) or places[n + 1][0] != sequence
        assert llama_cpp.llama_decode(self._context, batch) == 0


@llama_cpp.llama_log_callback
def _QUIET(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


def q4_0(package: Path) -> Path:
    """A GGUF of the package's shape with random Q4_0 weights, the output matrix too; made once in the environment."""
    model = json.loads((package / "genai_config.json").read_text())["model"]
    decoder, vocabulary = model["decoder"], model["vocab_size"]
    hidden, layers = decoder["hidden_size"], decoder["num_hidden_layers"]
    path = Path(sys.prefix) / f"phi3-{hidden}x{layers}-q4_0.gguf"
    if path.exists():
        return path
    feed_forward = hidden * 8 // 3  # Phi-3-mini's 8192
    keys_and_values = 2 * decoder["num_key_value_heads"] * decoder["head_size"]
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "phi3", use_temp_file=True)
    writer.add_context_length(model["context_length"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(feed_forward)
    writer.add_block_count(layers)
    writer.add_head_count(decoder["num_attention_heads"])
    writer.add_head_count_kv(decoder["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(decoder["head_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{token}>" for token in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(4)

    def matrix(name: str, outputs: int, inputs: int) -> None:
        """A block is a float16 scale and 32 nibbles, those of 0…15 less 8."""
        blocks = np.empty((outputs, inputs // Q4_0_BLOCK, 2 + Q4_0_BLOCK // 2), np.uint8)
        blocks[..., :2] = np.full(1, 0.2 / inputs**0.5, np.float16).view(np.uint8)
        blocks[..., 2:] = random.integers(0, 256, blocks[..., 2:].shape, np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", vocabulary, hidden)
    for layer in range(layers):
        norm(f"blk.{layer}.attn_norm")
        matrix(f"blk.{layer}.attn_qkv", hidden + keys_and_values, hidden)
        matrix(f"blk.{layer}.attn_output", hidden, hidden)
        norm(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_up", 2 * feed_forward, hidden)
        matrix(f"blk.{layer}.ffn_down", hidden, feed_forward)
    norm("output_norm")
    matrix("output", vocabulary, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    main()
