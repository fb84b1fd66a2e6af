"""Loads a package: checks it, plans its memory, creates the session, and compares its known answers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from edged.engine import ort, runtime
from edged.engine.bit_classes import BitClasses
from edged.engine.grammar import Grammars
from edged.engine.grammar_trial import Trial
from edged.engine.integrity import Damage
from edged.engine.kept_bits import KeptBits
from edged.engine.kept_manifests import KeptManifests
from edged.engine.known_answers import (
    BUDGET,
    Verified,
    check_answers,
    check_runs,
    check_tokenizer,
    read_known_answers,
    suspect_runtime,
)
from edged.engine.kv_cache import KVCache
from edged.engine.kv_layout import KVLayout
from edged.engine.load_check import LoadCheck
from edged.engine.manifest import Manifest
from edged.engine.mapped_weights import forget_reads, own_mapped
from edged.engine.package import Package, PackageError, open_package
from edged.engine.package import signature as package_signature
from edged.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from edged.engine.prefix_sharing import PrefixSharing
from edged.engine.prefix_store import PrefixStore
from edged.engine.providers import ProviderChoice, ProviderError, choose_provider, confirm_providers
from edged.engine.serving_graph import LogitsComputed, ServingGraph, serving_graph
from edged.engine.session import ModelSession, chunk_limit
from edged.engine.splits import SplitRule
from edged.engine.tokenizer import Tokenizer
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


@dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded, and the limits it runs with. `context` and `chunk` in tokens, `max_stall` in seconds."""

    package: Package
    session: ModelSession
    tokenizer: Tokenizer
    grammars: Grammars
    cache: KVCache
    prefixes: PrefixSharing
    rows: int
    context: int
    chunk: int
    max_stall: float
    threads: int
    choice: ProviderChoice
    plan: MemoryPlan
    bits: BitClasses
    splits: SplitRule
    verified: Verified | None
    """None for a package without known answers."""
    load_seconds: float
    signature: str
    """Package.signature when it was loaded: requests are prepared for this."""
    logits_reason: str | None
    """Why the session computes the logits of all tokens; None: it does not."""
    manifest: Manifest | None = None
    """What the package's files were checked against."""

    @property
    def same_ids_in_any_company(self) -> bool:
        """Whether a job's tokens do not depend on the jobs beside it."""
        return self.splits.holds and not (self.bits.batches_differ or self.bits.chunks_differ)

    def release(self) -> None:
        """Close, and free the weights and the caches though others still hold this object."""
        self.close()
        self.session.release()
        self.cache.release()
        self.prefixes.memory.forget(None)

    def close(self) -> None:
        """End the chat template's process and the prefix store's thread."""
        self.tokenizer.close()
        self.prefixes.close()


def load_model(
    settings: Settings,
    board: Board,
    available: Callable[[], Available],
    path: Path,
    name: str | None = None,
    prefix_folder: Path | None = None,
    verify: bool = True,
    manifests: KeptManifests | None = None,
    suspects: Sequence[Damage] = (),
    bits_file: Path | None = None,
) -> LoadedModel:
    """Load the package at `path`. `name`: its name in jobs (default: the folder's name).

    `available` reads the host's memory. `prefix_folder`: where shared prefixes outlive a restart; None: nowhere.
    Without `verify` neither the files nor the known answers are checked. `manifests`, `suspects`: as for LoadCheck;
    `bits_file`: as for KeptBits.

    Raises PackageError if the package is broken, the provider is missing or an answer is wrong, CorruptPackageError if
    a file has decayed, TooLargeError if it does not fit into memory.
    """
    if not verify:
        return _load(settings, board, available, path, name, prefix_folder, None, bits_file)
    started = time.monotonic()
    check = LoadCheck(path, manifests, suspects)
    check.check_small()
    try:
        loaded = _load(settings, board, available, path, name, prefix_folder, check, bits_file)
    except Exception:
        check.finish()  # raises in place of what a decayed file led to
        raise
    if loaded.verified is not None:
        check.keep_manifest()
    if check.manifest is not None:
        own_mapped(loaded.package)
    loaded = replace(loaded, manifest=check.manifest, load_seconds=time.monotonic() - started)
    _log_loaded(loaded)
    return loaded


