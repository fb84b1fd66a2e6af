"""Measures the scales of an int8 KV cache: each channel's largest number while the published graph reads a text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edged.engine.graph import Graph
from edged.engine.session import ModelSession
from edged.engine.splits import SplitRule
from edged.engine.template import TemplateFaultError, TemplateRefusalError
from edged.engine.tokenizer import PromptError, Tokenizer

TOKENS = 512
"""Most tokens of the text that are read: 17 s for Phi-3-mini on two cores."""
PIECE = 128
"""Tokens that are read at once: the published cache of so many must fit beside what is planned for the int8 one."""
_MOST_BYTES = 1 << 20
_TOKEN_CHARACTERS = 16
"""Characters of a token, at most on average; a longer text is cut before it is tokenized."""
_RANGE = 127
"""The largest int8 number that is used on both sides of zero."""
TEXT = Path(__file__).with_name("calibration.txt")
"""The built-in text: questions and answers in turn, a blank line between them."""


def calibration_ids(tokenizer: Tokenizer, file: Path | None) -> list[int]:
    """The tokens of the text in `file` (default: TEXT), as a chat where the package has a chat template.

    Raises ValueError, with one line, where the file cannot be used.
    """
    text = _read(file or TEXT)
    parts = [part.strip() for part in text[: TOKENS * _TOKEN_CHARACTERS].split("\n\n") if part.strip()]
    if not parts:
        raise ValueError("there is no text in it")
    turns = zip(itertools.cycle(("user", "assistant")), parts, strict=False)
    try:
        ids = tokenizer.encode_messages([{"role": role, "content": part} for role, part in turns])
    except (PromptError, TemplateRefusalError, TemplateFaultError):  # no template, or one that needs other messages
        ids = []
    try:
        ids = ids or tokenizer.encode_text("\n\n".join(parts))
    except PromptError as error:
        raise ValueError(str(error)) from None
    return ids[:TOKENS]


def calibrate(session: ModelSession, ids: Sequence[int], chunk: int) -> dict[str, NDArray[np.float32]]:
    """The scales by name of each input of cached keys or values, [heads, size].

    `chunk`: tokens of a step. The session needs a new cache afterwards. Raises ValueError where a number is not finite,
    MemoryError, and what onnxruntime raises.
    """
    package = session.package
    piece = min(PIECE, package.context_length, package.rope_switch or PIECE)
    cache = session.make_cache(1, piece)
    session.use(cache)
    peaks: list[NDArray[np.float32]] = []
    for start in range(0, len(ids), piece):
        part = ids[start : start + piece]
        _read_piece(session, part, chunk)
        found = cache.peaks(0, len(part))
        peaks = [np.maximum(one, other) for one, other in zip(peaks, found, strict=True)] if peaks else found
    if not all(np.isfinite(peak).all() for peak in peaks):
        raise ValueError("the cache holds numbers that are not finite")
    keys = {package.past_names[0] % layer for layer in range(package.layers)}
    return {
        plane.past: _scale(_at_any_position(peak, package.graph) if plane.past in keys else peak)
        for plane, peak in zip(cache.layout.planes, peaks, strict=True)
    }


def _read_piece(session: ModelSession, ids: Sequence[int], chunk: int) -> None:
    tokens, done = np.array([ids], np.int64), 0
    while done < len(ids):
        count = SplitRule().chunk(done, len(ids) - done, chunk)
        session.step(0, tokens[:, done : done + count], [done], done + count)
        done += count


def tables_known(graph: Graph) -> bool:
    """Whether the widths of all rotary tables are known, without which the keys of later positions are not."""
    return all(table in graph.widths for table, _ in graph.rotations)


def _at_any_position(peak: NDArray[np.float32], graph: Graph) -> NDArray[np.float32]:
    """What keys with these peaks reach at any position, [heads, size].

    A rotary embedding turns pairs of channels. Slow pairs turn little within the text: at later positions one of them
    holds what the other one held, and a scale that is too small would cut it off.
    """
    for table, neighbours in graph.rotations:
        half = graph.widths[table]
        peak = peak.copy()
        pairs = (
            (peak[:, 0 : 2 * half : 2], peak[:, 1 : 2 * half : 2])
            if neighbours
            else (peak[:, :half], peak[:, half : 2 * half])
        )
        length = np.hypot(*pairs)
        for one in pairs:
            one[:] = length
    return peak


def _scale(peak: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales of one plane. A channel that the text leaves near zero keeps some room for other texts."""
    least = float(peak.max()) / _RANGE or 1.0
    return np.asarray(np.maximum(peak, least) / _RANGE, np.float32)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 10} KiB")
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
