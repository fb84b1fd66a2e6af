"""Makes the text that the demo model is trained on and scored with: three tasks, and what lies outside them.

Only the standard library is used, and every stream follows from its seed. What may appear where is decided by
value: a held-out sentence frame, name or number never occurs in its slot in training, so that scores on the test
sets tell whether the model learnt the task or only its examples.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from frames import (
    COMMAND_FRAMES,
    COMMAND_PREFIXES,
    COMMAND_SUFFIXES,
    DEVICES,
    HELD_OUT_DEVICES,
    HELD_OUT_PARTS,
    HELD_OUT_ROOMS,
    INSTRUCTIONS,
    KOREAN_NOUNS,
    KOREAN_PLACES,
    LEVELS,
    LOG_FRAMES,
    LOG_LAYOUTS,
    MODES,
    NO_VERB,
    PARTS,
    ROOMS,
    STATUS_FRAMES,
    SYSTEM_PROMPTS,
    VERB_PREFIXES,
    Frames,
)
from outside import held_out_outside_text, other_instruction, outside_text

Task = Literal["log", "command", "korean", "outside"]
Message = dict[str, str]

TASKS: tuple[Task, ...] = ("log", "command", "korean")
UNKNOWN = "unknown"
TRAINING_SEED = 20_240
TRAINING_SAMPLES = 120_000
TEST_SEED = 77_001
TEST_CASES = 600

_TASK_WEIGHTS = (25, 36, 21, 18)
_TYPO_RATE = 0.08
_HASTE_RATE = 0.15
_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NOT_WORDS = re.compile(r"[\W_]+")
_LONG_WORD = re.compile(r"\b[a-z]{5,}\b")

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Sample:
    """One conversation and its only right answer, with what was put into the frame's slots."""

    task: Task
    messages: list[Message]
    answer: str
    payload: str
    """What the task's instruction is applied to (for `outside`: the whole text)."""
    frame: str
    name: str = ""
    number: str = ""


def normalise(text: str) -> str:
    """Casefolds, and turns each run of whitespace and punctuation into one space.

    Text of nothing but punctuation or emoji would become empty, so it is only stripped.
    """
    return _NOT_WORDS.sub(" ", text.casefold()).strip() or "".join(text.split())


# --- Which names and numbers are held out -------------------------------------------------------------------------


def is_held_out_name(name: str) -> bool:
    """Whether a name's spelling, punctuation aside, belongs to the test sets (about one in eight)."""
    return zlib.crc32(normalise(name).encode()) % 8 == 0


def is_held_out_number(number: str) -> bool:
    """Whether a number belongs to the test sets.

    Every word that numbers are spoken with must be learnt, so those up to twenty and whole tens stay in training.
    """
    if "." in number:
        return zlib.crc32(number.encode()) % 7 == 0
    value = int(number)
    return value > 20 and value % 10 != 0 and value % 7 == 3


def _whole_number(rng: Random, held_out: bool, low: int = 0, high: int = 999) -> str:
    while True:
        # Numbers of few digits are as common as those of many.
        top = high if high <= 100 else min(high, (9, 99, 999, 9999)[int(rng.random() * 4)])
        number = str(int(low + rng.random() * (top - low + 1)))
        if is_held_out_number(number) == held_out:
            return number


def _number(rng: Random, held_out: bool, low: int = 0, high: int = 999) -> str:
    if rng.random() < 0.15:
        while True:
            number = f"{int(low + rng.random() * (min(high, 99) - low))}.{int(rng.random() * 10)}"
            if is_held_out_number(number) == held_out:
                return number
    return _whole_number(rng, held_out, low, high)


def _fitting_number(rng: Random, frame: str, held_out: bool) -> str:
    """A number that the unit after the frame's slot allows: no 300 %, no half messages."""
    after = frame.partition("{n}")[2].split(" ")
    unit = after[0] or (after[1] if len(after) > 1 else "")
    if unit.startswith(("%", "percent")):
        return _whole_number(rng, held_out, 1, 100)
    if unit.startswith(("C", "degrees", "bar")) or "version" in frame:
        return _number(rng, held_out)
    return _whole_number(rng, held_out, 1, 9999)


