"""Chat templates: as Hugging Face writes them, rendered where a hostile one can do nothing."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, eventually

from edged.engine import template as template_module
from edged.engine.template import ChatTemplate, TemplateFaultError, TemplateRefusalError

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
QUESTION = [{"role": "user", "content": "Is it on?"}]


def render(template: str, messages: list[dict[str, str]] | None = None, **special: object) -> str:
    made = ChatTemplate(template, special)
    try:
        return made.render(messages or QUESTION)
    finally:
        made.close()


def fault(template: str) -> str:
    """The one-line error of a template that cannot be used."""
    with pytest.raises(TemplateFaultError) as caught:
        render(template)
    message = str(caught.value)
    assert "chat template" in message
    return one_line(message)


def refusal(template: str, messages: list[dict[str, str]] | None = None) -> str:
    """The one-line reason of a template that does not render `messages`."""
    with pytest.raises(TemplateRefusalError) as caught:
        render(template, messages)
    return one_line(str(caught.value))


def one_line(message: str) -> str:
    assert message.isprintable()
    assert "Traceback" not in message
    assert len(message) < 700
    return message


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found |= set((task / "children").read_text().split())
    return found


def ticks(pid: str) -> int:
    """Of the clock (sysconf(_SC_CLK_TCK)) that this process has spent on a processor."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15]))


class TestRendering:
    def test_phi_3(self) -> None:
        text = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>"
        assert render(text) == "<|user|>\nIs it on?<|end|>\n<|assistant|>"

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ bos_token }}{{ messages[0].content }}", "<s>Is it on?"),
            ("{% if add_generation_prompt %}yes{% endif %}", "yes"),
            ("{% for m in messages %}\n    {% if true %}\nx\n    {% endif %}\n{% endfor %}", "x\n"),
            ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Is it on?"}'),
            ("{{ {'k': '한'} | tojson(indent=1) }}", '{\n "k": "한"\n}'),
            ("{{ {'k': '한'} | tojson(true) }}", '{"k": "\\ud55c"}'),
            ("{{ {'k': 1, 'a': [2]} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":[2],"k":1}'),
            ("{{ tools is none }}{{ documents is none }}{{ tools is defined }}", "TrueTrueTrue"),
            ("{{ image_token }}{{ additional_special_tokens[1] }}", "<image><b>"),
            ("{% generation %}words{% endgeneration %}", "words"),
            ("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}", "1"),
            ("{{ dict(a=1) }}{{ dict.fromkeys(['a'], 2) }}", "{'a': 1}{'a': 2}"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}", "[1]"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{{ messages[0].content.strip().split(' ')[0] | upper }}", "IS"),
            ("{{ not_defined }}", ""),
        ],
    )
    def test_what_published_templates_use(self, template: str, text: str) -> None:
        special: dict[str, object] = {"bos_token": "<s>", "image_token": "<image>"}
        assert render(template, additional_special_tokens=["<a>", "<b>"], **special) == text

    def test_a_render_may_be_given_variables_of_its_own(self) -> None:
        made = ChatTemplate("{{ bos_token }}{{ tools[0].name }}{{ enable_thinking }}", {"bos_token": "<s>"})
        assert made.render(QUESTION, tools=[{"name": "weather"}], enable_thinking=False) == "<s>weatherFalse"
        with pytest.raises(TemplateRefusalError, match="None"):
            made.render(QUESTION)
        made.close()

    def test_the_date_is_todays(self) -> None:
        assert render("{{ strftime_now('%Y') }}") in {str(time.localtime().tm_year), time.strftime("%Y")}

    def test_any_text_goes_through_unchanged(self) -> None:
        content = 'a"\\ \n\u2028\0 안녕 🌡️ {{ 1 }} </s>' + "x" * 200_000
        assert render("{{ messages[0].content }}", [{"role": "user", "content": content}]) == content

    def test_raise_exception_refuses_these_messages_only(self) -> None:
        made = ChatTemplate(
            "{% if messages[0].role == 'system' %}{{ raise_exception('no\nsystem') }}{% endif %}"
            "{{ messages[0].content }}",
            {},
        )
        with pytest.raises(TemplateRefusalError, match=r"^no system$"):
            made.render([{"role": "system", "content": "x"}])
        assert made.render(QUESTION) == "Is it on?"
        made.close()

    def test_messages_that_a_template_fails_on_cost_no_new_process(self) -> None:
        before = children()
        made = ChatTemplate("{{ 1 // (messages | length - 1) }}{{ messages[1].content }}", {})
        started = children() - before
        for _ in range(3):
            with pytest.raises(TemplateRefusalError, match=r"^ZeroDivisionError: "):
                made.render(QUESTION)
        assert made.render(QUESTION * 2) == "1Is it on?"
        assert children() - before == started
        made.close()

    def test_many_renders_share_one_process_which_ends_with_close(self) -> None:
        before = children()
        made = ChatTemplate("{{ messages[0].content }}", {})
        started = children() - before
        assert [made.render(QUESTION) for _ in range(50)] == ["Is it on?"] * 50
        assert children() - before == started
        assert len(started) == 1
        made.close()
        assert children() == before

    def test_a_process_that_died_is_replaced(self) -> None:
        before = children()
        made = ChatTemplate("{{ messages[0].content }}", {})
        (pid,) = children() - before
        os.kill(int(pid), 9)
        with pytest.raises(TemplateFaultError, match="broke the process"):
            made.render(QUESTION)
        assert made.render(QUESTION) == "Is it on?"
        made.close()

    def test_closed_by_another_thread_a_render_ends_at_once_and_none_starts_a_process_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(template_module, "RENDER_SECONDS", 2 * PATIENCE)
        before = children()
        made = ChatTemplate("{% if messages[0].content == 'loop' %}" + LOOPS + "{% endif %}", {})
        (pid,) = children() - before
        spent = ticks(pid)
        with ThreadPoolExecutor(1) as thread:
            looping = thread.submit(made.render, [{"role": "user", "content": "loop"}])
            eventually(lambda: ticks(pid) > spent, "it renders")
            made.close()
            with pytest.raises(TemplateFaultError):
                looping.result(PATIENCE)
        with pytest.raises(TemplateFaultError, match="closed"):
            made.render(QUESTION)
        assert children() == before


