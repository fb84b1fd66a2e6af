"""Prints onnxruntime-genai's greedy answers as JSON: genai_answers.py PACKAGE THREADS TOKENS, chats on standard input.

Runs in an environment of its own (`make test-real`), as edged's has no onnxruntime-genai.
"""

from __future__ import annotations

import json
import sys

import onnxruntime
import onnxruntime_genai as genai

UNUSED_TOKEN = 16
"""<empty_output>, with which no chat's answer ends. onnxruntime-genai must have a token to end at."""


def main() -> None:
    package, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = genai.Config(package)
    decoder = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": decoder, "eos_token_id": UNUSED_TOKEN}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)
    answers = []
    for messages in json.load(sys.stdin):
        text = tokenizer.apply_chat_template(json.dumps(messages, ensure_ascii=False), add_generation_prompt=True)
        prompt = [int(token) for token in tokenizer.encode(text)]
        params = genai.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
        generator = genai.Generator(model, params)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append({"prompt": prompt, "output": [int(id) for id in generator.get_sequence(0)][len(prompt) :]})
    assert all(len(answer["output"]) == tokens for answer in answers)
    json.dump({"onnxruntime": onnxruntime.__version__, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
