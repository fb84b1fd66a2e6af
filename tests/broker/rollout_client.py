"""What tests of rollouts send to a daemon, and what they wait for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from conductor_rig import TOPIC
from daemon_fixtures import Client5, Daemon
from patience import eventually
from pull_rig import write_sums
from test_rollout_signing import Signer

from edged.models.sources import open_source

OPEN = {"MODEL__PATH": "", "FLEET__UNSIGNED": "true"}


def digest_of(package: Path) -> str:
    """Identity of the manifest that a pull of this folder makes."""
    files = {file.path: file.digest.value for file in open_source(str(package)).files if file.digest}
    return hashlib.sha256("".join(f"{files[path]} {path}\n" for path in sorted(files)).encode()).hexdigest()


def desired(package: Path, source: str | None = None, **fields: Any) -> dict[str, Any]:
    model = {"source": source or str(package), "digest": digest_of(package), "name": "phi3"}
    return {"rollout": "r1", "sequence": 1, "model": model, "proving": {"seconds": 0}, **fields}


def reported(client: Client5, **fields: Any) -> dict[str, Any]:
    """Wait for a report like this, after those that were heard before."""

    def heard() -> dict[str, Any] | None:
        documents = (json.loads(message.payload) for message in client.all("reported"))
        return next((one for one in documents if fields.items() <= one.items()), None)

    told = eventually(heard, lambda: f"{fields}; heard {[message.payload for message in client.all('reported')][-3:]}")
    return dict(told)


def refused(client: Client5, code: str) -> dict[str, Any]:
    """Wait until the last report refuses a document for this reason."""

    def heard() -> dict[str, Any] | None:
        messages = client.all("reported")
        last = json.loads(messages[-1].payload)["refused"] if messages else []
        return next((one for one in last if one["fault"]["code"] == code), None)

    return dict(eventually(heard, lambda: f"{code}; heard {[m.payload for m in client.all('reported')][-2:]}"))


def selected(daemon: Daemon) -> Path:
    return (daemon.state_dir / "models/current").resolve()


def state(daemon: Daemon) -> dict[str, Any]:
    """The execution on disk."""
    file = daemon.state_dir / "rollout.json"
    return dict(json.loads(file.read_text())["execution"] or {}) if file.exists() else {}


def with_wrong_answers(package: Path) -> Path:
    """A package whose known answers are others than it gives."""
    file = package / "known_answers.json"
    answers = json.loads(file.read_text())
    answers["questions"][0]["answer"] = [token + 1 for token in answers["questions"][0]["answer"]]
    file.write_text(json.dumps(answers))
    write_sums(package)
    return package


class Keys:
    """The fleet's key and a conductor's, and what a device is told of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet, self.conductor = Signer(folder, "fleet"), Signer(folder, "conductor")
        self.settings = {"FLEET__TRUSTED_KEYS": self.fleet.public, "FLEET__CONDUCTOR_KEYS": self.conductor.public}

    def signed(self, operator: Daemon, package: Path, **fields: Any) -> Path:
        """A document as `edged fleet sign` prints it, in a file."""
        plain, signed = self.folder / "plain.json", self.folder / f"{fields['rollout']}.json"
        plain.write_text(json.dumps(desired(package, expires="2090-01-01T00:00:00Z", **fields)))
        done = operator.command("fleet", "sign", str(plain), "--key", str(self.fleet.file), "--topic", TOPIC)
        assert done.returncode == 0, done.stderr
        signed.write_text(done.stdout)
        return signed
