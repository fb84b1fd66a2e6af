"""Plans the memory of a package before it is loaded: weights, KV cache, a step's work, and prefixes that jobs share."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from edged.engine.calibration import PIECE
from edged.engine.known_answers import BUDGET
from edged.engine.kv_layout import KVLayout
from edged.engine.package import Package, PackageError
from edged.engine.providers import ProviderChoice
from edged.engine.serving_graph import LogitsComputed
from edged.engine.session import chunk_limit
from edged.engine.splits import SplitRule
from edged.machine.board import Board
from edged.machine.gpu import GpuError, gpu_memory
from edged.machine.memory import Available, MemoryPlan, MemoryPlanError, plan_memory
from edged.settings import Settings

log = structlog.get_logger(__name__)

LOADED_RATIO = 1.25
"""Memory of the weights per byte of the package, since onnxruntime repacks them for its kernels: 1.20 measured for
Phi-3-mini (int4, accuracy level 4) on onnxruntime 1.32, and 1.22 at the peak of the load."""
RUNTIME_BYTES = 96 << 20
"""The process itself, onnxruntime and its activations."""


class TooLargeError(PackageError):
    """The model does not fit into memory with its rows and context. The message says which settings would fit."""


def plan_package(
    settings: Settings,
    package: Package,
    choice: ProviderChoice,
    available: Available,
    splits: SplitRule,
    logits: LogitsComputed,
    int8: bool = False,
) -> MemoryPlan:
    """The memory that the package needs with these settings. `available`: of the device that runs it.

    `logits`: the tokens of a step that the graph computes them for. `int8`: with an int8 KV cache.

    Raises PackageError if the package does not support the settings, TooLargeError if it does not fit.
    """
    wanted = settings.model
    context = wanted.context or package.context_length
    if context > package.context_length:
        raise PackageError(
            f"model.context = {context} is more than the package's context of {package.context_length} tokens"
        )
    context = max(context, package.sliding_window)
    try:
        layout = KVLayout.of(package, "int8" if int8 else None)
    except ValueError as error:
        raise PackageError(f"{error}: build the package with float32 or float16") from None
    # The known answers have their logits compared at every token, and have up to BUDGET tokens.
    most = BUDGET if logits != "all" else chunk_tokens(package, wanted.prefill_chunk, splits, logits)
    # While the scales of an int8 cache are measured there is a published one in its place.
    scales = max(0, PIECE * package.kv_bytes_per_token - context * layout.token_bytes) if int8 else 0
    try:
        return plan_memory(
            weights=int(package.weight_bytes * LOADED_RATIO),
            kv_bytes_per_token=layout.token_bytes,
            rows=_rows(wanted.rows, package, choice),
            context=context,
            working=RUNTIME_BYTES + 4 * package.vocabulary * max(most, wanted.rows or 8) + scales,
            available=available,
            prefixes=0 if choice.on_device else settings.cache.ram_bytes,
        )
    except MemoryPlanError as error:
        raise TooLargeError(str(error)) from None


def chunk_tokens(package: Package, wanted: int, splits: SplitRule, logits: LogitsComputed) -> int:
    """Tokens of a prefill chunk. Only logits of all its tokens would make a long one too large."""
    least = splits.least + 1
    return chunk_limit(package.vocabulary, wanted, least) if logits == "all" else max(least, wanted)


def available_for(
    choice: ProviderChoice,
    board: Board,
    host: Available,
    read_gpu: Callable[[], Available | None] = gpu_memory,
) -> Available:
    """The memory that holds the model: that of a discrete GPU, else `host`. A GPU that cannot be read is logged."""
    if not choice.on_device or board.kind == "jetson":
        return host
    try:
        return read_gpu() or host
    except GpuError as error:
        hint = "the plan uses the host's memory; set model.rows and model.context if the GPU has less"
        log.warning("gpu_memory_unknown", reason=str(error), hint=hint)
        return host


def _rows(wanted: int | None, package: Package, choice: ProviderChoice) -> int | None:
    """Rows to plan for; None: as many as fit."""
    alone = choice.on_device or not package.batches_ragged_rows
    return 1 if wanted is None and alone else wanted
