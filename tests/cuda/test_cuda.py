"""A package for a GPU on a real GPU: it is chosen, planned against the GPU's memory, and answers as the CPU does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
import pytest
from engine_rig import MODELS, ids, load, request, running

from edged.engine.loaded_model import LoadedModel
from edged.engine.session import ModelSession
from edged.machine.gpu import gpu_memory

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="this onnxruntime cannot use a GPU"
)

PACKAGE = MODELS / "llama-cuda"
PROMPT = [1, *range(40, 140)]
TOLERANCE = 0.2
"""Root mean square of the difference, in standard deviations of the logits: accuracy level 4 lets the CPU round
activations to 8 bits where the GPU computes in float16. Of an unrelated answer it would be 1.4."""


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[LoadedModel]:
    loaded = load(PACKAGE)
    yield loaded
    loaded.close()


def last_logits(loaded: LoadedModel, session: ModelSession, chunk: int) -> np.ndarray:
    past, tokens = 0, np.array([PROMPT], np.int64)
    while past < len(PROMPT):
        piece = tokens[:, past : past + chunk]
        logits = session.step(0, piece, [past], past + piece.shape[1]).astype(np.float32)
        past += piece.shape[1]
    return logits[0]


def test_the_gpu_is_chosen_for_a_package_that_was_built_for_it(on_gpu: LoadedModel) -> None:
    assert on_gpu.session.providers[0] == "CUDAExecutionProvider"
    assert on_gpu.session.device == "cuda"
    assert not on_gpu.choice.fell_back
    assert on_gpu.rows == 1


def test_its_logits_are_those_of_the_cpu(on_gpu: LoadedModel) -> None:
    on_cpu = load(PACKAGE, execution_provider=["cpu"], rows=1)
    expected = last_logits(on_cpu, on_cpu.session, len(PROMPT))
    for chunk in (len(PROMPT), 32, 10):
        logits = last_logits(on_gpu, on_gpu.session, chunk)
        distance = np.sqrt(np.mean((logits - expected) ** 2)) / np.std(expected)
        assert distance < TOLERANCE, (chunk, distance)
        print(f"chunks of {chunk}: {distance:.3f} standard deviations from the CPU's logits")
    on_cpu.close()


def test_a_job_is_answered_and_answered_again_the_same(on_gpu: LoadedModel) -> None:
    with running(on_gpu) as rig:
        first, again = (ids(rig.run(request(key, PROMPT, 64))[key]) for key in (1, 2))
    assert len(first) == 64
    assert first == again


def test_memory_is_planned_against_the_gpu_and_not_the_host(on_gpu: LoadedModel) -> None:
    free = gpu_memory()
    assert free is not None, "this GPU shares the host's memory: nothing to tell apart"
    assert on_gpu.plan.available.on_gpu
    assert abs(on_gpu.plan.available.bytes - free.bytes) < 4 << 30  # the session itself is loaded by now