def _load(
    settings: Settings,
    board: Board,
    available: Callable[[], Available],
    path: Path,
    name: str | None,
    prefix_folder: Path | None,
    check: LoadCheck | None,
    bits_file: Path | None,
) -> LoadedModel:
    """As load_model(); `check` is started and finished. None: the known answers are not compared either."""
    started = time.monotonic()
    wanted = settings.model
    signature = package_signature(path)  # before its files are read
    package = open_package(path, name)
    known = read_known_answers(package) if check is not None else None
    try:
        choice = choose_provider(wanted.execution_provider, board, ort.get_available_providers(), package.made_for)
        host = available()
    except ProviderError as error:
        raise PackageError("; ".join(filter(None, (str(error), runtime.selected.refused)))) from None
    except MemoryPlanError as error:
        raise TooLargeError(str(error)) from None
    threads = thread_count(settings, board)
    kept = KeptBits(bits_file, package, board, threads)
    splits = kept.splits(choice.providers)
    graph = serving_graph(package)
    planned = plan_package(settings, package, choice, available_for(choice, board, host), splits, graph.logits)
    context = wanted.context or package.context_length
    tokenizer = Tokenizer(package, wanted.chat_template_kwargs)
    try:
        if known is not None:
            check_tokenizer(known, tokenizer)
        if check is not None:
            check.start(package.files)
        session, logits_reason = _open_session(package, choice, threads, graph)
        if check is not None:
            check.finish()
            forget_reads()  # then come steps of one token and of several, for one row and for several
        confirmed = _confirm(settings, choice, session)
        if choice.on_device and not confirmed.on_device:  # the GPU did not start: the host's memory and rows apply
            splits = kept.splits(confirmed.providers)
            planned = plan_package(settings, package, confirmed, host, splits, graph.logits)
        chunk = _chunk(package, wanted.prefill_chunk, splits, session.logits_computed)
        if session.device != "cpu" and planned.rows > 1:
            raise PackageError(f"model.rows = {planned.rows} is served on the CPU only: set model.rows = 1 for a GPU")
        if known is None:
            check_runs(session)
        verified = check_answers(known, session, tokenizer, chunk) if known else None
        bits = kept.classes(session, planned.rows)
        # The last row needs a slot after it to share a step with. Of that slot only the first token is ever written,
        # so it takes a page of memory per head and layer.
        cache = KVCache(package, planned.rows + bits.lone_row_differs, context, session.device)
        session.use(cache)
    except BaseException:
        tokenizer.close()
        raise
    return LoadedModel(
        package=package,
        session=session,
        tokenizer=tokenizer,
        grammars=Grammars(tokenizer, Trial()),
        cache=cache,
        prefixes=_prefixes(settings, board, package, session, cache, planned.prefixes, prefix_folder, splits),
        rows=planned.rows,
        context=context,
        chunk=chunk,
        max_stall=wanted.max_stall,
        threads=threads,
        choice=confirmed,
        plan=planned,
        bits=bits,
        splits=splits,
        verified=verified,
        load_seconds=time.monotonic() - started,
        signature=signature,
        logits_reason=logits_reason,
    )


def _open_session(
    package: Package, choice: ProviderChoice, threads: int, graph: ServingGraph
) -> tuple[ModelSession, str | None]:
    """A session over the serving graph. Where onnxruntime refuses that: over the package's own file, and why."""
    if graph.model is None:
        return ModelSession(package, choice.providers, threads), graph.reason
    try:
        return ModelSession(package, choice.providers, threads, graph), None
    except PackageError as error:
        return ModelSession(package, choice.providers, threads), f"with the graph rewritten: {error}"


def _chunk(package: Package, wanted: int, splits: SplitRule, logits: LogitsComputed) -> int:
    """Tokens of a prefill chunk. Only logits of all its tokens would make a long one too large."""
    least = splits.least + 1
    return chunk_limit(package.vocabulary, wanted, least) if logits == "all" else max(least, wanted)


def plan_package(
    settings: Settings,
    package: Package,
    choice: ProviderChoice,
    available: Available,
    splits: SplitRule,
    logits: LogitsComputed,
) -> MemoryPlan:
    """The memory that the package needs with these settings. `available`: of the device that runs it.

    `logits`: the tokens of a step that the graph computes them for.

    Raises PackageError if the package does not support the settings, TooLargeError if it does not fit.
    """
    wanted = settings.model
    context = wanted.context or package.context_length
    if context > package.context_length:
        raise PackageError(
            f"model.context = {context} is more than the package's context of {package.context_length} tokens"
        )
    try:
        layout = KVLayout.of(package)
    except ValueError as error:
        raise PackageError(f"{error}: build the package with float32 or float16") from None
    # The known answers have their logits compared at every token, and have up to BUDGET tokens.
    most = BUDGET if logits != "all" else _chunk(package, wanted.prefill_chunk, splits, logits)
    try:
        return plan_memory(
            weights=int(package.weight_bytes * LOADED_RATIO),
            kv_bytes_per_token=layout.token_bytes,
            rows=_rows(wanted.rows, package, choice),
            context=max(context, package.sliding_window),
            working=RUNTIME_BYTES + 4 * package.vocabulary * max(most, wanted.rows or 8),
            available=available,
            prefixes=0 if choice.on_device else settings.cache.ram_bytes,
        )
    except MemoryPlanError as error:
        raise TooLargeError(str(error)) from None


