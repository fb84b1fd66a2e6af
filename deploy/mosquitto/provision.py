#!/usr/bin/env python3
"""Keys, certificates and rights for a fleet of edged behind mosquitto: makes them, and says what to put where.

Runs on the broker's machine or on any other that reaches it; needs Python 3.10, openssl and mosquitto_rr
(mosquitto-clients). Everything lies in one folder (--folder, 0700; each file 0600). No key and no certificate is
overwritten: a run that was cut short is simply repeated. To renew a certificate, delete its .pem and run the same
command again.

    provision.py init --host mqtt.example        authority, the broker's key and roles, the administrator's key
    provision.py device pi-7 --groups hall-3     a device, with its groups; --http pi-7.lan: and keys for its metrics
    provision.py sender gateway                  who sends jobs and reads answers
    provision.py observer dashboard              who reads everything and writes nothing
    provision.py exporter prometheus             `edged export`: who reads how devices are, and no job and no answer
    provision.py conductor rollouts              who says which model devices are to serve, and reads how far they are;
                                                 it may send commands to devices
    provision.py operator ops                    `edged fleet`: who reads how devices are, sends them commands, and
                                                 clears what a device left behind
    provision.py home-assistant house            Home Assistant: reads everything, sends jobs; devices that shall show
                                                 themselves there are made with --home-assistant
    provision.py upgrade                         brings the rights that an older version made to those of this one
    provision.py revoke pi-7                     takes the rights away and ends what the broker keeps for it
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CA_DAYS, SERVER_DAYS, CLIENT_DAYS = 3650, 825, 1825
CERTIFICATES, PASSWORDS = 8883, 8884
"""The ports of edged.conf."""
CONTROL = "$CONTROL/dynamic-security/v1"
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
KINDS = ("device", "sender", "observer", "home-assistant", "exporter", "conductor", "operator")
DOCUMENTS = ("status", "info", "health")
"""What `edged export` and `edged fleet` read of a device."""
DISCOVERY = "homeassistant"
"""Home Assistant's discovery prefix, as it is by default."""
ADMIN = "admin"


class ProvisionError(Exception):
    """One line that says what is wrong."""


# Rights: exactly the topics of docs/contract.md.


def discovery_topic(root: str, name: str) -> str:
    """As the device makes it (mqtt.discovery_prefix)."""
    plain = name.replace(".", "_")
    if plain != name or root != "edged/v1":
        plain += "-" + hashlib.sha256(f"{root}/{name}".encode()).hexdigest()[:8]
    return f"{DISCOVERY}/device/edged-{plain}/config"


