"""Bears one daemon after another, each a fork of this process: most of a start is over before it begins.

Each line STAGE:COUNT:DELAY on standard input is one life (see edged_under_test.py); its process id and then its exit
code go to standard output. Only what starts no thread is imported here, so onnxruntime is not.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import jinja2  # noqa: F401
import numpy  # noqa: F401
import prometheus_client  # noqa: F401
import rich.console  # noqa: F401
import tokenizers  # noqa: F401
import typer  # noqa: F401

import edged.jobs.document
import edged.jobs.spool
import edged.mqtt.link
import edged.settings  # noqa: F401


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            os.environ["CHAOS_KILL"] = line.strip()
            sys.argv[1:] = ["run"]
            runpy.run_path(str(Path(__file__).with_name("edged_under_test.py")), run_name="__main__")
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    assert "onnxruntime" not in sys.modules
    main()
