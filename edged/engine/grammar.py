"""Grammars of structured answers: what a job asks for, compiled by llguidance for the model's vocabulary.

llguidance is imported, and its trie of the vocabulary built, once a job wants a grammar.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import structlog
from numpy.typing import NDArray

from edged.engine.constraint import ConstraintError, Denied, Grammar, first_line
from edged.engine.forced_size import MOST_FORCED, most_forced, most_forced_by_regex
from edged.engine.grammar_trial import BombError, Trial
from edged.engine.json_schema import rewritten
from edged.engine.schema_form import GrammarError, UnservedGrammarError
from edged.engine.schema_size import least_size
from edged.engine.tokenizer import Tokenizer
from edged.engine.tool_format import ToolChoice, ToolFormat, arguments

if TYPE_CHECKING:
    from llguidance import LLTokenizer

log = structlog.get_logger(__name__)

_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "max_grammar_size": 200_000,
    "max_lexer_states": 50_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
"""Of llguidance: work and size while it compiles, states of the lexer (1 to 2 kB each), errors that quote nothing."""
_SLICES = [r'[^"\\\x00-\x1F\x7F]+']
"""Tokens that a text within JSON may have wherever it has any: such a mask needs no look at each of them."""
_WHITESPACE = r" {1,2}|\r?\n[ \t]{0,32}"
"""What may stand between two parts of JSON. Without a bound, small models lose themselves in it."""
Kind = Literal["json_schema", "json_object", "regex", "grammar"]


@dataclass(frozen=True)
class GrammarSource:
    """What a job asks for. `definition`: a JSON schema, a regular expression, a grammar in Lark's syntax."""

    kind: Kind
    definition: Any

    @property
    def is_json(self) -> bool:
        """Whether the answers are JSON."""
        return self.kind in ("json_schema", "json_object")


@dataclass(frozen=True)
class ToolSource:
    """Tools that an answer may call, or must: the schema of each one's arguments by its name.

    `several`: whether it may call more than one.
    """

    format: ToolFormat
    schemas: Mapping[str, Any]
    choice: ToolChoice
    several: bool = True


class Grammars:
    """Compiles grammars for one model, on the thread that prepares jobs."""

    def __init__(self, tokenizer: Tokenizer, trial: Trial | None = None) -> None:
        """`trial`: tries each grammar before it is compiled here; None: the grammars are trusted."""
        self._tokenizer = tokenizer
        self._trial = trial
        self._vocabulary: _Vocabulary | None = None
        self.unavailable = _unavailable(tokenizer)
        """Why answers of this model cannot be structured, None where they can."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Kinds of grammars that answers of this model may have."""
        return () if self.unavailable is not None else get_args(Kind)

    def compile(self, source: GrammarSource, continued: bool, max_tokens: float = math.inf) -> Grammar:
        """The grammar of one answer. `continued`: the answer continues a text of the prompt.

        Raises GrammarError where the source is wrong or `max_tokens` are known to be too few for any answer,
        UnservedGrammarError where it is not served.
        """
        if self.unavailable is not None:
            raise UnservedGrammarError(self.unavailable)
        answer = _answer(source)
        self._check_length(source, answer, max_tokens)
        if continued or not self._tokenizer.strips_space:
            return self._compile(source, "@answer", answer)
        # The space is no part of the answer's text, and what such models begin with.
        if not source.is_json and self._may_begin_with_space(self._compile(source, "@answer", answer)):
            return self._compile(source, '" " @answer', answer)
        return self._compile(source, '" "? @answer', answer)

    def compile_tools(self, source: ToolSource) -> Grammar:
        """The grammar of one answer with tools.

        Raises GrammarError and UnservedGrammarError; the first words say which tool it is where that is known.
        """
        if self.unavailable is not None:
            raise UnservedGrammarError(self.unavailable)
        parts = []
        for at, (name, schema) in enumerate(source.schemas.items()):
            try:
                parts.append({"name": arguments(at), **_answer(GrammarSource("json_schema", schema))})
            except (GrammarError, UnservedGrammarError) as error:
                raise type(error)(f"{name}: {error}") from None
        rules = source.format.lark(tuple(source.schemas), source.choice, source.several)
        forces = all(most_forced(part["json_schema"]) <= MOST_FORCED for part in parts)
        return self._compiled(rules, parts, UnservedGrammarError, forces, shown=True)

    def _compile(self, source: GrammarSource, start: str, answer: Mapping[str, Any]) -> Grammar:
        # A JSON schema is checked before: what llguidance refuses of it is valid and not served.
        refusal = UnservedGrammarError if source.is_json else GrammarError
        return self._compiled(f"start: {start}", [{"name": "answer", **answer}], refusal, _forces(source, answer))

    def _compiled(
        self,
        rules: str,
        parts: Sequence[Mapping[str, Any]],
        refusal: type[ValueError],
        forces: bool,
        shown: bool = False,
    ) -> Grammar:
        """`rules` in Lark's syntax name `parts` as @name. `shown`: tokens that mark calls of tools are text."""
        from llguidance import LLMatcher, LLParserLimits

        # Masks leave tokens to the model even where there is no other text; Constraint forces them where it is asked.
        top = f'%llguidance {{"no_forcing": true}}\n{rules}'
        text = json.dumps({"grammars": [{"lark_grammar": top}, *parts]})
        self._try_out(refusal, text)
        vocabulary = self._known_vocabulary()
        matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=LLParserLimits(**_LIMITS))
        if matcher.is_error():
            raise refusal(first_line(matcher.get_error()))
        silent = vocabulary.unmarked if shown else vocabulary.silent
        grammar = Grammar(matcher, silent, vocabulary.eos, forces)
        try:
            grammar.denied(matcher.deep_copy())
        except ConstraintError as error:
            raise GrammarError(f"no answer fits: {error}") from None
        return grammar

    def _check_length(self, source: GrammarSource, answer: Mapping[str, Any], max_tokens: float) -> None:
        """Raise GrammarError where every answer is longer. Of regular expressions and grammars that is not known."""
        if not source.is_json:
            return
        least = least_size(answer["json_schema"])
        if math.isinf(least.bytes):
            raise GrammarError("no answer has an end: each would have to hold another one of its kind")
        vocabulary = self._known_vocabulary()
        tokens = max(math.ceil(least.bytes / vocabulary.longest), math.ceil(least.properties / vocabulary.properties))
        if tokens > max_tokens:
            raise GrammarError(f"the shortest answer takes {tokens} tokens or more, and max_tokens is {max_tokens:.0f}")

    def _known_vocabulary(self) -> _Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = _Vocabulary.of(self._tokenizer)
        return self._vocabulary

    def _try_out(self, refusal: type[ValueError], text: str) -> None:
        if self._trial is None:
            return
        try:
            reason = self._trial.reason(text, _LIMITS)
        except BombError as error:
            raise UnservedGrammarError(str(error)) from None
        if reason:
            raise refusal(first_line(reason))

    def _may_begin_with_space(self, grammar: Grammar) -> bool:
        return not grammar.denied(grammar.matcher.deep_copy())[self._known_vocabulary().spaces].all()


