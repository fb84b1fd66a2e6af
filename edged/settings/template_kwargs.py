"""Which variables of a chat template `chat_template_kwargs` may give, in a job and in the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_KWARGS = 64
_MAX_JSON = 65_536
"""Characters of JSON that the settings' variables may have. Those of a job are part of its document."""
ALLOWED = f'an object of up to {MAX_KWARGS} variables of the chat template, such as {{"enable_thinking": false}}'
RESERVED = frozenset(
    # what transformers' apply_chat_template takes or gives the template
    "messages conversation tools documents add_generation_prompt continue_final_message chat_template tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs processor_kwargs "
    "bos_token eos_token unk_token sep_token pad_token cls_token mask_token additional_special_tokens "
    # functions and names of jinja2's and of the template's environment
    "raise_exception strftime_now dict namespace range lipsum cycler joiner loop self super caller varargs kwargs "
    "true false none True False None".split()
)
"""Names that edged or transformers gives a template itself."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def refusal(kwargs: Mapping[str, Any]) -> str | None:
    """Why these variables may not be given, as what follows their field's name; None where they may."""
    if len(kwargs) > MAX_KWARGS:
        return f"must be {ALLOWED}, has {len(kwargs)}"
    for name in kwargs:
        if not _NAME.fullmatch(name):
            return "must have names of 1 to 64 letters, digits and underscores that begin with a letter"
        if name in RESERVED:
            return f"must not have {name}, which edged gives the chat template itself"
    return None


def checked(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The variables of the settings. Raises ValueError where they may not be given, or are not JSON (a TOML date)."""
    wrong = refusal(kwargs)
    if wrong is not None:
        raise ValueError(wrong)
    try:
        size = len(json.dumps(kwargs, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must have values of JSON: text, numbers, true, false, lists and objects") from None
    if size > _MAX_JSON:
        raise ValueError(f"must have at most {_MAX_JSON} characters of JSON, has {size}")
    return kwargs