def rights(
    kind: str, root: str, name: str = "", groups: tuple[str, ...] = (), shown: bool = False
) -> dict[str, list[str]]:
    """Topic filters by what they allow: `send`, `receive`, `literal` and `pattern` (subscriptions).

    `shown`: the device shows itself to Home Assistant.
    """
    if kind == "device":
        own = f"{root}/device/{name}"
        heard = [f"{own}/{channel}" for channel in ("job", "cancel", "status", "health", "desired", "cmd/+/+")]
        channels = ("event/+", "result/+", "stream/+", "status", "info", "health", "reported", "cmd/+/+")
        said = [f"{own}/{channel}" for channel in channels]
        told = [f"{root}/group/{group}/{channel}" for group in groups for channel in ("cancel", "desired", "cmd/+/+")]
        words = [f"{root}/group/{group}/{word}" for group in groups for word in ("ping", "pong")]
        jobs = [f"{root}/group/{group}/job" for group in groups]
        of_models = [f"{root}/group/{group}/model/+/job" for group in groups]
        # As the device subscribes, word for word but for the model: not the jobs of a group past the share.
        shared, shared_of_models = (
            [f"$share/{group}/{topic}" for group, topic in zip(groups, topics, strict=True)]
            for topics in (jobs, of_models)
        )
        # Load shared over a group: what this device is given and answered, and what any of the group offers.
        given = [f"{root}/group/{group}/{channel}/{name}" for group in groups for channel in ("give", "given")]
        gives = [f"{root}/group/{group}/{channel}/+" for group in groups for channel in ("give", "given")]
        offers = [f"{root}/group/{group}/offer/+" for group in groups]
        said += [*gives, *(f"{root}/group/{group}/offer/{name}" for group in groups)]
        said.append(f"{own}/bridge")  # by a bridge beside it (bridge.conf), which has the device's role
        check = [f"{own}/check"] if groups else []  # on which the device tries whether shares are delivered
        return {
            "send": [*said, *check, *words, f"{root}/reply/#", *([discovery_topic(root, name)] if shown else [])],
            "receive": [*heard, *jobs, *of_models, *told, *check, *words, *given, *offers],
            "literal": [*heard, *shared, *told, *check, *words, *given, *(f"$share/{name}/{topic}" for topic in check)],
            "pattern": [*shared_of_models, *offers],
        }
    if kind == "sender":
        targets = [f"{root}/{whom}/+/{channel}" for whom in ("device", "group") for channel in ("job", "cancel")]
        targets.append(f"{root}/group/+/model/+/job")
        channels = ("event/+", "result/+", "stream/+", "status", "info", "health", "bridge")
        heard = [*(f"{root}/device/+/{channel}" for channel in channels), f"{root}/reply/#"]
        return {"send": targets, "receive": heard, "literal": [], "pattern": heard}
    if kind == "home-assistant":
        jobs = rights("sender", root)
        seen = [*jobs["pattern"], f"{DISCOVERY}/#"]
        birth = f"{DISCOVERY}/status"  # its birth message, and its last will
        return {"send": [*jobs["send"], birth], "receive": seen, "literal": [], "pattern": seen}
    if kind == "observer":
        return {"send": [], "receive": [f"{root}/#"], "literal": [], "pattern": [f"{root}/#"]}
    check = f"{root}/fleet/+/check"  # by which `edged fleet` knows that all documents have come
    if kind == "conductor":
        targets = [f"{root}/{whom}/+/{what}" for whom in ("device", "group") for what in ("desired", "cmd/+/+")]
        heard = [*targets, *(f"{root}/device/+/{channel}" for channel in ("reported", *DOCUMENTS)), check]
        return {"send": [*targets, check], "receive": heard, "literal": [], "pattern": heard}
    if kind in ("exporter", "operator"):
        documents = [f"{root}/device/+/{channel}" for channel in DOCUMENTS]
        commands = [f"{root}/{whom}/+/cmd/+/+" for whom in ("device", "group")] if kind == "operator" else []
        kept = [*documents, *(f"{root}/device/+/{channel}" for channel in ("reported", "bridge")), *commands]
        heard = [*documents, check, *commands]
        sent = [check, *kept] if kind == "operator" else [check]
        return {"send": sent, "receive": heard, "literal": [], "pattern": heard}
    control = ["$CONTROL/dynamic-security/#"]
    return {"send": control, "receive": [*control, "$SYS/#"], "literal": [], "pattern": [*control, "$SYS/#"]}


def role(rolename: str, allowed: dict[str, list[str]]) -> dict[str, Any]:
    """The plugin's form of it."""
    types = {
        "send": "publishClientSend",
        "receive": "publishClientReceive",
        "literal": "subscribeLiteral",
        "pattern": "subscribePattern",
    }
    acls = [
        {"acltype": types[what], "topic": topic, "priority": 0, "allow": True}
        for what, topics in allowed.items()
        for topic in topics
    ]
    return {"rolename": rolename, "acls": acls}


def first_configuration(root: str) -> dict[str, object]:
    """What the plugin starts with: nothing is allowed that no role allows, and the administrator has a role."""
    return {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
        # Without a password it can only come by certificate.
        "clients": [{"username": ADMIN, "roles": [{"rolename": ADMIN}]}],
        "groups": [],
        "roles": [role(kind, rights(kind, root)) for kind in (*KINDS[1:], ADMIN)],
    }


