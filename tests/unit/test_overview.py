"""The overview and the page: the last hour, the charts, what stands where, and that no text becomes markup."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from edged.faults import Fault
from edged.machine.board import detect
from edged.machine.sensors.quantities import TEMPERATURE
from edged.machine.sensors.readings import Reading, Readings
from edged.report import page, words
from edged.report.charts import chart, path, round_up
from edged.report.documents import health_document, info_document
from edged.report.history import INTERVAL, KEPT, SERIES, History
from edged.report.overview import Overview
from edged.settings import Settings
from edged.status import JobSummary, LatestStatus, ModelFacts, ModelStatus, Status

FACTS = ModelFacts(
    architecture="phi3",
    execution_provider="CPUExecutionProvider",
    execution_provider_reason="the board has no GPU",
    threads=4,
    planned_bytes=1,
    verified=True,
    lone_rows_padded=False,
    same_ids_in_any_company=True,
    logits="wanted",
    logits_reason=None,
    response_formats=("text",),
    response_formats_reason="no llguidance",
    split_tokens=1,
    chat=None,
    digest=None,
    kv_cache="float32",
    kv_cache_reason=None,
    speculation=False,
    speculation_reason=None,
    load_seconds=1.0,
    rows=8,
    context=4096,
    prefix_bytes=0,
)
READY = Status(
    unready=(),
    wall_time=1_800_000_000.0,
    monotonic_time=float("inf"),
    model=ModelStatus("serving", "phi-3", facts=FACTS),
)


class Hour:
    """A history with a clock and a board that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readings = Readings()
        self.reads = 0
        self.history = History(self._read, now=lambda: self.now)

    def _read(self) -> Readings:
        self.reads += 1
        return self.readings

    def record(self, seconds: float = INTERVAL, **status: Any) -> None:
        self.history.record(replace(READY, **status))
        self.now += seconds


def overview(status: Status = READY, history: History | None = None) -> Overview:
    board = detect()
    health = functools.partial(health_document, "board", Readings())
    info = functools.partial(info_document, "board", Settings(), board)
    return Overview(LatestStatus(status), history or Hour().history, info, health)


def rendered(status: Status = READY) -> str:
    return page.render(overview(status).document()).decode()


# The last hour


def test_speeds_are_those_between_two_values() -> None:
    hour = Hour()
    hour.record(generated_tokens=100, prompt_tokens=0)
    hour.record(generated_tokens=150, prompt_tokens=400, queued=3, running=2)
    series = hour.history.series()
    assert [value for value in series["generated_tokens_per_second"] if value is not None] == [5.0]
    assert [value for value in series["prompt_tokens_per_second"] if value is not None] == [40.0]
    assert [value for value in series["queued"] if value is not None] == [0, 3]


def test_a_value_is_taken_once_in_an_interval_and_the_board_is_read_no_oftener() -> None:
    hour = Hour()
    for _ in range(100):
        hour.record(seconds=0.5)
    assert hour.reads == 5


def test_the_hottest_zone_counts_and_a_board_without_sensors_has_no_series() -> None:
    hour = Hour()
    hour.record()
    assert set(hour.history.series()["temperature_celsius"]) == {None}
    zones = {("cpu",): Reading(61.0, hour.now), ("gpu",): Reading(64.5, hour.now), ("old",): Reading(90.0, 0.0)}
    hour.readings = Readings({TEMPERATURE: zones}, total=7.25)
    hour.record()
    assert hour.history.series()["temperature_celsius"][-1] == 64.5
    assert hour.history.series()["power_watts"][-1] == 7.25


def test_it_holds_an_hour_and_no_more_with_gaps_where_the_loop_stood_still() -> None:
    hour = Hour()
    for n in range(2 * KEPT):
        hour.record(queued=n)
    series = hour.history.series()["queued"]
    assert len(series) == KEPT
    assert series[-1] == 2 * KEPT - 1
    assert None not in series
    hour.now += 5 * INTERVAL
    hour.record(queued=7)
    series = hour.history.series()["queued"]
    assert len(series) == KEPT
    assert series[-7:] == [2 * KEPT - 1, None, None, None, None, None, 7]


def test_its_memory_does_not_grow() -> None:
    hour = Hour()
    tracemalloc.start()
    sizes = []
    for _ in range(3):
        for n in range(KEPT):
            hour.record(queued=n, generated_tokens=n)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[0] < 200_000
    assert sizes[2] - sizes[1] < 10_000


# Charts


@pytest.mark.parametrize(("value", "top"), [(0.3, 0.5), (1, 1), (1.01, 2), (23, 50), (90, 100), (501, 1000), (2, 2)])
def test_the_upper_edge_is_round(value: float, top: float) -> None:
    assert round_up(value) == pytest.approx(top)


def test_a_path_has_a_line_for_each_run_and_the_ends_of_level_runs_alone() -> None:
    assert path([None, 0, 0, 0, 5, None, 10, None], 10) == "M1 100L3 100L4 50M6 0h0"
    assert path([1, 2], 4) == "M0 75L1 50"


def test_a_chart_of_nothing_is_none() -> None:
    assert chart("Power", "W", [None, None]) is None
    drawn = chart("Power", "W", [None, 3.0, 7.0], least_top=5)
    assert drawn is not None
    assert (drawn.top, drawn.now, drawn.lowest, drawn.highest) == (10, 7.0, 3.0, 7.0)
    stopped = chart("Power", "W", [3.0, None, None])
    assert stopped is not None
    assert stopped.now is None


