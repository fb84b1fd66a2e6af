"""`edged doctor`: checks this board, its settings, broker and model, and says what to do about each problem."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from edged import logs
from edged.cli.common import FAILED, ConfigOption, JsonOption, loaded_or_exit
from edged.cli.running import Answer, ask_ready, is_running
from edged.engine import ort, runtime
from edged.faults import Fault
from edged.machine import instructions
from edged.machine.board import Board, DeviceIdError, detect, device_id
from edged.machine.board.jetson_wheels import cuda_runtime, is_thor
from edged.machine.clock import Clock
from edged.machine.memory import available
from edged.machine.sensors import find_sensors, power_meter
from edged.machine.sensors.closed import closed
from edged.machine.sensors.quantities import QUANTITIES, THROTTLED
from edged.machine.sensors.readings import read_once
from edged.machine.storage import mount_of, swaps_on_card
from edged.models.store import DEMO_FOLDER
from edged.settings import Loaded, Settings, address
from edged.settings.mqtt import MqttSettings
from edged.status import sentence

_EXAMPLES = "/usr/share/doc/edged/examples/edged.service.d"
_DROP_INS = "/etc/systemd/system/edged.service.d"
_FREE_DISK = 1 << 30
_FASTER = {"asimddp", "i8mm", "avx2", "avx512_vnni", "avx_vnni"}
"""CPU features for which onnxruntime has faster integer kernels; it runs without them too."""
_OLDEST_GLIBC = (2, 28)
"""The oldest glibc that numpy's and onnxruntime's wheels run on (manylinux_2_28)."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: `state` is ok, warn or fail; `hint` says what to do."""

    check: str
    state: str
    message: str
    hint: str = ""


def doctor(config: ConfigOption = None, json_: JsonOption = False) -> None:
    """Check this board, its settings, broker and model; exit code 1 where something fails."""
    loaded = loaded_or_exit(config)
    logs.configure("error", "auto")
    findings = [*open_secrets(loaded), *remote_settings(loaded), *examine(loaded.settings, detect())]
    if json_:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        console = Console(highlight=False)
        for finding in findings:
            mark = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}[finding.state]
            line = Text.assemble(mark, f"  {finding.check:<9} {finding.message}")
            console.print(line, soft_wrap=True)
            if finding.hint:
                console.print(Text(f"                {finding.hint}", style="dim"), soft_wrap=True)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(FAILED)


def open_secrets(loaded: Loaded) -> Iterator[Finding]:
    """A warning for each file with a secret that every user of this board may read."""
    mqtt, http = loaded.settings.mqtt, loaded.settings.http
    files = [mqtt.password_file, mqtt.key_file, http.key_file]
    if mqtt.password is not None:
        files.append(Path(loaded.origins["mqtt.password"]))  # or a variable, which is no file
    for file in files:
        if file is not None and _open_to_all(file.resolve()):
            hint = f"let only root and the service read it: chgrp edged {file}; chmod 640 {file}"
            yield Finding("settings", "warn", f"{file} holds a secret, and every user here may read it", hint)


def remote_settings(loaded: Loaded) -> Iterator[Finding]:
    """What rollouts set, and whether it holds."""
    if loaded.left_out is not None:
        hint = "mend it, or publish a desired document with other settings"
        yield Finding("settings", "warn", f"what rollouts set is left out: {loaded.left_out}", hint)
    elif loaded.remote:
        told = []
        for name, one in loaded.remote.items():
            more = f"; {loaded.origins[name]} overrides it" if name in loaded.overridden else ""
            told.append(f"{name} = {json.dumps(one.value)} ({one.origin}{more})")
        yield Finding("settings", "ok", f"from rollouts: {', '.join(told)}")


def _open_to_all(file: Path) -> bool:
    try:
        folders = all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
        return folders and bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:  # missing, or this user may not read it
        return False


def examine(settings: Settings, board: Board) -> Iterator[Finding]:
    """Run every check; one that fails unexpectedly is a finding too."""
    checks: tuple[tuple[str, Callable[[Settings, Board], Iterator[Finding]]], ...] = (
        ("board", _board),
        ("sensors", _sensors),
        ("clock", _clock),
        ("disk", _disk),
        ("memory", _memory),
        ("runtime", _runtime),
        ("model", _model),
        ("broker", _broker),
        ("http", _http),
    )
    for name, check in checks:
        try:
            yield from check(settings, board)
        except Exception as error:  # the other checks still help
            yield Finding(name, "fail", f"the check itself failed: {type(error).__name__}: {error}")


