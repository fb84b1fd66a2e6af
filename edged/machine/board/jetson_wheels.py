"""Names the onnxruntime that can use the GPU of a Jetson."""

from __future__ import annotations

from pathlib import Path

from edged.machine.board.generic import device_tree

_SET = "lay the wheel into a folder of root's, such as /etc/edged/wheels, and set model.runtime_wheels to that"
_PYPI = "PyPI's onnxruntime-gpu for Arm (1.31.1) has kernels for sm_89, 90, 120 and 121 only"


def is_thor(root: Path) -> bool:
    """Whether the Jetson is a Thor (sm_110); all others that JetPack 6 or 7 runs on are Orins (sm_87)."""
    return "nvidia,tegra264" in (device_tree(root, "compatible") or "")


def cuda_runtime(l4t: str | None, python: tuple[int, int], thor: bool = False) -> str:
    """Advice which onnxruntime can use the GPU of a Jetson with this Linux for Tegra and Python, and where to get it.

    L4T 35 is JetPack 5 (CUDA 11.4), 36.2 and 36.3 are JetPack 6.0 (CUDA 12.2, cuDNN 8), 36.4 and later 6.1 and 6.2
    (CUDA 12.6, cuDNN 9), 38 is JetPack 7.0 and 7.1 for Thor (CUDA 13.0), 39 is 7.2 for Thor and Orin (CUDA 13.2).
    Each index of pypi.jetson-ai-lab.io has kernels for its own GPUs only: jp6 for Orin, sbsa for Thor and its kin.
    """
    if l4t is None:
        return "look up the L4T release in /etc/nv_tegra_release of the Jetson itself: the wheel depends on it"
    release = [int(part) for part in l4t.split(".")[:2]]
    if release < [36]:
        return f"L4T {l4t} has CUDA 11, for which no onnxruntime from 1.23 on is made: install JetPack 6.1 or newer"
    if release < [36, 4]:
        return f"L4T {l4t} is JetPack 6.0: install JetPack 6.1 or newer, for whose CUDA 12.6 NVIDIA has wheels"
    if release < [37]:
        remark = "" if python == (3, 10) else " (they are for Python 3.10, JetPack 6's own)"
        return f"{_fetch('3.10', 'jp6/cu126')}{remark}; {_SET}"
    if thor:
        remark = "" if python == (3, 12) else " (they are for Python 3.12, JetPack 7's own)"
        return f"{_fetch('3.12', 'sbsa/cu130')}{remark}; {_SET}. {_PYPI}: none for a Thor (sm_110)"
    build = "build one with --use_cuda --cmake_extra_defines CMAKE_CUDA_ARCHITECTURES=87, or install JetPack 6.2"
    return f"nobody publishes a wheel for an Orin (sm_87) with JetPack 7: {build}. {_PYPI}; {_SET}"


def _fetch(python: str, index: str) -> str:
    """The command that downloads the wheel, on any machine with a network."""
    options = f"--no-deps --only-binary :all: --python-version {python} --platform linux_aarch64"
    return f"pip download {options} --index-url https://pypi.jetson-ai-lab.io/{index} 'onnxruntime-gpu>=1.23'"
