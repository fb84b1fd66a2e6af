"""Names the onnxruntime that can use the GPU of a Jetson."""

from __future__ import annotations


def cuda_runtime(l4t: str | None, python: tuple[int, int]) -> str:
    """Advice which onnxruntime can use the GPU of a Jetson with this Linux for Tegra and Python, and where to get it.

    L4T 35 is JetPack 5 (CUDA 11.4), 36.2 and 36.3 are JetPack 6.0 (CUDA 12.2, cuDNN 8), 36.4 and later 6.1 and 6.2
    (CUDA 12.6, cuDNN 9), 38 and later JetPack 7 (CUDA 13). PyPI's wheels for Arm begin with 1.29, for CUDA 13.
    """
    if l4t is None:
        return "look up the L4T release in /etc/nv_tegra_release of the Jetson itself: the wheel depends on it"
    release = [int(part) for part in l4t.split(".")[:2]]
    if release < [36]:
        return f"L4T {l4t} has CUDA 11, for which no onnxruntime from 1.23 on is made: install JetPack 6.1 or newer"
    if release < [36, 4]:
        return f"L4T {l4t} is JetPack 6.0: install JetPack 6.1 or newer, for whose CUDA 12.6 NVIDIA has wheels"
    if release < [37]:
        index = " --platform linux_aarch64 --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"
        remark = "" if python == (3, 10) else " (they are for Python 3.10, JetPack 6's own)"
        return f"{_fetch('3.10', index, '1.23')}{remark}; {_SET}"
    if python < (3, 11):
        return "PyPI's onnxruntime-gpu for Arm needs Python 3.11 and glibc 2.34: take JetPack 7's own python3"
    wheel = _fetch(f"{python[0]}.{python[1]}", " --platform manylinux_2_34_aarch64", "1.29")
    return f"{wheel} (CUDA 13; an Orin may find no kernels of its own in it: edged bench tells); {_SET}"


_SET = "lay the wheel into a folder of root's, such as /etc/edged/wheels, and set model.runtime_wheels to that"


def _fetch(python: str, more: str, oldest: str) -> str:
    """The command that downloads the wheel, on any machine with a network."""
    options = f"--no-deps --only-binary :all: --python-version {python}{more}"
    return f"pip download {options} 'onnxruntime-gpu>={oldest}'"
