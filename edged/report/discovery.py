"""The document by which Home Assistant finds the device and its sensors (MQTT discovery, of a whole device)."""

from __future__ import annotations

from typing import Any

import edged

_TEMPERATURE = "{{ (value_json.temperature_celsius or {}).values() | max | default(none) }}"
"""Of the hottest sensor; "None" is Home Assistant's word for unknown."""


def discovery_document(id: str, device: str, board: str, *, status: str, health: str, info: str) -> dict[str, Any]:
    """What Home Assistant (2024.11 and newer) is to know.

    `id`: what tells the device from others there. `board`: its model. `status`, `health`, `info`: the topics of these
    documents. Templates see a document as `value_json`.
    """

    def component(platform: str, key: str, topic: str, template: str, **more: str) -> dict[str, str]:
        return {
            "platform": platform,
            "unique_id": f"{id}_{key}",
            "state_topic": topic,
            "value_template": template,
        } | more

    return {
        "device": {"identifiers": [id], "name": f"edged {device}", "model": board, "sw_version": edged.__version__},
        "origin": {"name": "edged", "sw_version": edged.__version__},
        "availability_topic": status,
        "availability_template": "{{ 'offline' if value_json.state == 'offline' else 'online' }}",
        "components": {
            "ready": component(
                "binary_sensor",
                "ready",
                status,
                "{{ 'ON' if value_json.ready else 'OFF' }}",
                name="Ready",
                json_attributes_topic=status,
            ),
            "temperature": component(
                "sensor",
                "temperature",
                health,
                _TEMPERATURE,
                name="Temperature",
                device_class="temperature",
                unit_of_measurement="°C",
                state_class="measurement",
            ),
            "queue": component(
                "sensor",
                "queue",
                health,
                "{{ value_json.queued }}",
                name="Queue",
                unit_of_measurement="jobs",
                state_class="measurement",
            ),
            "model": component(
                "sensor",
                "model",
                info,
                "{{ (value_json.model or {}).name | default(none) }}",
                name="Model",
            ),
        },
    }
