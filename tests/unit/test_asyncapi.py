"""docs/asyncapi.json: what its generator makes of the contract and the code, and the same topics and fields."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from edged.jobs.document import Code, Job
from edged.mqtt.topics import Topics

ROOT = Path(__file__).parents[2]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("make_asyncapi", ROOT / "deploy" / "asyncapi" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8"))


def test_the_shipped_document_is_what_the_contract_says() -> None:
    assert generator().asyncapi() == DOCUMENT, "run deploy/asyncapi/make.py"


def test_its_topics_are_those_of_the_code() -> None:
    topics = Topics("edged/v1", "{device}")
    own = {topics.job, topics.cancel, topics.status, topics.info, topics.health}
    own |= {topics.desired, topics.reported, topics.group_desired("{group}")}
    own |= {topics.command("{command}", "{id}"), topics.group_command("{group}", "{command}", "{id}")}
    own |= {topics.event("{job}"), topics.result("{job}"), topics.stream("{job}"), topics.reply_prefix + "{client}"}
    own |= {topics.group_cancel("{group}"), topics.group_ping("{group}"), topics.group_pong("{group}")}
    own |= {topic("{group}", "{device}") for topic in (topics.group_offer, topics.group_give, topics.group_given)}
    shared = (topics.group_job("{group}"), topics.group_model_job("{group}", "{model}"))
    own |= {re.sub(r"^\$share/[^/]+/", "", topic) for topic in shared}
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == own


def test_its_documents_have_the_fields_and_codes_of_the_code() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert set(schemas["Job"]["properties"]) == set(Job.model_fields)
    assert schemas["Result"]["properties"]["error"]["properties"]["code"]["enum"] == [code.value for code in Code]
    assert {"device", "ready", "faults", "instance"} <= set(schemas["Status"]["properties"])
