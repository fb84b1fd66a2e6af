"""Renders a package's chat template in a confined process, so that no template can stall or swell the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

START_SECONDS = 60.0
"""A slow board with a cold SD card takes many seconds to start Python."""
RENDER_SECONDS = 5.0
MAX_TEXT_BYTES = 8 << 20


class TemplateFaultError(ValueError):
    """The template itself is broken; the message is one line."""


class TemplateRefusalError(ValueError):
    """The template refuses these messages in its own words (raise_exception)."""


class ChatTemplate:
    """A compiled chat template. Thread-safe. The process that renders starts here and ends with close()."""

    def __init__(self, template: str, special_tokens: dict[str, str]) -> None:
        """Raises TemplateFaultError when the template does not compile or cannot render a plain question."""
        self._setup: dict[str, object] = {"template": template, "special_tokens": special_tokens}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        try:
            self.render([{"role": "user", "content": "Is the pump running?"}])
        except TemplateRefusalError as error:
            self.close()
            raise TemplateFaultError(f"the chat template refuses a plain question: {error}") from None
        except TemplateFaultError:
            self.close()
            raise

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt text for `messages`, ending where the assistant's words begin.

        Raises TemplateRefusalError, or TemplateFaultError (an error, too much memory, longer than RENDER_SECONDS).
        """
        with self._lock:
            if self._process is None:
                self._process = self._start()
                if self._closed:  # by another thread
                    self._end()
                    raise TemplateFaultError("the chat template is closed")
                self._answer(self._process, START_SECONDS)
                self._ask(self._process, self._setup)
            return self._ask(self._process, {"messages": messages})

    def close(self) -> None:
        """End the rendering process, for good. Any thread may call it; a render() under way fails."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()  # who waits for its answer sees its pipe end, which it would not if that were closed here
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
                    with contextlib.suppress(OSError):  # what could not be written any more
                        pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("render_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _ask(self, process: subprocess.Popen[bytes], question: dict[str, object]) -> str:
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
