"""`edged config`: the effective settings and where each came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edged.settings import SettingsError, describe, example_toml, load


def config(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file; else /etc/edged/edged.toml if there is one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print the commented example file.")] = False,
) -> None:
    """Show each setting and where it came from; secrets are masked."""
    if example:
        typer.echo(example_toml(), nl=False)
        return
    try:
        loaded = load(config_file)
    except SettingsError as error:
        typer.echo(f"edged: {error}", err=True)
        raise typer.Exit(78) from None
    rows, overridden = describe(loaded), loaded.overridden
    if loaded.left_out is not None:
        typer.echo(f"edged: what rollouts set is left out: {loaded.left_out}", err=True)
    if as_json:
        found: dict[str, dict[str, Any]] = {
            key: {"value": value, "from": origin, "about": about} for key, value, origin, about in rows
        }
        for key, one in overridden.items():
            found[key]["overrides"] = {"value": one.value, "from": one.origin}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max(len(key) for key, *_ in rows)
    for key, value, origin, _ in rows:  # whole lines at any width, as grep and a person want them
        shown = value if isinstance(value, str) else json.dumps(value)
        if key in overridden:
            origin += f", overrides {json.dumps(overridden[key].value)} from {overridden[key].origin}"
        typer.echo(f"{key:<{width}} " + ("is not set" if value is None else f"= {shown} (from {origin})"))