# The document


def test_the_document_is_json_with_jobs_and_faults() -> None:
    jobs = (
        JobSummary("runs", "running", 1_799_999_990.0, queued_seconds=1.5),
        JobSummary(None, "expired", 1_799_999_000.0, 1_799_999_900.0, code="expired"),
    )
    fault = Fault("model_unavailable", "no data file", "copy it again")
    document = json.loads(json.dumps(overview(replace(READY, jobs=jobs, unready=(fault,))).document()))
    assert document["ready"] is False
    assert document["faults"] == [{"code": "model_unavailable", "message": "no data file", "hint": "copy it again"}]
    assert [(job["id"], job["state"], job["finished"], job["code"]) for job in document["jobs"]] == [
        ("runs", "running", None, None),
        (None, "expired", "2027-01-15T07:58:20.000Z", "expired"),
    ]
    assert set(document["history"]) == {"interval_seconds", *SERIES}
    assert document["info"]["device"] == document["health"]["device"] == "board"


def test_a_main_loop_that_stands_still_is_not_ready() -> None:
    document = overview(replace(READY, monotonic_time=0.0)).document()
    assert (document["ready"], document["faults"][0]["code"]) == (False, "main_loop_stalled")


# The page


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data


EVIL = "</code><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def test_no_text_becomes_markup() -> None:
    plain = [tag for tag, _ in Elements(rendered()).tags]
    evil = replace(
        READY,
        jobs=(JobSummary(EVIL, EVIL, 0.0, code=EVIL),),
        unready=(Fault(EVIL, EVIL, EVIL),),
        warnings=(Fault(EVIL, EVIL, EVIL),),
        model=ModelStatus("serving", EVIL, facts=replace(FACTS, execution_provider=EVIL)),
    )
    document = overview(evil).document()
    document["info"]["device"] = document["info"]["board"]["model"] = EVIL
    entry = dict.fromkeys(("event", "level", "reason", "hint"), EVIL)
    document["log"] = [{**entry, "count": 2, "time": "1970-01-01T00:00:00.000Z"}]
    document["health"]["throttled"] = [EVIL]
    text = page.render(document).decode()
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags].count("script") == plain.count("script") == 1
    assert "img" not in [tag for tag, _ in elements.tags]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert elements.text.count(EVIL) >= 12
    assert EVIL not in text


def test_style_and_script_are_those_that_the_policy_allows() -> None:
    text, policy = rendered(), dict(page.HEADERS)["Content-Security-Policy"]
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not [attributes for _, attributes in Elements(text).tags if "style" in attributes]
    assert re.findall(r"https?:|//[a-z]", re.sub(r"(?s)<script>.*?</script>", "", text)) == []


def test_the_page_says_whether_the_board_is_well_and_what_to_do() -> None:
    assert "Ready: jobs are answered." in rendered()
    fault = Fault("mqtt_unreachable", "broker 10.0.0.1:1883 not connected", "check mqtt.host")
    text = html.unescape(rendered(replace(READY, unready=(fault,))))
    for part in ("Not ready", fault.message, fault.code, f"What to do: {fault.hint}"):
        assert part in text


@pytest.mark.parametrize(
    "status",
    [
        Status(),
        replace(READY, model=ModelStatus("unavailable", "phi-3", "cut")),
        replace(READY, tokens_per_second={"prefill": 12.5}),
        replace(READY, tokens_per_second={"prefill": 12.5, "decode": 7.9}, queued=12_345),
    ],
    ids=["starting", "unavailable", "one-token", "busy"],
)
def test_every_state_of_the_daemon_has_a_page(status: Status) -> None:
    assert "</html>" in rendered(status)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (words.figure(None), "–"),
        (words.figure(0.0), "0"),
        (words.figure(12345.0), "12,345"),
        (words.figure(7.894), "7.89"),
        (words.size(0), "0 B"),
        (words.size(3_200_000_000), "3.2 GB"),
        (words.duration(0.25), "0.2 s"),
        (words.duration(None), "–"),
        (words.duration(75), "1 min 15 s"),
        (words.duration(words.between(("2027-01-15T07:00:00.000Z", "2027-01-15T08:00:00.000Z"))), "1 h 0 min"),
        (words.duration(words.between(("2027-01-15T07:00:00.000Z", None))), "–"),
        (words.duration(words.between(("2027-01-15T08:00:00.000Z", "2027-01-15T07:00:00.000Z"))), "–"),
        (words.duration(7300), "2 h 1 min"),
        (words.duration(200_000), "2 d 7 h"),
        (words.ago("2027-01-15T08:00:00.000Z", "2027-01-15T07:00:00.000Z"), "now"),
        (words.ago("2027-01-15T07:58:59.000Z", "2027-01-15T08:00:00.000Z"), "61 s ago"),
        (words.ago("2027-01-15T07:00:00.000Z", "2027-01-15T08:00:00.000Z"), "60 min ago"),
        (words.ago("2027-01-13T07:00:00.000Z", "2027-01-15T08:00:00.000Z"), "2 d ago"),
    ],
)
def test_numbers_are_for_people(made: str, shown: str) -> None:
    assert made == shown
