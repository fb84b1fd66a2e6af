"""onnxruntime, imported where it is first used: which one, is decided once the settings are known (wheels.py)."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("onnxruntime"), name)
