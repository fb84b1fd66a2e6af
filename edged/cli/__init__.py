"""The commands, each thin: it reads its arguments, calls the room that does the work, and prints."""

from __future__ import annotations

import sys

import typer

from edged.cli import answers, bench, config, demo, doctor, forget, model, run, submit
from edged.cli.common import BadUseError

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


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad use, 78 settings that only a person can mend."""
    try:
        app()
    except BadUseError as error:
        print(f"edged: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
