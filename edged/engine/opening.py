"""Opens the session that serves a package: over the served graph, with the KV cache as published or in int8.

The first load with an int8 cache opens the published graph first: its known answers are compared, and it reads the text
that gives the scales. Then the int8 graph must give most of the same tokens. Later loads open the int8 graph alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from edged.engine import runtime
from edged.engine.attention_probe import int8_attention_fault
from edged.engine.calibration import calibrate, calibration_ids, tables_known
from edged.engine.int8_graph import Scales, int8_served
from edged.engine.kept_bits import KeptBits
from edged.engine.known_answers import KnownAnswers, Verified, check_answers, check_runs, with_margins_of
from edged.engine.kv_scales import KeptScales, KVScales, Source
from edged.engine.load_check import LoadCheck
from edged.engine.mapped_weights import forget_reads
from edged.engine.package import Package, PackageError
from edged.engine.package_memory import available_for, chunk_tokens, plan_package
from edged.engine.providers import ProviderChoice, ProviderError, confirm_providers
from edged.engine.serving_graph import NotRewrittenError, ServingGraph
from edged.engine.session import ModelSession, one_line
from edged.engine.splits import SplitRule
from edged.engine.tokenizer import Tokenizer
from edged.machine.board import Board
from edged.machine.memory import Available, MemoryPlan
from edged.settings import Settings

log = structlog.get_logger(__name__)

_SAME_TOKENS = 0.75
"""The least share of the known answers' tokens that an int8 cache must give too."""


class Int8FaultError(Exception):
    """Why the KV cache is served as published though int8 is asked for: one line."""


@dataclass(frozen=True)
class Opening:
    """A package that is about to be served, and on what. `known`: its known answers, if they are to be compared.

    `check`: of its files, which has started.
    """

    settings: Settings
    board: Board
    package: Package
    known: KnownAnswers | None
    choice: ProviderChoice
    host: Available
    threads: int
    graph: ServingGraph
    kept_bits: KeptBits
    check: LoadCheck | None

    def plan(self, int8: bool) -> Plan:
        """Splits and memory, with an int8 cache or the published one. Raises PackageError, TooLargeError."""
        splits = self.kept_bits.splits(self.choice.providers, int8 or self.package.kv_dtype == "int8")
        memory = available_for(self.choice, self.board, self.host)
        planned = plan_package(self.settings, self.package, self.choice, memory, splits, self.graph.logits, int8)
        return Plan(splits, planned)

    def weights_loaded(self) -> None:
        """A session is there, and has computed no step. Raises CorruptPackageError, UnreadableError."""
        if self.check is not None:
            self.check.finish()
            forget_reads()  # then come steps of one token and of several


@dataclass(frozen=True)
class Plan:
    """Where prompts may be split, and the memory that is planned."""

    splits: SplitRule
    memory: MemoryPlan


@dataclass(frozen=True)
class Opened:
    """A session whose answers are right, and the limits it runs with. `chunk` in tokens."""

    session: ModelSession
    choice: ProviderChoice
    plan: Plan
    chunk: int
    verified: Verified | None
    logits_reason: str | None
    scales: KVScales | None = None
    """Those of an int8 cache, None for the published one."""


def thread_count(settings: Settings, board: Board) -> int:
    """Threads of onnxruntime: model.threads, else one per performance core that this process may use."""
    return settings.model.threads or len(board.performance_cores(os.sched_getaffinity(0)))


def int8_fault(package: Package, choice: ProviderChoice, threads: int) -> str | None:
    """Why an int8 KV cache cannot be served, as far as that is known before a load: one line, else None."""
    if choice.on_device:
        return "an int8 KV cache is served on the CPU only"
    if package.kv_dtype != "float32":
        return f"the package's KV cache is {package.kv_dtype}: only one of float32 is turned into int8"
    others = package.graph.operators.keys() & {"SparseAttention", "PagedAttention"}
    if others:
        return f"the graph has {min(others)}, which takes no int8 KV cache"
    if not tables_known(package.graph):
        return "the graph's rotary embedding is of an unknown kind"
    return int8_attention_fault(package, threads)


def open_published(opening: Opening, tokenizer: Tokenizer, plan: Plan) -> Opened:
    """Open the session with the KV cache as published, and compare the known answers. Raises PackageError."""
    package, choice = opening.package, opening.choice
    if package.kv_dtype == "int8" and not choice.on_device:
        fault = int8_attention_fault(package, opening.threads)
        if fault is not None:
            raise PackageError(f"its KV cache is int8: {fault}")
    session, logits_reason = _published_session(opening)
    opening.weights_loaded()
    confirmed = _confirm(opening.settings, choice, session)
    if choice.on_device and not confirmed.on_device:  # the GPU did not start: the host's memory and rows apply
        plan = replace(opening, choice=confirmed).plan(int8=False)
    chunk = chunk_tokens(package, opening.settings.model.prefill_chunk, plan.splits, session.logits_computed)
    if session.device != "cpu" and plan.memory.rows > 1:
        raise PackageError(f"model.rows = {plan.memory.rows} is served on the CPU only: set model.rows = 1 for a GPU")
    verified = _verify(opening.known, session, tokenizer, chunk)
    return Opened(session, confirmed, plan, chunk, verified, logits_reason)


