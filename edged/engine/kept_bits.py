"""Which splits and steps give the same bits here: measured at a package's first load and kept in the state directory.

A measurement is used again only for the same package, onnxruntime, processor, threads and edged. One that found no way
to the same bits is not kept, since it may have failed for another cause.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import structlog
from pydantic import TypeAdapter

import edged
from edged.checked_json import read_checked, write_checked
from edged.engine import ort
from edged.engine.bit_classes import BitClasses, find_bit_classes
from edged.engine.draft_probe import single_tokens_agree
from edged.engine.package import Package
from edged.engine.providers import CPU
from edged.engine.session import ModelSession
from edged.engine.split_probe import find_split_rule
from edged.engine.splits import SplitRule
from edged.machine.board import Board

log = structlog.get_logger(__name__)

BITS = "bits.json"
"""Name of the file under state_dir."""
_MOST_BYTES = 1 << 20
_MOST = 32
"""Measurements that are kept of each kind; the oldest goes first."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Document:
    """What the file holds beside its checksum: measurements by the digest of what decides them, oldest first."""

    format: Literal[1] = 1
    splits: dict[str, SplitRule] = field(default_factory=dict)
    classes: dict[str, BitClasses] = field(default_factory=dict)
    single_tokens: dict[str, bool] = field(default_factory=dict)


_DOCUMENT = TypeAdapter(_Document)


class KeptBits:
    """Measures for one package on one board, or recalls what an earlier load measured. For a GPU nothing is kept."""

    def __init__(self, file: Path | None, package: Package, board: Board, threads: int) -> None:
        """`file`: where measurements are kept, None for nowhere. `threads`: of onnxruntime."""
        self._file = file
        self._package = package
        self._threads = threads
        # The probe of splits takes nothing else from the package; its weights play no part.
        taken = (package.graph.attentions, package.head_size, package.kv_dtype, package.sliding_window)
        here = (edged.__version__, ort.__version__, ort.get_build_info(), board.model, board.processor(), threads)
        self._decides = repr((here, taken))
        self._kept = _Document() if file is None else _read(file)
        self._measured = False

    def splits(self, providers: Sequence[str], int8: bool = False) -> SplitRule:
        """As find_split_rule()."""
        key = self._key(providers, int8)
        rule = self._kept.splits.get(key)
        if rule is None:
            rule = find_split_rule(self._package, providers, self._threads, int8)
            if rule.holds and providers[0] == CPU:
                self._keep(self._kept.splits, key, rule)
        return rule

    def classes(self, session: ModelSession, rows: int) -> BitClasses:
        """As find_bit_classes(). Writes what was measured since this object was made."""
        key = self._session_key(session, rows)
        classes = self._kept.classes.get(key)
        if classes is None:
            classes = find_bit_classes(session, rows)
            if session.device == "cpu" and not (classes.batches_differ or classes.chunks_differ):
                self._keep(self._kept.classes, key, classes)
        self._write()
        return classes

    def single_tokens(self, session: ModelSession, bits: BitClasses) -> bool:
        """As single_tokens_agree(). Writes what was measured."""
        key = self._session_key(session, bits)
        agree = self._kept.single_tokens.get(key, False)
        if not agree:
            agree = single_tokens_agree(session, bits)
            if agree:
                self._keep(self._kept.single_tokens, key, agree)
        self._write()
        return agree

    def _write(self) -> None:
        if self._measured and self._file is not None:
            _write(self._file, self._kept)
            self._measured = False

    def _session_key(self, session: ModelSession, *more: object) -> str:
        fingerprint = self._package.fingerprint()
        return self._key(session.providers, fingerprint, *more, session.logits_computed, session.layout.dtype)

    def _key(self, providers: Sequence[str], *more: object) -> str:
        """A digest of what decides a measurement."""
        return hashlib.sha256(repr((self._decides, providers[0], more)).encode()).hexdigest()[:32]

    def _keep(self, kept: dict[str, _T], key: str, value: _T) -> None:
        kept[key] = value
        for oldest in [*kept][:-_MOST]:
            del kept[oldest]
        self._measured = True


def _read(file: Path) -> _Document:
    """What is kept; nothing where the file is absent, damaged or of another format."""
    try:
        document = read_checked(file, _MOST_BYTES)
        if document is not None:
            return _DOCUMENT.validate_json(json.dumps(document), strict=True)
    except (OSError, ValueError) as error:
        log.warning("kept_bits_refused", file=str(file), reason=" ".join(str(error).split())[:200])
    return _Document()


def _write(file: Path, document: _Document) -> None:
    """Replace the file. A failure is logged."""
    fields = _DOCUMENT.dump_python(document)
    try:
        write_checked(file, fields)
    except OSError as error:
        log.warning("bits_not_kept", file=str(file), reason=(error.strerror or str(error)).lower())
