"""Chooses the execution providers that run the model, by board, onnxruntime and package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edged.machine.board import Board

MadeFor = Literal["cpu", "cuda"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

_INSTALL = "set model.runtime_wheels (edged doctor says how), or pip install edged[cuda] in place of edged[cpu]"
_NO_CUDA = f"this onnxruntime has no CUDA: {_INSTALL}"

# Rules for "auto". A package made for CPU (int4 with fp32 activations) is slow on CUDA or fails there.
# board, package made for, CUDA offered (None: either) -> providers, whether that is a fallback, reason
_ANY = None
_RULES: tuple[tuple[str, MadeFor, bool | None, tuple[str, ...], bool, str], ...] = (
    ("raspberry_pi", "cpu", _ANY, (CPU,), False, "a Raspberry Pi computes on its CPU"),
    ("raspberry_pi", "cuda", _ANY, (CPU,), True, "a Raspberry Pi has no CUDA: take the cpu package"),
    ("jetson", "cuda", True, (CUDA, CPU), False, "a Jetson computes on CUDA"),
    ("jetson", "cuda", False, (CPU,), True, _NO_CUDA),
    ("jetson", "cpu", True, (CPU,), True, "the package was made for CPU (int4, fp32): take the cuda package"),
    ("jetson", "cpu", False, (CPU,), True, f"{_NO_CUDA}, and take the cuda package"),
    ("generic", "cuda", True, (CUDA, CPU), False, "the package was made for CUDA, which is here"),
    ("generic", "cuda", False, (CPU,), True, _NO_CUDA),
    ("generic", "cpu", _ANY, (CPU,), False, "the package was made for CPU"),
)


class ProviderError(Exception):
    """The configured providers are not available; the message is one line."""


@dataclass(frozen=True)
class ProviderChoice:
    """onnxruntime's names of the providers to use, in order of preference, and the reason."""

    providers: tuple[str, ...]
    reason: str
    fell_back: bool

    @property
    def on_device(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.providers[0] != CPU


def choose_provider(
    setting: Literal["auto"] | Sequence[str], board: Board, offered: Iterable[str], made_for: MadeFor
) -> ProviderChoice:
    """The providers for a session.

    ``setting``: model.execution_provider. ``offered``: onnxruntime.get_available_providers(), which lists the
    providers of this build, not those that work here; confirm_providers() checks that for a session. A list is used
    unchanged; onnxruntime appends the CPU for operators that the others lack. Raises ProviderError for a provider
    that this onnxruntime does not offer.
    """
    offered = set(offered)
    if setting != "auto":
        for name in setting:
            if _NAMES[name] not in offered:
                here = ", ".join(short for short, full in _NAMES.items() if full in offered) or "none of ours"
                raise ProviderError(
                    f"model.execution_provider names {name}, which this onnxruntime does not offer "
                    f"(it offers {here}): " + (_INSTALL if name != "cpu" else "install it anew")
                )
        return ProviderChoice(tuple(_NAMES[name] for name in setting), "set by model.execution_provider", False)
    for kind, package, cuda, providers, fell_back, reason in _RULES:
        if (kind, package) == (board.kind, made_for) and cuda in (_ANY, CUDA in offered):
            return ProviderChoice(providers, reason, fell_back)
    raise AssertionError(f"no rule for {board.kind}, {made_for}")


def confirm_providers(
    choice: ProviderChoice, setting: Literal["auto"] | Sequence[str], running: Sequence[str]
) -> ProviderChoice:
    """The choice with the providers that a session actually uses; ``running``: session.get_providers().

    If CUDA's libraries or the GPU are missing, onnxruntime only logs it and uses the CPU (microsoft/onnxruntime
    issues 17801, 23372). With ``auto`` that is a fallback, with a list a ProviderError.
    """
    missing = [name for name in choice.providers if name not in running]
    if not missing:
        return choice
    short = ", ".join(name.removesuffix("ExecutionProvider") for name in missing)
    reason = f"onnxruntime could not start {short} here: see its log for the library or the GPU that is missing"
    if setting != "auto":
        raise ProviderError(f"model.execution_provider: {reason}")
    return ProviderChoice(tuple(running), reason, True)


def made_for(provider_options: Iterable[Mapping[str, Any]]) -> MadeFor:
    """The device that a package was made for, from session_options.provider_options of its genai_config.json."""
    names = {name.lower() for entry in provider_options for name in entry}
    return "cuda" if names & {"cuda", "nvtensorrtrtx", "tensorrt"} else "cpu"
