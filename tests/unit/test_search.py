"""The questions of `make bench-rank`: each has its section in the docs; the measures are those of the literature."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest


def benchmark(name: str) -> ModuleType:
    """A module of tests/benchmarks, whose names are not unique enough for sys.path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


search = benchmark("search")


def test_each_question_has_its_section_among_others() -> None:
    """Raises where a section was renamed: name it anew in tests/benchmarks/doc_questions.json."""
    asked = list(search.questions(search.sections()))
    assert len({one.text for one in asked}) == len(asked) >= 60
    for one in asked:
        assert len({section.text for section in one.sections}) == search.CHOICES == 20
        assert all(len(section.text) <= search.SHOWN + len(section.title) + 1 for section in one.sections)


def test_sections_are_what_has_a_title(tmp_path: Path) -> None:
    long = "word " * 60
    text = f"# Page\n\n## One\n\nshort\n\n**Two.** {long}\n```\n## no title\n```\n\n### Three\n{'x' * 199}\n"
    (tmp_path / "page.md").write_text(text)
    (found,) = search.sections(tmp_path)
    assert (found.file, found.title) == ("page.md", "Two")
    assert found.text.startswith("Two\nword word")
    assert "## no title" in found.text


def test_word_overlap_is_bm25() -> None:
    """By hand: idf = ln(1 + (3 - 1 + 0.5) / 1.5), two of six words, a mean length of 4."""
    scores = search.word_overlap("A pump!", ["pump b c pump e f", "x y z", "x y z"])
    length = 1 - 0.75 + 0.75 * 6 / 4
    assert scores == pytest.approx([math.log(1 + 2.5 / 1.5) * 2 * 2.2 / (2 + 1.2 * length), 0, 0])


@pytest.mark.parametrize(("scores", "place"), [([3, 2, 1], 1), ([1, 2, 3], 3), ([2, 2, 2], 2), ([2, 3, 2], 2.5)])
def test_equal_scores_share_the_middle_of_their_places(scores: list[float], place: float) -> None:
    assert search.place_of(0, scores) == place


def test_the_measures_of_an_order() -> None:
    assert search.told([1, 2, 4, 1]) == "0.50; 0.69"
