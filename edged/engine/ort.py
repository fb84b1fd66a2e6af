"""onnxruntime, imported at its first use: runtime.py selects which one after the settings are read."""

from __future__ import annotations

import importlib
from typing import Any

from edged.engine.package import PackageError


class OnnxruntimeError(PackageError):
    """onnxruntime cannot be imported, so no package can be loaded. The message is one line with the remedy."""


def __getattr__(name: str) -> Any:
    return getattr(_module(), name)


def version() -> str | None:
    """The version of onnxruntime, None where it cannot be imported."""
    try:
        return str(_module().__version__)
    except OnnxruntimeError:
        return None


def _module() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            reason = "onnxruntime is not installed: "
        else:
            reason = f"onnxruntime cannot be imported: {' '.join(str(error).split())}; "
        raise OnnxruntimeError(f"{reason}pip install 'edged[cpu]', then restart edged") from None
