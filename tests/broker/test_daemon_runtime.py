"""The daemon without an onnxruntime that can be imported."""

from __future__ import annotations

import itertools
import json
import os

import pytest
from daemon_fixtures import Place

pytest_plugins = ["daemon_fixtures"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')",
            "onnxruntime is not installed: pip install 'edged[cpu]', then restart edged",
        ),
        (
            "raise ImportError('libcudart.so.12: cannot open shared object file')",
            "onnxruntime cannot be imported: libcudart.so.12: cannot open shared object file; pip install "
            "'edged[cpu]', then restart edged",
        ),
    ],
)
def test_without_onnxruntime_the_model_is_unavailable_and_the_daemon_goes_on(
    place: Place, module: str, reason: str
) -> None:
    shadow = place.folder / "shadow"
    shadow.mkdir()
    (shadow / "onnxruntime.py").write_text(module)
    daemon, client = place.daemon(), place.client()
    daemon.env["PYTHONPATH"] = f"{shadow}{os.pathsep}{daemon.env['PYTHONPATH']}"
    daemon.start(ready=False)
    daemon.until_fault(f"model unavailable: {reason}")
    client.status("online", model="model_unavailable")
    infos = (json.loads(client.wait("info", count).payload) for count in itertools.count(1))
    info = next(info for info in infos if info["model"]["state"] != "loading")
    assert info["model"] == {"state": "unavailable", "reason": reason}
    assert info["versions"]["onnxruntime"] is None
    assert [json.loads(line)["reason"] for line in daemon.log().splitlines() if '"model_unavailable"' in line] == [
        reason
    ]
    assert "Traceback" not in daemon.log()
    done = daemon.command("generate", "Hello")
    assert (done.returncode, done.stderr.strip()) == (1, f"edged: model_unavailable: {reason}")
