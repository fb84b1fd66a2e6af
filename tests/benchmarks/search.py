"""Questions on the docs, the sections that may answer them, and how well an order of these puts the right one first."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = Path(__file__).with_name("doc_questions.json")
LEFT_OUT = ("alerts.md", "log.md")
"""Tables of names."""
SHOWN, LEAST = 600, 200
"""Characters of a section that are given, and that it has at least."""
CHOICES = 20
_BEGINNING = re.compile(r"#{2,4} (?P<heading>.+)|\*\*(?P<bold>[^*]+?)\.?\*\*(?P<rest>.*)")
_K1, _B = 1.2, 0.75


@dataclass(frozen=True)
class Section:
    """A part of the docs with a title. `text`: its beginning, the title first."""

    file: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, the sections among which the right one is looked for, and the place of that one."""

    text: str
    sections: tuple[Section, ...]
    right: int


def sections(folder: Path = ROOT / "docs") -> list[Section]:
    """What has a heading, or begins with bold words, in the docs; without what is too short to answer anything."""
    files = [file for file in sorted(folder.glob("*.md")) if file.name not in LEFT_OUT]
    return [one for file in files for one in _sections_of(file)]


def _sections_of(file: Path) -> Iterator[Section]:
    title, lines, code = "", list[str](), False
    for line in [*file.read_text(encoding="utf-8").splitlines(), "## end"]:
        code ^= line.startswith("```")
        begins = None if code else _BEGINNING.fullmatch(line)
        if begins is None:
            lines.append(line)
            continue
        text = "\n".join(lines).strip()
        if title and len(text) >= LEAST:
            shown = text if len(text) <= SHOWN else text[:SHOWN].rsplit(maxsplit=1)[0]
            yield Section(file.name, title, f"{title}\n{shown}")
        title, lines = begins["heading"] or begins["bold"], [begins["rest"] or ""]


def questions(among: Sequence[Section]) -> Iterator[Question]:
    """Each question with CHOICES sections, the same ones for the same docs. Raises ValueError if its own is missing."""
    for number, one in enumerate(json.loads(QUESTIONS.read_text(encoding="utf-8"))):
        right = [section for section in among if (section.file, section.title) == (one["file"], one["section"])]
        if len(right) != 1:
            raise ValueError(f"{one['file']} has {len(right)} sections {one['section']!r}, and one is asked for")
        chance = random.Random(number)
        others = chance.sample([section for section in among if section != right[0]], CHOICES - 1)
        place = chance.randrange(CHOICES)
        yield Question(one["question"], (*others[:place], right[0], *others[place:]), place)


def word_overlap(query: str, texts: Sequence[str]) -> list[float]:
    """BM25 of each text (Robertson and Zaragoza 2009), with the rarity of words in these texts alone."""
    counts = [Counter(_words(text)) for text in texts]
    mean = sum(count.total() for count in counts) / len(counts)
    scores = [0.0] * len(texts)
    for word in _words(query):
        having = sum(word in count for count in counts)
        rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for place, count in enumerate(counts):
            length = 1 - _B + _B * count.total() / mean
            scores[place] += rarity * count[word] * (_K1 + 1) / (count[word] + _K1 * length)
    return scores


def place_of(right: int, scores: Sequence[float]) -> float:
    """The right one's place in the order of the scores, from 1 on; among equals the middle."""
    better = sum(score > scores[right] for score in scores)
    return 1 + better + (scores.count(scores[right]) - 1) / 2


def told(places: Sequence[float]) -> str:
    """Recall at one, and the mean reciprocal rank."""
    first = sum(place == 1 for place in places) / len(places)
    return f"{first:.2f}; {sum(1 / place for place in places) / len(places):.2f}"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