# Keys and certificates


def openssl(*arguments: str | Path) -> None:
    try:
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ProvisionError("openssl is missing: apt install openssl") from None
    if done.returncode:
        raise ProvisionError(f"openssl {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")


def make_key(path: Path) -> None:
    if not path.exists():
        part = path.with_suffix(".part")
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", part)
        part.rename(path)


def make_authority(folder: Path, days: int) -> None:
    make_key(folder / "ca.key")
    if not (folder / "ca.pem").exists():
        part = folder / "ca.part"
        more = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl("req", "-x509", "-new", "-key", folder / "ca.key", "-days", str(days), "-subj", "/CN=edged fleet",
                *more, "-out", part)  # fmt: skip
        part.rename(folder / "ca.pem")


def make_certificate(folder: Path, path: Path, name: str, days: int, served_at: str = "") -> None:
    """A key beside `path` and a certificate at it, signed by the authority in `folder`; what is there is kept.

    For a client, or for the server that is reached as `served_at`, and as localhost.
    """
    key = path.with_suffix(".key")
    make_key(key)
    if path.exists():
        return
    with tempfile.TemporaryDirectory() as place:
        request, extensions = Path(place, "request"), Path(place, "extensions")
        usage = "serverAuth" if served_at else "clientAuth"
        lines = [f"extendedKeyUsage={usage}", "basicConstraints=critical,CA:false"]
        if served_at:
            kind = "IP" if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*", served_at) else "DNS"
            lines.append(f"subjectAltName={kind}:{served_at},DNS:localhost,IP:127.0.0.1")
        extensions.write_text("\n".join(lines) + "\n")
        openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        part = path.with_suffix(".part")
        openssl("x509", "-req", "-in", request, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
                "-set_serial", f"0x{os.urandom(16).hex()}", "-days", str(days), "-extfile", extensions,
                "-out", part)  # fmt: skip
        part.rename(path)


