"""Reads the text files beside a package's tokenizer.json: chat template, special tokens, end of sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.engine.package_files import PackageError, check_size, inside, read_optional_json, short

_MAX_TOKEN_CHARACTERS = 512


@dataclass(frozen=True)
class Added:
    """A token that tokenizer_config.json adds to those of tokenizer.json. Fields as in tokenizers.AddedToken."""

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True)
class TextFiles:
    """What the text files say. All of them may be absent."""

    chat_template: str | None = None
    other_templates: tuple[str, ...] = ()
    """Names of the chat templates that no job takes, such as tool_use; the default one is chat_template."""
    special_tokens: dict[str, str | list[str]] = field(default_factory=dict)
    """Variables of the chat template, such as bos_token."""
    eos_text: str | None = None
    """The text of the end-of-sequence token."""
    eos: frozenset[int] = frozenset()
    """The end-of-sequence ids in generation_config.json."""
    added_tokens: tuple[Added, ...] = ()
    """In the order of their ids."""


def read_texts(folder: Path) -> TextFiles:
    """Read them. Raises PackageError where one of them is broken."""
    config = read_optional_json(folder, "tokenizer_config.json")
    special = _special_tokens(read_optional_json(folder, "special_tokens_map.json")) | _special_tokens(config)
    eos = special.get("eos_token")
    template, others = _chat_templates(folder, config)
    return TextFiles(
        chat_template=template,
        other_templates=others,
        special_tokens=special,
        eos_text=eos if isinstance(eos, str) else None,
        eos=_eos(read_optional_json(folder, "generation_config.json")),
        added_tokens=_added_tokens(config.get("added_tokens_decoder")),
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The variables that transformers gives a chat template: bos_token and its like, and named tokens of the model."""
    special: dict[str, str | list[str]] = {}
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        named = config.get(key)
        if isinstance(named, dict):
            special |= {name: text for name, value in named.items() if (text := _token(value)) is not None}
    for key, value in config.items():
        text = _token(value)
        if key.endswith("_token") and text is not None:
            special[key] = text
        elif key == "additional_special_tokens" and isinstance(value, list):
            special[key] = [text for each in value if (text := _token(each)) is not None]
    return special


def _token(value: object) -> str | None:
    """A token's text, given as such or as an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The chat template, and the names of further ones.

    It is chat_template.jinja, else that of tokenizer_config.json, else that of chat_template.json.
    """
    if (folder / "chat_template.jinja").exists():
        path = inside(folder, "chat_template.jinja")
        check_size(path, path.name)
        try:
            return path.read_text(encoding="utf-8"), ()
        except (UnicodeDecodeError, OSError) as error:
            raise PackageError(f"chat_template.jinja is not readable text: {error}") from None
    template: object = config.get("chat_template")
    if template is None:
        template = read_optional_json(folder, "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        others = tuple(str(name)[:_MAX_TOKEN_CHARACTERS] for name in template if name != "default")
        default = template.get("default")
        return default if isinstance(default, str) else None, others
    return template if isinstance(template, str) else None, ()


def _eos(config: Mapping[str, Any]) -> frozenset[int]:
    value = config.get("eos_token_id")
    tokens = value if isinstance(value, list) else [value]
    return frozenset(token for token in tokens if isinstance(token, int) and not isinstance(token, bool) and token >= 0)


def _added_tokens(entries: object) -> tuple[Added, ...]:
    if not isinstance(entries, dict):
        return ()
    added = []
    for id, entry in entries.items():
        content = _token(entry)
        if (
            not str(id).isdecimal()
            or not isinstance(entry, dict)
            or not content
            or len(content) > _MAX_TOKEN_CHARACTERS
        ):
            raise PackageError(
                f"tokenizer_config.json: added_tokens_decoder must map ids to tokens, has {short(id)}: {short(entry)}"
            )
        flags = {flag: entry.get(flag) is True for flag in ("special", "single_word", "lstrip", "rstrip", "normalized")}
        added.append(Added(int(id), content, **flags))
    return tuple(sorted(added, key=lambda token: token.id))
