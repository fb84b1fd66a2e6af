"""Between text and token ids: encodes prompts, and decodes answers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as HuggingFaceTokenizer

from edged.engine.chat import Chat, ChatError
from edged.engine.detokenizer import TextStream, TokenBytes, detokenizers
from edged.engine.package import Package, PackageError
from edged.engine.template import ChatTemplate, TemplateFaultError
from edged.engine.tool_format import ToolFormat

_HEAD = "\x02"
"""Stands before a text that is no beginning. No tokenizer joins it with what follows."""
_CONTEXT = 8
"""Tokens of a prompt that the decoder is given before those of its continuation."""


class PromptError(ValueError):
    """The prompt cannot be turned into tokens of this model; the message says why."""


class Tokenizer:
    """A package's tokenizer and chat template. Thread-safe."""

    def __init__(self, package: Package, template_kwargs: Mapping[str, Any] | None = None) -> None:
        """`template_kwargs`: variables that each render of the chat template has, of the operator's choice.

        Raises PackageError when tokenizer.json is broken, the chat template does not compile or end, or a variable is
        one that the package itself gives the template.
        """
        try:
            self._tokenizer = HuggingFaceTokenizer.from_file(str(package.tokenizer_file))
        except Exception as error:  # the library raises plain Exception for anything wrong in the file
            raise PackageError(f"tokenizer.json is not readable: {' '.join(str(error).split())[:300]}") from None
        # Left in the file by training, these would silently cut or pad every prompt.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary = package.vocabulary
        self._other_templates = package.texts.other_templates
        self._add(package)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {entry.content: token for token, entry in added.items() if entry.special}
        self._silent = frozenset(self._special.values()) | {
            token
            for token in range(self._tokenizer.get_vocab_size(), package.vocabulary)
            if self._tokenizer.id_to_token(token) is None  # the model's vocabulary is often padded
        }
        self._detokenizer = detokenizers(self._tokenizer)
        self._bytes = TokenBytes.of(self._tokenizer)
        self.eos = package.eos | self._eos(package.texts.eos_text)
        """Token ids that end an answer: of genai_config.json, generation_config.json and tokenizer_config.json."""
        self._given = package.texts.special_tokens.keys()
        source = package.texts.chat_template or ""
        self._unused = [name for name in template_kwargs or {} if not re.search(rf"\b{name}\b", source)]
        named = {text for text in package.texts.special_tokens.values() if isinstance(text, str)}
        special = {
            entry.content: entry.special or entry.content in named or token in self.eos
            for token, entry in added.items()
        }
        self._chat = self._open_chat(package, special, template_kwargs or {})
        control = frozenset[str]() if self._chat is None else self._chat.control
        self._control = frozenset(token for token, entry in added.items() if entry.content in control)

    @property
    def chat(self) -> dict[str, str] | None:
        """How the chat template treats a job's messages, None without a template.

        `system`: "template", or "first_user_message" where the template has no place for system text. `turns`:
        "control_tokens", which a job's text cannot hold, or "plain_text", which it can imitate. `tools`: the format
        of calls, absent where it is none of the known ones. `refuses`: the reason of a template that does not render a
        plain question.
        """
        if self._chat is None:
            return None
        facts: dict[str, str] = {"system": self._chat.system, "turns": self._chat.turns}
        if self._chat.tools is not None:
            facts["tools"] = self._chat.tools.name
        return facts if self._chat.refusal is None else {**facts, "refuses": self._chat.refusal}

    @property
    def tools(self) -> ToolFormat | None:
        """How the model writes calls of tools; None where it cannot be given any."""
        return None if self._chat is None else self._chat.tools

    @property
    def faults(self) -> list[str]:
        """What an operator should know of the package's text files, one line each."""
        faults = []
        if not self.eos:
            faults.append(
                "no end-of-sequence token in genai_config.json, generation_config.json or tokenizer_config.json: every "
                "answer goes on to max_tokens"
            )
        if self._chat is None and self._other_templates:
            names = ", ".join(self._other_templates)[:200]
            faults.append(f"none of the chat templates is named default (they are {names}): use prompt")
        if self._chat is not None and self._chat.refusal is not None:
            faults.append(f"the chat template refuses a plain question ({self._chat.refusal}): use prompt")
        if self._unused:
            faults.append(
                f"the chat template has no {' or '.join(self._unused)}, which model.chat_template_kwargs sets"
            )
        return faults

    def encode_text(self, text: str) -> list[int]:
        """Token ids of `text` with the tokenizer's own special tokens and no template.

        Special tokens at the beginning of `text` itself are not added a second time.
        """
        encoding = self._encoding(text, add_special_tokens=True)
        ids: list[int] = encoding.ids
        count = 0
        while count < len(ids) and encoding.special_tokens_mask[count]:
            count += 1
        return self._checked(ids[count:] if count and ids[count : 2 * count] == ids[:count] else ids)

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        continue_final: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of the rendered chat; the template writes the special tokens, none are added.

        Control tokens in a job's strings are encoded as text. `variables`: what else the template may use; they go
        before those that each render has. `continue_final`: the ids end with the last message's content. `tools`, and
        calls in messages: as for Chat.render.

        Raises PromptError without a template, or where it would drop a message or make a control token out of a job's
        text, or for a variable that the package itself gives; TemplateRefusalError or TemplateFaultError as
        ChatTemplate.render.
        """
        if self._chat is None:
            raise PromptError("this package has no chat template: send prompt in place of messages")
        variables = variables or {}
        if given := sorted(self._given & variables.keys()):
            raise PromptError(f"the model's package itself gives the chat template {given[0]}: leave it out")
        try:
            rendered = self._chat.render(messages, variables, continue_final, tools)
        except ChatError as error:
            raise PromptError(str(error)) from None
        encoding = self._encoding(rendered.text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if rendered.separator is not None:
            ids = self._without(rendered.separator, rendered.text, encoding)
        if rendered.masked is not None:
            masked = self._encoding(rendered.masked, add_special_tokens=False)
            if self._controls(ids) != self._controls(masked.ids):
                raise PromptError(
                    "the model's chat template makes a control token out of the text of these messages: leave out what "
                    "looks like one, or send prompt"
                )
        return self._checked(ids)

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` as they are. Raises PromptError when one is not a token of this model."""
        return self._checked(list(ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, text: str, continued: Sequence[int] = ()) -> list[int] | None:
        """The tokens with which an answer says exactly `text`, as the tokenizer writes it; None: it cannot.

        `continued`: the token ids that the answer is a continuation of.
        """
        before = self.decode(continued[-_CONTEXT:])
        # After a text, some tokenizers write a text otherwise than at a beginning, where they put a space before it.
        for head in (before, "", "\n"):
            first = self._tokenizer.encode(head, add_special_tokens=False).ids
            whole = self._tokenizer.encode(head + text, add_special_tokens=False).ids
            tokens: list[int] = whole[len(first) :]
            said = self.stream(continued=continued)
            if whole[: len(first)] == first and "".join(map(said.push, tokens)) + said.finish() == text:
                return tokens
        return None

    def spell_within(self, text: str) -> list[int]:
        """The tokens that the tokenizer writes for `text` in the middle of an answer; none where they say another text.

        They do where the text looks like a control token, for example.
        """
        first = self._tokenizer.encode(_HEAD, add_special_tokens=False).ids
        whole = self._tokenizer.encode(_HEAD + text, add_special_tokens=False).ids
        tokens: list[int] = whole[len(first) :]
        said = b"".join(b"" if token in self._silent else self.token_bytes(token) for token in tokens)
        return tokens if whole[: len(first)] == first and said == text.encode() else []

    def stream(
        self, stop: Sequence[str] = (), continued: Sequence[int] = (), shown: Collection[int] = ()
    ) -> TextStream:
        """Turns the tokens of one answer into text as they come.

        `continued`: the token ids that the answer is a continuation of, so that a space between them is kept. A stop
        string that is a special token's text ends the answer at that token. `shown`: special tokens that have a text.
        """
        ends = frozenset(self._special[text] for text in stop if text in self._special)
        context = [token for token in continued[-_CONTEXT:] if token not in self._silent]
        return TextStream(self._detokenizer(context), stop, self._silent.difference(shown), ends)

    @property
    def tool_markers(self) -> dict[int, bytes]:
        """The special tokens with which calls of tools are written, and their text."""
        texts = () if self.tools is None else self.tools.markers
        return {self._special[text]: text.encode() for text in texts if text in self._special}

    @property
    def joins_bytes(self) -> bool:
        """Whether the text of an answer is the joined bytes of its tokens."""
        return self._bytes is not None

    @property
    def strips_space(self) -> bool:
        """Whether a space at the beginning of an answer is left out of its text."""
        return self._bytes is not None and self._bytes.stripped == (" ", 1)

    def answer_bytes(self) -> list[bytes] | None:
        """What each token of the vocabulary adds to an answer, nothing for one without text or that ends it.

        None where joins_bytes is False.
        """
        if self._bytes is None:
            return None
        none = self._silent | self.eos
        return [b"" if token in none else self._bytes.read(token) for token in range(self._vocabulary)]

    def token_bytes(self, token: int) -> bytes:
        """The text of one token, that of special tokens too. It may be a part of a character."""
        if self._bytes is not None:
            return self._bytes.read(token)
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text.encode()

    def close(self) -> None:
        """End the template's process."""
        if self._chat is not None:
            self._chat.close()

    def _add(self, package: Package) -> None:
        """Add the tokens that only tokenizer_config.json has."""
        known = {entry.content for entry in self._tokenizer.get_added_tokens_decoder().values()}
        for added in package.texts.added_tokens:
            if added.content in known:
                continue
            self._tokenizer.add_tokens(
                [
                    AddedToken(
                        added.content,
                        single_word=added.single_word,
                        lstrip=added.lstrip,
                        rstrip=added.rstrip,
                        normalized=added.normalized,
                        special=added.special,
                    )
                ]
            )
            came = self._tokenizer.token_to_id(added.content)
            if came != added.id:
                raise PackageError(
                    f"tokenizer_config.json: added_tokens_decoder gives {added.content!a} the id {added.id}, with "
                    f"tokenizer.json it is {came}: they are not of the same package"
                )

    def _eos(self, text: str | None) -> set[int]:
        token = None if text is None else self._tokenizer.token_to_id(text)
        return set() if token is None or token >= self._vocabulary else {token}

    def _open_chat(self, package: Package, special: Mapping[str, bool], kwargs: Mapping[str, Any]) -> Chat | None:
        if package.texts.chat_template is None:
            return None
        if given := sorted(self._given & kwargs.keys()):
            raise PackageError(
                f"model.chat_template_kwargs has {given[0]}, which the package itself gives the template"
            )
        try:
            template = ChatTemplate(package.texts.chat_template, {**package.texts.special_tokens, **kwargs})
        except TemplateFaultError as error:
            raise PackageError(str(error)) from None
        try:
            return Chat(template, package.texts.chat_template, special, package.texts.eos_text)
        except TemplateFaultError as error:
            template.close()
            raise PackageError(str(error)) from None

    def _encoding(self, text: str, add_special_tokens: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):  # the library's answer to a str that UTF-8 cannot hold
            raise PromptError("the prompt has half of a surrogate pair: send whole characters") from None

    def _without(self, separator: str, text: str, encoding: Any) -> list[int]:
        """The ids of `encoding`, which is of `text`, without those of the separator."""
        ids = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            covered = text[start:end]
            if separator not in covered:
                ids.append(token)
            elif covered.strip(separator):
                raise PromptError("this model's tokenizer cannot take control tokens as text: leave them out")
        if separator in self._tokenizer.decode(ids, skip_special_tokens=False):
            raise PromptError("this model's tokenizer cannot take control tokens as text: leave them out")
        return ids

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._control]

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise PromptError("the prompt has no tokens: give at least one")
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise PromptError(f"token id {token} is not in the model's vocabulary of {self._vocabulary}")
        return ids
