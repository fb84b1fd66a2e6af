"""edged: a dependable worker for small language models on a board, fed over MQTT."""

__version__ = "0.1.0"
