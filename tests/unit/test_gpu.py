"""A GPU's memory, read through a driver library that gcc makes here: the real calls, with figures of our own."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from engine_rig import MODELS, copy_package, load
from structlog.testing import capture_logs

from edged.engine.package_memory import available_for
from edged.engine.providers import CPU, CUDA, ProviderChoice
from edged.machine.board import detect
from edged.machine.gpu import GpuError, gpu_memory
from edged.machine.memory import Available

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
HOST = Available(64 << 30, "memory")
ON_CUDA = ProviderChoice((CUDA, CPU), "", False)
ON_CPU = ProviderChoice((CPU,), "", False)
DRIVER = """
#include <stddef.h>
#ifndef INTEGRATED
#define INTEGRATED 0
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef RETAIN
#define RETAIN 0
#endif
static int retained, pushed;
static char context;
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = INTEGRATED;
    return attribute == 18 && device == 40 ? 0 : 1;
}
int cuDevicePrimaryCtxRetain(void **found, int device) {
    if (device != 40) return 101;
    *found = &context;
    if (!RETAIN) retained++;
    return RETAIN;
}
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return device == 40 ? 0 : 101; }
int cuCtxPushCurrent_v2(void *given) { pushed++; return given == &context ? 0 : 201; }
int cuCtxPopCurrent_v2(void **found) { pushed--; *found = &context; return 0; }
#ifndef OLD
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = (size_t)7 << 30;
    *total = (size_t)8 << 30;
    return retained == 1 && pushed == 1 ? 0 : 201;
}
#endif
"""


def driver(folder: Path, *defines: str) -> str:
    """Compile a libcuda.so.1."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(DRIVER)
    command = ["gcc", "-shared", "-fPIC", *(f"-D{define}" for define in defines), "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return str(library)


def test_a_discrete_gpus_free_bytes_are_read_and_its_context_is_given_back(tmp_path: Path) -> None:
    library = driver(tmp_path)
    for _ in range(2):  # a context that was not released would fail the second call
        assert gpu_memory(library) == Available(7 << 30, "GPU 0", on_gpu=True)


def test_an_integrated_gpu_has_no_memory_of_its_own(tmp_path: Path) -> None:
    assert gpu_memory(driver(tmp_path, "INTEGRATED=1")) is None


@pytest.mark.parametrize(
    ("define", "message"),
    [
        ("INIT=100", "cuInit of the CUDA driver returns error 100"),
        ("RETAIN=2", "cuDevicePrimaryCtxRetain of the CUDA driver returns error 2"),
        ("OLD", "the CUDA driver has no cuMemGetInfo_v2: it is older than CUDA 11"),
    ],
)
def test_a_driver_that_fails_is_an_error_on_one_line(tmp_path: Path, define: str, message: str) -> None:
    with pytest.raises(GpuError) as caught:
        gpu_memory(driver(tmp_path, define))
    assert str(caught.value) == message


def test_no_driver_is_an_error_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(GpuError, match=r"libcuda\.so\.1 cannot be loaded: ") as caught:
        gpu_memory(str(tmp_path / "libcuda.so.1"))
    assert "\n" not in str(caught.value)


def test_a_model_on_a_discrete_gpu_is_planned_for_the_gpus_memory(tmp_path: Path) -> None:
    read = functools.partial(gpu_memory, driver(tmp_path))
    assert available_for(ON_CUDA, detect(BOARDS / "pc"), HOST, read).bytes == 7 << 30
    assert available_for(ON_CPU, detect(BOARDS / "pc"), HOST, read) is HOST
    assert available_for(ON_CUDA, detect(BOARDS / "jetson-orin"), HOST, read) is HOST


def test_an_unreadable_gpu_is_logged_and_the_hosts_memory_is_used(tmp_path: Path) -> None:
    read = functools.partial(gpu_memory, str(tmp_path / "libcuda.so.1"))
    with capture_logs() as logs:
        assert available_for(ON_CUDA, detect(BOARDS / "pc"), HOST, read) is HOST
    assert [(line["event"], line["log_level"], "model.rows" in line["hint"]) for line in logs] == [
        ("gpu_memory_unknown", "warning", True)
    ]


def test_a_gpu_that_does_not_start_leaves_a_plan_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = json.loads((MODELS / "llama3/genai_config.json").read_text())["model"]["decoder"]
    decoder["session_options"]["provider_options"] = [{"cuda": {}}]
    package = copy_package("llama3", tmp_path, decoder=decoder)
    # As the GPU wheel does on a board without its libraries: it offers CUDA, and its sessions run on the CPU.
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    with closing(load(package, prefix_bytes=1 << 20, context=64)) as loaded:
        assert (loaded.session.device, loaded.choice.fell_back) == ("cpu", True)
        assert not loaded.plan.available.on_gpu
        assert loaded.plan.prefixes == 1 << 20  # a GPU has no prefix cache
        assert loaded.rows > 1  # and one row