def spoken(number: int) -> str:
    """A number up to a hundred as it is said."""
    if number == 100:
        return "one hundred"
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


# --- Names ----------------------------------------------------------------------------------------------------------


def _made_up_word(rng: Random) -> str:
    """A word that no language needs to know, so that copying has to be learnt rather than words."""
    r = rng.random
    syllables = 1 + int(r() * 2.6)
    word = "".join([_CONSONANTS[int(r() * 18)] + _VOWELS[int(r() * 5)] for _ in range(syllables)])
    if r() < 0.6:
        word += _CONSONANTS[int(r() * 18)]
    if r() < 0.25:
        word = _VOWELS[int(r() * 5)] + word
    return word if len(word) > 2 else word + _CONSONANTS[int(r() * 18)] + _VOWELS[int(r() * 5)]


def _letters(rng: Random) -> str:
    return "".join([_LETTERS[int(rng.random() * 26)] for _ in range(1 + int(rng.random() * 4))])


def _digits(rng: Random) -> str:
    return str(int(rng.random() * (9, 99, 999)[int(rng.random() * 3)]) + 1)


def _recase(rng: Random, name: str) -> str:
    kind = rng.random()
    if kind < 0.72:
        return name
    return name.title() if kind < 0.86 else name.upper()


def _identifier(rng: Random, held_out: bool) -> str:
    """A device's name in one piece: pump-7, net.mqtt, xk3-b7, tarbo_4."""
    while True:
        r = rng.random
        parts = HELD_OUT_PARTS if held_out and r() < 0.6 else PARTS if r() < 0.7 else DEVICES
        kind = int(r() * 8)
        separator = "-_-./"[int(r() * 5)]
        if kind < 2:
            name = f"{rng.choice(parts)}{'-_'[int(r() * 2)] if r() < 0.8 else ''}{_digits(rng)}"
        elif kind == 2:
            name = f"{rng.choice(parts)}{separator}{rng.choice(PARTS)}"
        elif kind == 3:
            name = f"{_letters(rng)}{_digits(rng)}{separator}{_letters(rng)}{_digits(rng)}"
        elif kind == 4:
            name = f"{_made_up_word(rng)}{separator}{_digits(rng)}"
        elif kind == 5:
            name = f"{_made_up_word(rng)}{separator}{rng.choice(parts)}"
        elif kind == 6:
            name = f"{rng.choice(parts)}{separator}{_made_up_word(rng)}{separator}{_digits(rng)}"
        else:
            name = _made_up_word(rng) + (_digits(rng) if r() < 0.4 else "")
        if held_out == (is_held_out_name(name) or any(part in HELD_OUT_PARTS for part in _words(name))):
            return _recase(rng, name)


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name)


def _spoken_name(rng: Random, held_out: bool) -> str:
    """What a command may be about: kitchen light, living room lamp, pump 7, zorvex heater."""
    while True:
        r = rng.random
        rooms = HELD_OUT_ROOMS if held_out and r() < 0.5 else ROOMS
        devices = HELD_OUT_DEVICES if held_out and r() < 0.5 else DEVICES
        kind = int(r() * 12)
        device = rng.choice(devices)
        if kind == 11:
            name = f"{_made_up_word(rng)} {_made_up_word(rng)}"
        elif kind == 10:
            name = f"{rng.choice(rooms)} {_made_up_word(rng)} {device}"
        elif kind < 3:
            name = f"{rng.choice(rooms)} {device}"
        elif kind == 3:
            name = device
        elif kind == 4:
            name = f"{device} {_digits(rng)}"
        elif kind == 5:
            name = f"{rng.choice(rooms)} {device} {_digits(rng)}"
        elif kind == 6:
            name = f"{_made_up_word(rng)} {device}"
        elif kind == 7:
            name = f"{rng.choice(rooms)} {_made_up_word(rng)}"
        elif kind == 8:
            name = _made_up_word(rng) + (f" {_digits(rng)}" if r() < 0.3 else "")
        else:
            name = f"{device}-{_digits(rng)}" if r() < 0.5 else f"{_made_up_word(rng)}-{_digits(rng)}"
        new = any(room in name for room in HELD_OUT_ROOMS) or any(word in HELD_OUT_DEVICES for word in name.split())
        if held_out == (new or is_held_out_name(name)):
            return _recase(rng, name) if r() < 0.3 else name


