"""Text in and out: prompts as they are, whole characters while streaming, nothing of a stop string."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_rig import MODELS, copy_package
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from edged.engine.package import open_package
from edged.engine.tokenizer import PromptError, TextStream, Tokenizer

KOREAN = "안녕하세요, 장치 상태는 정상입니다. 온도 81도 🌡️ 그리고 팬 정지"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = Tokenizer(open_package(MODELS / "phi3"))
    yield made
    made.close()


def byte_level() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_file(str(MODELS / "phi3" / "tokenizer.json"))


def metaspace() -> HuggingFaceTokenizer:
    """As T5 and older Gemma: words marked by ▁, the first one's space taken away again."""
    made = HuggingFaceTokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False)
    made.train_from_iterator(["the pump is off and the fan is on", KOREAN] * 4, trainer)
    return made


def llama() -> HuggingFaceTokenizer:
    """As Llama 2 and Phi-3: ▁ for spaces, and a token for each byte where a character has none."""
    words = ["▁", "▁the", "▁pump", "s", "▁is", "off", ".", "안", "▁상태", " "]
    vocabulary = {text: number for number, text in enumerate(["<unk>", "</s>", *BYTES, *words])}
    made = HuggingFaceTokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(["</s>"])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


KINDS = {"byte-level": byte_level(), "metaspace": metaspace(), "llama": llama()}


def stream(made: HuggingFaceTokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    """The pieces of `ids` as the engine takes them: up to a stop string, and what was held at the end."""
    special = frozenset(i for i, token in made.get_added_tokens_decoder().items() if token.special)
    text = TextStream(lambda some: str(made.decode(list(some), skip_special_tokens=True)), stop, special)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, text
    pieces.append(text.finish())
    return pieces, text


def whole(made: HuggingFaceTokenizer, ids: Sequence[int]) -> str:
    return str(made.decode(list(ids), skip_special_tokens=True))


def tokens_of(kind: str, most: int = 40) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, KINDS[kind].get_vocab_size() - 1), max_size=most)


def llama_ids(text: str) -> list[int]:
    """`text` with a byte token for every byte that has no word."""
    return [2 + byte for byte in text.encode()]


