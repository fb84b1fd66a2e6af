"""The commands, each thin: it reads its arguments, calls the room that does the work, and prints."""

from __future__ import annotations

import typer

from edged.cli import answers, bench, config, demo, doctor, forget, model, run, submit

app = typer.Typer(
    name="edged",
    help="A dependable worker for small language models on a board, fed over MQTT.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.run)
app.command()(demo.demo)
app.command()(answers.generate)
app.command()(submit.submit)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.command()(forget.forget)
app.command()(config.config)
app.add_typer(model.app)
