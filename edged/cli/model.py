"""`edged model`: what can be done with a model package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edged import logs
from edged.cli.common import FAILED, ConfigOption, JsonOption, end, settings_or_exit
from edged.demo import MODEL_FOLDER, MODEL_NAME
from edged.engine.package import PackageError
from edged.engine.serving import bring_up
from edged.health.board import detect
from edged.health.memory import available
from edged.models.record import record as make_known_answers
from edged.models.verify import FILE, read_known_answers

app = typer.Typer(name="model", help="Check model packages.", no_args_is_help=True)


@app.command()
def verify(
    model: Annotated[
        Path | None, typer.Option("--model", help="The model package's folder; else the setting model.path.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="First make its known answers anew; the package must be right.")
    ] = False,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Check that a package answers as recorded; exit code 1 where it does not, or where nothing is recorded."""
    settings = settings_or_exit(config, model={"path": model, "rows": 1})
    logs.configure("error", "auto")
    path, name = (settings.model.path, None) if settings.model.path else (MODEL_FOLDER, MODEL_NAME)
    try:
        if record:
            make_known_answers(settings, detect(), available, path, name)
        serving = bring_up(settings, detect(), available, path, name)
        serving.close()
        known = read_known_answers(serving.package)
    except PackageError as error:
        end(FAILED, str(error))
    verified = serving.verified
    if verified is None or known is None:
        end(FAILED, f"{path} has no {FILE}: --record makes it, once, where the package is known to be right")
    if json_:
        document = {
            "model": serving.package.name,
            "verified": True,
            "tokens": verified.tokens,
            "compared": verified.compared,
            "seconds": round(verified.seconds, 3),
            "load_seconds": round(serving.load_seconds, 3),
            "recorded_with": known.recorded_with.model_dump(),
        }
        typer.echo(json.dumps(document))
        return
    made = known.recorded_with
    genai = f", checked against onnxruntime-genai {made.onnxruntime_genai}" if made.onnxruntime_genai else ""
    typer.echo(
        f"{serving.package.name} answers as recorded: {verified.compared} tokens compared, {verified.tokens} computed "
        f"in {verified.seconds:.2f} s of {serving.load_seconds:.2f} s to load"
    )
    typer.echo(f"recorded with edged {made.edged}, onnxruntime {made.onnxruntime}{genai}")
