"""Reads how much memory an NVIDIA GPU has free, through the CUDA driver's own library.

onnxruntime does not tell, and nvidia-smi may not be installed. libcuda is part of every driver that can run CUDA.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import Any

from edged.machine.memory import Available

_INTEGRATED = 18
"""CU_DEVICE_ATTRIBUTE_INTEGRATED of cuda.h."""


class GpuError(Exception):
    """The GPU's memory cannot be read; the message is one line."""


def gpu_memory(library: str = "libcuda.so.1") -> Available | None:
    """Bytes free on CUDA device 0, the one that onnxruntime uses. None: it shares the host's memory, as on a Jetson.

    Retains the device's primary context for the call, which takes some tenths of a second where there is none yet.
    Raises GpuError.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise GpuError(f"{library} cannot be loaded: {' '.join(str(error).split())}") from None
    device, integrated, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda, "cuInit", ctypes.c_uint(0))
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(integrated), ctypes.c_int(_INTEGRATED), device)
    if integrated.value:
        return None
    with ExitStack() as undo:
        _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        undo.callback(_call, cuda, "cuDevicePrimaryCtxRelease_v2", device)
        _call(cuda, "cuCtxPushCurrent_v2", context)
        undo.callback(_call, cuda, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return Available(free.value, "GPU 0", on_gpu=True)


def _call(cuda: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Call a function of the driver, whose result is 0 or an error of cuda.h. Raises GpuError."""
    try:
        function = getattr(cuda, name)
    except AttributeError:
        raise GpuError(f"the CUDA driver has no {name}: it is older than CUDA 11") from None
    if status := function(*arguments):
        raise GpuError(f"{name} of the CUDA driver returns error {status}")
