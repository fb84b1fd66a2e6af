"""What tests of text share: texts, any tokenizer's tokens of them and others, and the whole text of any tokens."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as HuggingFaceTokenizer

from edged.engine.detokenizer import TextStream, detokenizers

SEQUENCES = 2400
KOREAN = "안녕하세요, 장치 상태는 정상입니다. 온도 81도 🌡️ 그리고 팬 정지"
KHMER = "ភាសាខ្មែរ៖ ម៉ាស៊ីន​បូម​ទឹក​ត្រូវ​បាន​បិទ​ហើយ សីតុណ្ហភាព ៨១ អង្សា"
EMOJI = "👩‍👩‍👧‍👦 family 👨🏽‍🚀 🏳️‍🌈 flag 🇰🇭🇰🇷 1️⃣ ❤️‍🔥"
ENGLISH = "the pump is off and the fan is on"
TEXTS = (KOREAN, KHMER, EMOJI, ENGLISH, "  a\n\n\tb  ", "naïve façade, Ω ≈ ç", "0x80 <0x80>", "𝔘 𐍈")
BYTE_OF = {f"<0x{byte:02X}>": byte for byte in range(256)}
Text = Callable[[Sequence[int]], str]


def some_text(chance: random.Random) -> str:
    parts = chance.choices(TEXTS, k=chance.randint(1, 3))
    return " ".join(part[(at := chance.randrange(len(part))) : at + chance.randint(1, 12)] for part in parts)


def random_ids(made: HuggingFaceTokenizer, chance: random.Random) -> list[int]:
    return [chance.randrange(made.get_vocab_size()) for _ in range(chance.randint(1, 24))]


def special_of(made: HuggingFaceTokenizer) -> frozenset[int]:
    return frozenset(i for i, token in made.get_added_tokens_decoder().items() if token.special)


def stream_of(made: HuggingFaceTokenizer, stop: Sequence[str] = ()) -> TextStream:
    return TextStream(detokenizers(made)(()), stop, special_of(made))


def pieces_of(made: HuggingFaceTokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    """The pieces of `ids` as the engine takes them: up to a stop string, and what was held at the end."""
    text = stream_of(made, stop)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, text
    pieces.append(text.finish())
    return pieces, text


def one_shot(made: HuggingFaceTokenizer) -> Text:
    """The whole text of any ids, all at once: what the tokenizer's own decoder gives.

    Except with byte fallback, where a byte that is no character makes that decoder spoil all characters beside it: here
    it is U+FFFD alone.
    """
    if made.token_to_id("<0x80>") is None:
        return lambda ids: str(made.decode(list(ids)))
    special, stripped = special_of(made), "Strip" in str(made.decoder)

    def text_of(ids: Sequence[int]) -> str:
        parts, run = [], b""
        for text in [*(made.id_to_token(token) for token in ids if token not in special), ""]:
            if text in BYTE_OF:
                run += bytes([BYTE_OF[text]])
            else:
                parts += [_characters(run), text.replace("▁", " ")]
                run = b""
        return "".join(parts).removeprefix(" ") if stripped else "".join(parts)

    return text_of


def _characters(data: bytes) -> str:
    """The characters in `data`, and U+FFFD for each byte that is of none."""
    if not data:
        return ""
    for length in range(1, 5):
        with contextlib.suppress(UnicodeDecodeError):
            return data[:length].decode() + _characters(data[length:])
    return "\ufffd" + _characters(data[1:])


def check_any_tokens(made: HuggingFaceTokenizer, chance: random.Random) -> None:
    """Pieces join to the whole text: of random ids, of text, and of text with foreign bodies that is cut somewhere."""
    text_of = one_shot(made)
    for n in range(SEQUENCES):
        ids = random_ids(made, chance) if n % 3 == 0 else made.encode(some_text(chance)).ids
        if n % 3 == 1:
            ids[(at := chance.randint(0, len(ids))) : at] = random_ids(made, chance)[:2]
            ids = ids[chance.randint(0, 2) : chance.randint(2, 40)]
        assert "".join(pieces_of(made, ids)[0]) == text_of(ids), ids
        if "\ufffd" not in (decoded := str(made.decode(ids))):
            assert text_of(ids) == decoded, ids


def check_text(made: HuggingFaceTokenizer, chance: random.Random) -> None:
    """Each character of a text leaves with the token that has its last byte, and none is U+FFFD."""
    text_of = one_shot(made)
    for _ in range(SEQUENCES // 3):
        ids, shown, text = made.encode(some_text(chance)).ids, "", stream_of(made)
        for count, token in enumerate(ids, 1):
            shown += text.push(token)
            assert shown == text_of(ids[:count]).rstrip("\ufffd"), ids
        assert text.finish() == ""
        assert "\ufffd" not in shown


def check_continuations(made: HuggingFaceTokenizer, chance: random.Random) -> None:
    """An answer that continues a text is what the text grows by, also where it is cut within a character."""
    text_of, special = one_shot(made), special_of(made)
    for _ in range(SEQUENCES // 3):
        ids = [token for token in made.encode(some_text(chance)).ids if token not in special]
        at = chance.randint(0, len(ids))
        text = detokenizers(made)(ids[max(0, at - 8) : at])
        before = text_of(ids[:at]).rstrip("\ufffd")
        assert before + "".join(map(text.push, ids[at:])) + text.finish() == text_of(ids), (ids, at)