class TestStreaming:
    @given(tokens_of("byte-level"))
    def test_byte_level_pieces_join_to_the_text_of_any_ids(self, ids: list[int]) -> None:
        assert "".join(stream(KINDS["byte-level"], ids)[0]) == whole(KINDS["byte-level"], ids)

    @given(st.lists(st.integers(130, 260), max_size=60))
    def test_byte_level_pieces_join_where_most_bytes_are_no_characters(self, ids: list[int]) -> None:
        assert "".join(stream(KINDS["byte-level"], ids)[0]) == whole(KINDS["byte-level"], ids)

    @given(tokens_of("metaspace"))
    def test_metaspace_pieces_join_to_the_text_of_any_ids(self, ids: list[int]) -> None:
        assert "".join(stream(KINDS["metaspace"], ids)[0]) == whole(KINDS["metaspace"], ids)

    @given(
        st.lists(st.sampled_from(["▁the", "▁", "안", "▁상태", "s", "</s>", *[f"\0{c}" for c in "é한🌡"]]), max_size=20)
    )
    def test_byte_fallback_pieces_join_to_the_text_where_the_bytes_are_characters(self, parts: list[str]) -> None:
        made = KINDS["llama"]
        ids = [i for part in parts for i in (llama_ids(part[1:]) if part[0] == "\0" else [made.token_to_id(part)])]
        assert "".join(stream(made, ids)[0]) == whole(made, ids)

    @given(tokens_of("llama"))
    def test_byte_fallback_never_loses_a_character_to_a_wrong_byte(self, ids: list[int]) -> None:
        """There decode() takes back the whole run of bytes; the stream cannot, and does not wish to."""
        made = KINDS["llama"]
        shown, decoded = "".join(stream(made, ids)[0]), whole(made, ids)
        if "\ufffd" not in decoded:
            assert shown == decoded
        kept = [re.escape(part) for part in re.split("\ufffd+", decoded)]
        assert re.fullmatch("(?s:.*)".join(kept), shown)

    def test_byte_fallback_keeps_the_characters_before_a_wrong_byte(self) -> None:
        ids = [*llama_ids("한글"), 2 + 0x80, KINDS["llama"].token_to_id("▁the")]
        assert "".join(stream(KINDS["llama"], ids)[0]) == "한글\ufffd the"

    @pytest.mark.parametrize("kind", ["byte-level", "llama"])
    def test_no_piece_has_half_a_character(self, kind: str) -> None:
        ids = llama_ids(KOREAN) if kind == "llama" else KINDS[kind].encode(KOREAN).ids
        assert len(ids) > len(KOREAN)
        pieces = stream(KINDS[kind], ids)[0]
        assert "".join(pieces) == KOREAN
        assert not any("\ufffd" in piece for piece in pieces)

    def test_a_character_comes_with_its_last_token(self) -> None:
        ids = KINDS["byte-level"].encode("안").ids
        assert stream(KINDS["byte-level"], ids)[0] == [""] * (len(ids) - 1) + ["안", ""]

    def test_an_answer_cut_in_the_middle_of_a_character_ends_with_the_replacement_character(self) -> None:
        ids = KINDS["byte-level"].encode("a안").ids
        assert "".join(stream(KINDS["byte-level"], ids[:-1])[0]) == "a\ufffd"

    @pytest.mark.parametrize("kind", ["byte-level", "llama"])
    def test_bytes_that_are_no_characters_do_not_pile_up(self, kind: str) -> None:
        """A model that babbles bytes must not make every next token dearer."""
        made = KINDS[kind]
        token = made.token_to_id("<0x80>") if kind == "llama" else made.token_to_id("Ģ")
        longest = 0

        def decode(ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return str(made.decode(list(ids)))

        text = TextStream(decode)
        shown = "".join(text.push(token) for _ in range(300)) + text.finish()
        assert (shown, longest) == ("\ufffd" * 300, 4)

    def test_silent_tokens_do_not_pile_up(self) -> None:
        calls: list[int] = []
        text = TextStream(lambda ids: calls.append(len(ids)) or "x" * len(ids), silent=frozenset({3}))  # type: ignore[func-returns-value]
        assert [text.push(token) for token in (3, 3, 5, 3)] == ["", "", "x", ""]
        assert max(calls) == 1


class TestStopStrings:
    @given(
        tokens_of("byte-level", 25),
        st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=3),
    )
    def test_pieces_join_to_the_text_before_the_stop_string_that_came_first(
        self, ids: list[int], places: list[tuple[int, int]]
    ) -> None:
        made = KINDS["byte-level"]
        text = whole(made, ids)
        stops = [text[at : at + length] for at, length in places if text[at : at + length]] or ["nowhere"]
        pieces, state = stream(made, ids, stops)
        shown = "".join(pieces)
        assert not any(stop in shown for stop in stops)
        if state.stopped:
            assert any(text.startswith(shown + stop) for stop in stops)
        else:
            assert shown == text

    def test_text_that_may_begin_a_stop_string_is_held_until_it_does_not(self) -> None:
        text = TextStream(lambda ids: "".join(map(chr, ids)), ["STOP"])
        assert [text.push(ord(c)) for c in "aSTxSTSTOP"] == ["a", "", "", "STx", "", "", "ST", "", "", ""]
        assert text.stopped
        assert text.finish() == ""

    def test_what_was_held_comes_at_the_end(self) -> None:
        text = TextStream(lambda ids: "".join(map(chr, ids)), ["STOP"])
        assert [text.push(ord(c)) for c in "aSTO"] == ["a", "", "", ""]
        assert text.finish() == "STO"
        assert not text.stopped

    def test_the_earliest_of_several_in_one_token_counts(self) -> None:
        text = TextStream(lambda ids: "one two three" * len(ids), ["three", "two"])
        assert text.push(1) == "one "

    def test_a_special_tokens_text_stops_at_that_token(self, tokenizer: Tokenizer) -> None:
        text = tokenizer.stream(["<|user|>", "lo!"])
        hello = tokenizer.encode_text("hello")
        assert "".join(text.push(token) for token in hello) == "hel"
        assert text.push(4) == "lo"  # held, as it might have been the beginning of "lo!"
        assert text.stopped
        assert text.finish() == ""

    def test_an_empty_stop_string_is_none(self) -> None:
        text = TextStream(lambda ids: "".join(map(chr, ids)), [""])
        assert text.push(97) == "a"
        assert not text.stopped


