"""Runs in a process of its own and compiles one grammar on trial: a job's grammar is untrusted and may be a bomb.

Reads `{"grammar", "limits", "bytes", "seconds", "stack"}` from stdin: the grammar as llguidance takes it, llguidance's
own limits, and those of the process: memory, processor time for the grammar, and bytes of stack. Writes a JSON text,
llguidance's reason for refusing the grammar, "" where it compiles; dies of a grammar that wants more.
"""

from __future__ import annotations

import json
import resource
import sys
import threading

from llguidance import LLMatcher, LLParserLimits


def _confine(memory: int, seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _main() -> None:
    question = json.load(sys.stdin)
    grammar, limits = question["grammar"], LLParserLimits(**question["limits"])
    _confine(question["bytes"], question["seconds"])
    reasons: list[str] = []
    threading.stack_size(question["stack"])
    trial = threading.Thread(target=lambda: reasons.append(LLMatcher.validate_grammar(grammar, limits=limits)))
    trial.start()
    trial.join()
    sys.stdout.write(json.dumps(reasons[0]))


if __name__ == "__main__":
    _main()
