"""Chat templates with rules of their own, as an operator and a sender see them: log, info and error codes."""

from __future__ import annotations

import json
from typing import Any

import psutil
import pytest
from daemon_fixtures import EXACT, Client5, Daemon, Place, reference_job
from engine_rig import copy_package, reference
from patience import eventually

pytest_plugins = ["daemon_fixtures"]

PARTICULAR = (
    "{% for m in messages if m.role in ('user', 'assistant') %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Knows no other roles than these two, and wants them in turn."""


def serve(place: Place, template: str) -> tuple[Daemon, Client5]:
    """A daemon with a package that has this chat template, and a sender."""
    package = copy_package("phi3", place.folder)
    (package / "chat_template.jinja").write_text(template)
    client = place.client()
    return place.daemon(MODEL__PATH=str(package)).start(), client


def chat_facts(client: Client5) -> dict[str, Any]:
    """`info.model.chat`."""

    def told() -> Any:
        infos = client.all("info")
        return infos and (json.loads(infos[-1].payload).get("model") or {}).get("chat")

    return dict(eventually(told, "info names the chat template"))


def processes(daemon: Daemon) -> list[int]:
    """Ids of the daemon's child processes: that of the chat template."""
    assert daemon.process is not None
    return [child.pid for child in psutil.Process(daemon.process.pid).children()]


def chat(id: str, *turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": id, "messages": [{"role": role, "content": text} for role, text in turns], "max_tokens": 4, **EXACT}


def refused(client: Client5, job: dict[str, Any]) -> str:
    """The words with which a job is refused as invalid."""
    result = client.ask(job)
    assert (result["state"], result["error"]["code"]) == ("rejected", "invalid_job"), result
    return str(result["error"]["message"])


def test_a_template_that_refuses_a_plain_question_is_a_fault_that_is_told_and_prompts_are_answered(
    place: Place,
) -> None:
    daemon, client = serve(place, "{{ raise_exception('only with tools') }}")
    (fault,) = daemon.logged("package_fault")
    assert (fault["level"], fault["model"]) == ("warning", "phi3")
    assert fault["fault"] == "the chat template refuses a plain question (only with tools): use prompt"
    assert daemon.metric('edged_faults_total{event="package_fault",level="warning"}') == 1
    assert chat_facts(client)["refuses"] == "only with tools"
    before = processes(daemon)
    assert refused(client, chat("a", ("user", "On?"))).endswith("refuses these messages: only with tools")
    assert client.ask(reference_job("b"))["token_ids"] == reference("phi3")[0]["output_ids"]
    assert processes(daemon) == before != []


@pytest.mark.slow
def test_what_a_template_does_with_roles_is_told_and_what_it_refuses_or_drops_is_the_jobs_fault(place: Place) -> None:
    daemon, client = serve(place, PARTICULAR)
    assert daemon.logged("package_fault") == []
    assert chat_facts(client) == {"system": "first_user_message", "turns": "control_tokens"}
    before = processes(daemon)
    words = refused(client, chat("a", ("user", "On?"), ("user", "On?")))
    assert words == "the model's chat template refuses these messages: Conversation roles must alternate"
    for number, role in enumerate(("developer", "narrator")):
        words = refused(client, chat(f"b-{number}", (role, "Brief."), ("user", "On?")))
        assert f"leaves out what role '{role}' says in message 1" in words
    with_system = client.ask(chat("c", ("system", "Brief."), ("user", "On?")))
    assert with_system["token_ids"] == client.ask(chat("d", ("user", "Brief.\nOn?")))["token_ids"]
    assert with_system["token_ids"] != client.ask(chat("e", ("user", "On?")))["token_ids"]
    assert processes(daemon) == before != []


TOOLS = (
    "{% if tools %}<|system|>\n{{ tools | tojson }}<|end|>\n{% endif %}{% for m in messages %}<|user|>\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PUMP = {
    "type": "function",
    "function": {
        "name": "set_pump",
        "parameters": {
            "type": "object",
            "properties": {"pump": {"enum": [1, 2, 3]}, "mode": {"enum": ["on", "off"]}},
            "required": ["pump", "mode"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.slow
def test_a_tool_is_called_and_what_came_of_it_goes_back(place: Place) -> None:
    _, client = serve(place, TOOLS)
    question = {"role": "user", "content": "Stop pump 3"}
    wanted = {"type": "function", "function": {"name": "set_pump"}}
    tools = {"tools": [PUMP], "tool_choice": wanted, "max_tokens": 200}
    result = client.ask({"id": "call", "messages": [question], **tools})
    assert (result["state"], result["finish_reason"], result["text"]) == ("succeeded", "tool_calls", "")
    (call,) = result["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "set_pump"
    assert arguments in [{"pump": pump, "mode": mode} for pump in (1, 2, 3) for mode in ("on", "off")]
    answered = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    chat = [question, {"role": "assistant", "content": None, "tool_calls": result["tool_calls"]}, answered]
    after = client.ask({"id": "after", "messages": chat, "tools": [PUMP], "max_tokens": 4})
    assert (after["state"], after["usage"]["prompt_tokens"] > result["usage"]["prompt_tokens"]) == ("succeeded", True)
    wrong = client.ask({"id": "wrong", "messages": [question], **tools, "tool_choice": "open_valve"})
    assert (wrong["state"], wrong["error"]["code"]) == ("rejected", "invalid_job")