# --- The three tasks ------------------------------------------------------------------------------------------------


def _typo(rng: Random, frame: str) -> str:
    """One slip of the keyboard in a longer word of the frame (a slot is shorter than that)."""
    words = list(_LONG_WORD.finditer(frame))
    if not words:
        return frame
    word = words[int(rng.random() * len(words))]
    at = word.start() + 1 + int(rng.random() * (len(word[0]) - 2))
    kind = rng.random()
    if kind < 0.4:
        return frame[:at] + frame[at + 1] + frame[at] + frame[at + 2 :]
    if kind < 0.7:
        return frame[:at] + frame[at + 1 :]
    return frame[:at] + frame[at] + frame[at:]


def _compact_json(**fields: str | int | float | None) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _pick_frame(rng: Random, frames: dict[str, Frames], held_out: bool) -> tuple[str, str]:
    """A class and one of its frames; classes are equally common."""
    kind = rng.choice(list(frames))
    return kind, rng.choice(frames[kind].held_out if held_out else frames[kind].trained)


def _without_article(frame: str) -> str:
    """A frame as one says it in haste; a trained one never becomes a held-out one."""
    short = frame.replace("the {n}", "{n}")
    return frame if any(short in frames.held_out for frames in COMMAND_FRAMES.values()) else short


def _timestamp(rng: Random) -> str:
    r = rng.random
    clock = f"{int(r() * 24):02}:{int(r() * 60):02}:{int(r() * 60):02}"
    kind = int(r() * 4)
    if kind == 0:
        return f"2026-{1 + int(r() * 12):02}-{1 + int(r() * 28):02}T{clock}Z"
    if kind == 1:
        return f"{rng.choice(('Jan', 'Mar', 'May', 'Jul', 'Sep', 'Nov'))} {1 + int(r() * 28)} {clock}"
    return clock if kind == 2 else f"[{int(r() * 99999)}.{int(r() * 1000):03}]"


def log_sample(rng: Random, *, new_frame: bool = False, new_slots: bool = False) -> tuple[str, str, str, str, str]:
    """A device's log line: payload, answer, frame, name, number."""
    action, frame = _pick_frame(rng, LOG_FRAMES, new_frame)
    layouts = LOG_LAYOUTS.held_out if new_frame and rng.random() < 0.3 else LOG_LAYOUTS.trained
    layout = rng.choice(layouts)
    quiet = action == "none"
    if rng.random() < 0.1:
        quiet = not quiet
    severity = rng.choice(("debug", "info", "info") if quiet else ("warning", "error", "critical"))
    level = rng.choice(LEVELS[severity])
    style = rng.random()
    level = level.upper() if style < 0.4 else level.title() if style < 0.55 else level
    name = _identifier(rng, new_slots)
    number = _fitting_number(rng, frame, new_slots)
    event = frame
    if not new_slots and rng.random() < _TYPO_RATE:
        event = _typo(rng, event)
    if rng.random() < 0.25:
        event = event[0].upper() + event[1:]
    if "{n}" in frame:
        event = event.replace("{n}", number)
    else:
        number = ""
    text = layout.replace("{event}", event).replace("{level}", level)
    if "{ts}" in layout:
        text = text.replace("{ts}", _timestamp(rng))
    if "{pid}" in layout:
        text = text.replace("{pid}", _digits(rng))
    text = text.replace("{name}", name)
    return text, _compact_json(severity=severity, component=name, action=action), frame, name, number


