"""Checks an unpacked onnxruntime in a process of its own: imports it and computes the known answers of a package.

Usage: python -m edged.engine.runtime_check UNPACKED PACKAGE. The last line of its output is a JSON object, whose
`fault` is null or one line.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from edged.engine.known_answers import BUDGET, WrongAnswersError, check_answers, read_known_answers
from edged.engine.package import PackageError, open_package
from edged.engine.providers import CPU
from edged.engine.serving_graph import serving_graph
from edged.engine.session import ModelSession, one_line
from edged.engine.tokenizer import Tokenizer


def _check(unpacked: str, package_folder: str) -> str | None:
    """The fault on one line, None without one."""
    sys.path.insert(0, unpacked)
    try:
        if not Path(importlib.import_module("onnxruntime").__file__ or "").is_relative_to(unpacked):
            return "there is no onnxruntime in it"
        package = open_package(Path(package_folder))
        known = read_known_answers(package)
        assert known is not None
        tokenizer = Tokenizer(package)
        try:
            session = ModelSession(package, (CPU,), threads=1, graph=serving_graph(package))
            check_answers(known, session, tokenizer, BUDGET)
        finally:
            tokenizer.close()
    except WrongAnswersError as error:
        return error.fault  # without the cause: here it is not the package
    except PackageError as error:
        return str(error)
    except BaseException as error:  # a foreign module may raise anything, SystemExit too
        return f"{type(error).__name__}: {one_line(error)}"
    return None


if __name__ == "__main__":
    print("\n" + json.dumps({"fault": _check(*sys.argv[1:])}))
