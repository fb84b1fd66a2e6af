"""Turns an answer's tokens into text while it is being made: whole characters at once, and nothing of a stop string."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer as HuggingFaceTokenizer

_REPLACEMENT = "\ufffd"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""The byte that a character of a byte-level vocabulary stands for (`bytes_to_unicode` of GPT-2's encoder.py)."""
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_LONGEST_HALF = 3
"""Most bytes, and so most tokens, of an unfinished character."""
_CONTEXT, _WINDOW = 8, 16
"""Unread tokens that WindowDetokenizer keeps when there are too many, and how many are too many."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """The error handler of byte fallback: one U+FFFD for each byte, not for each truncated character."""
    assert isinstance(error, UnicodeDecodeError)
    return _REPLACEMENT * (error.end - error.start), error.end


_EACH_BYTE = "edged.replace_each_byte"
codecs.register_error(_EACH_BYTE, _replace_each_byte)


class Detokenizer(Protocol):
    """Text of one answer, token by token. Special tokens are left out before."""

    def push(self, token: int) -> str:
        """The characters that are whole now that `token` has come, perhaps none."""

    def finish(self) -> str:
        """The rest, once no more tokens come: U+FFFD for bytes that have not become a character."""


def detokenizers(tokenizer: HuggingFaceTokenizer) -> Callable[[Iterable[int]], Detokenizer]:
    """Makes this tokenizer's detokenizers, each for one answer that continues the given tokens."""
    table = TokenBytes.of(tokenizer)
    if table is not None:
        return lambda continued: ByteDetokenizer(table, continued)
    return lambda continued: WindowDetokenizer(lambda ids: str(tokenizer.decode(list(ids))), continued)


