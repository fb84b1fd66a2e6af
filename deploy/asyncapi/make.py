"""Writes docs/asyncapi.json: the contract as an AsyncAPI 3 document, for code generators.

Topics, fields and codes come from the contract's tables, the job's types from the code that reads jobs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import edged
from edged.commands.document import Asked
from edged.commands.document import Code as CommandCode
from edged.commands.memory import Status
from edged.jobs.document import EXAMPLE, Code, Job, State
from edged.rollout.desired import Desired
from edged.sharing import messages

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "asyncapi.json"
ID = r"^[A-Za-z0-9._-]{1,64}$"
PARAMETERS = {
    "device": "The device's id.",
    "group": "A group of devices that share jobs.",
    "job": "The job's id.",
    "model": "The name of a model; a device serves one.",
    "command": "What a device is to do.",
    "id": "The command's id.",
    "client": "A name of the sender's own.",
}
MESSAGES = {
    "job": "job",
    "cancel": "cancel",
    "cmd": "command",
    "event": "event",
    "result": "result",
    "stream": "piece",
    "reply": "result",
    "pong": "ping",
}
"""What these topics carry; the others carry a document of their own name."""


def asyncapi() -> dict[str, Any]:
    """The document; `send` and `receive` are edged's side, as AsyncAPI 3 has it."""
    contract = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic, direction, quality, content in rows(contract, "Topics"):
        address = topic.replace("<root>", "edged/v1").replace("reply/…", "reply/<client>")
        levels = [level for level in address.split("/") if not level.startswith("<")]
        kind = levels[-1]
        words = levels[levels.index("group") :] if "group" in levels else [kind]
        name = words[0] + "".join(word.capitalize() for word in words[1:])
        message = MESSAGES.get(kind, kind)
        channels[name] = {
            "address": address.replace("<", "{").replace(">", "}"),
            "description": plain(content),
            "messages": {message: {"$ref": f"#/components/messages/{message}"}},
            "parameters": {
                parameter: {"description": PARAMETERS[parameter]} for parameter in re.findall(r"<(\w+)>", address)
            },
        }
        for way, action in (("in", "receive"), ("out", "send")):
            if way in direction.replace(",", " ").split():
                operations[action + name[0].upper() + name[1:]] = {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{name}"},
                    "summary": f"{direction}, QoS {quality}",
                    "bindings": {"mqtt": {"qos": int(quality[0]), "retain": "retained" in quality}},
                }
    job = Job.model_json_schema(ref_template="#/components/schemas/{model}")
    desired = Desired.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**job.pop("$defs"), **desired.pop("$defs"), "Job": job, "Desired": desired, **documents(contract)}
    schemas["Command"] = {"oneOf": [Asked.model_json_schema(), ANSWER]}
    schemas |= shared()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edged",
            "version": edged.__version__,
            "description": "Jobs for a small language model on a board, over MQTT. docs/contract.md is the contract.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": {"broker": {"host": "localhost:1883", "protocol": "mqtt", "protocolVersion": "5"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": schemas,
            "messages": {
                name: {"name": name, "payload": {"$ref": f"#/components/schemas/{schema}"}, **examples(name)}
                for name, schema in {
                    **{
                        name: name.capitalize()
                        for name in ("job", "cancel", "event", "result", "piece", "ping", "command")
                    },
                    **{name: name.capitalize() for name in ("status", "info", "health", "desired", "reported")},
                    **{name: name.capitalize() for name in ("offer", "give", "given")},
                }.items()
            },
        },
    }


def shared() -> dict[str, Any]:
    """Schemas of what devices of a group tell each other about waiting jobs."""
    found: dict[str, Any] = {}
    kinds = {"Offer": messages.Offer, "Given": messages.Answer, "Share": messages.Give, "ShareRepeat": messages.Repeat}
    for name, kind in {**kinds, "ShareCancel": messages.Cancel}.items():
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[name] = schema
    parts = ("Share", "ShareRepeat", "ShareCancel")
    return {**found, "Give": {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in parts]}}


def documents(contract: str) -> dict[str, Any]:
    """Schemas of all documents but the job."""
    id_ = {"type": "string", "pattern": ID}
    described = {
        name: {"description": plain(meaning)} for cell, meaning in rows(contract, "Result document", 0) for name in cell
    }
    error = {"type": "object", "properties": {"code": {"enum": [code.value for code in Code]}, "message": STRING}}
    described |= {
        "state": {**described["state"], "enum": [state.value for state in State]},
        "error": {**described["error"], **error},
    }
    status = next(content for topic, _, _, content in rows(contract, "Topics") if topic.endswith("/status"))
    fields = dict.fromkeys(re.findall(r"`(\w+)`", status.replace("`online`, `draining`, `offline`", "")))
    return {
        "Cancel": {"type": "object", "required": ["id"], "properties": {"id": id_}},
        "Event": {
            "type": "object",
            "required": ["id", "device", "event", "time"],
            "properties": {"id": id_, "device": id_, "event": {"type": "string"}, "time": TIME},
        },
        "Ping": {
            "type": "object",
            "required": ["device", "nonce"],
            "properties": {"device": id_, "nonce": id_},
        },
        "Piece": {
            "type": "object",
            "required": ["seq", "text"],
            "properties": {"seq": {"type": "integer", "minimum": 0}, "text": STRING},
        },
        "Result": {"type": "object", "required": ["id", "device", "state"], "properties": described},
        "Status": {
            "type": "object",
            "required": list(fields),
            "properties": {
                **{name: {} for name in fields},
                "state": {"enum": ["online", "draining", "offline"]},
                "ready": {"type": "boolean"},
                "time": TIME,
            },
        },
        "Reported": {"type": "object", "required": ["device", "state"], "properties": {"device": id_, "time": TIME}},
        "Info": {"type": "object", "required": ["device"], "properties": {"device": id_}},
        "Health": {"type": "object", "required": ["device", "time"], "properties": {"device": id_, "time": TIME}},
    }


STRING: dict[str, Any] = {"type": "string"}
TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
ANSWER: dict[str, Any] = {
    "title": "Answer",
    "type": "object",
    "required": ["status", "device", "time"],
    "properties": {
        "status": {"enum": [status.value for status in Status]},
        "device": {"type": "string", "pattern": ID},
        "time": TIME,
        "result": {"type": "object"},
        "code": {"enum": [code.value for code in CommandCode]},
        "reason": STRING,
        "hint": STRING,
    },
}
"""What a device says of a command."""


def rows(contract: str, title: str, table: int = 0) -> list[Any]:
    """The rows of a section's table: cells; of a table with names in its first column, (names, meaning)."""
    section = contract.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)[table].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in found]
    if len(cells[0]) == 2:
        return [(re.findall(r"`([^`]+)`", names), meaning) for names, meaning in cells]
    return [(re.findall(r"`([^`]+)`", first)[0], *others) for first, *others in cells]


def plain(text: str) -> str:
    """Text without Markdown's backticks."""
    return text.replace("`", "")


def examples(name: str) -> dict[str, Any]:
    return {"examples": [{"payload": json.loads(EXAMPLE)}]} if name == "job" else {}


def text() -> str:
    """The file's content."""
    return json.dumps(asyncapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