@dataclass(frozen=True)
class _Vocabulary:
    """A model's tokens as llguidance and the masks want them."""

    tokenizer: LLTokenizer
    silent: Denied
    unmarked: Denied
    """The silent tokens but those that mark calls of tools."""
    eos: NDArray[np.int64]
    spaces: NDArray[np.int64]
    """Tokens that begin with a space."""
    longest: int
    """Bytes of the longest token."""
    properties: int
    """Most properties whose colons are in one token."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Vocabulary:
        from llguidance import LLTokenizer, TokenizerWrapper

        started = time.monotonic()
        tokens = tokenizer.answer_bytes() or []
        eos = sorted(tokenizer.eos)
        silent = np.array([not token for token in tokens], np.bool_)
        for token, text in tokenizer.tool_markers.items():
            tokens[token] = text
        unmarked = np.array([not token for token in tokens], np.bool_)
        spaces = np.array([id for id, token in enumerate(tokens) if token.startswith(b" ")], np.int64)
        longest = max(len(token) for token in tokens)
        properties = max(_colons(token) for token in tokens)
        wrapper = TokenizerWrapper(_Tokens(eos[0], tokens, tokenizer.spell_within))
        made = LLTokenizer(wrapper, eos_token=eos, slices=_SLICES)
        tokens.clear()  # llguidance keeps the list, and a copy of it
        log.info("grammars_ready", tokens=len(silent), seconds=round(time.monotonic() - started, 2))
        return cls(made, silent, unmarked, np.array(eos, np.int64), spaces, longest, properties)


class _Tokens:
    """A tokenizer as llguidance's TokenizerWrapper takes it. What is tokenized is forced text."""

    bos_token_id = None

    def __init__(self, eos: int, tokens: list[bytes], spell: Callable[[str], list[int]]) -> None:
        self.eos_token_id, self.tokens, self._spell = eos, tokens, spell

    def __call__(self, text: str) -> list[int]:
        """Raises TypeError for bytes, by which the wrapper finds out that it wants text."""
        if isinstance(text, bytes):
            raise TypeError("text is wanted")
        return self._spell(text)


def _colons(token: bytes) -> int:
    """Colons in a token that may each follow another property's name: these have quotes between them."""
    parts = token.split(b":")
    return 1 + sum(b'"' in part for part in parts[1:-1])


def _unavailable(tokenizer: Tokenizer) -> str | None:
    if importlib.util.find_spec("llguidance") is None:
        return "structured answers need llguidance, which is not installed here: pip install llguidance"
    if not tokenizer.eos:
        return "the model's package names no token that ends an answer"
    if not tokenizer.joins_bytes:
        return "the model's tokenizer does more than join the bytes of tokens"
    return None


def _forces(source: GrammarSource, answer: Mapping[str, Any]) -> bool:
    """Whether what it leaves no choice of is short at each place. Of a grammar in Lark's syntax that is not known."""
    if source.is_json:
        return most_forced(answer["json_schema"]) <= MOST_FORCED
    return source.kind == "regex" and most_forced_by_regex(source.definition) <= MOST_FORCED


def _answer(source: GrammarSource) -> dict[str, Any]:
    """The answer's grammar, in the form of llguidance's list of grammars. Raises GrammarError, UnservedGrammarError."""
    if source.is_json:
        schema = rewritten(source.definition) if source.kind == "json_schema" else {"type": "object"}
        if schema is False:
            raise GrammarError("the schema false has no answer")
        schema = {} if schema is True else schema
        # In place of options for llguidance that a schema may bring.
        return {"json_schema": {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}}
    if source.kind == "grammar":
        return {"lark_grammar": source.definition}
    from llguidance import regex_to_lark

    return {"lark_grammar": f"start: ANSWER\nANSWER: /{regex_to_lark(source.definition, '')}/"}