class TokenBytes:
    """The bytes that each token adds to a text, where the decoder of tokenizer.json only joins bytes.

    That is so where its steps are, in this order and as far as there are any: Replace of fixed texts; ByteLevel or
    ByteFallback; Fuse; Strip at the beginning. Byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece's models with
    byte fallback (Llama 2, Phi-3, Gemma) are of this kind.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, steps: Sequence[Mapping[str, Any]]) -> None:
        """`steps` as in tokenizer.json, of the kind above."""
        self._tokenizer = tokenizer
        kinds = {step["type"]: step for step in steps}
        self._replaced = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
        self._level, self._fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._known: dict[int, bytes] = {}
        self.errors = _EACH_BYTE if self._fallback else "replace"
        """The codec's error handler that gives as many U+FFFD as the tokenizer's own decoder."""
        strip = kinds.get("Strip", {"content": "", "start": 0})
        self.stripped: tuple[str, int] = (strip["content"], strip["start"])
        """A character that is removed from the beginning of a text, and how often at most."""

    @classmethod
    def of(cls, tokenizer: HuggingFaceTokenizer) -> TokenBytes | None:
        """The table of a tokenizer; None where its decoder does more than join bytes."""
        if tokenizer.decoder is None:
            return None
        definition = json.loads(tokenizer.decoder.__getstate__())
        steps = definition["decoders"] if definition["type"] == "Sequence" else [definition]
        left = list(steps)
        while left and left[0]["type"] == "Replace" and "String" in left[0]["pattern"]:
            left.pop(0)
        # Without one text of all tokens, Strip would work on each of them.
        fused = bool(left) and left[0]["type"] == "ByteLevel"
        if left and left[0]["type"] in ("ByteLevel", "ByteFallback"):
            left.pop(0)
        if left and left[0]["type"] == "Fuse":
            fused = True
            left.pop(0)
        if left and fused and left[0]["type"] == "Strip" and left[0]["stop"] == 0:
            left.pop(0)
        return None if left else cls(tokenizer, steps)

    def __getitem__(self, token: int) -> bytes:
        """The bytes of a token; none for an id that the tokenizer does not have. Thread-safe."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self.read(token)
        return found

    def read(self, token: int) -> bytes:
        """The same, not remembered."""
        return self._bytes(self._tokenizer.id_to_token(token) or "")

    def _bytes(self, text: str) -> bytes:
        for old, new in self._replaced:
            text = text.replace(old, new)
        if self._level and all(char in _BYTE_OF for char in text):  # else an added token, which is plain text
            return bytes(_BYTE_OF[char] for char in text)
        if self._fallback and (byte := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(byte[1])
        return text.encode()


class ByteDetokenizer:
    """Joins the bytes of tokens and decodes them as they come."""

    def __init__(self, table: TokenBytes, continued: Iterable[int] = ()) -> None:
        """`continued`: tokens before the answer's first. A character that they begin is part of the answer."""
        self._table = table
        self._errors = table.errors
        self._unfinished = b""
        self._strip, self._strips = table.stripped
        for token in continued:
            self.push(token)

    def push(self, token: int) -> str:
        """As Detokenizer.push."""
        data = self._unfinished + self._table[token]
        text, used = codecs.utf_8_decode(data, self._errors, False)
        self._unfinished = data[used:]
        return self._without_strip(text) if self._strips and text else text

    def finish(self) -> str:
        """As Detokenizer.finish."""
        text, self._unfinished = self._unfinished.decode("utf-8", self._errors), b""
        return text

    def _without_strip(self, text: str) -> str:
        """`text` without what is removed from the beginning of the whole text."""
        while self._strips and text.startswith(self._strip):
            text, self._strips = text[1:], self._strips - 1
        if text:
            self._strips = 0
        return text


class WindowDetokenizer:
    """Decodes the newest tokens after the few before them, by whatever decoder there is.

    (Where a byte-fallback decoder would take back a whole run of characters for one wrong byte, the characters stay.)
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], continued: Iterable[int] = ()) -> None:
        """`decode` turns ids into text; `continued` as for ByteDetokenizer."""
        self._decode = decode
        self._context: list[int] = []
        """Tokens whose text is out. They give the decoder the context to space the next ones."""
        self._unread: list[int] = []
        self._out = 0
        """Characters of the unread tokens' text that are out."""
        for token in continued:
            self.push(token)

    def push(self, token: int) -> str:
        """As Detokenizer.push."""
        self._unread.append(token)
        text = self._text()
        known = max(self._out, len(text.rstrip(_REPLACEMENT)), len(text) - _LONGEST_HALF)
        new, self._out = text[self._out : known], known
        if known >= len(text):
            # Tokens without text give no context by themselves.
            self._context = self._unread if text else (self._context + self._unread)[:_WINDOW]
            self._unread, self._out = [], 0
        elif len(self._unread) >= _WINDOW:
            # Every token ends within a character, or the bytes are no characters.
            self._context, self._unread = [], self._unread[-_CONTEXT:]
            self._out = max(0, len(self._decode(self._unread)) - (len(text) - known))
        return new

    def finish(self) -> str:
        """As Detokenizer.finish."""
        text, self._unread = self._text()[self._out :], []
        return text

    def _text(self) -> str:
        """Text of the unread tokens."""
        before = self._decode(self._context)
        after = self._decode(self._context + self._unread)
        if after.startswith(before):
            return after[len(before) :]
        # The newest token made a byte-fallback decoder take back a run of byte tokens.
        self._context = []
        return self._decode(self._unread)


class TextStream:
    """Text of one answer that can be shown, token by token: whole characters, and nothing of a stop string.

    The joined pieces are the text of all tokens, cut before the first stop string. Text that may be the beginning of a
    stop string is held until it is not.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: Sequence[str] = (),
        silent: frozenset[int] = frozenset(),
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """`silent` are ids that have no text, `ends` those of them that stop."""
        self._detokenizer = detokenizer
        self._stop = tuple(text for text in stop if text)
        self._silent = silent
        self._ends = ends
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be shown now that `token` has come, perhaps none. Sets `stopped` at a stop string."""
        if token in self._ends:
            text = self.finish()
            self.stopped = True
            return text
        if token in self._silent:
            return ""
        return self._release(self._detokenizer.push(token))

    def finish(self) -> str:
        """The text held back, once no more tokens come."""
        if self.stopped:
            return ""
        text = self._release(self._detokenizer.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        if not (self._stop and new):
            return new
        text = self._held + new
        places = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        shown = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[shown:]
        return text[:shown]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with; `text` does not hold all of it."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0
