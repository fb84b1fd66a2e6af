"""Runs in a process of its own and does what a command over MQTT asks for (edged/commands/worker.py).

The first line on stdin is the order: `{"command", "fields", "settings"}`. When stdin ends, the daemon is gone, and so
is this process. Writes one JSON document to stdout: `{"result"}`, or `{"failed"}` with the reason.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from edged import logs
from edged.cli.bench import figures_of
from edged.cli.common import BadUseError
from edged.cli.doctor import examine
from edged.cli.forget import EraseError, erase
from edged.engine.bench import BenchError
from edged.engine.package import PackageError
from edged.engine.package_memory import TooLargeError
from edged.machine.board import detect
from edged.settings import Settings

PROMPT_TOKENS, ANSWER_TOKENS = 128, 32
"""As `edged bench` measures where nothing else is asked."""


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    logs.configure("error", "json")
    said: dict[str, Any]
    try:
        said = {"result": _COMMANDS[order["command"]](Settings.model_validate(order["settings"]), order["fields"])}
    except (BadUseError, TooLargeError, PackageError, BenchError, EraseError) as error:
        said = {"failed": str(error)}
    except Exception as error:
        said = {"failed": f"a fault of edged's own: {type(error).__name__}: {error}"}
    print(json.dumps(said), file=out)
    out.close()


def _doctor(settings: Settings, _fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"findings": [asdict(finding) for finding in examine(settings, detect())]}


def _bench(settings: Settings, fields: Mapping[str, Any]) -> dict[str, Any]:
    return figures_of(settings, [fields["rows"]], PROMPT_TOKENS, ANSWER_TOKENS)


def _forget(settings: Settings, fields: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(erase(settings, fields["job"]))


_COMMANDS: dict[str, Callable[[Settings, Mapping[str, Any]], dict[str, Any]]] = {
    "bench": _bench,
    "doctor": _doctor,
    "forget": _forget,
}


def _end_with_the_daemon() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
