"""Between text and token ids: prompts in, and whole characters out while the answer is still being made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as HuggingFaceTokenizer

from edged.engine.package import Package, PackageError
from edged.engine.template import ChatTemplate, TemplateFaultError

_REPLACEMENT = "\ufffd"
_LONGEST_HALF = 3
"""Most tokens that an unfinished character can have: UTF-8 takes four bytes, a token has at least one."""


class PromptError(ValueError):
    """The prompt cannot be turned into tokens of this model; the message says why."""


class Tokenizer:
    """A package's tokenizer and chat template. Thread-safe."""

    def __init__(self, package: Package) -> None:
        """Raises PackageError when tokenizer.json or the chat template is broken."""
        try:
            self._tokenizer = HuggingFaceTokenizer.from_file(str(package.tokenizer_file))
        except Exception as error:  # the library raises plain Exception for anything wrong in the file
            raise PackageError(f"tokenizer.json is not readable: {' '.join(str(error).split())[:300]}") from None
        # Left in the file by training, these would silently cut or pad every prompt.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary = package.vocabulary
        added = self._tokenizer.get_added_tokens_decoder()
        self._silent = frozenset(
            [token for token, entry in added.items() if entry.special]
            + [
                token
                for token in range(self._tokenizer.get_vocab_size(), package.vocabulary)
                if self._tokenizer.id_to_token(token) is None  # the model's vocabulary is often padded
            ]
        )
        if self._tokenizer.get_vocab_size() > package.vocabulary:
            raise PackageError(
                f"tokenizer.json has {self._tokenizer.get_vocab_size()} tokens, the model only {package.vocabulary}: "
                "they are not of the same package"
            )
        self._template: ChatTemplate | None = None
        if package.chat_template is not None:
            try:
                self._template = ChatTemplate(package.chat_template, package.special_tokens)
            except TemplateFaultError as error:
                raise PackageError(str(error)) from None

    def encode_text(self, text: str) -> list[int]:
        """Token ids of `text` with the tokenizer's own special tokens and no template."""
        return self._encode(text, add_special_tokens=True)

    def encode_messages(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of the rendered chat; the template writes the special tokens, none are added.

        Raises PromptError without a template, TemplateRefusalError or TemplateFaultError as ChatTemplate.render.
        """
        if self._template is None:
            raise PromptError("this package has no chat template: send prompt in place of messages")
        return self._encode(self._template.render(messages), add_special_tokens=False)

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` as they are. Raises PromptError when one is not a token of this model."""
        return self._checked(list(ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """Turns the tokens of one answer into text as they come."""
        return TextStream(self.decode, stop, self._silent)

    def close(self) -> None:
        """End the template's process."""
        if self._template is not None:
            self._template.close()

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):  # the library's answer to a str that UTF-8 cannot hold
            raise PromptError("the prompt has half of a surrogate pair: send whole characters") from None
        return self._checked(ids)

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise PromptError("the prompt has no tokens: give at least one")
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise PromptError(f"token id {token} is not in the model's vocabulary of {self._vocabulary}")
        return ids


class TextStream:
    """Turns tokens into text as they come: whole characters only, and nothing of a stop string.

    The joined pieces are the text of all tokens, cut before the first stop string. Bytes of a character that spans
    tokens are held until it is whole, and text that may be the beginning of a stop string until it is not. Bytes that
    are no character come out as U+FFFD. (Where a byte-fallback decoder would take back a whole run of characters for
    one such byte, the characters stay.)
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        silent: frozenset[int] = frozenset(),
    ) -> None:
        """`decode` turns ids into text, `silent` are ids that it leaves out anyway."""
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._silent = silent
        self._tokens: list[int] = []
        self._context = 0  # tokens from here give the decoder what it needs to space the next ones rightly
        self._read = 0  # tokens before here are already text
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be shown now that `token` has come, perhaps none. Sets `stopped` at a stop string."""
        if token in self._silent:
            return ""
        self._tokens.append(token)
        new = self._unread()
        if new.endswith(_REPLACEMENT):
            return self._give_up_bytes(new)
        if not new:
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._release(new)

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return ""
        new = self._unread()
        self._context = self._read = len(self._tokens)
        text = self._release(new)
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _unread(self) -> str:
        before = self._decode(self._tokens[self._context : self._read])
        after = self._decode(self._tokens[self._context :])
        if after.startswith(before):
            return after[len(before) :]
        # A byte-fallback decoder has given up a run of byte tokens for the one that came last.
        self._context = self._read
        return self._decode(self._tokens[self._read :])

    def _give_up_bytes(self, new: str) -> str:
        """Release bytes that can no longer become a character, so that a run of them neither stalls nor piles up."""
        split = len(self._tokens) - _LONGEST_HALF
        if split <= self._read:
            return ""
        hopeless = self._decode(self._tokens[self._read : split])
        if hopeless + self._decode(self._tokens[split:]) != new:  # a character lies across the split
            return ""
        self._context = self._read = split
        return self._release(hopeless)

    def _release(self, new: str) -> str:
        text = self._held + new
        places = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
