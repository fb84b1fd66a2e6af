"""edged: a dependable worker for small language models on a board, fed over MQTT."""

import os

__version__ = "0.1.0"

# Libraries read these as they are imported. onnxruntime from 1.32 on notes processor, system and interpreter in
# ~/.cache/Microsoft and looks for its maker's server: an operator's board reports to its operator.
os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1")
