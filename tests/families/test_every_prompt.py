"""Every prompt of every family, in each way that a job can run: the ids are onnxruntime-genai's (make families)."""

from __future__ import annotations

import pytest
from family_rig import FAMILIES, MODES, check, oracle


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_the_oracles(name: str, mode: str) -> None:
    answers = oracle(name)
    assert len(answers) >= 50
    assert all(len(one.output) == 128 for one in answers)
    check(name, mode, answers)
