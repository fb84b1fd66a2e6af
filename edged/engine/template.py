"""Renders a chat template in a confined process, so that no template can hang the daemon or fill its memory."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_SECONDS = 60.0
"""A slow board with a cold SD card takes many seconds to start Python."""
RENDER_SECONDS = 5.0
MAX_TEXT_BYTES = 8 << 20


class TemplateFaultError(ValueError):
    """The template does not compile, or took too much time or memory; the message is one line."""


class TemplateRefusalError(ValueError):
    """The template does not render these messages; the message is one line, its own (raise_exception) or the error."""


class ChatTemplate:
    """A compiled chat template. Thread-safe. The process that renders starts here and ends with close()."""

    def __init__(self, template: str, special_tokens: Mapping[str, object]) -> None:
        """`special_tokens`: variables such as bos_token. Raises TemplateFaultError when it does not compile."""
        self._setup: dict[str, object] = {"template": template, "variables": dict(special_tokens)}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        with self._lock:
            self._running()

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: object) -> str:
        """The prompt text for `messages`, ending where the assistant's text begins.

        `variables`: what else the template may use, such as tools and documents (None by default).

        Raises TemplateRefusalError, or TemplateFaultError (too much memory, longer than RENDER_SECONDS).
        """
        with self._lock:
            return self._ask(self._running(), {"messages": messages, "variables": variables})

    def close(self) -> None:
        """End the rendering process, for good. Any thread may call it; a render() under way fails."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()  # ends the read of a waiting render(); closing the pipe here would not
        with self._lock:
            self._end()

    def _end(self) -> None:
        """End the rendering process; the next render() starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # closing flushes what the dead process never read
                        pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, started and told the template where it is not yet."""
        if self._process is None:
            self._process = self._start()
            if self._closed:  # by another thread
                self._end()
                raise TemplateFaultError("the chat template is closed")
            process = self._process
            self._answer(process, START_SECONDS)
            self._ask(process, self._setup)
            return process
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("render_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _ask(self, process: subprocess.Popen[bytes], question: Mapping[str, object]) -> str:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # a broken or closed pipe shows when the answer is read
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        return self._answer(process, RENDER_SECONDS)

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        assert process.stdout is not None
        try:
            line = _read_line(process.stdout, seconds)
        except TimeoutError:
            self._end()
            raise TemplateFaultError(f"the chat template did not finish within {seconds:g} s") from None
        except (OSError, EOFError):
            self._end()
            raise TemplateFaultError("the chat template broke the process that renders it (out of memory?)") from None
        answer: dict[str, str] = json.loads(line)
        if "refused" in answer:
            raise TemplateRefusalError(answer["refused"])
        if "error" in answer:
            self._end()
            raise TemplateFaultError(f"the chat template fails: {answer['error']}")
        return answer["text"]


def _read_line(pipe: IO[bytes], seconds: float) -> bytes:
    """One line from `pipe`. Raises TimeoutError after `seconds`, EOFError when it ends or the line is too long."""
    deadline, parts, size = time.monotonic() + seconds, [], 0
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            part = os.read(pipe.fileno(), 1 << 16)
            size += len(part)
            if not part or size > MAX_TEXT_BYTES:
                raise EOFError
            parts.append(part)
            if part.endswith(b"\n"):
                return b"".join(parts)