def with_bos(package: Path) -> Path:
    """The package with a tokenizer that puts <s> before every prompt."""
    content = json.loads((package / "tokenizer.json").read_text())
    content["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    content["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    (package / "tokenizer.json").write_text(json.dumps(content))
    return package


class TestPrompts:
    def test_messages_get_no_special_tokens_but_the_templates(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode_messages([{"role": "user", "content": "hello"}])
        text = "<|user|>\nhello<|end|>\n<|assistant|>\n"
        assert ids == byte_level().encode(text, add_special_tokens=False).ids
        assert ids[0] == 4  # <|user|> as the one token that it is

    def test_a_prompt_gets_the_tokenizers_own_special_tokens(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer(open_package(with_bos(copy_package("phi3", tmp_path))))
        assert tokenizer.encode_text("x") == [1, 94]
        assert 1 not in tokenizer.encode_messages([{"role": "user", "content": "x"}])
        tokenizer.close()

    def test_a_beginning_of_sequence_token_in_a_prompt_is_not_doubled(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer(open_package(with_bos(copy_package("phi3", tmp_path))))
        assert tokenizer.encode_text("x") == [1, 94]
        assert tokenizer.encode_text("<s>x") == [1, 94]
        assert tokenizer.encode_text("<s><s>x") == [1, 1, 94]
        assert tokenizer.encode_text("x<s>") == [1, 94, 1]
        tokenizer.close()

    def test_truncation_and_padding_left_in_the_file_change_no_prompt(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        made = byte_level()
        made.enable_truncation(4)
        made.enable_padding(length=4)
        made.save(str(package / "tokenizer.json"))
        tokenizer = Tokenizer(open_package(package))
        assert tokenizer.encode_text(KOREAN) == byte_level().encode(KOREAN).ids
        assert tokenizer.encode_text("x") == [94]
        tokenizer.close()

    def test_a_continuation_keeps_its_leading_space(self, tmp_path: Path) -> None:
        """Decoders of Llama's kind take the space off the first word."""
        package = copy_package("phi3", tmp_path)
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁b"]
        made = HuggingFaceTokenizer(
            models.BPE(
                {piece: at for at, piece in enumerate(pieces)}, [("▁", "b")], unk_token="<unk>", byte_fallback=True
            )
        )
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        made.save(str(package / "tokenizer.json"))
        tokenizer = Tokenizer(open_package(package))
        prompt, answer = tokenizer.encode_text("a"), tokenizer.encode_text("b b")
        for continued, expected in ((prompt, " b b"), ((), "b b")):
            text = tokenizer.stream(continued=continued)
            assert "".join(map(text.push, answer)) + text.finish() == expected
        tokenizer.close()

    @given(st.text(min_size=1, max_size=40))
    def test_any_text_comes_back_as_it_went_in(self, text: str) -> None:
        made = KINDS["byte-level"]
        assert whole(made, made.encode(text).ids) == re.sub(r"</?s>|<unk>|<\|(end|user|assistant|system)\|>", "", text)

    @pytest.mark.parametrize("text", ["half \ud83c", "\udf21 half"])
    def test_half_a_surrogate_pair_is_refused(self, tokenizer: Tokenizer, text: str) -> None:
        with pytest.raises(PromptError, match="surrogate"):
            tokenizer.encode_text(text)

    def test_an_empty_prompt_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(PromptError, match="at least one"):
            tokenizer.encode_text("")
        with pytest.raises(PromptError, match="at least one"):
            tokenizer.check_ids([])

    @pytest.mark.parametrize("token", [-1, 1000, 2**70])
    def test_ids_beyond_the_vocabulary_are_refused(self, tokenizer: Tokenizer, token: int) -> None:
        with pytest.raises(PromptError, match=f"token id {token} is not in the model's vocabulary of 1000"):
            tokenizer.check_ids([5, token])

    def test_a_token_of_the_tokenizer_that_the_model_lacks_is_refused(self, tmp_path: Path) -> None:
        """An id may lie far beyond the number of tokens; given to the model it would fail the step for all its rows."""
        package = copy_package("phi3", tmp_path)
        content = json.loads((package / "tokenizer.json").read_text())
        content["model"]["vocab"]["Ġexecution"] = 5000
        (package / "tokenizer.json").write_text(json.dumps(content))
        tokenizer = Tokenizer(open_package(package))
        with pytest.raises(PromptError, match="token id 5000 is not in the model's vocabulary"):
            tokenizer.encode_text(" execution")
        tokenizer.close()

    def test_messages_without_a_template_are_refused(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        (package / "chat_template.jinja").unlink()
        with pytest.raises(PromptError, match="send prompt in place of messages"):
            Tokenizer(open_package(package)).encode_messages([{"role": "user", "content": "x"}])
