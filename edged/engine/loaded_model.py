"""Loads a package: checks it, plans its memory, creates the session, and compares its known answers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from edged.engine import ort, runtime
from edged.engine.bit_classes import BitClasses
from edged.engine.drafts import Drafts
from edged.engine.grammar import Grammars
from edged.engine.grammar_trial import Trial
from edged.engine.integrity import Damage
from edged.engine.kept_bits import KeptBits
from edged.engine.kept_manifests import KeptManifests
from edged.engine.known_answers import KnownAnswers, Verified, check_tokenizer, read_known_answers, suspect_runtime
from edged.engine.kv_cache import KVCache
from edged.engine.kv_scales import KeptScales, KVScales
from edged.engine.load_check import LoadCheck
from edged.engine.manifest import Manifest
from edged.engine.mapped_weights import own_mapped
from edged.engine.opening import (
    Int8FaultError,
    Opened,
    Opening,
    Plan,
    int8_fault,
    open_int8,
    open_published,
    thread_count,
)
from edged.engine.package import Package, PackageError, open_package
from edged.engine.package import signature as package_signature
from edged.engine.package_memory import TooLargeError
from edged.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from edged.engine.prefix_sharing import PrefixSharing
from edged.engine.prefix_store import PrefixStore
from edged.engine.providers import ProviderChoice, ProviderError, choose_provider
from edged.engine.sequence import Request
from edged.engine.serving_graph import serving_graph
from edged.engine.session import ModelSession
from edged.engine.splits import SplitRule
from edged.engine.structured_drafts import drafts_for
from edged.engine.tokenizer import Tokenizer
from edged.machine.board import Board
from edged.machine.memory import Available, MemoryPlan, MemoryPlanError
from edged.settings import Settings

log = structlog.get_logger(__name__)


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
    kv_reason: str | None = None
    """Why the KV cache is the published one though model.kv_cache = "int8"; None: it is as that says."""
    scales: KVScales | None = None
    """Those of an int8 KV cache that the package was not published with."""
    manifest: Manifest | None = None
    """What the package's files were checked against."""
    drafts: Callable[[Request], Drafts] | None = None
    """Makes what proposes drafts for the answer to a request; None: model.speculation is off, or cannot be had."""
    speculation_reason: str | None = None
    """Why drafts are not tried though model.speculation = "on"; None: it is as that says."""

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
    scales: KeptScales | None = None,
) -> LoadedModel:
    """Load the package at `path`. `name`: its name in jobs (default: the folder's name).

    `available` reads the host's memory. `prefix_folder`: where shared prefixes outlive a restart; None: nowhere.
    Without `verify` neither the files nor the known answers are checked. `manifests`, `suspects`: as for LoadCheck;
    `bits_file`: as for KeptBits. `scales`: has those of an int8 KV cache; None: they are measured at each load.

    Raises PackageError if the package is broken, the provider is missing or an answer is wrong, CorruptPackageError if
    a file has decayed, TooLargeError if it does not fit into memory.
    """
    if not verify:
        return _load(settings, board, available, path, name, prefix_folder, scales, None, bits_file)
    started = time.monotonic()
    check = LoadCheck(path, manifests, suspects)
    check.check_small()
    try:
        loaded = _load(settings, board, available, path, name, prefix_folder, scales, check, bits_file)
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
    scales: KeptScales | None,
    check: LoadCheck | None,
    bits_file: Path | None,
) -> LoadedModel:
    """As load_model(); `check` is started and finished. None: the known answers are not compared either."""
    started = time.monotonic()
    wanted = settings.model
    signature = package_signature(path)  # before its files are read
    package = open_package(path, name)
    known = read_known_answers(package) if check is not None else None
    opening = _opening(settings, board, available, package, known, check, bits_file)
    asked = wanted.kv_cache == "int8" and package.kv_dtype != "int8"  # one that was prepared has it
    kv_reason = int8_fault(package, opening.choice, opening.threads) if asked else None
    int8 = asked and kv_reason is None
    plan = opening.plan(int8)
    context = wanted.context or package.context_length
    tokenizer = Tokenizer(package, wanted.chat_template_kwargs)
    try:
        if known is not None:
            check_tokenizer(known, tokenizer)
        if check is not None:
            check.start(package.files)
        opened, fault = _open(opening, tokenizer, plan, int8, scales)
        session, rows = opened.session, opened.plan.memory.rows
        bits = opening.kept_bits.classes(session, rows)
        drafts, speculation_reason = None, None
        if wanted.speculation == "on":
            drafts, speculation_reason = _drafts(opening, opened, bits, tokenizer)
        # The last row needs a slot after it to share a step with. Of that slot only the first token is ever written,
        # so it takes a page of memory per head and layer.
        cache = session.make_cache(rows + bits.lone_row_differs, context)
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
        prefixes=_prefixes(opening, opened, cache, prefix_folder),
        rows=rows,
        context=context,
        chunk=opened.chunk,
        max_stall=wanted.max_stall,
        threads=opening.threads,
        choice=opened.choice,
        plan=opened.plan.memory,
        bits=bits,
        splits=opened.plan.splits,
        verified=opened.verified,
        load_seconds=time.monotonic() - started,
        signature=signature,
        logits_reason=opened.logits_reason,
        kv_reason=kv_reason or fault,
        scales=opened.scales,
        drafts=drafts,
        speculation_reason=speculation_reason,
    )