def _confirm(settings: Settings, choice: ProviderChoice, session: ModelSession) -> ProviderChoice:
    """The choice with the providers that the session uses. Raises PackageError if a configured one did not start."""
    try:
        choice = confirm_providers(choice, settings.model.execution_provider, session.providers)
    except ProviderError as error:
        raise PackageError(str(error)) from None
    if runtime.selected.refused is not None:
        choice = replace(choice, reason=f"{choice.reason}; {runtime.selected.refused}", fell_back=True)
    return choice


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


def _prefixes(
    settings: Settings,
    board: Board,
    package: Package,
    session: ModelSession,
    cache: KVCache,
    ram_bytes: int,
    folder: Path | None,
    splits: SplitRule,
) -> PrefixSharing:
    """The prefix cache of this model, in memory and, if `folder` is given, on disk."""
    block = splits.multiple(BLOCK_TOKENS)
    # With the rule, so that a block is used only where its bits are those of a prompt in one piece.
    layout = (ort.__version__, session.providers[0], board.model, cache.layout, splits)
    identity = hashlib.sha256(package.fingerprint() + repr(layout).encode()).digest()
    disk = None
    if folder is not None and ram_bytes and settings.cache.disk_bytes:
        bounds = settings.cache.disk_bytes, settings.cache.daily_write_bytes, settings.jobs.retention
        disk = PrefixStore(folder, identity, (cache.layout.block_bytes(block),), np.uint8, *bounds)
    return PrefixSharing(cache, PrefixCache(ram_bytes), disk, identity, block)


def thread_count(settings: Settings, board: Board) -> int:
    """Threads of onnxruntime: model.threads, else one per performance core that this process may use."""
    return settings.model.threads or len(board.performance_cores(os.sched_getaffinity(0)))


def _log_loaded(loaded: LoadedModel) -> None:
    log.info(
        "model_serving",
        model=loaded.package.name,
        architecture=loaded.package.architecture,
        execution_provider=loaded.session.providers[0],
        reason=loaded.choice.reason,
        threads=loaded.threads,
        rows=loaded.rows,
        context=loaded.context,
        load_seconds=round(loaded.load_seconds, 2),
        planned_bytes=loaded.plan.peak,
    )
    _log_verification(loaded)
    _log_bits(loaded)
    if loaded.logits_reason is not None:
        hint = "logits are computed for every token of a prompt, which takes longer; another build of the model may do"
        log.warning("all_logits_computed", model=loaded.package.name, reason=loaded.logits_reason, hint=hint)
    for fault in loaded.tokenizer.faults:
        log.warning("package_fault", model=loaded.package.name, fault=fault)
    if loaded.package.search.unheeded:
        log.warning("search_entries_unheeded", model=loaded.package.name, entries=list(loaded.package.search.unheeded))


def _log_verification(loaded: LoadedModel) -> None:
    package, verified = loaded.package, loaded.verified
    if verified is not None:
        log.info(
            "model_verified",
            model=package.name,
            tokens=verified.tokens,
            compared=verified.compared,
            seconds=round(verified.seconds, 3),
        )
    else:
        hint = f"it has no known answers: edged model verify --record --model {package.folder} records them once"
        log.warning("model_not_verified", model=package.name, hint=suspect_runtime(package) or hint)


def _log_bits(loaded: LoadedModel) -> None:
    model, bits = loaded.package.name, loaded.bits
    if loaded.splits.grain > 1:
        log.info("prompts_split_coarsely", model=model, tokens=loaded.splits.grain)
    if bits.lone_row_differs:
        log.info("lone_rows_padded", model=model, reason="this processor rounds one row otherwise than several")
    if bits.batches_differ:
        hint = "a job's tokens can depend on how many jobs run beside it; model.rows = 1 prevents that"
        log.warning("batches_round_differently", model=model, hint=hint)
    if bits.chunks_differ or not loaded.splits.holds:
        hint = "a job's tokens can depend on how its prompt was split; model.rows = 1 makes that rarer"
        log.warning("chunks_round_differently", model=model, hint=hint)
