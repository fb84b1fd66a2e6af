"""A broker for a site, bridged to a central one as deploy/mosquitto/site-bridge.conf says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from broker_rig import Mosquitto, Peer
from daemon_fixtures import Place, job
from pull_rig import publish
from rollout_client import OPEN, desired

pytest_plugins = ["daemon_fixtures"]

CONF = Path(__file__).parents[2] / "deploy/mosquitto/site-bridge.conf"
ROOT = "plant-1/edged/v1"


def bridge(centre: Mosquitto) -> list[str]:
    """The shipped lines, without TLS, to this broker."""
    shipped = CONF.read_text().replace("mqtt.example:8883", f"127.0.0.1:{centre.port}")
    left_out = ("#", "bridge_cafile", "bridge_certfile", "bridge_keyfile")
    return [line for line in shipped.splitlines() if line and not line.startswith(left_out)]


def documents(peer: Peer, channel: str, count: int, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """The next messages on topics of devices with this channel and these fields: device and document."""
    found = []
    while len(found) < count:
        topic, payload, _ = peer.get()
        words = topic.removeprefix(f"{ROOT}/").split("/")
        if words[0] == "device" and words[2] == channel:
            document = json.loads(payload)
            found += [(words[1], document)] if fields.items() <= document.items() else []
    return found


def test_jobs_and_a_rollout_of_a_sites_group_come_from_the_centre(place: Place) -> None:
    folder = place.folder / "site"
    folder.mkdir()
    folder.chmod(0o777)
    names, settings = {"one", "two"}, {"mqtt__root": ROOT, "DEVICE__GROUPS": "hall", **OPEN}
    site, centre = Mosquitto(folder, lines=bridge(place.broker)), Peer(place.broker.port).subscribe("plant-1/#")
    with contextlib.closing(site), contextlib.closing(centre):
        site.start()
        centre.until(f"{ROOT}/bridge", b"1")
        daemons = [place.daemon(device=name, **settings) for name in sorted(names)]
        for daemon in daemons:
            daemon.env["EDGED_MQTT__PORT"] = str(site.port)
            daemon.start()
        assert {name for name, _ in documents(centre, "status", 2, state="online", ready=True)} == names
        ids = {f"job-{n}" for n in range(8)}
        for id in ids:
            centre.send(f"{ROOT}/group/hall/job", json.dumps(job(id)))
        results = documents(centre, "result", len(ids))
        assert {document["id"] for _, document in results} == ids
        assert {name for name, _ in results} == names

        document = place.folder / "desired.json"
        document.write_text(json.dumps(desired(publish(place.folder / "package"))))
        operator = place.daemon(device="nobody", mqtt__root=ROOT)  # its broker is the centre
        arguments = ("--group", "hall", "--document", str(document), "--min-executed", "1", "--waves", "100")
        conductor = operator.background("fleet", "rollout", *arguments)
        reports = documents(centre, "reported", 2, state="SUCCEEDED")
        assert {(name, report["model"]["name"]) for name, report in reports} == {(name, "phi3") for name in names}
        said, errors = conductor.communicate()
        assert (conductor.returncode, said.splitlines()[-1]) == (0, "SUCCEEDED at 100 %: 2 SUCCEEDED"), errors
        assert [daemon.end() for daemon in daemons] == [0, 0]
