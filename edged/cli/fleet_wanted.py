"""The desired document that the options of `edged fleet rollout` describe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edged.cli.common import BadUseError
from edged.models.listing import SourceError
from edged.models.sources import open_source
from edged.rollout.desired import RefusedError, check_desired, read_desired


def wanted_document(
    target: str,
    source: str | None,
    settings: Sequence[str],
    file: Path | None,
    model: Mapping[str, str | None],
    more: Mapping[str, str | None],
) -> Mapping[str, Any] | None:
    """The document that is wanted for `target`, perhaps without a sequence; None: the one that the group has.

    `source`, `settings` (each `name=value`) and `file`: of --model, --set and --document. `model`, `more`: fields of
    the model and of the document. Raises BadUseError.
    """
    _check_options(source, settings, file, model, more)
    if file is not None:
        try:
            return read_desired(file.read_bytes(), target).document
        except OSError as error:
            raise BadUseError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
        except RefusedError as error:
            raise BadUseError(f"{file}: {error}") from None
    if source is None and not settings:
        return None
    document = _described(source, dict(map(_setting, settings)), model, more)
    try:
        check_desired({"sequence": 1, **document}, target)
    except RefusedError as error:
        raise BadUseError(str(error)) from None
    return document


def _check_options(
    source: str | None,
    settings: Sequence[str],
    file: Path | None,
    model: Mapping[str, str | None],
    more: Mapping[str, str | None],
) -> None:
    of_model = [name for name, value in model.items() if value is not None]
    others = [name for name, value in more.items() if value is not None]
    if file is not None and (source is not None or settings):
        raise BadUseError("give --model and --set, or --document, not both")
    if source is None and of_model:
        raise BadUseError(f"--{of_model[0]} goes with --model only")
    if source is None and not settings and others:
        raise BadUseError(f"--{others[0]} goes with --model or --set only")


def _described(
    source: str | None, settings: Mapping[str, Any], model: Mapping[str, str | None], more: Mapping[str, str | None]
) -> dict[str, Any]:
    document: dict[str, Any] = {}
    named = []
    if source is not None:
        digest = model["digest"] or _digest_of(source)
        document["model"] = {"source": source, "digest": digest, **({"name": model["name"]} if model["name"] else {})}
        named.append(f"model-{digest[:12]}")
    if settings:
        document["settings"] = dict(settings)
        text = json.dumps(document["settings"], sort_keys=True)
        named.append(f"settings-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
    given = {name: value for name, value in more.items() if value}
    return {"rollout": "-".join(named), **document, **given}


def _setting(text: str) -> tuple[str, Any]:
    """Name and value of `name=value`; the value is JSON, or text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadUseError(f"--set {text}: it must be NAME=VALUE, such as model.rows=2")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _digest_of(source: str) -> str:
    try:
        listing = open_source(source)
    except SourceError as error:
        raise BadUseError(f"--model {source}: {error}; or give its --digest") from None
    if listing.identity is None:
        raise BadUseError(f"--model {source}: it does not have the SHA-256 of each file; give its --digest")
    return listing.identity
