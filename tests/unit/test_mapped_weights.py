"""Weights that onnxruntime leaves mapped: what the card loses after the load reaches no answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_rig import MODELS, copy_package, load
from numpy.typing import NDArray

from edged.engine.loaded_model import LoadedModel
from edged.engine.manifest import make_manifest, write_manifest

CHUNK = 64


def answers(loaded: LoadedModel) -> list[NDArray[np.floating]]:
    """Logits after prompts with every token of the vocabulary, and after a token more."""
    ids = np.arange(loaded.package.vocabulary, dtype=np.int64)
    prompts = [ids[None, start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    made = [loaded.session.step(0, prompt, [0], prompt.size).copy() for prompt in prompts]
    return [*made, loaded.session.step(0, ids[None, :1], [prompts[-1].size], prompts[-1].size + 1).copy()]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir() if path.is_dir()))
def test_what_the_file_loses_after_the_load_reaches_no_answer(name: str, tmp_path: Path) -> None:
    package = copy_package(name, tmp_path)
    write_manifest(package, make_manifest(package))
    loaded = load(package, rows=1)
    before, weights = answers(loaded), package / "model.onnx.data"
    content = np.frombuffer(weights.read_bytes(), np.uint8)
    with weights.open("r+b") as file:  # the same file: what is mapped of it changes
        file.write((content ^ 16).tobytes())
    assert all(np.array_equal(*pair) for pair in zip(answers(loaded), before, strict=True))
    loaded.release()
