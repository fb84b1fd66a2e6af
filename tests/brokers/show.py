"""`make show-brokers`: a result that the broker does not take, in a queue; and a short keep-alive time."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("broker", "unit")]

from broker_rig import Mosquitto  # noqa: E402
from daemon_fixtures import Client5, Daemon, job  # noqa: E402
from limiting_proxy import LimitingProxy  # noqa: E402
from paho.mqtt.client import Client  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion  # noqa: E402
from patience import eventually  # noqa: E402

LIMIT = 8000
"""Bytes above which the broker hangs up, without having announced it."""
JOBS, LARGE = 40, 5
"""Jobs in the queue, and the place of the one with a large result among them."""


def line(what: str, value: str) -> None:
    print(f"  {what:<58} {value}", flush=True)


def plain_client(broker: Mosquitto, seconds: float) -> None:
    """What a client does that sends all that is due again after each drop: as edged did once."""
    with contextlib.closing(LimitingProxy(broker.port, LIMIT)) as proxy:
        confirmed: set[int] = set()
        client = Client(
            CallbackAPIVersion.VERSION2, client_id="plain", clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
        )
        client.max_inflight_messages_set(32)
        client.reconnect_delay_set(0.1, 1.0)  # type: ignore[arg-type]
        client.on_publish = lambda _client, _data, mid, *_: confirmed.add(mid)
        client.connect("127.0.0.1", proxy.port)
        for number in range(JOBS):
            client.publish(f"plain/{number}", bytes(20_000 if number == LARGE else 300), qos=1)
        client.loop_start()
        time.sleep(seconds)
        client.disconnect()
        client.loop_stop()
    line(f"sent again as it was: results that left in {seconds:.0f} s", f"{len(confirmed)} of {JOBS}")
    line("  connections that it cost", str(len(proxy.hung_up)))


def poisoned_queue(broker: Mosquitto, folder: Path) -> None:
    """The same queue in the spool of a daemon."""
    with (
        contextlib.closing(LimitingProxy(broker.port)) as proxy,
        contextlib.closing(Daemon(folder, proxy.port, paced=True, mqtt__protocol="3.1.1").start()) as daemon,
        contextlib.closing(Client5(broker.port)) as client,
    ):
        daemon.pace("hold")
        for number in range(JOBS):
            client.send(job(f"job-{number}", **({"metadata": {"note": "x" * 20_000}} if number == LARGE else {})))
            client.event(f"job-{number}", "accepted")
        proxy.accepting, proxy.limit = False, LIMIT
        proxy.cut()
        daemon.pace("")
        eventually(lambda: daemon.metric("edged_outbox_results") == JOBS)
        proxy.accepting, begun = True, time.monotonic()
        eventually(lambda: daemon.metric("edged_outbox_results") == 1)
        line("edged: all other results left after", f"{time.monotonic() - begun:.1f} s")
        code = client.result(f"job-{LARGE}")["error"]["code"]
        line(f"  the large one is answered with {code} after", f"{time.monotonic() - begun:.1f} s")
        line("  connections that it cost", str(len(proxy.hung_up)))


def keep_alive(broker: Mosquitto, folder: Path, seconds: float) -> None:
    """A daemon that asks for an hour, at a broker that allows 10 s and hangs up after 15 s of silence."""
    broker.stop()
    broker.configure(lines=["max_keepalive 10"])
    broker.start()
    with contextlib.closing(Daemon(folder, broker.port, mqtt__keep_alive="3600", heartbeat_seconds="3600")) as daemon:
        daemon.start()
        up, samples = {"jobs": 0, "control": 0}, 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            samples += 1
            for name in up:
                up[name] += daemon.metric(f'edged_mqtt_connected{{connection="{name}"}}') == 1
            time.sleep(0.25)
        for name, times in up.items():
            drops = daemon.metric(f'edged_mqtt_reconnects_total{{connection="{name}"}}')
            line(
                f"keep-alive of 10 s for {seconds:.0f} s: connection {name} up",
                f"{times / samples:.1%}, {drops:.0f} drops",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the run with a short keep-alive time")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="edged-show-"))
    root.chmod(0o777)
    folders = [root / name for name in ("broker", "queue", "keep-alive")]
    for folder in folders:
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    broker = Mosquitto(folders[0])
    try:
        broker.start()
        print(f"a queue of {JOBS} results, one above the {LIMIT} bytes that the broker takes (MQTT 3.1.1)")
        plain_client(broker, 30.0)
        poisoned_queue(broker, folders[1])
        keep_alive(broker, folders[2], arguments.seconds)
    finally:
        broker.close()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
