"""Finds where prompts may be split on this processor, by the attention operator of a package alone.

Only attention looks at more than one token, so only there a token's bits can depend on the chunk that it is read in.
onnxruntime's flash attention takes queries and keys in blocks (onnxruntime/core/mlas/lib/flashattn.cpp), whose sizes
depend on the processor's cache and the head's width. Products of matrices are summed in an order that depends on their
shape, which the end of the chunk decides (heads of 256: up to 64 keys in a block, or more). A prompt for a whole model
would take minutes on a small board; one head of attention takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from numpy.typing import NDArray

from edged.engine.attention_probe import PROBED, TOKENS, AttentionProbe
from edged.engine.package import Package
from edged.engine.providers import CPU
from edged.engine.session import one_line
from edged.engine.splits import SplitRule

log = structlog.get_logger(__name__)

_GRAINS = (32, 64, 128, 256, 512)
_L2_KIB = (128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 3072, 4096)
"""Second-level caches that processors have; onnxruntime sizes its blocks by them."""
_FINE = (24, 40, 3)
"""Sizes of the chunks that a prompt is read in where any may do."""


def find_split_rule(package: Package, providers: Sequence[str], threads: int, int8: bool = False) -> SplitRule:
    """The finest rule under which attention gives the same bits, in one piece and in chunks.

    `int8`: with an int8 cache in place of the package's own. A GPU, which serves one row, a package without
    GroupQueryAttention, and one with a cache of other numbers than PROBED and int8 get the rule without limits. A
    failure is logged; no rule holds then.
    """
    if providers[0] != CPU or package.attention_dtype not in PROBED:
        return SplitRule()
    try:
        probes = [AttentionProbe(numbers, package, threads, int8) for numbers in package.graph.attentions]
        lone = max((_find_lone(probe) for probe in probes), default=0)
        held = (rule for rule in _candidates(lone) if all(_holds(probe, rule) for probe in probes))
        return next(held, SplitRule(holds=False))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        log.warning("splits_not_probed", model=package.name, reason=one_line(error))
        return SplitRule(holds=False)


def _candidates(lone: int) -> Iterator[SplitRule]:
    yield SplitRule(lone=lone)
    for grain in sorted({*_GRAINS, lone} - {0}):
        if not lone or grain % lone == 0:
            # A token is alone in its block where it is in the prompt in one piece, and only there.
            yield SplitRule(grain)
        elif lone % grain == 0:
            yield SplitRule(grain, lone)


def _find_lone(probe: AttentionProbe) -> int:
    """The queries of a block, if the last one of a chunk has other bits when it is alone in its block, else 0."""
    blocks = {min((kib << 10) // (32 * probe.head), 2 * probe.head) for kib in _L2_KIB}
    for block in sorted(block for block in blocks if block >= 4):
        if not _same_bits(probe.read(0, block + 1)[-1], probe.read(block - 1, block + 1)[-1]):
            return block
    return 0


def _holds(probe: AttentionProbe, rule: SplitRule) -> bool:
    """Whether prompts read in various chunks under the rule have the bits that they have in one piece."""
    ends = [TOKENS]
    if not rule.lone and 1 < rule.grain < TOKENS // 2:  # the last token is alone in its block, however it is split
        ends.append(2 * rule.grain + 1)
    for end in ends:
        whole = probe.whole if end == TOKENS else probe.read(0, end)
        for most in _FINE if rule.grain == 1 else (rule.grain, 3 * rule.grain):
            for start, stop in _chunks(rule, end, most):
                if not _same_bits(probe.read(start, stop), whole[start:stop]):
                    return False
    return True


def _chunks(rule: SplitRule, tokens: int, most: int) -> Iterator[tuple[int, int]]:
    computed = 0
    while computed < tokens:
        count = rule.chunk(computed, tokens - computed, most)
        yield computed, computed + count
        computed += count


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.tobytes() == other.tobytes()
