"""A process of its own that tries an unpacked onnxruntime: imports it and asks it the demo model's known answers.

Its last line says RIGHT, or what is wrong.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from edged.demo import MODEL_FOLDER, MODEL_NAME
from edged.engine.known_answers import BUDGET, check_answers, read_known_answers
from edged.engine.package import PackageError, open_package
from edged.engine.providers import CPU
from edged.engine.runtime import RIGHT
from edged.engine.session import ModelSession, one_line
from edged.engine.tokenizer import Tokenizer


def _ask(folder: str) -> str:
    """What came of it, on one line."""
    sys.path.insert(0, folder)
    try:
        if not Path(importlib.import_module("onnxruntime").__file__ or "").is_relative_to(folder):
            return "there is no onnxruntime in it"
        package = open_package(MODEL_FOLDER, MODEL_NAME)
        known = read_known_answers(package)
        assert known is not None
        tokenizer = Tokenizer(package)
        try:
            check_answers(known, ModelSession(package, (CPU,), threads=1), tokenizer, BUDGET)
        finally:
            tokenizer.close()
    except PackageError as error:
        return str(error).partition("; likely cause")[0]
    except BaseException as error:  # whatever somebody's module comes up with, SystemExit among it
        return f"{type(error).__name__}: {one_line(error)}"
    return RIGHT


if __name__ == "__main__":
    print("\n" + _ask(sys.argv[1]))
