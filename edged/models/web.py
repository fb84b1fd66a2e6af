"""HTTP with the standard library: the system's authorities and proxies, no other schemes, errors on one line."""

from __future__ import annotations

import errno
import functools
import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

import edged

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
_PASSING = {408, 425, 429}
_HIDDEN = {"authorization", "cookie"}
_MEANT = {
    401: ": it wants credentials; edged sends some to the hub alone (HF_TOKEN)",
    403: ": not everybody may read it",
    404: ": it has no such file; is the address right?",
}
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


class WebError(Exception):
    """A request failed; the message is one line. `passing`: another attempt may succeed."""

    def __init__(self, message: str, passing: bool) -> None:
        super().__init__(" ".join(message.split()))
        self.passing = passing


@dataclass(frozen=True)
class Remote:
    """A URL and the headers of its requests. Credentials among them are sent to this host only."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class _Redirects(urllib.request.HTTPRedirectHandler):
    # Python 3.10 does not know 308.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        asked, given = req.type, urlsplit(newurl).scheme
        if given not in ("https", asked) or given not in ("http", "https"):
            raise WebError(f"the server redirects from {asked} to {given}, which is not followed", passing=False)
        code = 307 if code == 308 else code
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


@functools.cache  # reading the system's authorities takes longer than fetching a small file
def _opener() -> urllib.request.OpenerDirector:
    https = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    return urllib.request.build_opener(_Redirects(), https)


def open_url(remote: Remote, method: str = "GET", more: Mapping[str, str] | None = None) -> Any:
    """The open http.client.HTTPResponse with a status of 2xx. Raises WebError; reading it may raise OSError."""
    request = urllib.request.Request(remote.url, method=method, headers={"User-Agent": f"edged/{edged.__version__}"})
    for name, value in {**remote.headers, **(more or {})}.items():
        # urllib would send other headers to the target of a redirect too.
        add = request.add_unredirected_header if name.lower() in _HIDDEN else request.add_header
        add(name, value)
    try:
        return _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            passing = error.code in _PASSING or error.code >= 500
            meant = _MEANT.get(error.code, "")
            raise WebError(f"the server answers {error.code} {error.reason}{meant}", passing) from None
    except urllib.error.URLError as error:
        raise explain(error.reason, remote.url) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise explain(error, remote.url) from None


def explain(error: object, url: str) -> WebError:
    """Why a request to `url` failed, and what to check. `error`: of the network, or of the HTTP parser."""
    who = _asked(url)
    if isinstance(error, socket.gaierror):
        return WebError(
            f"the name of {who} cannot be resolved: is it right, is the network up, and does "
            "/etc/resolv.conf name a server that answers?",
            passing=True,
        )
    if isinstance(error, ConnectionRefusedError):
        return WebError(f"{who} refused the connection: nothing listens there; are name and port right?", passing=True)
    if isinstance(error, OSError) and error.errno in _NO_WAY:
        return WebError(f"there is no way to {who}: {os.strerror(error.errno).lower()}; is the network up?", True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return WebError(
            f"the server's certificate is not trusted: {error.verify_message} (the system's authorities are asked: "
            "update-ca-certificates adds one; is the clock right?)",
            passing=False,
        )
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        hint = (
            "; does it speak plain http on this port?"
            if reason in ("wrong version number", "record layer failure")
            else ""
        )
        return WebError(f"no TLS with {who}: {reason}{hint}", passing=True)
    if isinstance(error, TimeoutError):
        return WebError(f"{who} does not answer; does a firewall stand between, or is a proxy needed?", passing=True)
    if isinstance(error, OSError):
        return WebError((error.strerror or str(error) or type(error).__name__).lower(), passing=True)
    return WebError(f"not an answer in HTTP: {type(error).__name__} {error}", passing=isinstance(error, Exception))


def _asked(url: str) -> str:
    """The peer of the connection: the URL's host, or the proxy that the environment sets for it."""
    parts = urlsplit(url)
    proxy = "" if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(parts.scheme)
    if not proxy:
        return _place(url)
    return f"the proxy {_place(proxy if '://' in proxy else f'//{proxy}')} ({parts.scheme}_proxy)"


def _place(url: str) -> str:
    """Host and port without credentials."""
    return urlsplit(url).netloc.rpartition("@")[2]
