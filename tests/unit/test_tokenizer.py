"""Text in: prompts as they are, and what an answer to them begins with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from engine_rig import MODELS, copy_package
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, normalizers

from edged.engine.package import open_package
from edged.engine.tokenizer import PromptError, Tokenizer

KOREAN = "안녕하세요, 장치 상태는 정상입니다. 온도 81도 🌡️ 그리고 팬 정지"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = Tokenizer(open_package(MODELS / "phi3"))
    yield made
    made.close()


def byte_level() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_file(str(MODELS / "phi3" / "tokenizer.json"))


def with_bos(package: Path) -> Path:
    """The package with a tokenizer that puts <s> before every prompt."""
    content = json.loads((package / "tokenizer.json").read_text())
    content["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    content["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    (package / "tokenizer.json").write_text(json.dumps(content))
    return package


class TestStopStrings:
    def test_a_special_tokens_text_stops_at_that_token(self, tokenizer: Tokenizer) -> None:
        text = tokenizer.stream(["<|user|>", "lo!"])
        hello = tokenizer.encode_text("hello")
        assert "".join(text.push(token) for token in hello) == "hel"
        assert text.push(4) == "lo"  # held, as it might have been the beginning of "lo!"
        assert text.stopped
        assert text.finish() == ""


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
        made = byte_level()
        assert made.decode(made.encode(text).ids) == re.sub(r"</?s>|<unk>|<\|(end|user|assistant|system)\|>", "", text)

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