def _opening(
    settings: Settings,
    board: Board,
    available: Callable[[], Available],
    package: Package,
    known: KnownAnswers | None,
    check: LoadCheck | None,
    bits_file: Path | None,
) -> Opening:
    try:
        offered = ort.get_available_providers()
        choice = choose_provider(settings.model.execution_provider, board, offered, package.made_for)
        host = available()
    except ProviderError as error:
        raise PackageError("; ".join(filter(None, (str(error), runtime.selected.refused)))) from None
    except MemoryPlanError as error:
        raise TooLargeError(str(error)) from None
    threads = thread_count(settings, board)
    kept = KeptBits(bits_file, package, board, threads)
    return Opening(settings, board, package, known, choice, host, threads, serving_graph(package), kept, check)


def _open(
    opening: Opening, tokenizer: Tokenizer, plan: Plan, int8: bool, scales: KeptScales | None
) -> tuple[Opened, str | None]:
    """The session that serves, and why its KV cache is the published one if `int8` was to be had."""
    if not int8:
        return open_published(opening, tokenizer, plan), None
    try:
        return open_int8(opening, tokenizer, plan, scales), None
    except Int8FaultError as error:
        return open_published(opening, tokenizer, opening.plan(int8=False)), str(error)


def _drafts(
    opening: Opening, opened: Opened, bits: BitClasses, tokenizer: Tokenizer
) -> tuple[Callable[[Request], Drafts] | None, str | None]:
    """What proposes drafts, or why none may be tried: tokens must have the same bits whatever steps have drafts."""
    session = opened.session
    if session.device != "cpu":
        return None, "it is served on the CPU only"
    if session.logits_computed == "last":
        return None, "the graph computes logits after the last token of a step alone: build it without prune_lm_head"
    if bits.batches_differ or bits.chunks_differ or not opened.plan.splits.holds:
        return None, "a job's tokens depend on the steps that compute them in any case here"
    if not opening.kept_bits.single_tokens(session, bits):
        cache = session.layout.dtype
        hint = "" if cache == "int8" else ', set model.kv_cache = "int8"'
        return None, f"with a KV cache of {cache}, single tokens round otherwise here than several at once{hint}"
    return partial(drafts_for, tokenizer.token_bytes), None


def _prefixes(opening: Opening, opened: Opened, cache: KVCache, folder: Path | None) -> PrefixSharing:
    """The prefix cache of this model, in memory and, if `folder` is given, on disk."""
    settings, package = opening.settings, opening.package
    splits, ram_bytes = opened.plan.splits, opened.plan.memory.prefixes
    block = splits.multiple(BLOCK_TOKENS)
    # With the rule, so that a block is used only where its bits are those of a prompt in one piece.
    layout = (ort.__version__, opened.session.providers[0], opening.board.model, cache.layout, splits)
    scales = opened.scales.digest if opened.scales is not None else b""
    # The fingerprint samples the weights; of a package with a manifest all bytes are known.
    files = (opening.check.identity if opening.check is not None else None) or ""
    identity = hashlib.sha256(package.fingerprint() + f"{files}{layout!r}".encode() + scales).digest()
    disk = None
    if folder is not None and ram_bytes and settings.cache.disk_bytes:
        bounds = settings.cache.disk_bytes, settings.cache.daily_write_bytes, settings.jobs.retention
        disk = PrefixStore(folder, identity, (cache.layout.block_bytes(block),), np.uint8, *bounds)
    return PrefixSharing(cache, PrefixCache(ram_bytes), disk, identity, block)


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
        kv_cache=loaded.cache.layout.dtype,
        load_seconds=round(loaded.load_seconds, 2),
        planned_bytes=loaded.plan.peak,
    )
    _log_verification(loaded)
    _log_bits(loaded)
    if loaded.logits_reason is not None:
        hint = "logits are computed for every token of a prompt, which takes longer; another build of the model may do"
        log.warning("all_logits_computed", model=loaded.package.name, reason=loaded.logits_reason, hint=hint)
    if loaded.kv_reason is not None:
        hint = "the KV cache takes about four times the memory of int8; the reason says what would help"
        log.warning("kv_cache_as_published", model=loaded.package.name, reason=loaded.kv_reason, hint=hint)
    if loaded.speculation_reason is not None:
        hint = "answers take one step for each token, and no token of a structure is forced"
        log.warning("speculation_off", model=loaded.package.name, reason=loaded.speculation_reason, hint=hint)
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
