"""How well the real model ranks sections of the docs, beside word overlap: `make bench-rank` prints the table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

from figures import Figure, show
from search import CHOICES, place_of, questions, sections, told, word_overlap
from structured import PACKAGE, Runner, prepared

from edged import logs


def quality(runner: Runner) -> Iterator[Figure]:
    overlap, ranked, taken = list[float](), list[float](), list[float]()
    for question in questions(sections()):
        documents = [section.text for section in question.sections]
        overlap.append(place_of(question.right, word_overlap(question.text, documents)))
        seconds, (end,) = runner.run([prepared(runner.loaded, query=question.text, documents=documents)])
        assert end.scores is not None
        ranked.append(place_of(question.right, end.scores))
        taken.append(seconds)
    name = f"{len(ranked)} questions, the right section of {CHOICES}: recall@1; MRR"
    yield Figure(f"{name}, SmolLM2", told(ranked))
    yield Figure(f"{name}, BM25", told(overlap))
    yield Figure("a question: median seconds", f"{statistics.median(taken):.1f}")


def main() -> None:
    if not (PACKAGE / "genai_config.json").is_file():
        sys.exit("there is no real model here: make real-model")
    logs.configure("error", "auto")
    runner = Runner()
    show(quality(runner))
    runner.close()


if __name__ == "__main__":
    main()
