"""Finds out whether a token has the same bits in a step of single tokens as in one of several tokens of its row.

Where it has, the tokens of an answer do not depend on which steps had drafts. Attention runs other code for a single
token than for several: with a float32 cache their last bits differ, with an int8 cache they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edged.engine.attention_probe import PROBED, TOKENS, AttentionProbe, DecodeProbe
from edged.engine.bit_classes import BitClasses
from edged.engine.drafts import MOST_TOKENS
from edged.engine.session import ModelSession

_PROMPT = 8
_STRIDE = 7
"""Tokens from one place of attention that is compared to the next."""


def single_tokens_agree(session: ModelSession, bits: BitClasses) -> bool:
    """Compute tokens singly, and in steps of up to MOST_TOKENS tokens of one row.

    `bits`: what find_bit_classes() says, whose rows must agree. A package without GroupQueryAttention is not probed and
    gives False. The session must be given a cache anew afterwards. Raises what onnxruntime raises.
    """
    package = session.package
    if not package.graph.attentions or package.attention_dtype not in PROBED:
        return False
    int8 = session.layout.dtype == "int8"
    for numbers in package.graph.attentions:
        # With more threads than its one head, the probe would share out the keys, which the model may not do.
        if not _attention_agrees(AttentionProbe(numbers, package, 1, int8)):
            return False
        if numbers["num_heads"] < session.threads:
            shared_out = DecodeProbe(numbers, package, session.threads, int8)
            last = {_bytes(shared_out.read(1 + bits.lone_row_differs)[0])}
            last |= {_bytes(shared_out.read(1, new)[0]) for new in (2, 3, MOST_TOKENS)}
            if len(last) > 1:
                return False
    return all(_steps_agree(session, bits.lone_row_differs))


def _attention_agrees(probe: AttentionProbe) -> bool:
    """Whether one head gives each token the bits that it has in a prompt in one piece."""
    places = [(start, start + 1) for start in range(1, TOKENS)]
    # Of all lengths, which a stride that shares no divisor with them goes through.
    starts = range(1, TOKENS - MOST_TOKENS, _STRIDE)
    places += [(start, start + 2 + start % (MOST_TOKENS - 1)) for start in starts]
    return all(_bytes(probe.read(start, end)) == _bytes(probe.whole[start:end]) for start, end in places)


def _steps_agree(session: ModelSession, pad_lone_row: bool) -> Iterator[bool]:
    """Whether logits, keys and values are the same: of single tokens, then of steps of each length."""
    cache = session.make_cache(1 + pad_lone_row, _PROMPT + MOST_TOKENS)
    session.use(cache)
    tokens = np.random.default_rng(0).integers(0, session.package.vocabulary, (1, _PROMPT + MOST_TOKENS))
    session.step(0, tokens[:, :_PROMPT], [0], _PROMPT)

    def computed(start: int, end: int) -> NDArray[np.floating]:
        """The logits of tokens start … end-1 in one step, [tokens, vocabulary]."""
        if end == start + 1:
            return session.step(0, tokens[:, start:end], [start, 0] if pad_lone_row else [start], end)
        logits: NDArray[np.floating] = session.forward(0, tokens[:, start:end], [start], end)[0]
        return logits

    whole = computed(_PROMPT, _PROMPT + MOST_TOKENS).copy()
    known = _bytes(cache.read(0, 0, _PROMPT + MOST_TOKENS))
    for at in range(MOST_TOKENS):
        yield _bytes(computed(_PROMPT + at, _PROMPT + at + 1)) == _bytes(whole[at : at + 1])
    yield _bytes(cache.read(0, 0, _PROMPT + MOST_TOKENS)) == known
    for count in range(2, MOST_TOKENS):
        yield _bytes(computed(_PROMPT, _PROMPT + count)) == _bytes(whole[:count])
        yield _bytes(cache.read(0, 0, _PROMPT + MOST_TOKENS)) == known


def _bytes(array: NDArray[np.generic]) -> bytes:
    return array.tobytes()
