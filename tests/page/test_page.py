"""The page in a real Chromium: how it looks, whether everybody can read it, and that it keeps itself up to date."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Tab
from daemon_fixtures import Place, job
from invented import board
from patience import eventually

from edged.report.http import HttpServer
from edged.report.routes import daemon_routes
from edged.status import LatestStatus

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")

AXE = Path(os.environ.get("AXE", "/nowhere/axe.min.js"))
PICTURES = os.environ.get("PAGE_PICTURES")
"""A folder for pictures to look at."""
SIZES = {"phone": (360, 740), "desk": (1280, 900)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser") / "log")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """What the server shows; a test replaces it."""
    return board()


@pytest.fixture(scope="module")
def server(documents: dict[str, Any]) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, daemon_routes(lambda _: (b"", ""), LatestStatus(), lambda: documents))
    server.start()
    yield server
    server.stop()


def open_page(browser: Browser, port: int, size: str = "desk", **options: Any) -> Tab:
    tab = browser.tab(SIZES[size], **options)
    tab.open(f"http://127.0.0.1:{port}/")
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", ["well", "trouble"])
class TestLooks:
    @pytest.fixture
    def tab(
        self, browser: Browser, server: HttpServer, documents: dict[str, Any], state: str, size: str, scheme: str
    ) -> Tab:
        documents |= board(well=state == "well")
        return open_page(browser, server.port, size, dark=scheme == "dark")

    def test_nothing_is_cut_off_or_blocked_or_fetched_from_elsewhere(
        self, tab: Tab, server: HttpServer, state: str, size: str, scheme: str
    ) -> None:
        assert tab.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
        assert tab.evaluate("[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1 "
                            "&& getComputedStyle(e).display == 'block' && e.clientWidth).length") == 0  # fmt: skip
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(246, 246, 243)", "dark": "rgb(20, 21, 23)"}[scheme]
        tab.settle()
        assert tab.complaints == []
        assert {address.split("?")[0] for address in tab.asked} <= {f"http://127.0.0.1:{server.port}/"}
        if PICTURES:
            Path(PICTURES, f"page-{state}-{size}-{scheme}.webp").write_bytes(tab.picture())

    @pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make test-page installs it")
    def test_roles_names_and_contrast_are_right(self, tab: Tab, state: str, size: str, scheme: str) -> None:
        tab.evaluate(AXE.read_text() + "; undefined")
        found = tab.evaluate(
            "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
            ".then(r => ({broken: r.violations.map(v => [v.id, v.nodes.map(n => n.failureSummary + n.html)]),"
            " passed: r.passes.map(v => v.id)}))"
        )
        assert found["broken"] == []
        assert {"color-contrast", "svg-img-alt"} <= set(found["passed"])  # it looked at something


def test_without_javascript_it_is_a_still_picture(browser: Browser, server: HttpServer) -> None:
    with_script, without = (open_page(browser, server.port, script=script) for script in (True, False))
    shown = with_script.evaluate("document.body.innerText")
    node = without.call("DOM.getDocument")["root"]["nodeId"]
    body = without.call("DOM.querySelector", nodeId=node, selector="body")["nodeId"]
    still = without.call("DOM.getOuterHTML", nodeId=body)["outerHTML"]
    assert "Last jobs" in shown
    assert all(line in still for line in ("Last jobs", "pi-hall-3", "<path d="))
    assert with_script.evaluate("document.getElementById('lost').checkVisibility()") is False


def test_every_link_can_be_reached_by_the_keyboard(browser: Browser, server: HttpServer) -> None:
    tab = open_page(browser, server.port)
    focused = []
    for _ in range(4):
        for kind in ("rawKeyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        focused.append(tab.evaluate("document.activeElement.getAttribute('href')"))
    assert focused == ["status.json", "metrics", "healthz", "readyz"]


@pytest.fixture
def place() -> Iterator[Place]:
    with contextlib.closing(Place()) as place:
        place.broker.start()
        yield place


def test_it_follows_the_daemon_without_a_reload(browser: Browser, place: Place) -> None:
    daemon = place.daemon().start()
    tab = open_page(browser, daemon.http)
    tab.evaluate("window.loadedOnce = true")

    def text() -> str:
        return str(tab.evaluate("document.querySelector('main').innerText"))

    def until(words: str) -> None:
        eventually(lambda: words in text(), lambda: f"{words!r} is not in {text()}")

    assert "Ready: jobs are answered." in text()
    place.client().ask(job("seen-on-the-page"))
    until("seen-on-the-page")
    place.broker.kill()
    until("Not ready")
    until("What to do:")
    place.broker.start()
    until("Ready: jobs are answered.")
    daemon.kill()
    eventually(lambda: tab.evaluate("document.getElementById('lost').checkVisibility()"), "it does not say so")
    assert "No answer" in tab.evaluate("document.title")
    assert "seen-on-the-page" in text()
    daemon.start()
    eventually(lambda: not tab.evaluate("document.getElementById('lost').checkVisibility()"), "it still says so")
    assert tab.evaluate("window.loadedOnce") is True
    tab.settle()
    assert [told for told in tab.complaints if "Content" in told or "Policy" in told] == []
