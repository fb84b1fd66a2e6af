"""A group of devices that follow rollouts by the real rules, in this process, over a real broker."""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import Any

from conductor_rig import TOPIC, Board
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


class Hall:
    """Devices of the group hall, each with what a real one knows and does of rollouts."""

    def __init__(self, port: int, count: int) -> None:
        self.good = True
        """Whether the package passes on them."""
        self.told: list[dict[str, Any]] = []
        """Every desired document that was heard."""
        self._held, self._lock = False, threading.Lock()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.reconnect_delay_set(0.02, 0.02)  # type: ignore[arg-type]
        self._client.on_message = self._heard
        self._client.on_connect = lambda client, *_: client.subscribe(TOPIC, qos=1)
        self._client.connect("127.0.0.1", port)
        self.boards = [HallBoard(self, f"pi-{at}", True) for at in range(count)]

    def __enter__(self) -> Hall:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1, retain=True)

    def subscribe(self) -> deque[tuple[str, bytes]]:
        return deque()

    def show(self) -> None:
        """All publish again what a broker may have forgotten."""
        for board in self.boards:
            board.show()

    def hold(self) -> None:
        """Let no device go on."""
        self._held = True

    def go_on(self) -> None:
        """Let them go on as far as they can."""
        self._held = False
        self._follow()

    def percents(self) -> list[float]:
        return [told["percent"] for told in self.told]

    def _heard(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.told.append(json.loads(message.payload))
        for board in self.boards:
            board.queue.append((message.topic, message.payload))
        if not self._held:
            self._follow()

    def _follow(self) -> None:
        with self._lock:
            for board in self.boards:
                board.good = self.good
                while board.hear() or board.go_on():
                    pass


class HallBoard(Board):
    """One of them."""

    @property
    def state(self) -> str | None:
        return None if self.execution is None else self.execution.state.value
