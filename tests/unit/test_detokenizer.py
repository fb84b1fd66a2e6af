"""Text out: whole characters as soon as they are known, joined to the whole text, and nothing of a stop string."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from engine_rig import MODELS
from hypothesis import given
from hypothesis import strategies as st
from text_rig import (
    BYTE_OF,
    EMOJI,
    ENGLISH,
    KHMER,
    KOREAN,
    TEXTS,
    check_any_tokens,
    check_continuations,
    check_text,
    pieces_of,
)
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

import edged.demo
from edged.engine.detokenizer import TextStream, TokenBytes, WindowDetokenizer


def fixture() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_file(str(MODELS / "phi3" / "tokenizer.json"))


def demo() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_file(str(Path(edged.demo.__file__).parent / "model" / "tokenizer.json"))


def trained() -> HuggingFaceTokenizer:
    """As GPT-2, Llama 3 and Qwen, trained on what characters of several bytes there are."""
    made = HuggingFaceTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([KHMER[at:] + EMOJI[at:] for at in range(12)], trainer)
    made.add_tokens(["<tool call>", "ថ្ងៃ"])  # plain text in a byte-level vocabulary, and not special
    return made


def straddling() -> HuggingFaceTokenizer:
    """A byte-level vocabulary with a token that ends one character (ក, E1 9E 80) and begins the next."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: n for n, text in enumerate([*alphabet, "ŀĢ", "ŀĢá"])}
    made = HuggingFaceTokenizer(models.BPE(vocabulary, [("ŀ", "Ģ"), ("ŀĢ", "á")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def metaspace() -> HuggingFaceTokenizer:
    """As T5 and older Gemma: words marked by ▁, the first one's space taken away again."""
    made = HuggingFaceTokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False)
    made.train_from_iterator([ENGLISH, KOREAN] * 4, trainer)
    return made


def word_endings() -> HuggingFaceTokenizer:
    """As the first GPT: the end of a word is marked, and becomes a space where another word follows."""
    made = HuggingFaceTokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return made


def llama(strip: bool = True) -> HuggingFaceTokenizer:
    """As Llama 2 and Phi-3 (without `strip`: Gemma): ▁ for spaces, a token for each byte where a character has none."""
    words = ["▁", "▁the", "▁pump", "s", "▁is", "off", ".", "안", "▁상태", " ", "t", "h", "e", "▁t", "he", "<0xé>"]
    vocabulary = {text: number for number, text in enumerate(["<unk>", "</s>", *BYTE_OF, *words])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    made = HuggingFaceTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(["</s>"])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return made


def rewriting(made: HuggingFaceTokenizer) -> HuggingFaceTokenizer:
    """The same tokenizer with a decoder of no known kind."""
    assert made.decoder is not None
    made.decoder = decoders.Sequence([made.decoder, decoders.Replace(Regex("never there"), "")])
    return made


KINDS = {
    "fixture": fixture(),
    "demo": demo(),
    "trained": trained(),
    "straddling": straddling(),
    "llama": llama(),
    "gemma": llama(strip=False),
    "metaspace": metaspace(),
    "word endings": word_endings(),
    "unknown, trained": rewriting(trained()),
    "unknown, straddling": rewriting(straddling()),
}


def whole(made: HuggingFaceTokenizer, ids: Sequence[int]) -> str:
    return str(made.decode(list(ids)))


def tokens_of(kind: str, most: int = 40) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, KINDS[kind].get_vocab_size() - 1), max_size=most)


def llama_ids(text: str) -> list[int]:
    """`text` with a byte token for every byte that has no word."""
    return [2 + byte for byte in text.encode()]


class Chars:
    """A detokenizer for a vocabulary of characters, and of what else the test gives it."""

    def __init__(self, texts: Mapping[int, str] | None = None) -> None:
        self._texts = texts or {}

    def push(self, token: int) -> str:
        return self._texts.get(token, chr(token))

    def finish(self) -> str:
        return ""


class TestAnyTokens:
    @pytest.mark.parametrize("kind", KINDS)
    def test_pieces_join_to_the_text_of_all_tokens(self, kind: str) -> None:
        check_any_tokens(KINDS[kind], random.Random(kind))

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_character_of_a_text_leaves_with_its_last_byte(self, kind: str) -> None:
        check_text(KINDS[kind], random.Random(kind))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_continuation_is_what_the_text_grows_by(self, kind: str) -> None:
        check_continuations(KINDS[kind], random.Random(kind))

    @given(st.lists(st.integers(130, 260), max_size=60), st.sampled_from(["fixture", "unknown, trained"]))
    def test_pieces_join_where_most_bytes_are_no_characters(self, ids: list[int], kind: str) -> None:
        assert "".join(pieces_of(KINDS[kind], ids)[0]) == whole(KINDS[kind], ids)

    @given(tokens_of("llama"))
    def test_a_window_over_byte_fallback_never_loses_a_character_to_a_wrong_byte(self, ids: list[int]) -> None:
        """There decode() takes back the whole run of bytes; the stream cannot, and does not wish to."""
        made = rewriting(llama())
        shown, decoded = "".join(pieces_of(made, ids)[0]), whole(made, ids)
        if "\ufffd" not in decoded:
            assert shown == decoded
        kept = [re.escape(part) for part in re.split("\ufffd+", decoded)]
        assert re.fullmatch("(?s:.*)".join(kept), shown)

    @pytest.mark.parametrize("made", [llama(), rewriting(llama())], ids=["llama", "unknown"])
    def test_byte_fallback_keeps_the_characters_before_a_wrong_byte(self, made: HuggingFaceTokenizer) -> None:
        ids = [*llama_ids("한글"), 2 + 0x80, made.token_to_id("▁the")]
        assert "".join(pieces_of(made, ids)[0]) == "한글\ufffd the"

    @pytest.mark.parametrize("made", [llama(), rewriting(llama())], ids=["llama", "unknown"])
    def test_byte_fallback_holds_three_bytes_of_a_character_of_four(self, made: HuggingFaceTokenizer) -> None:
        assert pieces_of(made, llama_ids("🚀한"))[0] == ["", "", "", "🚀", "", "", "한", ""]

    @pytest.mark.parametrize(("kind", "end"), [("fixture", "\ufffd"), ("llama", "\ufffd\ufffd")])
    def test_an_answer_cut_in_the_middle_of_a_character_ends_with_replacement_characters(
        self, kind: str, end: str
    ) -> None:
        """As many as the tokenizer's own decoder gives."""
        ids = llama_ids("안") if kind == "llama" else KINDS[kind].encode("안").ids
        assert "".join(pieces_of(KINDS[kind], ids[:-1])[0]) == whole(KINDS[kind], ids[:-1]) == end


class TestKnownDecoders:
    """Joining bytes is right for these decoders only; any other is asked for the text itself."""

    STEPS = (decoders.Replace("▁", " "), decoders.ByteFallback())

    @pytest.mark.parametrize(
        "more",
        [
            (decoders.Strip(" ", 1, 0),),  # of each token, as they are not fused
            (decoders.Fuse(), decoders.Strip(" ", 0, 1)),
            (decoders.Fuse(), decoders.Replace("a", "b")),
        ],
        ids=["strip of each token", "strip at the end", "replace at the end"],
    )
    def test_a_step_that_does_more(self, more: tuple[decoders.Decoder, ...]) -> None:
        made = llama()
        made.decoder = decoders.Sequence([*self.STEPS, *more])
        assert TokenBytes.of(made) is None

    def test_a_replaced_pattern(self) -> None:
        made = llama()
        made.decoder = decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.ByteFallback(), decoders.Fuse()])
        assert TokenBytes.of(made) is None

    @pytest.mark.parametrize("kind", ["fixture", "demo", "trained", "straddling", "llama", "gemma"])
    def test_those_that_join_bytes(self, kind: str) -> None:
        assert TokenBytes.of(KINDS[kind]) is not None

    @pytest.mark.parametrize("token", ["<0x0a>", "<0x41>", "<0x41>s", "s<0x41>", "<0xé>", "<0x4>"])
    def test_what_is_a_token_of_a_byte_and_what_only_looks_so(self, token: str) -> None:
        made = HuggingFaceTokenizer(models.BPE({token: 0}, [], byte_fallback=True))
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        assert "".join(pieces_of(made, [0])[0]) == whole(made, [0])

    @pytest.mark.parametrize("kind", ["trained", "llama"])
    def test_an_id_beyond_the_vocabulary_has_no_text(self, kind: str) -> None:
        """A model can have more tokens than its tokenizer."""
        made = KINDS[kind]
        assert pieces_of(made, [*made.encode("a").ids, made.get_vocab_size() + 3])[0][-2:] == ["", ""]