def valid_until(path: Path) -> str:
    done = subprocess.run(["openssl", "x509", "-in", str(path), "-noout", "-enddate"], capture_output=True, text=True)
    return done.stdout.strip().partition("=")[2]


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet."""
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(text)
        part.rename(path)


# The running broker


def control(fleet: Fleet, commands: list[dict[str, object]]) -> list[str]:
    """Give commands to the plugin as the administrator; its errors."""
    return [f"{answer['command']}: {answer['error']}" for answer in ask(fleet, commands) if "error" in answer]


def ask(fleet: Fleet, commands: list[dict[str, object]]) -> list[dict[str, Any]]:
    """The plugin's answers to the administrator's commands, which all may see: they are arguments.

    mosquitto_rr 2.0.11 sends nothing with -f or -s.
    """
    line = [*fleet.connection("mosquitto_rr", fleet.folder / ADMIN), "-V", "5", "-q", "1", "-W", "10"]
    request = json.dumps({"commands": commands})
    done = run_client([*line, "-t", CONTROL, "-e", f"{CONTROL}/response", "-m", request])
    try:
        return list(json.loads(done.stdout)["responses"])
    except (ValueError, KeyError):
        raise ProvisionError(f"the broker at {fleet.place} does not answer: {reason(done)}") from None


def set_password(fleet: Fleet, name: str, password: str) -> None:
    """Through standard input, so that nobody sees it; the user exists by now, so that the plugin takes it."""
    line = fleet.connection("mosquitto_pub", fleet.folder / ADMIN)
    command = {"command": "setClientPassword", "username": name, "password": password}
    done = run_client([*line, "-q", "1", "-t", CONTROL, "-s"], json.dumps({"commands": [command]}))
    if done.returncode:
        raise ProvisionError(f"the broker at {fleet.place} does not take the password: {reason(done)}")


def run_client(line: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(line, input=text, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise ProvisionError(f"{line[0]} is missing: apt install mosquitto-clients") from None
    except subprocess.TimeoutExpired:
        raise ProvisionError(f"{line[0]} did not end within 30 s") from None


def reason(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["nothing came within 10 s"])[-1]


class Fleet:
    """The folder with everything, and what `init` was told."""

    def __init__(self, folder: Path, broker: str | None) -> None:
        try:
            known = json.loads((folder / "fleet.json").read_text())
        except FileNotFoundError:
            raise ProvisionError(f"{folder} holds no fleet yet: provision.py init --host NAME") from None
        self.folder, self.host, self.root = folder, str(known["host"]), str(known["root"])
        self.reach, self.port = broker or self.host, str(CERTIFICATES)
        if broker and broker.count(":") == 1:
            self.reach, self.port = broker.split(":")
        self.place = f"{self.reach}:{self.port}"

    def connection(self, client: str, who: Path) -> list[str]:
        keys = ["--cafile", str(self.folder / "ca.pem"), "--cert", f"{who}.pem", "--key", f"{who}.key"]
        return [client, "-h", self.reach, "-p", self.port, *keys]

    def kind_of(self, name: str) -> str | None:
        return next((kind for kind in KINDS if (self.folder / kind / name).exists()), None)


# Commands


def init(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    broker = folder / "broker"
    broker.mkdir(parents=True, exist_ok=True)
    write_new(folder / "fleet.json", json.dumps({"host": options.host, "root": options.root}) + "\n")
    fleet = Fleet(folder, None)
    if (fleet.host, fleet.root) != (options.host, options.root):
        raise ProvisionError(f"{folder} is for the broker {fleet.host} and {fleet.root}: give another --folder")
    make_authority(folder, CA_DAYS)
    make_certificate(folder, broker / "server.pem", "edged broker", options.days or SERVER_DAYS, fleet.host)
    make_certificate(folder, folder / "admin.pem", ADMIN, options.days or CLIENT_DAYS)
    shutil.copy(folder / "ca.pem", broker)
    write_new(broker / "dynamic-security.json", json.dumps(first_configuration(fleet.root), indent=2) + "\n")
    plugin = "/usr/lib/$(uname -m)-linux-gnu/mosquitto_dynamic_security.so"
    print(f"""\
Valid: the authority until {valid_until(folder / "ca.pem")},
the broker's certificate until {valid_until(broker / "server.pem")},
the administrator's until {valid_until(folder / "admin.pem")}.
Keep {folder}/ca.key off the broker and off the network.

On the broker, as root, in a copy of {broker}/ (edged.conf lies beside this script):
  install -d -m 0755 /etc/mosquitto/edged
  install -o mosquitto -g mosquitto -m 0400 ca.pem server.pem server.key /etc/mosquitto/edged/
  test -e /var/lib/mosquitto/dynamic-security.json ||
    install -o mosquitto -g mosquitto -m 0600 dynamic-security.json /var/lib/mosquitto/
  sed "s,^plugin /.*,plugin {plugin}," edged.conf >/etc/mosquitto/conf.d/edged.conf
  systemctl restart mosquitto
