"""`edged --version`: what runs here."""

from __future__ import annotations

import platform

import onnxruntime
from typer.testing import CliRunner

import edged
from edged.cli.app import command_line


def test_it_is_one_line_with_what_edged_runs_on() -> None:
    said = CliRunner().invoke(command_line(["--version"]), ["--version"])
    runtime = f"onnxruntime {onnxruntime.__version__}"
    assert said.stdout == f"edged {edged.__version__} (Python {platform.python_version()}, {runtime})\n"
    assert said.exit_code == 0
