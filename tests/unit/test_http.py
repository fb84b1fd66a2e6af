"""The HTTP endpoint, and clients that behave badly."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from edged.report.http import HttpServer


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def server(faults: list[str]) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, lambda: b"edged_x 1\n", list, lambda: faults)
    server.start()
    yield server
    server.stop()


def ask(server: HttpServer, method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_metrics_are_served_as_prometheus_wants_them(server: HttpServer) -> None:
    status, body, headers = ask(server, "GET", "/metrics")
    assert (status, body) == (200, b"edged_x 1\n")
    assert headers["Content-Type"].startswith("text/plain")


def test_an_address_of_ipv6_is_listened_on() -> None:
    server = HttpServer("::1", 0, lambda: b"edged_x 1\n", list, list)
    server.start()
    with urllib.request.urlopen(f"http://[::1]:{server.port}/metrics", timeout=5) as answer:
        assert answer.read() == b"edged_x 1\n"
    server.stop()


def test_readyz_says_which_is_not(server: HttpServer, faults: list[str]) -> None:
    assert ask(server, "GET", "/readyz")[0] == 200
    faults.append("broker 모델 not connected")
    status, body, _ = ask(server, "GET", "/readyz")
    assert (status, json.loads(body)) == (503, {"ok": False, "faults": faults})
    assert ask(server, "GET", "/healthz")[0] == 200


def test_head_has_no_body(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Python" not in answer


def test_other_paths_and_methods_are_refused(server: HttpServer) -> None:
    assert ask(server, "GET", "/")[0] == 404
    assert ask(server, "POST", "/metrics")[0] == 405
    assert ask(server, "DELETE", "/../../etc/passwd")[0] == 405


@pytest.mark.parametrize("noise", [b"", b"\0\xff\r\n\r\n", b"GET", b"GET /metrics HTTP/1.0\r\n" + b"a" * 100_000])
def test_noise_neither_stops_it_nor_fills_the_log(
    server: HttpServer, capfd: pytest.CaptureFixture[str], noise: bytes
) -> None:
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        connection.sendall(noise)
        # A reset in place of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert ask(server, "GET", "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_taken_port_is_an_error_of_the_system(server: HttpServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HttpServer("127.0.0.1", server.port, lambda: b"", list, list)