def _spoken_value(rng: Random, held_out: bool) -> tuple[str, int | float]:
    """A number as it stands in a command, in digits or in words, and its value."""
    if rng.random() < 0.5:
        number = _whole_number(rng, held_out, 0, 100)
        words = spoken(int(number))
        return (words.replace(" ", "-") if rng.random() < 0.15 else words), int(number)
    number = _number(rng, held_out)
    return number, float(number) if "." in number else int(number)


def command_sample(rng: Random, *, new_frame: bool = False, new_slots: bool = False) -> tuple[str, str, str, str, str]:
    """A spoken command: payload, answer, frame, name, number."""
    intent, frame = _pick_frame(rng, COMMAND_FRAMES, new_frame)
    if not new_slots and rng.random() < _HASTE_RATE:
        frame = _without_article(frame)
    name = _spoken_name(rng, new_slots)
    value: str | int | float | None = None
    said = number = ""
    if "{v}" in frame:
        if intent == "set" and rng.random() < 0.2:
            said = value = rng.choice(MODES)
        else:
            said, value = _spoken_value(rng, new_slots)
            number = str(value)
            if intent != "run_for":
                said += rng.choice(("", "", " percent", " degrees", "%", " units", " degrees celsius"))
    text = frame
    if not new_slots and rng.random() < _TYPO_RATE:
        text = _typo(rng, text)
    prefixes = COMMAND_PREFIXES if frame.startswith(NO_VERB) else VERB_PREFIXES
    text = rng.choice(prefixes) + text + rng.choice(COMMAND_SUFFIXES)
    style = rng.random()
    if style < 0.3:
        text = text[0].upper() + text[1:]
    elif style < 0.34:
        text = text.upper()
    if style < 0.25 or style > 0.85:
        text += "." if text[-1] not in "?!" else ""
    text = text.replace("{N}", "{n}").replace("{V}", "{v}").replace("{n}", name).replace("{v}", said)
    return text, _compact_json(intent=intent, target=name, value=value), frame, name, number


def _has_final_consonant(korean: str) -> bool:
    return (ord(korean[-1]) - 0xAC00) % 28 != 0


def with_particles(template: str, subject: str) -> str:
    """Puts the subject into a Korean sentence; `{이}` and `{은}` become the particle its last syllable asks for."""
    final = _has_final_consonant(subject)
    return (
        template.replace("{S}", subject)
        .replace("{이}", "이" if final else "가")
        .replace("{은}", "은" if final else "는")
    )


def _status_subject(rng: Random, held_out: bool) -> tuple[str, str, str]:
    """Whom a status is about: in English, in Korean, and the name that decides whether it is held out."""
    while True:
        r = rng.random
        kind = r()
        if kind < 0.45:
            # A made-up name is copied; the noun after it fixes the particles.
            name = _identifier(rng, held_out)
            english = f"{rng.choice(('', '', '', 'device ', 'unit ', 'the device '))}{name}"
            return english, f"{name} 장치", name
        noun, korean = rng.choice(KOREAN_NOUNS)
        if kind < 0.65:
            number = _digits(rng)
            name = f"{noun} {number}"
            english = name if r() < 0.7 else f"{noun} number {number}"
            korean = f"{number}번 {korean}"
        else:
            place, korean_place = rng.choice(KOREAN_PLACES)
            name = f"{place} {noun}"
            english = f"the {name}" if r() < 0.7 else f"the {noun} in the {place}"
            korean = f"{korean_place} {korean}"
            if r() < 0.25:
                number = _digits(rng)
                name = f"{place} {noun} {number}"
                english = name
                korean = f"{korean_place} {number}번 {korean[len(korean_place) + 1 :]}"
        if is_held_out_name(name) == held_out:
            return english, korean, name