Then: {Path(sys.argv[0]).name} device NAME --groups GROUP""")


def add(options: argparse.Namespace) -> None:
    fleet = Fleet(options.folder, options.broker)
    kind, name, groups = options.kind, options.name, tuple(getattr(options, "groups", ()))
    shown = getattr(options, "home_assistant", False)
    there = fleet.kind_of(name)
    if name == ADMIN or there not in (None, kind):
        raise ProvisionError(f"{name} is the name of {'the administrator' if name == ADMIN else f'a {there}'} already")
    own = fleet.folder / kind / name
    password = read_password() if options.password else None
    own.mkdir(parents=True, exist_ok=True)
    shutil.copy(fleet.folder / "ca.pem", own)
    certificate = own / f"{kind}.pem"
    if password is None:
        make_certificate(fleet.folder, certificate, name, options.days or CLIENT_DAYS)
    served_at = getattr(options, "http", None)
    if served_at:
        make_certificate(fleet.folder, own / "http.pem", name, options.days or SERVER_DAYS, served_at)
    register(fleet, kind, name, rights(kind, fleet.root, name, groups, shown), password)
    if set(known_settings(own)[0]) - set(groups):
        end_sessions(fleet, name)
    (own / "edged.toml").write_text(settings(fleet, kind, name, groups, shown, password is not None))
    print(instructions(fleet, kind, own, password is not None))


def known_settings(own: Path) -> tuple[tuple[str, ...], bool]:
    """The groups that the device was made with last time, and whether it shows itself to Home Assistant."""
    try:
        text = (own / "edged.toml").read_text()
    except FileNotFoundError:
        return (), False
    groups = re.search(r"^groups = (.*)$", text, re.M)
    return tuple(json.loads(groups[1])) if groups else (), "\ndiscovery_prefix = " in text


def end_sessions(fleet: Fleet, name: str) -> None:
    """What the broker keeps for a device's two connections would have its turn in the shared groups, right or no right:
    what it got there would be lost. A clean connection under the same id ends it; a device connects again by itself."""
    for client in (name, f"{name}-ctl"):
        line = fleet.connection("mosquitto_pub", fleet.folder / ADMIN)
        done = run_client([*line, "-i", client, "-t", f"{CONTROL}/none", "-n"])
        if done.returncode:
            raise ProvisionError(f"the session of {client} could not be ended: {reason(done)}")


def register(fleet: Fleet, kind: str, name: str, allowed: dict[str, list[str]], password: str | None) -> None:
    """Let the broker know: role and user are made, or brought to what is asked for now."""
    own = role(f"device-{name}" if kind == "device" else kind, allowed)
    user: dict[str, object] = {"username": name, "roles": [{"rolename": own["rolename"]}]}
    commands: list[dict[str, object]] = [{"command": "createRole", **own}, {"command": "modifyRole", **own}]
    commands += [{"command": "createClient", "username": name}, {"command": "modifyClient", **user}]
    errors = [error for error in control(fleet, commands) if "already exists" not in error]
    if errors:
        raise ProvisionError(f"the broker at {fleet.place} refuses: {'; '.join(errors)}")
    if password is not None:
        set_password(fleet, name, password)


def settings(fleet: Fleet, kind: str, name: str, groups: tuple[str, ...], shown: bool, password: bool) -> str:
    """edged.toml, for the daemon or for `edged submit --config`."""
    lines = []
    if kind == "device":
        lines += ["[device]", f'id = "{name}"', f"groups = {json.dumps(groups)}", ""]
    port = PASSWORDS if password else CERTIFICATES
    lines += ["[mqtt]", f'host = "{fleet.host}"', f"port = {port}", "tls = true"]
    if fleet.root != "edged/v1":
        lines.append(f'root = "{fleet.root}"')
    if shown:
        lines.append(f'discovery_prefix = "{DISCOVERY}"')
    # What a device may read only through systemd lies in /run/credentials.
    public, secret = ("/etc/edged", "/run/credentials/edged.service") if kind == "device" else (".", ".")
    lines.append(f'ca_file = "{public}/ca.pem"')
    if password:
        lines += [f'username = "{name}"', f'password_file = "{secret}/mqtt-password"']
    else:
        lines += [f'cert_file = "{public}/{kind}.pem"', f'key_file = "{secret}/{kind}.key"']
    if kind == "device" and (fleet.folder / kind / name / "http.pem").exists():
        lines += ["", "[http]", 'host = "0.0.0.0"', f'cert_file = "{public}/http.pem"']
        lines += [f'key_file = "{secret}/http.key"', f'client_ca_file = "{public}/ca.pem"']
    return "\n".join(lines) + "\n"


def instructions(fleet: Fleet, kind: str, own: Path, password: bool) -> str:
    valid = "" if password else f"The certificate is valid until {valid_until(own / f'{kind}.pem')}.\n"
    if kind == "device":
        return valid + for_a_board(own, password)
    more = ", with the password in a file mqtt-password" if password else ""
    if kind == "home-assistant":
        who = f"port {PASSWORDS}, user {own.name} and its password" if password else f"port {CERTIFICATES}"
        keys = "CA certificate ca.pem"
        keys += "" if password else f", client certificate {kind}.pem and its key {kind}.key"
        return f"{valid}In Home Assistant (Settings, Devices & services, MQTT): broker {fleet.host}, {who}, {keys}."
    use = "edged submit --config edged.toml --device DEVICE 'hello'"
    if kind == "observer":
        who = f"-p {CERTIFICATES} --cert observer.pem --key observer.key"
        if password:  # an argument would be seen by everyone
            who = f"-p {PASSWORDS} -u {own.name}` and -P in ~/.config/mosquitto_sub: `"
        use = f"mosquitto_sub -V 5 -v -h {fleet.host} --cafile ca.pem {who} -t '{fleet.root}/#'"
    if kind == "exporter":
        use = "edged export --config edged.toml"
    if kind == "conductor":
        who = f"-p {PASSWORDS} -u {own.name}" if password else f"-p {CERTIFICATES} --cert {kind}.pem --key {kind}.key"
        use = f"mosquitto_pub -V 5 -q 1 -r -h {fleet.host} --cafile ca.pem {who} -t {fleet.root}/… -f signed.json"
    if kind == "operator":
        use = "edged fleet list --config edged.toml"
    return f"{valid}Give {own}/ to its owner{more}. There, in that folder: `{use}`"


def for_a_board(own: Path, password: bool) -> str:
    keys = [path.name for path in sorted(own.glob("*.key"))]
    secrets = [*keys, "mqtt-password"] if password else keys
    keep = [f"install -m 0600 {key} /etc/edged-secrets/" for key in keys]
    keep += ["(umask 077; cat >/etc/edged-secrets/mqtt-password)   # type it, then Ctrl-D"] if password else []
    load = "".join(f"LoadCredential={name}:/etc/edged-secrets/{name}\\n" for name in secrets)
    lines = [
        "install -b -g edged -m 0640 edged.toml /etc/edged/ && install -b -m 0644 *.pem /etc/edged/",
        "install -d -m 0700 /etc/edged-secrets && install -d /etc/systemd/system/edged.service.d",
        *keep,
        f"printf '[Service]\\n{load}' >/etc/systemd/system/edged.service.d/credentials.conf",
        "systemctl daemon-reload && systemctl restart edged",
        "",
        *("# " + line for line in ["edged.toml:", *(own / "edged.toml").read_text().splitlines()]),
    ]
    return "\n".join([f"On the board, as root, in a copy of {own}/:", *(f"  {line}".rstrip() for line in lines)])


def upgrade(options: argparse.Namespace) -> None:
    """Change the roles that are not as this version makes them, and leave the others alone."""
    fleet = Fleet(options.folder, options.broker)
    wanted = {kind: role(kind, rights(kind, fleet.root)) for kind in KINDS[1:]}
    for own in sorted((fleet.folder / "device").glob("*")):
        rolename = f"device-{own.name}"
        wanted[rolename] = role(rolename, rights("device", fleet.root, own.name, *known_settings(own)))
    names, done = list(wanted), []
    for start in range(0, len(names), 50):
        some = names[start : start + 50]
        answers = ask(fleet, [{"command": "getRole", "rolename": rolename} for rolename in some])
        for rolename, answer in zip(some, answers, strict=True):
            done += bring_up_to_date(fleet, wanted[rolename], answer)
    print("\n".join(done or ["All roles are as this version makes them."]))


def bring_up_to_date(fleet: Fleet, own: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    """Change one role where it is another one; what was done."""
    name = own["rolename"]
    if "error" in answer:
        if "not found" not in answer["error"]:
            raise ProvisionError(f"the broker at {fleet.place} refuses: {answer['error']}")
        if name.startswith("device-"):
            return [f"{name}: the broker has no such role; `device {name[7:]}` makes it, if it was not revoked"]
        command, said = "createRole", f"{name}: new"
    else:
        now = {(acl["acltype"], acl["topic"], acl["allow"]) for acl in answer["data"]["role"].get("acls", [])}
        then = {(acl["acltype"], acl["topic"], acl["allow"]) for acl in own["acls"]}
        if now == then:
            return []
        command, said = "modifyRole", f"{name}: {len(then - now)} rights added, {len(now - then)} taken away"
    if errors := control(fleet, [{"command": command, **own}]):
        raise ProvisionError(f"the broker at {fleet.place} refuses: {'; '.join(errors)}")
    return [said]


def revoke(options: argparse.Namespace) -> None:
    fleet = Fleet(options.folder, options.broker)
    name = options.name
    if name == ADMIN:
        raise ProvisionError("the administrator cannot be revoked")
    commands = [{"command": "deleteClient", "username": name}, {"command": "deleteRole", "rolename": f"device-{name}"}]
    refusals = control(fleet, commands)
    errors = [error for error in refusals if "not found" not in error]
    if errors:
        raise ProvisionError(f"the broker at {fleet.place} refuses: {'; '.join(errors)}")
    end_sessions(fleet, name)
    if any(error.startswith("deleteClient") for error in refusals):
        raise ProvisionError(f"the broker knew no {name}")
    kind = fleet.kind_of(name)
    where = f" Its files are in {fleet.folder / kind / name}." if kind else ""
    print(f"{name} may do nothing any more, and the broker keeps nothing for it.{where}\n"
          f"Its certificate still lets it connect, until it ends: a new authority is what shuts it out.")  # fmt: skip


def read_password() -> str:
    """From the terminal without echo, twice; else the first line of standard input."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if password != getpass.getpass("Again: "):
            raise ProvisionError("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < 12:
        raise ProvisionError("a password needs at least 12 characters")
    return password


def identifier(text: str) -> str:
    if not ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be 1 to 64 characters out of A-Z a-z 0-9 . _ -")
    return text


def host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,255}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name or an address")
    return text