def _board(settings: Settings, board: Board) -> Iterator[Finding]:
    cores = len(board.performance_cores(os.sched_getaffinity(0)))
    yield Finding("board", "ok", f"{board.model} ({board.kind}), {cores} performance cores, {platform.machine()}")
    if struct.calcsize("P") == 4:
        kernel = "64-bit kernel" if platform.machine() in ("aarch64", "x86_64") else f"kernel for {platform.machine()}"
        hint = "install a 64-bit system: onnxruntime has no 32-bit wheels"
        yield Finding("board", "fail", f"32-bit user land on a {kernel}", hint)
    try:
        yield Finding("board", "ok", f"device id {settings.device.id or device_id(board)}")
    except DeviceIdError as error:
        yield Finding("board", "fail", str(error), "set device.id")
    faster = sorted(instructions.features(board.root) & _FASTER)
    yield Finding("board", "ok", f"instructions that speed int4 up: {', '.join(faster) or 'none'}")
    pages = os.sysconf("SC_PAGE_SIZE") >> 10
    yield Finding("board", "ok", f"memory pages of {pages} KiB{'' if pages == 4 else ', which the wheels can do'}")
    yield _c_library(os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None)


def _sensors(settings: Settings, board: Board) -> Iterator[Finding]:
    sensors = find_sensors(board, settings.state_dir)
    told = [quantity for quantity in QUANTITIES if read_once(sensors, quantity)]
    rails = power_meter(board).read()
    power = [f"power of {rails.source}"] if rails.total is not None else ["power by rail"] if rails.rails else []
    yield Finding("sensors", "ok", ", ".join([*(quantity.name for quantity in told), *power]))
    slow = [labels[0] for labels, on in read_once(sensors, THROTTLED).items() if on]
    if slow:
        yield Finding("sensors", "warn", f"throttled: {', '.join(slow)}", "check the power supply and the cooling")
    for one in closed(board):
        hint = f"as root: install -D -m 644 {_EXAMPLES}/{one.drop_in}.conf.example {_DROP_INS}/{one.drop_in}.conf"
        hint += "; systemctl daemon-reload; systemctl restart edged"
        yield Finding("sensors", "warn", f"closed to the service: {one.what}", hint)


def _c_library(name: str | None) -> Finding:
    """Whether the wheels' C library is here; `name` such as ``glibc 2.36``, None for another one."""
    parts = (name or "").removeprefix("glibc ").split(".")
    if not name or not all(part.isdecimal() for part in parts):
        return Finding(
            "board", "fail", "the C library is not glibc", "take a Debian or Ubuntu: onnxruntime needs glibc"
        )
    if tuple(map(int, parts)) < _OLDEST_GLIBC:
        needed = ".".join(map(str, _OLDEST_GLIBC))
        hint = "take Debian 12, Ubuntu 22.04 or newer"
        return Finding("board", "fail", f"{name}, and onnxruntime's wheels need {needed}", hint)
    return Finding("board", "ok", name)


def _clock(settings: Settings, board: Board) -> Iterator[Finding]:
    if Clock().synchronised():
        yield Finding("clock", "ok", "synchronised")
    else:
        yield Finding(
            "clock", "warn", "not synchronised: deadlines are not judged", "start systemd-timesyncd or chrony"
        )


def _disk(settings: Settings, board: Board) -> Iterator[Finding]:
    folder = settings.state_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    mount = mount_of(existing.resolve(), board.root)
    if mount is not None and mount.read_only:
        message = f"{mount.point} ({mount.source}) is mounted read-only"
        hint = f"mount -o remount,rw {mount.point}; where the kernel did it, dmesg says why, and a card may be worn out"
        yield Finding("disk", "fail", message, hint)
        return
    if not existing.is_dir():
        yield Finding("disk", "fail", f"{existing} is a file, and state_dir must be a folder", "set state_dir")
        return
    try:  # permissions do not tell all: /proc takes no files from root
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        message = f"{existing} cannot be written: {(error.strerror or str(error)).lower()}"
        yield Finding("disk", "fail", message, "give state_dir to the user that runs edged, or set another")
        return
    if mount is not None and mount.volatile:
        message = f"{folder} lies on {mount.kind}: jobs and results are gone after a power cut"
        hint = "mount a disk there, set state_dir to one, or switch the overlay off (raspi-config)"
        yield Finding("disk", "warn", message, hint)
    free = shutil.disk_usage(existing).free
    state = "ok" if free >= _FREE_DISK else "warn"
    yield Finding(
        "disk", state, f"{free / 2**30:.1f} GiB free for {folder}", "" if state == "ok" else "free some space"
    )


