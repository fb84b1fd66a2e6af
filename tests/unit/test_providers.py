"""Execution providers: the choice for each board, and what happens when onnxruntime cannot do it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from edged.engine.providers import (
    CPU,
    CUDA,
    TENSORRT,
    ProviderChoice,
    ProviderError,
    choose_provider,
    confirm_providers,
    made_for,
)
from edged.machine.board import Board, detect

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
CPU_WHEEL = ["AzureExecutionProvider", CPU]
GPU_WHEEL = [TENSORRT, CUDA, CPU]


def board(name: str) -> Board:
    return detect(BOARDS / name)


@pytest.mark.parametrize("offered", [CPU_WHEEL, GPU_WHEEL])
@pytest.mark.parametrize("name", ["pi4", "pi5"])
def test_a_raspberry_pi_takes_the_cpu(name: str, offered: list[str]) -> None:
    choice = choose_provider("auto", board(name), offered, "cpu")
    assert (choice.providers, choice.fell_back) == ((CPU,), False)


def test_a_cuda_package_on_a_raspberry_pi_falls_back_and_says_which_package_to_take() -> None:
    choice = choose_provider("auto", board("pi5"), CPU_WHEEL, "cuda")
    assert (choice.providers, choice.fell_back) == ((CPU,), True)
    assert "take the cpu package" in choice.reason


@pytest.mark.parametrize("name", ["jetson-orin", "pc"])
def test_cuda_comes_before_the_cpu_where_package_and_runtime_have_it(name: str) -> None:
    choice = choose_provider("auto", board(name), GPU_WHEEL, "cuda")
    assert (choice.providers, choice.fell_back) == ((CUDA, CPU), False)


@pytest.mark.parametrize("name", ["jetson-orin", "pc"])
def test_a_cuda_package_without_a_cuda_runtime_falls_back_and_says_what_to_install(name: str) -> None:
    choice = choose_provider("auto", board(name), CPU_WHEEL, "cuda")
    assert (choice.providers, choice.fell_back) == ((CPU,), True)
    assert "pip install edged[cuda]" in choice.reason


def test_a_cpu_package_on_a_jetson_falls_back_and_says_which_package_to_take() -> None:
    choice = choose_provider("auto", board("jetson-orin"), GPU_WHEEL, "cpu")
    assert (choice.providers, choice.fell_back) == ((CPU,), True)
    assert choice.reason == "the package was made for CPU (int4, fp32): take the cuda package"


def test_a_jetson_that_lacks_both_is_told_both() -> None:
    choice = choose_provider("auto", board("jetson-orin"), CPU_WHEEL, "cpu")
    assert choice.fell_back
    assert "pip install edged[cuda]" in choice.reason
    assert "take the cuda package" in choice.reason


@pytest.mark.parametrize("offered", [CPU_WHEEL, GPU_WHEEL])
def test_a_cpu_package_on_a_pc_runs_on_the_cpu_as_meant(offered: list[str]) -> None:
    choice = choose_provider("auto", board("pc"), offered, "cpu")
    assert (choice.providers, choice.fell_back) == ((CPU,), False)


@pytest.mark.parametrize("name", ["pi4", "pi5", "jetson-orin", "pc"])
@pytest.mark.parametrize("package", ["cpu", "cuda"])
@pytest.mark.parametrize("offered", [CPU_WHEEL, GPU_WHEEL, []])
def test_auto_always_ends_with_the_cpu_and_gives_a_reason(
    name: str, package: Literal["cpu", "cuda"], offered: list[str]
) -> None:
    choice = choose_provider("auto", board(name), offered, package)
    assert choice.providers[-1] == CPU
    assert choice.reason
    assert set(choice.providers) <= {*offered, CPU}


@pytest.mark.parametrize(
    ("setting", "providers"),
    [(["cpu"], (CPU,)), (["cuda"], (CUDA,)), (["tensorrt", "cuda", "cpu"], (TENSORRT, CUDA, CPU))],
)
def test_a_list_is_taken_as_it_stands_whatever_board_and_package(
    setting: list[str], providers: tuple[str, ...]
) -> None:
    choice = choose_provider(setting, board("jetson-orin"), GPU_WHEEL, "cpu")
    assert (choice.providers, choice.fell_back) == (providers, False)


@pytest.mark.parametrize("missing", ["cuda", "tensorrt"])
def test_a_list_with_what_this_runtime_lacks_is_an_error_of_one_line(missing: str) -> None:
    with pytest.raises(ProviderError) as caught:
        choose_provider([missing, "cpu"], board("jetson-orin"), CPU_WHEEL, "cuda")
    assert str(caught.value) == (
        f"model.execution_provider names {missing}, which this onnxruntime does not offer (it offers cpu): "
        "set model.runtime_wheels (edged doctor says how), or pip install edged[cuda] in place of edged[cpu]"
    )


class TestSettle:
    CHOICE = ProviderChoice((CUDA, CPU), "a Jetson computes on CUDA", False)

    def test_what_runs_as_chosen_stays(self) -> None:
        assert confirm_providers(self.CHOICE, "auto", [CUDA, CPU]) is self.CHOICE

    def test_the_cpu_that_onnxruntime_adds_by_itself_is_no_deviation(self) -> None:
        choice = ProviderChoice((CUDA,), "set by model.execution_provider", False)
        assert confirm_providers(choice, ["cuda"], [CUDA, CPU]) is choice

    def test_cuda_that_did_not_start_is_a_fallback_under_auto(self) -> None:
        settled = confirm_providers(self.CHOICE, "auto", [CPU])
        assert (settled.providers, settled.fell_back) == ((CPU,), True)
        assert "could not start CUDA" in settled.reason

    def test_cuda_that_did_not_start_is_an_error_under_a_list(self) -> None:
        with pytest.raises(ProviderError, match="could not start CUDA"):
            confirm_providers(self.CHOICE, ["cuda", "cpu"], [CPU])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "cpu"),
        ([{"cpu": {}}], "cpu"),
        ([{"cuda": {"enable_cuda_graph": "0"}}], "cuda"),
        ([{"CUDA": {}}], "cuda"),
    ],
)
def test_what_a_package_was_made_for_stands_in_its_provider_options(
    options: list[dict[str, object]], expected: str
) -> None:
    assert made_for(options) == expected