def days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 36500")
    return int(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=Path("edged-fleet"), help="where everything lies")
    parser.add_argument("--broker", metavar="HOST[:PORT]", help="how to reach the broker from here, if not by its name")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("init", help="authority, broker, administrator")
    start.add_argument("--host", type=host, required=True, help="the name by which boards reach the broker")
    start.add_argument("--root", default="edged/v1", help="the setting mqtt.root of all devices")
    start.set_defaults(do=init)
    for kind in KINDS:
        one = commands.add_parser(kind, help=f"a {kind}")
        one.add_argument("name", type=identifier)
        one.add_argument("--password", action="store_true", help="a password, which is asked for, in place of a key")
        if kind == "device":
            one.add_argument("--groups", type=identifier, nargs="*", default=[], help="all groups of the device")
            one.add_argument("--home-assistant", action="store_true", help="let it show itself to Home Assistant")
            one.add_argument("--http", type=host, metavar="NAME", help="serve metrics to the network, at this name")
        one.set_defaults(do=add, kind=kind)
    for command in (start, *(commands.choices[kind] for kind in KINDS)):
        usual = f"{SERVER_DAYS} (broker), {CLIENT_DAYS} (others)"
        command.add_argument("--days", type=days, help=f"validity of new certificates; else {usual}")
    newer = commands.add_parser("upgrade", help="rights as this version makes them")
    newer.set_defaults(do=upgrade)
    end = commands.add_parser("revoke", help="takes all rights away")
    end.add_argument("name", type=identifier)
    end.set_defaults(do=revoke)
    return parser.parse_args()


def main() -> int:
    options = parse()
    os.umask(0o077)
    try:
        options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options.do(options)
    except ProvisionError as error:
        print(f"provision.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"provision.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
