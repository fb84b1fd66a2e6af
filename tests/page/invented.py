"""An invented board with an invented hour, for how the page looks: a Pi 5 that was busy, and one in trouble."""

from __future__ import annotations

import math
import random
from typing import Any

from edged.report.history import INTERVAL, KEPT

TIME = "2026-05-04T09:41:00.000Z"


def board(well: bool = True) -> dict[str, Any]:
    """An overview document."""
    return {
        "state": "online",
        "ready": well,
        "faults": [] if well else _FAULTS,
        "warnings": [] if well else _WARNINGS,
        "info": {
            "device": "pi-hall-3",
            "groups": ["hall-3"],
            "board": {"kind": "raspberry_pi", "model": "Raspberry Pi 5 Model B Rev 1.0", "cores": 4},
            "versions": {"edged": "0.1.0", "onnxruntime": "1.32.0", "python": "3.11.2"},
            "model": {
                "state": "serving" if well else "unavailable",
                "reason": None,
                "name": "phi-3-mini-4k-instruct",
                "execution_provider": "CPUExecutionProvider",
                "threads": 4,
            },
            "limits": {"rows": 4, "context": 4096},
        },
        "health": {
            "device": "pi-hall-3",
            "time": TIME,
            "uptime_seconds": 612_345.6,
            "queued": 3,
            "running": 4 if well else 0,
            "outbox": 0 if well else 17,
            "spool_bytes": 1_843_200,
            "memory_available_bytes": 3_412_000_000,
            "throttled": [] if well else ["under_voltage", "soft_temperature_limit"],
            "tokens_per_second": {"prefill": 31.2, "decode": 5.61},
        },
        "jobs": _jobs(well),
        "log": [] if well else _LOG,
        "history": {"interval_seconds": INTERVAL, **_hour(well)},
    }


_FAULTS = [
    {
        "code": "model_corrupt",
        "message": "model corrupt: model.onnx.data differs from its manifest in the block at byte 734003200",
        "hint": "edged model pull with the source that edged model list shows; if it happens again, replace the card",
    },
    {
        "code": "mqtt_connection_refused",
        "message": "broker mqtt.hall.example:8883 not connected: connection refused",
        "hint": "check that the broker runs and listens on this port",
    },
]
_WARNINGS = [
    {
        "code": "mqtt_session_expiry_short",
        "message": "the broker keeps sessions for 3600 s only: jobs that come while the device is off longer are lost",
        "hint": "let the broker keep sessions for 7 days",
    }
]
_LOG = [
    {
        "event": "model_corrupt",
        "level": "error",
        "count": 1,
        "time": "2026-05-04T09:38:12.000Z",
        "reason": "model.onnx.data differs from its manifest in the block at byte 734003200",
        "hint": "pull the package again",
    },
    {
        "event": "board_throttled",
        "level": "warning",
        "count": 14,
        "time": "2026-05-04T09:31:40.000Z",
        "reason": "",
        "hint": "",
    },
    {
        "event": "mqtt_disconnected",
        "level": "warning",
        "count": 2,
        "time": "2026-05-04T07:02:03.000Z",
        "reason": "connection refused",
        "hint": "",
    },
]


def _jobs(well: bool) -> list[dict[str, Any]]:
    chance = random.Random(3)
    jobs: list[dict[str, Any]] = []
    for n in range(4 if well else 0):
        jobs.append(_job(f"shift-report-{1207 + n}", "running", n, chance.uniform(0.2, 3), None, None))
    for n in range(10):
        state, code = ("failed", "internal") if n == 4 else ("expired", "expired") if n == 7 else ("succeeded", None)
        done = state == "succeeded"
        waited, tokens = (chance.uniform(0.2, 4), chance.randrange(20, 256)) if done else (None, None)
        jobs.append(_job(f"pump-{8841 - n}-{chance.getrandbits(32):08x}", state, 2 + 3 * n, waited, tokens, code))
    return jobs


def _job(
    id: str, state: str, minutes: int, waited: float | None, tokens: int | None, code: str | None
) -> dict[str, Any]:
    received = f"2026-05-04T09:{40 - minutes:02d}:17.000Z"
    finished = None if state == "running" else f"2026-05-04T09:{40 - minutes:02d}:{20 + (tokens or 0) // 7:02d}.400Z"
    times = {"received": received, "finished": finished, "queued_seconds": waited}
    return {"id": id, "state": state, **times, "completion_tokens": tokens, "code": code}


def _hour(well: bool) -> dict[str, list[float | None]]:
    chance = random.Random(7)
    hour: dict[str, list[float | None]] = {}
    load = [max(0.0, min(1.0, 0.6 + 0.5 * math.sin(n / 40) + chance.uniform(-0.2, 0.2))) for n in range(KEPT)]
    heat, temperature = [], 55.0
    for share in load:
        temperature += (48 + 34 * share - temperature) * 0.06
        heat.append(round(temperature, 1))
    hour["generated_tokens_per_second"] = [round(11 * share, 2) for share in load]
    hour["prompt_tokens_per_second"] = [round(30 * share * chance.random(), 2) for share in load]
    hour["queued"] = [float(round(6 * share * chance.random())) for share in load]
    hour["running"] = [float(round(4 * share)) for share in load]
    hour["temperature_celsius"] = heat
    hour["power_watts"] = [round(3.1 + 5.2 * share, 2) for share in load]
    if not well:
        for values in hour.values():
            values[200:230] = [None] * 30
        for name in ("generated_tokens_per_second", "prompt_tokens_per_second", "running"):
            hour[name][230:] = [0.0] * (KEPT - 230)
    return hour
