"""The chats that a real model is asked: short and long, with and without system text, several turns, other scripts."""

from __future__ import annotations

Chat = list[dict[str, str]]

QUESTIONS = (
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "How many legs does a spider have?",
    "What is 12 plus 30?",
    "Name three primary colours.",
    "List the days of the week.",
    "Explain what a vaccine does, in two sentences.",
    "What is the boiling point of water in degrees Celsius?",
    "Write a haiku about rain.",
    "Translate to French: The cat is on the table.",
    "Translate to Spanish: Good morning, my friend.",
    "Translate to German: Where is the station?",
    "Give me a recipe for pancakes.",
    "Write a Python function that adds two numbers.",
    "Write a shell command that counts the lines of a file.",
    "What does HTTP status 404 mean?",
    "What is the difference between TCP and UDP?",
    "Write a limerick about a robot.",
    "Tell me a short story about a lighthouse keeper.",
    "Hello!",
    "Hi, who are you?",
    "Thanks.",
    "Say nothing.",
    "Quelle est la capitale de l'Italie ?",
    "¿Cuántos días tiene una semana?",
    "오늘 날씨는 어때요?",
    "水的化学式是什么？",
    "Что такое фотосинтез?",
    "🙂🙃🙂🙃 what comes next?",
)
TEXTS = (
    "The pump in hall 7 has run since Monday. Its pressure fell from 4.2 bar to 3.1 bar during the night, and the "
    "motor drew more current than usual.",
    "Maria Keller, 34 years old, has worked as a technician in Bern since 2019. She is responsible for the cooling of "
    "two halls.",
    "2026-03-01T04:12:09Z gateway-3 mqttd[812]: error: connection to 10.0.0.17 refused, retrying in 30 s",
    '{"device": "pump-7", "pressure_bar": 3.1, "motor_current_a": 12.75, "alarms": ["low pressure", "filter due"]}',
    "def mean(values):\n    return sum(values) / len(values) if values else 0.0",
)
TASKS = (
    "Summarize this in one sentence:\n",
    "Which numbers occur in this text?\n",
    "Write a short note to the morning shift about this:\n",
    "Who or what is this about?\n",
)
SYSTEM = "You are a careful assistant on a small device. Answer briefly, and say so when you do not know."
TURNS: tuple[tuple[str, ...], ...] = (
    ("My name is Anna.", "Nice to meet you, Anna!", "What is my name?"),
    ("Count to three.", "1, 2, 3", "Go on to six."),
    ("I have a dog called Rex.", "Rex is a lovely name.", "And a cat.", "What is the cat called?", "Guess."),
    ("What is 2 + 2?", "2 + 2 is 4.", "And times 10?"),
)


def chats() -> list[Chat]:
    """All chats; the order is fixed."""
    asked: list[Chat] = [[{"role": "user", "content": text}] for text in QUESTIONS]
    asked += [[{"role": "user", "content": task + text}] for task in TASKS for text in TEXTS]
    system = {"role": "system", "content": SYSTEM}
    asked += [[system, {"role": "user", "content": text}] for text in QUESTIONS[:5]]
    asked += [[system, {"role": "user", "content": "Read this.\n" + "\n\n".join(TEXTS * 2) + "\nWhat is broken?"}]]
    roles = ("user", "assistant")
    asked += [[{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)] for turns in TURNS]
    return asked