def _memory(settings: Settings, board: Board) -> Iterator[Finding]:
    found = available(board.root)
    limit = "" if found.limited_by == "memory" else f", limited by {found.limited_by}"
    yield Finding("memory", "ok", f"{found.usable / 2**30:.1f} GiB can be used now{limit}")
    for swap in swaps_on_card(board.root):
        hint = f"swapoff {swap} and take it out of the system's settings; zram does no harm"
        yield Finding("memory", "warn", f"memory is swapped to the card, to {swap}: slow, and wears it out", hint)


def _runtime(settings: Settings, board: Board) -> Iterator[Finding]:
    runtime.select_runtime(settings, DEMO_FOLDER)
    if runtime.selected.refused is not None:
        yield Finding("runtime", "warn", runtime.selected.refused, "edged computes with the onnxruntime it came with")
    try:
        found = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    except ort.OnnxruntimeError as error:
        yield Finding("runtime", "fail", str(error), "pip install 'edged[cpu]' or 'edged[cuda]'")
        return
    offered = [name for name in found if name != "Azure"]  # in every wheel, and computes nothing here
    origin = f", from {runtime.selected.wheel}" if runtime.selected.wheel else ""
    yield Finding("runtime", "ok", f"onnxruntime {ort.__version__} computes on {', '.join(offered)}{origin}")
    if board.kind == "jetson" and "CUDA" not in offered:
        python = (sys.version_info.major, sys.version_info.minor)
        advice = cuda_runtime(board.l4t, python, is_thor(board.root))
        yield Finding("runtime", "warn", "this onnxruntime cannot use the Jetson's GPU", advice)


def _model(settings: Settings, board: Board) -> Iterator[Finding]:
    from edged.engine.integrity import CorruptPackageError
    from edged.engine.loaded_model import load_model
    from edged.engine.package import PackageError
    from edged.models.store import kept_manifests, kept_scales, served

    if is_running(settings):
        yield _ask_daemon(settings)
        return
    path, name = served(settings)
    try:
        manifests, scales = kept_manifests(settings), kept_scales(settings)
        loaded = load_model(settings, board, available, path, name, manifests=manifests, scales=scales)
    except CorruptPackageError as error:
        yield Finding("model", "fail", error.fault.message, error.fault.hint)
        return
    except PackageError as error:
        yield Finding("model", "fail", str(error), "mend the package or set model.path")
        return
    loaded.close()
    provider = loaded.session.providers[0].removesuffix("ExecutionProvider")
    message = f"{path} loads in {loaded.load_seconds:.1f} s on {provider} ({loaded.choice.reason})"
    yield Finding("model", "warn" if loaded.choice.fell_back else "ok", message)
    if loaded.verified is None:
        hint = "edged model verify --record makes them, once, where the package is known to be right"
        yield Finding("model", "warn", "it has no known answers: a damaged copy would not be noticed", hint)
    else:
        yield Finding("model", "ok", f"{loaded.verified.compared} tokens of its known answers are right")
    if loaded.kv_reason is not None:
        hint = 'the reason says what would help; model.kv_cache = "published" asks for no other cache'
        yield Finding("model", "warn", f"its KV cache is as published, not int8: {loaded.kv_reason}", hint)
    if loaded.speculation_reason is not None:
        hint = 'the reason says what would help; model.speculation = "off" asks for none'
        yield Finding("model", "warn", f"no tokens are guessed: {loaded.speculation_reason}", hint)
    if path == DEMO_FOLDER:
        hint = "edged model pull and use one of your own, or set model.path"
        yield Finding("model", "warn", "it is the built-in demo model", hint)


def _ask_daemon(settings: Settings) -> Finding:
    """The status of the running daemon, instead of loading the model: a small board cannot hold it twice."""
    try:
        faults = ask_ready(settings).faults
    except (OSError, ValueError) as error:
        message = f"edged is running and was not asked over HTTP: {error}; the model was not loaded a second time"
        return Finding("model", "warn", message, "systemctl status edged says what is missing")
    if faults:
        state = "fail" if any(fault.code in ("model_unavailable", "model_corrupt") for fault in faults) else "warn"
        return Finding("model", state, f"edged is running and says: {sentence(faults)}")
    return Finding("model", "ok", "edged is running and says that it is ready; not loaded a second time")


