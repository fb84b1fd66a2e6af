"""The embedded demo: a small model of its own and the broker that `edged demo` starts."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
MODEL_NAME = "edged-demo"