class TestHostile:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "template",
        [
            LOOPS,
            "{{ 9 ** (9 ** 9) }}",
            "{% set x = 9 %}{{ x ** (x ** x) }}",
        ],
    )
    def test_one_that_does_not_end_is_ended(self, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(template_module, "RENDER_SECONDS", 0.5)
        before = children()
        assert fault(template) == "the chat template did not finish within 0.5 s"
        assert children() == before

    @pytest.mark.parametrize(
        "template",
        [
            "{{ 'a' * 10**10 }}",
            "{% set n = 10**10 %}{{ 'a' * n }}",
            "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
            "{{ '%1000000000d' % 1 }}",
        ],
    )
    def test_one_that_swells_is_ended(self, template: str) -> None:
        with pytest.raises((TemplateFaultError, TemplateRefusalError)) as caught:
            render(template)
        told = one_line(str(caught.value))
        assert any(word in told for word in ("more than 256 MiB", "out of memory", "OverflowError"))

    def test_an_answer_larger_than_any_prompt_is_refused(self) -> None:
        assert "broke the process" in fault("{{ 'a' * 20000000 }}")

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.__init__.__globals__ }}",
            "{{ raise_exception.__globals__['os'].system('touch /tmp/x') }}",
            "{{ cycler.__init__.__globals__.os }}",
            "{{ (messages | attr('__class__')).__mro__ }}",
            "{{ '{0.__class__.__mro__}'.format(messages) }}",
            "{{ messages.append(1) }}",
            "{{ strftime_now.__code__ }}",
            "{{ dict.__class__ }}",
            "{% set x = namespace(_a=1) %}{{ x._a }}",
            "{{ self.__init__.__globals__ }}",
        ],
    )
    def test_one_that_reaches_into_python_is_refused(self, template: str) -> None:
        text = ""
        with contextlib.suppress(TemplateFaultError, TemplateRefusalError):
            text = render(template)
        assert text == ""  # where it is no error, it is an undefined value

    @pytest.mark.parametrize(
        "template",
        ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends 'x' %}", "{{ open('/etc/passwd') }}"],
    )
    def test_one_that_opens_a_file_is_refused(self, template: str) -> None:
        refusal(template)

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{% if %}", "TemplateSyntaxError"),
            ("{{ messages[0].content", "TemplateSyntaxError"),
            ("{% nothing %}", "TemplateSyntaxError"),
            ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "Error"),
        ],
    )
    def test_one_that_does_not_compile_says_so_on_one_line(self, template: str, told: str) -> None:
        assert told in fault(template)

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{{ 1 // 0 }}", "ZeroDivisionError"),
            ("{{ nobody.name }}", "UndefinedError"),
            ("{{ 1 + 'a' }}", "TypeError"),
            ("{{ raise_exception('only\nwith tools') }}", "only with tools"),
            ("{{ strftime_now(3) }}", "TypeError"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
            ("{{ messages[0].content.encode('utf-8').decode('ascii', 'strange') }}{{ 1 // 0 }}", "Error"),
        ],
    )
    def test_one_that_fails_says_so_on_one_line(self, template: str, told: str) -> None:
        assert told in refusal(template)

    def test_the_process_has_no_open_file_beside_its_pipes(self) -> None:
        before = children()
        made = ChatTemplate("{{ messages[0].content }}", {})
        (pid,) = children() - before
        assert {link.name for link in Path(f"/proc/{pid}/fd").iterdir()} == {"0", "1", "2"}
        limits: Any = Path(f"/proc/{pid}/limits").read_text()
        assert "Max open files            3 " in limits
        assert "Max file size             0 " in limits
        made.close()

    def test_idle_it_takes_no_time(self) -> None:
        before = children()
        made = ChatTemplate("{{ messages[0].content }}", {})
        (pid,) = children() - before
        spent = ticks(pid)
        time.sleep(0.3)  # it is the passing of time that is measured
        assert ticks(pid) <= spent + 1  # of 30, had it worked all the time
        made.close()