class TestLongAnswers:
    @pytest.mark.parametrize("kind", ["straddling", "unknown, straddling"])
    def test_tokens_that_all_end_in_mid_character_hold_nothing_back(self, kind: str) -> None:
        made = KINDS[kind]
        ids = made.encode("ក" * 2000).ids
        assert ids[1:-1] == [made.token_to_id("ŀĢá")] * 1999
        assert pieces_of(made, ids)[0] == ["", *["ក"] * 2000, ""]

    @pytest.mark.parametrize("text", ["ŀĢá", "Ģ", "a", "ŀ"])
    def test_no_token_makes_the_next_ones_dearer(self, text: str) -> None:
        """A window holds few tokens, whatever a model babbles."""
        made, longest = KINDS["straddling"], 0

        def decode(ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return whole(made, ids)

        window = WindowDetokenizer(decode)
        ids = [made.token_to_id(text)] * 300
        assert "".join(map(window.push, ids)) + window.finish() == whole(made, ids)
        assert longest < 30

    def test_tokens_without_text_neither_pile_up_nor_hide_what_was_before(self) -> None:
        longest = 0

        def decode(ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return (" x" * sum(ids)).removeprefix(" ")

        window = WindowDetokenizer(decode)
        assert [window.push(token) for token in [1, *[0] * 100, 1]] == ["x", *[""] * 100, " x"]
        assert longest < 30

    def test_special_tokens_have_no_text(self) -> None:
        text = TextStream(Chars(), silent=frozenset({3}))
        assert [text.push(token) for token in (3, 3, 120, 3)] == ["", "", "x", ""]


class TestStopStrings:
    @given(
        tokens_of("fixture", 25),
        st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=3),
    )
    def test_pieces_join_to_the_text_before_the_stop_string_that_came_first(
        self, ids: list[int], places: list[tuple[int, int]]
    ) -> None:
        made = KINDS["fixture"]
        text = whole(made, ids)
        stops = [text[at : at + length] for at, length in places if text[at : at + length]] or ["nowhere"]
        pieces, state = pieces_of(made, ids, stops)
        shown = "".join(pieces)
        assert not any(stop in shown for stop in stops)
        if state.stopped:
            assert any(text.startswith(shown + stop) for stop in stops)
        else:
            assert shown == text

    def test_text_that_may_begin_a_stop_string_is_held_until_it_does_not(self) -> None:
        text = TextStream(Chars(), ["STOP"])
        assert [text.push(ord(c)) for c in "aSTxSTSTOP"] == ["a", "", "", "STx", "", "", "ST", "", "", ""]
        assert text.stopped
        assert text.finish() == ""

    def test_what_was_held_comes_at_the_end(self) -> None:
        text = TextStream(Chars(), ["STOP"])
        assert [text.push(ord(c)) for c in "aSTO"] == ["a", "", "", ""]
        assert text.finish() == "STO"
        assert not text.stopped

    def test_a_token_that_ends_the_text_gives_what_was_held(self) -> None:
        text = TextStream(Chars(), ["STOP"], silent=frozenset({3, 4}), ends=frozenset({4}))
        assert [text.push(token) for token in (ord("a"), ord("S"), 3)] == ["a", "", ""]
        assert not text.stopped
        assert text.push(4) == "S"
        assert text.stopped
        assert text.finish() == ""

    def test_bytes_that_begin_a_character_after_the_stop_string_have_no_text(self) -> None:
        made = KINDS["straddling"]
        pieces, text = pieces_of(made, [made.token_to_id("á"), made.token_to_id("ŀĢá")], ["ក"])
        assert (pieces, text.stopped, text.finish()) == (["", ""], True, "")

    def test_the_earliest_of_several_in_one_token_counts(self) -> None:
        text = TextStream(Chars({1: "one two three"}), ["three", "two"])
        assert text.push(1) == "one "

    def test_an_empty_stop_string_is_none(self) -> None:
        text = TextStream(Chars(), [""])
        assert text.push(97) == "a"
        assert not text.stopped

    @given(st.text("ab", max_size=60), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4))
    def test_nothing_is_held_that_no_stop_string_begins_with(self, text: str, stops: list[str]) -> None:
        stream, shown = TextStream(Chars(), stops), ""
        for count, char in enumerate(text, 1):
            shown += stream.push(ord(char))
            if stream.stopped:
                assert any(text[:count] == shown + stop for stop in stops)
                return
            held = text[len(shown) : count]
            assert text[:count] == shown + held
            assert not held or any(stop.startswith(held) for stop in stops)
            longer = [text[at:count] for at in range(len(shown))]
            assert not any(stop.startswith(part) for part in longer for stop in stops)