def open_int8(opening: Opening, tokenizer: Tokenizer, plan: Plan, kept: KeptScales | None) -> Opened:
    """Open the session with an int8 KV cache, and compare the known answers that it gave at its first load.

    `kept`: has the scales of earlier loads. Raises Int8FaultError where the published cache must do, and PackageError
    where the package itself is at fault.
    """
    package, known = opening.package, opening.known
    file = opening.settings.model.calibration
    try:
        ids = calibration_ids(tokenizer, file)
    except ValueError as error:
        raise Int8FaultError(f"model.calibration = {file}: {error}") from None
    source = Source.of(package, known, ids)
    chunk = chunk_tokens(package, opening.settings.model.prefill_chunk, plan.splits, opening.graph.logits)
    found = kept.find(package, source) if kept is not None else None
    if found is not None and kept is not None:
        try:
            session, verified = _answer_again(opening, found, tokenizer, chunk)
            return Opened(session, opening.choice, plan, chunk, verified, opening.graph.reason, found)
        except Int8FaultError as error:
            # The published graph tells whether the package is at fault.
            kept.refuse(source, str(error))
    scales = _measure_scales(opening, tokenizer, ids, chunk)
    session = _int8_session(opening, scales)
    opening.weights_loaded()
    try:
        own, verified = _first_answers(known, session, chunk)
    except BaseException:
        session.release()
        raise
    made = KVScales(scales, own)
    if kept is not None:
        kept.add(package, source, made)
    return Opened(session, opening.choice, plan, chunk, verified, opening.graph.reason, made)


def _published_session(opening: Opening) -> tuple[ModelSession, str | None]:
    """A session over the serving graph. Where onnxruntime refuses that: over the package's own file, and why."""
    package, graph, choice, threads = opening.package, opening.graph, opening.choice, opening.threads
    if graph.model is None:
        return ModelSession(package, choice.providers, threads), graph.reason
    try:
        return ModelSession(package, choice.providers, threads, graph), None
    except PackageError as error:
        return ModelSession(package, choice.providers, threads), f"with the graph rewritten: {error}"


def _int8_session(opening: Opening, scales: Scales) -> ModelSession:
    try:
        graph = int8_served(opening.package, opening.graph, scales)
        return ModelSession(opening.package, opening.choice.providers, opening.threads, graph)
    except NotRewrittenError as error:
        raise Int8FaultError(f"the graph cannot be given an int8 KV cache: {error}") from None
    except PackageError as error:
        raise Int8FaultError(f"with an int8 KV cache: {error}") from None


def _answer_again(
    opening: Opening, scales: KVScales, tokenizer: Tokenizer, chunk: int
) -> tuple[ModelSession, Verified | None]:
    """A session with kept scales that answers as at its first load. Raises Int8FaultError where it does not."""
    session = _int8_session(opening, scales.scales)
    try:
        opening.weights_loaded()
        try:
            return session, _verify(scales.known, session, tokenizer, chunk)
        except PackageError as error:
            raise Int8FaultError(str(error)) from None
    except BaseException:
        session.release()
        raise


def _measure_scales(opening: Opening, tokenizer: Tokenizer, ids: Sequence[int], chunk: int) -> Scales:
    """Read the text with the published graph, after its known answers. Raises PackageError, Int8FaultError."""
    began = time.monotonic()
    session, _ = _published_session(opening)
    try:
        opening.weights_loaded()
        _verify(opening.known, session, tokenizer, chunk)
        scales = calibrate(session, ids, chunk)
    except PackageError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise Int8FaultError(f"the scales of an int8 KV cache cannot be measured: {one_line(error)}") from None
    finally:
        session.release()
    seconds = round(time.monotonic() - began, 2)
    log.info("kv_scales_measured", model=opening.package.name, tokens=len(ids), seconds=seconds)
    return scales


def _first_answers(
    known: KnownAnswers | None, session: ModelSession, chunk: int
) -> tuple[KnownAnswers | None, Verified | None]:
    """The known answers with the margins of an int8 cache, and how many of them were compared.

    Raises Int8FaultError where too few tokens are those of the published cache.
    """
    began = time.monotonic()
    try:
        if known is None:
            check_runs(session)
            return None, None
        own, share = with_margins_of(known, session, chunk)
    except PackageError as error:
        raise Int8FaultError(f"with an int8 KV cache: {error}") from None
    if own is None or share < _SAME_TOKENS:
        raise Int8FaultError(f"with an int8 KV cache {1 - share:.0%} of the known answers' tokens are others")
    compared = sum(len(question.sure) for question in own.questions)
    return own, Verified(own.tokens, compared, time.monotonic() - began)


def _verify(known: KnownAnswers | None, session: ModelSession, tokenizer: Tokenizer, chunk: int) -> Verified | None:
    """Compare the known answers; without any, see that steps run. Raises PackageError."""
    if known is None:
        check_runs(session)
        return None
    return check_answers(known, session, tokenizer, chunk)


def _confirm(settings: Settings, choice: ProviderChoice, session: ModelSession) -> ProviderChoice:
    """The choice with the providers that the session uses. Raises PackageError if a configured one did not start."""
    try:
        choice = confirm_providers(choice, settings.model.execution_provider, session.providers)
    except ProviderError as error:
        raise PackageError(str(error)) from None
    if runtime.selected.refused is not None:
        choice = replace(choice, reason=f"{choice.reason}; {runtime.selected.refused}", fell_back=True)
    return choice