def _broker(settings: Settings, board: Board) -> Iterator[Finding]:
    try:
        device = settings.device.id or device_id(board)
    except DeviceIdError:
        return  # the board check reports it
    running, in_use = is_running(settings), None
    if running:
        with suppress(OSError, ValueError):  # reported for the model
            told = ask_ready(settings)
            faults = [fault for fault in told.faults if fault.code.startswith("mqtt_") or fault.code in _LINK_FAULTS]
            yield from _link_of_daemon(told, faults)
            if faults:
                return
            in_use = told.broker
    for place, broker in enumerate(settings.mqtt.brokers):
        if broker.address != in_use:
            yield from _try(broker, device, settings.device.groups, running or _hidden(settings), place > 0)


_LINK_FAULTS = ("device_id_taken", "link_stalled")
"""Those without a name of their own for MQTT."""
_ROLLOUT = ("rollout_", "desired_")
"""Codes of warnings that tell of a rollout begin so."""


def _link_of_daemon(told: Answer, faults: Sequence[Fault]) -> Iterator[Finding]:
    for fault in faults:
        yield Finding("broker", "fail", f"edged is running and says: {fault.message}", fault.hint)
    if told.broker is not None and not faults:
        yield Finding("broker", "ok", f"edged is running, connected to {told.broker} over MQTT {told.protocol}")
    for warning in told.warnings:
        if warning.code.startswith(_ROLLOUT):
            yield Finding("rollout", "warn", warning.message, warning.hint)
        else:
            where = "" if told.broker is None else f"{told.broker}: "
            yield Finding("broker", "warn", f"{where}{warning.message}", warning.hint)


def _try(broker: MqttSettings, device: str, groups: Sequence[str], taken: bool, fallback: bool) -> Iterator[Finding]:
    """Connect as the daemon would; only look where its ids are `taken`, or may be."""
    from edged.mqtt.probe import look, rehearse
    from edged.mqtt.topics import Topics
    from edged.report.documents import encode, offline_document
    from edged.status import Status

    topics, where = Topics(broker.root, device), broker.address
    will = encode(offline_document(device, Status(), "edged doctor was interrupted"))
    answer = look(broker, topics) if taken else rehearse(broker, topics, groups, lambda: will)
    if answer.fault is not None:
        state = "warn" if fallback else "fail"
        yield Finding("broker", state, f"{where}: {answer.fault.message}", answer.fault.hint)
    elif answer.occupied and not taken:
        message = f"{where}: a device {device!r} is online there, and no edged runs here with these settings"
        yield Finding("broker", "warn", message, "unless it is this board, under other settings: set another device.id")
    elif taken:
        yield Finding("broker", "ok", f"{where} answers, over MQTT {answer.protocol}")
    else:
        more = f" and delivers to {', '.join(groups)}" if groups else ""
        yield Finding("broker", "ok", f"{where} takes this device, over MQTT {answer.protocol}{more}")
    for warning in answer.warnings:
        yield Finding("broker", "warn", f"{where}: {warning.message}", warning.hint)


def _hidden(settings: Settings) -> bool:
    """Whether this user may not see if edged is running."""
    return settings.state_dir.is_dir() and not os.access(settings.state_dir, os.X_OK)


def _http(settings: Settings, board: Board) -> Iterator[Finding]:
    from edged.endpoints import check_address, http_context
    from edged.tls import CredentialsError

    http = settings.http
    try:
        http_context(settings)
    except CredentialsError as error:
        yield Finding("http", "fail", str(error), "mend the file, or unset http.cert_file")
        return
    where = address(http.host, http.port)
    if not http.is_loopback and http.client_ca_file is None:
        message = f"metrics are open to everyone who reaches {where}"
        yield Finding("http", "warn", message, "set http.client_ca_file, or keep http.host on 127.0.0.1")
    if is_running(settings):
        yield Finding("http", "ok", f"{where} is served by the edged that is running")
        return
    try:
        check_address(http.host, http.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            message = f"{where} cannot be had: {(error.strerror or str(error)).lower()}"
            yield Finding("http", "fail", message, "set http.host to an address of this board, and http.port")
        elif _hidden(settings):
            yield Finding("http", "ok", f"{where} is in use; only root may see whether by edged")
        else:
            yield Finding("http", "fail", f"{where} is used by another program", "set http.port to a free one")
    else:
        yield Finding("http", "ok", f"{where} is free")
