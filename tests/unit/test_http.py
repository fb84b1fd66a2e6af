"""The HTTP endpoint, and clients that behave badly."""

from __future__ import annotations

import http.client
import json
import math
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from patience import PATIENCE

from edged.faults import Fault
from edged.report.http import Answer, HttpServer
from edged.report.routes import daemon_routes
from edged.status import STALE_SECONDS, LatestStatus, Status

READY = Status(unready=(), monotonic_time=math.inf)
"""Never stale, however long the tests take."""


@pytest.fixture
def latest() -> LatestStatus:
    return LatestStatus(READY)


@pytest.fixture
def server(latest: LatestStatus) -> Iterator[HttpServer]:
    routes = daemon_routes(lambda accept: (b"edged_x 1\n", "text/plain"), latest, lambda: {"ready": True})
    server = HttpServer("127.0.0.1", 0, routes)
    server.start()
    yield server
    server.stop()


def ask(
    server: HttpServer, method: str, path: str, headers: Mapping[str, str] = {}
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request(method, path, headers=dict(headers))
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_metrics_are_served_as_prometheus_wants_them(server: HttpServer) -> None:
    status, body, headers = ask(server, "GET", "/metrics")
    assert (status, body) == (200, b"edged_x 1\n")
    assert headers["Content-Type"].startswith("text/plain")


def test_an_address_of_ipv6_is_listened_on() -> None:
    server = HttpServer("::1", 0, {"/metrics": lambda _: Answer(b"edged_x 1\n", "text/plain")})
    server.start()
    with urllib.request.urlopen(f"http://[::1]:{server.port}/metrics", timeout=PATIENCE) as answer:
        assert answer.read() == b"edged_x 1\n"
    server.stop()


def test_readyz_names_the_faults_and_healthz_only_those_of_a_standstill(
    server: HttpServer, latest: LatestStatus
) -> None:
    more = {"warnings": [], "broker": None, "protocol": None}
    status, body, _ = ask(server, "GET", "/readyz")
    assert (status, json.loads(body)) == (200, {"ok": True, "faults": [], **more})
    latest.current = replace(READY, unready=(Fault("model_loading", "model 모델 loading", "wait"),))
    status, body, _ = ask(server, "GET", "/readyz")
    loading = {"code": "model_loading", "message": "model 모델 loading", "hint": "wait"}
    assert (status, json.loads(body)) == (503, {"ok": False, "faults": [loading], **more})
    assert ask(server, "GET", "/healthz")[0] == 200
    latest.current = replace(latest.current, stalled=(Fault("step_hung", "a step hangs"),))
    for path, codes in (("/healthz", ["step_hung"]), ("/readyz", ["step_hung", "model_loading"])):
        status, body, _ = ask(server, "GET", path)
        assert (status, [fault["code"] for fault in json.loads(body)["faults"]]) == (503, codes)


def test_a_main_loop_that_stands_still_is_seen_by_the_age_of_its_snapshot(
    server: HttpServer, latest: LatestStatus
) -> None:
    latest.current = replace(READY, monotonic_time=time.monotonic() - STALE_SECONDS - 5)
    for path in ("/healthz", "/readyz"):
        status, body, _ = ask(server, "GET", path)
        (fault,) = json.loads(body)["faults"]
        assert (status, fault["code"], "for 12" in fault["message"]) == (503, "main_loop_stalled", True)


def test_a_server_whose_thread_has_ended_says_so() -> None:
    server = HttpServer("127.0.0.1", 0, {})
    assert not server.ended
    server.start()
    assert not server.ended
    server.stop()
    assert server.ended


def test_head_has_no_body(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Python" not in answer


def test_other_paths_and_methods_are_refused(server: HttpServer) -> None:
    status, body, _ = ask(server, "GET", "/elsewhere")
    assert (status, body) == (404, b"here are /, /status.json, /metrics, /healthz and /readyz\n")
    assert ask(server, "POST", "/metrics")[0] == 405
    assert ask(server, "DELETE", "/../../etc/passwd")[0] == 405


@pytest.mark.parametrize("noise", [b"", b"\0\xff\r\n\r\n", b"GET", b"GET /metrics HTTP/1.0\r\n" + b"a" * 100_000])
def test_noise_neither_stops_it_nor_fills_the_log(
    server: HttpServer, capfd: pytest.CaptureFixture[str], noise: bytes
) -> None:
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        connection.sendall(noise)
        # A reset in place of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert ask(server, "GET", "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9765", "127.0.0.1:9765", "[::1]:9765", "[::1]", "192.168.1.7"]
)
def test_on_loopback_a_local_name_is_answered(server: HttpServer, host: str) -> None:
    assert ask(server, "GET", "/status.json", {"Host": host})[:2] == (200, b'{"ready": true}\n')


@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:9765", "localhost.example", "127.0.0.1.example:80"]
)
def test_on_loopback_a_foreign_name_is_not(server: HttpServer, host: str) -> None:
    status, body, _ = ask(server, "GET", "/status.json", {"Host": host})
    assert (status, b"ready" in body) == (421, False)


def test_beyond_loopback_every_name_is_answered() -> None:
    server = HttpServer("0.0.0.0", 0, {"/": lambda _: Answer(b"here", "text/plain")})
    server.start()
    assert ask(server, "GET", "/", {"Host": "pi-7.lan"})[1] == b"here"
    server.stop()


def test_a_taken_port_is_an_error_of_the_system(server: HttpServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HttpServer("127.0.0.1", server.port, {})