def korean_sample(rng: Random, *, new_frame: bool = False, new_slots: bool = False) -> tuple[str, str, str, str, str]:
    """A short English device status: payload, its Korean translation, frame, name, number."""
    korean, frame = _pick_frame(rng, STATUS_FRAMES, new_frame)
    english_subject, korean_subject, name = _status_subject(rng, new_slots)
    number = _fitting_number(rng, frame, new_slots) if "{n}" in frame else ""
    text = frame
    if not new_slots and rng.random() < _TYPO_RATE:
        text = _typo(rng, text)
    text = text.replace("{S}", english_subject).replace("{n}", number)
    # A copied name keeps its spelling even at the start of the sentence.
    if not text.startswith(name) or " " in name:
        text = text[0].upper() + text[1:] if rng.random() < 0.8 else text
    text += "." if rng.random() < 0.8 else ""
    return text, with_particles(korean, korean_subject).replace("{n}", number), frame, name, number


_MAKERS = {"log": log_sample, "command": command_sample, "korean": korean_sample}


# --- Conversations --------------------------------------------------------------------------------------------------


def _instruction(rng: Random, task: str) -> str:
    instruction = rng.choice(INSTRUCTIONS[task])
    style = rng.random()
    if style < 0.12:
        instruction = instruction.lower()
    elif style < 0.16:
        instruction = instruction.upper()
    return instruction + ("" if rng.random() < 0.1 else ":")


def _ask(rng: Random, task: str, payload: str) -> list[Message]:
    """The payload under one of the task's instructions, as one user message or with a system message."""
    instruction = _instruction(rng, task)
    layout = rng.random()
    if layout < 0.08:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": payload}]
    separator = "\n" if layout < 0.9 or not instruction.endswith(":") else " "
    user = {"role": "user", "content": f"{instruction}{separator}{payload}"}
    if layout < 0.16:
        return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, user]
    return [user]


def _in_task(rng: Random, task: Task, new_frame: bool = False, new_slots: bool = False) -> Sample:
    payload, answer, frame, name, number = _MAKERS[task](rng, new_frame=new_frame, new_slots=new_slots)
    return Sample(task, _ask(rng, task, payload), answer, payload, frame, name, number)


def _outside(rng: Random, held_out: bool) -> Sample:
    """Text that no task covers, alone or under an instruction that does not fit it."""
    make = held_out_outside_text if held_out else outside_text
    kind = rng.random()
    if kind < 0.1:
        # A payload alone, or under an instruction the model was not trained for.
        text = _MAKERS[rng.choice(TASKS)](rng, new_slots=held_out)[0]
        if kind < 0.07:
            text = f"{other_instruction(rng, held_out)}\n{text}"
        frame = "payload of a task without its instruction"
    else:
        frame, text = make(rng)
        if kind < 0.4:
            return Sample("outside", _ask(rng, rng.choice(TASKS), text), UNKNOWN, text, f"instruction, then {frame}")
    messages = [{"role": "user", "content": text}]
    if kind > 0.93:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    return Sample("outside", messages, UNKNOWN, text, frame)


def training_samples(count: int, seed: int = TRAINING_SEED) -> Iterator[Sample]:
    """The training stream; its first `count` samples are the same whatever `count` is."""
    rng = Random(seed)
    for _ in range(count):
        (task,) = rng.choices((*TASKS, "outside"), _TASK_WEIGHTS)
        yield _outside(rng, held_out=False) if task == "outside" else _in_task(rng, task)


def test_samples(task: Task, split: Literal["combinations", "frames"], count: int = TEST_CASES) -> list[Sample]:
    """A fixed test set, no text twice.

    `combinations` puts held-out names and numbers into trained frames, `frames` puts them into held-out frames.
    For `outside` both mean the same: kinds of text that training has none of.
    """
    rng = Random(f"{TEST_SEED} {task} {split}")
    samples: dict[str, Sample] = {}
    while len(samples) < count:
        if task == "outside":
            sample = _outside(rng, held_out=True)
        else:
            sample = _in_task(rng, task, new_frame=split == "frames", new_slots=True)
        samples.setdefault(normalise(sample.payload), sample)
    return list(samples.values())
