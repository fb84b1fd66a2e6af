"""Finds out which steps of a model round alike, so that a job's tokens do not depend on which jobs run beside it.

Matrix kernels differ by the number of token rows that they get: on x86-64 without VNNI and on some Arm cores, one row
takes another kernel than several and has other last bits. Which rows agree is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edged.engine.attention_probe import PROBED, DecodeProbe
from edged.engine.session import ModelSession

_PROMPT = 8
_SPLITS = ((8,), (3, 5), (2, 2, 4))
"""Prompts of _PROMPT tokens, read in these chunks."""
_FULL_BATCH = 8
"""Rows that a batch is compared with at least, so that devices with fewer rows give the same ids."""


@dataclass(frozen=True)
class BitClasses:
    """Which ways to compute the same token give other bits of its logits."""

    lone_row_differs: bool
    """A step of one token of one row differs from the same row in any larger step; those agree."""
    batches_differ: bool
    """Steps of several rows differ by their number: no padding mends that."""
    chunks_differ: bool
    """A prompt's last logits depend on the chunks that it is read in."""


def find_bit_classes(session: ModelSession, rows: int) -> BitClasses:
    """Compute a few tokens alone, in company of up to `rows` rows, and in several chunks.

    Rows are compared on the CPU and where the graph can run unequal rows together; others never share a step. The
    session must be given a cache anew afterwards. Raises what onnxruntime raises.
    """
    package = session.package
    most = max(_FULL_BATCH, rows)
    compare_rows = session.device == "cpu" and package.batches_ragged_rows
    cache = session.make_cache(most if compare_rows else 1, _PROMPT + 2)
    session.use(cache)
    tokens = np.random.default_rng(0).integers(0, package.vocabulary, _PROMPT + most)
    prompt, others = tokens[:_PROMPT], tokens[_PROMPT:]
    whole, *parts = [_last_logits(session, prompt, chunks) for chunks in _SPLITS]
    chunks_differ = not all(np.array_equal(whole, part) for part in parts)
    if not compare_rows:
        return BitClasses(lone_row_differs=False, batches_differ=False, chunks_differ=chunks_differ)
    known = cache.read(0, 0, _PROMPT)
    for row in range(1, most):
        cache.write(row, 0, known)
    alone = _batch_logits(session, others[:1], 0)
    batches = []
    for count in sorted({2, 3, rows, most} - {1}):
        batch = others[:count]
        # The row that is compared stands first, and last: kernels may treat the last rows of a tile apart.
        batches += [_batch_logits(session, batch, 0), _batch_logits(session, np.roll(batch, -1), -1)]
    batches_differ = not all(np.array_equal(one, other) for one, other in pairwise(batches))
    lone_row_differs = not np.array_equal(alone, batches[0])
    for attention in _shared_out(session):
        first = {count: attention.read(count)[0] for count in sorted({1, 2, 3, rows, most})}
        batches_differ |= not all(np.array_equal(first[2], first[count]) for count in first.keys() - {1})
        lone_row_differs |= not np.array_equal(first[1], first[2])
    return BitClasses(lone_row_differs and not batches_differ, batches_differ, chunks_differ)


def _shared_out(session: ModelSession) -> Iterator[DecodeProbe]:
    """Attention that has fewer heads than there are threads.

    For so few that onnxruntime shares out the keys of a long context among threads, whose sums have other last bits.
    """
    package = session.package
    for numbers in package.graph.attentions if package.attention_dtype in PROBED else []:
        if numbers["num_heads"] < session.threads:
            yield DecodeProbe(numbers, package, session.threads, session.layout.dtype == "int8")


def _last_logits(session: ModelSession, prompt: NDArray[np.int64], chunks: tuple[int, ...]) -> NDArray[np.floating]:
    past = 0
    for count in chunks:
        logits = session.step(0, prompt[None, past : past + count], [past], past + count)
        past += count
    last: NDArray[np.floating] = logits[0].copy()
    return last


def _batch_logits(session: ModelSession, tokens: NDArray[np.int64], row: int) -> NDArray[np.floating]:
    """Logits of one row of a step in which each row has one of `tokens` after the prompt."""
    logits = session.step(0, tokens[:, None], [_PROMPT] * len(tokens), _PROMPT + 1)
    chosen: NDArray[np.floating] = logits[row].copy()
    return chosen
