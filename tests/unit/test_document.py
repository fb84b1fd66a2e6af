"""The job document: everything that is wrong gets one line that names it, and nothing but JobError ever comes out."""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from edged.cli.common import BadUseError, job_document
from edged.jobs.document import Code, Job, JobError, State, parse_time, result_document
from edged.jobs.nesting import MAX_DEPTH
from edged.jobs.reading import MAX_FAULTS, MAX_READ, Submission, canonical_json, read_submission
from edged.machine.clock import format_time

LIMIT = 1 << 20
TURNS = 'a list of 1 to 1000 turns such as {"role": "user", "content": "…"}'
PARTS = 'text or a list of 1 to 1000 parts such as {"type": "text", "text": "…"}'
STOPS = "text or a list of up to 16 texts, each of 1 to 256 characters"
FIELDS = sorted({*Job.model_fields, "max_completion_tokens"})

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
documents = st.dictionaries(st.sampled_from(FIELDS) | st.text(), values, max_size=6)


def refusal(document: object, **options: Any) -> JobError:
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(JobError) as caught:
        read_submission(payload, LIMIT, **options)
    message = str(caught.value)
    assert message == " ".join(message.splitlines())
    assert message.isprintable()
    return caught.value


def job(**fields: Any) -> dict[str, Any]:
    return {"id": "a", "prompt": "x", **fields}


def attempt(payload: bytes, limit: int = LIMIT, **options: Any) -> Submission | JobError:
    try:
        return read_submission(payload, limit, **options)
    except JobError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1200
        str(error).encode()
        return error


MEBIBYTE = 1 << 20


def schema(inner: str) -> bytes:
    form = f'{{"type": "json_schema", "json_schema": {{"name": "n", "strict": true, "schema": {inner}}}}}'
    return f'{{"id": "a", "prompt": "x", "response_format": {form}}}'.encode()


def filled(opening: str, each: str, closing: str, size: int = MEBIBYTE - 200) -> str:
    """`each` as often as there is room for in `size` characters."""
    return opening + ", ".join([each] * ((size - len(opening + closing)) // (len(each) + 2))) + closing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "code"),
    [
        ('{"$ref": "#"}', None),
        ('{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}', None),
        ('{"$ref": "file:///etc/passwd", "$schema": "http://127.0.0.1:1/"}', None),
        ('{"type": "string", "pattern": "^(a+)+$", "maxLength": ' + "9" * 290 + "}", None),
        ('{"items": ' * 70 + "{}" + "}" * 70, Code.INVALID_JOB),
        ('{"items": ' * 80_000 + "{}" + "}" * 80_000, Code.INVALID_JOB),
        ("[" * 500_000 + "]" * 500_000, Code.INVALID_JOB),
        (filled('{"anyOf": [', '{"$ref": "#"}', "]}"), None),
        (filled('{"enum": [', "[]", "]}"), None),
        (filled('{"enum": [', "{}", "]}"), None),
        (filled('{"properties": {', '"a": {}', "}}"), Code.INVALID_JOB),
        ('{"properties": {' + ", ".join(f'"{n:x}": 0' for n in range(90_000)) + "}}", None),
        ('{"const": "' + "x" * (MEBIBYTE - 300) + '"}', None),
        (filled('{"enum": [', "[]", "]}", 2 * MEBIBYTE), Code.TOO_LARGE),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_schema_bombs_are_read_or_refused_in_bounded_time_and_memory(bomb: str, code: Code | None) -> None:
    payload = schema(bomb)
    began = time.process_time()
    refused = attempt(payload, MEBIBYTE)
    assert time.process_time() - began < PATIENCE
    assert (refused.code if isinstance(refused, JobError) else None) is code
    tracemalloc.start()
    attempt(payload, MEBIBYTE)
    left, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What JSON itself takes once it is read: an empty object of two characters has 64 bytes and its place in a list.
    assert most < 1 * MEBIBYTE + 50 * len(payload)
    assert left < 256 << 10


@given(st.binary(max_size=200))
def test_any_bytes_give_a_job_or_a_refusal(payload: bytes) -> None:
    attempt(payload)


@given(documents, st.text(max_size=20) | st.none(), st.binary(max_size=8) | st.none())
def test_any_object_gives_a_job_or_a_refusal(
    document: dict[str, Any], reply: str | None, correlation: bytes | None
) -> None:
    attempt(json.dumps(document).encode(), response_topic=reply, correlation=correlation)


@given(st.sampled_from(FIELDS), values)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    document = job(**{field: value})
    if field == "messages":
        del document["prompt"]
    answer = attempt(json.dumps(document).encode())
    if isinstance(answer, JobError):
        # What is no JSON at all (NaN), no text (lone surrogates) or unreadable is said without looking at fields.
        general = ("is not a number", "lone surrogate", "nested", "digits")
        assert field in str(answer) or any(words in str(answer) for words in general), str(answer)


@pytest.mark.slow
@given(documents)
def test_what_was_accepted_can_be_read_again_from_its_canonical_form(document: dict[str, Any]) -> None:
    answer = attempt(json.dumps({**job(), **document}).encode())
    if isinstance(answer, Submission):
        again = read_submission(answer.canonical, LIMIT)
        assert (again.digest, again.job) == (answer.digest, answer.job)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stream": 1}, "stream must be true or false, is 1"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 16777216, is 0"),
        ({"max_tokens": "3"}, "max_tokens must be a whole number from 1 to 16777216, is text"),
        ({"max_tokens": None}, "max_tokens must be a whole number from 1 to 16777216, is null"),
        ({"max_completion_tokens": True}, "max_completion_tokens must be a whole number from 1 to 16777216, is true"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens stands there beside"),
        ({"temperature": -1}, "temperature must be a number from 0 to 10, is -1"),
        ({"temperature": "0.5"}, "temperature must be a number from 0 to 10, is text"),
        ({"top_p": 0}, "top_p must be a number above 0 and up to 1, is 0"),
        ({"priority": 10}, "priority must be a whole number from 0 to 9, is 10"),
        ({"seed": 1 << 63}, "seed must be a whole number from 0 to 9223372036854775807, is 9223372036854775808"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages and prompt are both there: send one of them"),
        ({"prompt": None}, "messages or prompt must be there, such as {"),
        ({"prompt": ""}, "prompt must not be empty"),
        ({"prompt": []}, "prompt must not be empty"),
        ({"prompt": 1}, "prompt must be text or a list of token ids, is 1"),
        ({"prompt": [1, "x", "y"]}, "prompt must be text or a list of token ids, but prompt.1 is text"),
        ({"messages": "x"}, f"messages must be {TURNS}, is text"),
        ({"messages": []}, f"messages must be {TURNS}, is an empty list"),
        ({"messages": ["x"]}, f"messages must be {TURNS}, but messages.0 is text"),
        ({"messages": [{}] * 1001}, f"messages must be {TURNS}, is a list of 1001"),
        ({"messages": [{"role": "user"}]}, f"messages.0.content is missing: it must be {PARTS}"),
        ({"messages": [{"role": "user", "content": 1}]}, f"messages.0.content must be {PARTS}, is 1"),
        (
            {"messages": [{"role": "user", "content": [1]}]},
            f"messages.0.content must be {PARTS}, but messages.0.content.0",
        ),
        *(
            ({"messages": [{"role": "user", "content": content}]}, f"messages.0.content must be {PARTS}")
            for content in (
                [],
                [{}],
                [{"type": 1}],
                [{"type": "text"}],
                [{"type": "text", "text": 1}],
                [{"type": "text", "text": "", "more": 1}],
                [{"type": "text", "text": ""}] * 1001,
            )
        ),
        ({"messages": [{"role": "a b", "content": ""}]}, "messages.0.role must be a word of up to 32 letters, such as"),
        ({"messages": [{"contents": ""}]}, "unknown field 'contents' in messages.0; did you mean 'content'?"),
        ({"stop": 5}, f"stop must be {STOPS}, is 5"),
        ({"stop": [1]}, f"stop must be {STOPS}, but stop.0 is 1"),
        ({"stop": [""]}, f"stop must be {STOPS}"),
        ({"stop": ["x"] * 17}, f"stop must be {STOPS}"),
        ({"stop": "x" * 257}, f"stop must be {STOPS}"),
        ({"min_p": 1.1}, "min_p must be a number from 0 to 1, is 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number from 0.01 to 100, is 0"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number from -2 to 2, is 2.1"),
        ({"frequency_penalty": -3}, "frequency_penalty must be a number from -2 to 2, is -3"),
        *(
            ({"logit_bias": value}, "logit_bias must be an object of up to 1024 token ids with what is added to their")
            for value in (
                [],
                {"x": 1},
                {"-1": 1},
                {"05": 1},
                {"1.0": 1},
                {"٣": 1},
                {"9" * 10: 1},
                {"5": 100.5},
                {"5": -101},
                {"5": "1"},
                {"5": True},
                {"5": None},
                {str(token): 1 for token in range(1025)},
            )
        ),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs is for messages, which a chat template renders"),
        ({"continue_final_message": True}, "continue_final_message is for messages, which a chat template renders"),
        ({"continue_final_message": 1}, "continue_final_message must be true or false, is 1"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs must be an object of up to 64 variables of the chat"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of up to 256 token ids, is 5"),
        ({"stop_token_ids": [-1]}, "stop_token_ids must be a list of up to 256 token ids, but stop_token_ids.0 is -1"),
        ({"stop_token_ids": [5] * 257}, "stop_token_ids must be a list of up to 256 token ids, is a list of 257"),
        ({"ttl": 0}, "ttl must be a number of seconds above 0 and up to 315360000, is 0"),
        ({"deadline": 5}, "deadline must be an RFC 3339 time with its offset, such as 2027-01-31T18:00:00Z, is 5"),
        ({"deadline": "2027-02-30T00:00:00Z"}, "deadline is not a time that exists"),
        ({"deadline": "2027-01-01T00:00:00"}, "deadline must be an RFC 3339 time with its offset"),
        ({"metadata": []}, "metadata must be an object, is an empty list"),
        ({"cache": True}, 'cache must be an object, {"pin": true}, is true'),
        ({"model": "x" * 257}, "model must be a name of up to 256 characters, is text of 257 characters"),
        ({"max_token": 1}, "unknown field 'max_token'; did you mean 'max_tokens'?"),
        ({"content": "x"}, "unknown field 'content': leave it out"),
        ({"a\nb": 1}, "unknown field 'a\\nb'"),
        ({"response_format": "json"}, 'response_format must be an object such as {"type": "json_schema", '),
        ({"response_format": {"type": "xml"}}, 'response_format.type must be "text", '),
        ({"response_format": {"type": "xml"}}, "is 'xml'"),
        ({"response_format": {"type": "regex"}}, "response_format of type 'regex' needs the field regex"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format of type 'json_object' has no field json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema is missing: it must be a JSON schema",
        ),
        ({"response_format": {"type": "json_schema", "schema": {}}}, "unknown field 'schema' in response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}},
            "response_format.json_schema.strict must be true or false, is text",
        ),
        ({"response_format": {"type": "choice", "choice": []}}, "response_format.choice must be a list of 1 to 256"),
        ({"response_format": {"type": "choice", "choice": ["a", "a"]}}, "different labels"),
        ({"response_format": {"type": "choice", "choice": [""]}}, "each of 1 to 256 characters"),
        ({"response_format": {"type": "choice", "choice": "ab"}}, "response_format.choice must be a list"),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex must be text of 1 to 16384"),
        (
            {"response_format": {"type": "regex", "regex": "a"}, "stop": "a"},
            "stop does not go with a response_format of type 'regex'",
        ),
        ({"response_format": {"type": "json_object"}, "stop_token_ids": [1]}, "stop_token_ids does not go with"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos does not go with"),
        ({"response_format": {"type": "choice", "choice": ["a"]}, "top_k": 5}, "top_k does not go with"),
        ({"response_format": {"type": "choice", "choice": ["a"]}, "logit_bias": {"1": 5}}, "logit_bias does not go"),
        ({"metadata": {"x": float("inf")}}, "Infinity is not a number"),
        ({"metadata": {"\udc80": 1}}, "lone surrogate"),
    ],
)
def test_the_message_says_what_would_be_right(fields: dict[str, Any], words: str) -> None:
    alone = "messages" in fields and "both" not in words
    error = refusal({"id": "a", **fields} if alone else job(**fields))
    assert words in str(error)
    assert error.code is Code.INVALID_JOB


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "the payload is empty: send an object such as {"),
        (b"hello", "the payload is not JSON: expecting value at line 1 column 1: send an object such as {"),
        (b'"hello"', "is text"),
        (b"[]", "the payload must be a JSON object such as {"),
    ],
)
def test_a_payload_that_is_no_object_is_shown_one(payload: bytes, words: str) -> None:
    message = str(refusal(payload))
    assert words in message
    assert message.count('"messages": [{"role": "user", "content": "…"}]}') == 1


def test_a_file_of_the_command_line_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadUseError, match=r"job\.json is not UTF-8 text$"):
        job_document(None, str(file))


def test_a_refusal_of_a_million_faults_is_short_and_soon_there() -> None:
    error = refusal({"id": "a", "prompt": ["x"] * 100_000, "max_tokens": 0})
    assert str(error) == "prompt must be text or a list of token ids, but prompt.0 is text"
    many = refusal({"id": "a", **{f"f{number}": 1 for number in range(9)}})
    assert str(many).count("unknown field") == MAX_FAULTS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[("temp", "temperature"), ("Temperature", "temperature"), ("temprature", "temperature"), ("top-p", "top_p")],
        *[
            ("topk", "top_k"),
            ("max_new_tokens", "max_tokens"),
            ("n_predict", "max_tokens"),
            ("MAX_TOKENS", "max_tokens"),
        ],
        *[("repeat_penalty", "repetition_penalty"), ("repetition", "repetition_penalty"), ("stops", "stop")],
        *[("freq_penalty", "frequency_penalty"), ("presence", "presence_penalty"), ("stop_sequences", "stop")],
        *[("message", "messages"), ("promt", "prompt"), ("inputs", "prompt"), ("random_seed", "seed")],
        *[("streaming", "stream"), ("meta", "metadata"), ("logits_bias", "logit_bias"), ("request_id", "id")],
        *[(name, "response_format") for name in ("guided_json", "structured_outputs", "json_schema", "format")],
    ],
)
def test_an_unknown_field_that_is_another_servers_or_a_slip_is_led_to_ours(name: str, meant: str) -> None:
    assert str(refusal(job(**{name: 1}))) == f"unknown field '{name}'; did you mean '{meant}'?"


@pytest.mark.parametrize(
    "name",
    "n best_of user suffix echo stream_options "
    "min_tokens bad_words allowed_token_ids typical_p tfs_z top_a mirostat "
    "mirostat_tau xtc_probability dry_multiplier num_ctx keep_alive num_beams do_sample length_penalty early_stopping "
    "use_beam_search add_generation_prompt truncate_prompt_tokens skip_special_tokens cache_salt modalities "
    "audio service_tier reasoning_effort verbosity logits_processors prompt_logprobs grammar".split(),
)
def test_a_field_that_edged_does_not_have_gets_no_misleading_advice(name: str) -> None:
    assert str(refusal(job(**{name: 1}))) == f"unknown field '{name}': leave it out"


def test_whole_numbers_may_be_written_with_a_point() -> None:
    text = b'{"id": "a", "prompt": [1.0, 2e0, 3], "max_tokens": 5.0, "top_k": 4e1, "seed": 7.0, "priority": 0.0}'
    read = read_submission(text, LIMIT).job
    assert (read.prompt, read.max_tokens, read.top_k, read.seed, read.priority) == ([1, 2, 3], 5, 40, 7, 0)
    assert all(isinstance(number, int) for number in (read.max_tokens, read.top_k, read.seed, *(read.prompt or ())))
    text = b'{"id": "a", "prompt": "x", "max_completion_tokens": 9.0, "stop_token_ids": [5.0, 6, 7e0]}'
    read = read_submission(text, LIMIT).job
    assert (read.max_tokens, read.stop_token_ids) == (9, [5, 6, 7])
    assert all(isinstance(number, int) for number in read.stop_token_ids or ())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 5.5}, "max_tokens must be a whole number from 1 to 16777216, is 5.5"),
        ({"max_tokens": 0.0}, "max_tokens must be a whole number from 1 to 16777216, is 0"),
        ({"seed": 1e300}, "seed must be a whole number from 0 to 9223372036854775807, is 1e+300"),
        ({"prompt": [1.5]}, "prompt must be text or a list of token ids, but prompt.0 is 1.5"),
        (
            {"stop_token_ids": [1.5]},
            "stop_token_ids must be a list of up to 256 token ids, but stop_token_ids.0 is 1.5",
        ),
        ({"stop_token_ids": [-1.0]}, "stop_token_ids must be a list of up to 256 token ids"),
        ({"stream": 1.0}, "stream must be true or false, is 1.0"),
    ],
)
def test_other_numbers_with_a_point_are_refused_where_whole_ones_are_due(fields: dict[str, Any], words: str) -> None:
    assert words in str(refusal(job(**fields)))


def said(content: object) -> dict[str, Any]:
    return {"id": "a", "messages": [{"role": "user", "content": content}]}


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": text} for text in ("What is this?", "", "Be brief.")]
    read = read_submission(json.dumps(said(parts)).encode(), LIMIT)
    assert [message.text for message in read.job.messages or ()] == ["What is this?\n\nBe brief."]
    assert read.digest != read_submission(json.dumps(said("What is this?\n\nBe brief.")).encode(), LIMIT).digest


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        *(
            ({name: 1}, f"must not have {name}, which edged gives the chat template itself")
            for name in "messages tools documents add_generation_prompt continue_final_message chat_template bos_token "
            "eos_token raise_exception strftime_now namespace range loop self tokenize return_dict".split()
        ),
        ({"_x": 1}, "must have names of 1 to 64 letters, digits and underscores that begin with a letter"),
        *(({name: 1}, "must have names of") for name in ("", "a-b", "a b", "x" * 65, "ä", "a\n", "<|end|>")),
        ({f"a{number}": 1 for number in range(65)}, "must be an object of up to 64 variables of the chat template"),
    ],
)
def test_reserved_and_impossible_template_variables_are_refused(kwargs: dict[str, Any], words: str) -> None:
    error = refusal({**said("x"), "chat_template_kwargs": kwargs})
    assert error.code is Code.INVALID_JOB
    assert f"chat_template_kwargs {words}" in str(error)


@pytest.mark.parametrize(
    "last",
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": " \n"}, {"role": "assistant", "content": ""}],
)
def test_only_something_that_the_assistant_said_can_be_continued(last: dict[str, Any]) -> None:
    chat = [{"role": "user", "content": "x"}, last]
    error = refusal({"id": "a", "messages": chat, "continue_final_message": True})
    assert "continue_final_message needs a last message of role assistant that says something" in str(error)


@pytest.mark.parametrize("type", ["image_url", "input_audio", "file", "refusal", "image", "txet", "a\nb"])
def test_a_part_that_is_no_text_is_unsupported_and_named(type: str) -> None:
    error = refusal(said([{"type": "text", "text": "What is this?"}, {"type": type, type: {"url": "data:"}}]))
    assert error.code is Code.UNSUPPORTED
    assert f"messages.0.content has a part of type {type!a}: this version serves text" in str(error)


def test_a_twice_given_field_is_named_even_inside() -> None:
    assert "'x' stands there twice" in str(refusal(b'{"id": "a", "metadata": {"x": 1, "x": 2}}'))


@pytest.mark.parametrize(
    ("payload", "id"),
    [
        (b'{"id": "a", "temperature": NaN}', "a"),
        (b'{"temperature": -Infinity, "id": "a"}', "a"),
        (b'{"id": "a", "temperature": 1e400}', "a"),
        (b'{"seed": ' + b"9" * 5000 + b', "id": "a"}', "a"),
        (b'{"prompt": "x", "prompt": "y", "id": "a"}', "a"),
        (b'{"id": "a", "metadata": {"id": 1, "id": 2}}', "a"),
        (b'{"id": "a", "x": [NaN, {"id": "b"}]}', "a"),
        (b'{"id": "a", "id": "b"}', None),
        (b'{"id": "a", "id": "a", "id": "a"}', None),
        (b'{"id": "a", "prompt": NaN, "\\u0069d": "b"}', None),
        (b'{"id": "a/b", "temperature": NaN}', None),
        (b'{"id": NaN}', None),
        (b'{"id": ["a"], "seed": NaN}', None),
        (b'{"id": {"id": "a"}, "seed": NaN}', None),
        (b'{"metadata": {"id": "a"}, "seed": NaN}', None),
        (b'[{"id": "a"}, NaN]', None),
        (b'[NaN, "a"]', None),
        (b'{"id": "a", "temperature": NaN', None),
        (b'{"id": "a", "temperature": NaN, ' + b'"x": [' * 5000, None),
        (b'{"id": "a", "temperature": nan}', None),
    ],
)
def test_a_broken_number_or_a_doubled_field_is_told_under_the_one_id_that_can_be_read(
    payload: bytes, id: str | None
) -> None:
    assert refusal(payload).id == id
    fallback = refusal(payload, response_topic="edged/v1/reply/x", correlation=b"c").id
    assert fallback == id or (id is None and str(fallback).startswith("r-"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "inner",
    ['"x": [' + filled("", '{"id": {}}', "]"), filled("", '"id": "a"', ""), '"x": [' + filled("", "9" * 290, "]")],
)
def test_an_id_is_looked_for_in_bounded_time_and_memory(inner: str) -> None:
    payload = f'{{"id": "a", {inner}, "seed": NaN}}'.encode()
    began = time.process_time()
    assert isinstance(attempt(payload, MEBIBYTE), JobError)
    assert time.process_time() - began < PATIENCE
    tracemalloc.start()
    attempt(payload, MEBIBYTE)
    _left, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 * MEBIBYTE + 50 * len(payload)


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"123456789e309"])
def test_a_number_beyond_floats_is_refused(number: bytes) -> None:
    assert "beyond" in str(refusal(b'{"id": "a", "prompt": "x", "metadata": {"x": ' + number + b"}}"))


def test_a_number_of_a_million_digits_is_refused_without_advice_about_python() -> None:
    error = refusal(b'{"id": "a", "seed": ' + b"9" * 1_000_000 + b"}")
    assert "1000000 digits" in str(error)
    assert "sys" not in str(error)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 200, 950, 990, 1000, 5000, 100_000])
def test_deep_nesting_is_refused_however_deep_the_stack_is(levels: int) -> None:
    payload = b'{"id": "a", "prompt": "x", "metadata": ' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"

    def deeper(frames: int) -> JobError:
        return deeper(frames - 1) if frames else refusal(payload)

    for frames in (0, sys.getrecursionlimit() // 2):
        assert "nested too deeply" in str(deeper(frames))


def test_allowed_nesting_is_allowed() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH - 2):
        nested = [nested]
    assert read_submission(json.dumps(job(metadata={"x": nested})).encode(), LIMIT).job.metadata == {"x": nested}


def test_too_large_names_both_sizes_and_keeps_the_id() -> None:
    payload = json.dumps(job(metadata={"x": "y" * 2000})).encode()
    with pytest.raises(JobError, match=f"has {len(payload)} bytes, this device takes up to 1024") as caught:
        read_submission(payload, 1024)
    assert (caught.value.code, caught.value.id) == (Code.TOO_LARGE, "a")


def test_far_too_large_is_not_even_read() -> None:
    with pytest.raises(JobError) as caught:
        read_submission(b"[" * (MAX_READ + 1), 1024)
    assert (caught.value.code, caught.value.id) == (Code.TOO_LARGE, None)


@pytest.mark.parametrize("id", ["", "a/b", "a#", "+", "x" * 65, "ä", "a b", "a\n", "\ud800"])
def test_an_id_that_fits_no_topic_is_refused(id: str) -> None:
    assert refusal(job(id=id)).id is None


def test_an_id_comes_from_reply_topic_and_correlation_where_none_is_given() -> None:
    def derive(document: dict[str, Any], topic: str, correlation: bytes) -> str:
        return read_submission(json.dumps(document).encode(), LIMIT, topic, correlation).id

    first = derive({"prompt": "x"}, "t", b"1")
    assert first == derive({"prompt": "x", "id": None}, "t", b"1")
    assert len({first, derive({"prompt": "x"}, "t", b"2"), derive({"prompt": "x"}, "u", b"1")}) == 3
    assert derive(job(), "t", b"1") == "a"
    assert "id must be there" in str(refusal({"prompt": "x"}, response_topic="t", correlation=None))
    assert refusal({"prompt": 1}, response_topic="t", correlation=b"1").id == first


def test_order_and_spelling_do_not_make_another_job() -> None:
    one = read_submission(b'{"id":"a","prompt":"\\u00e4","metadata":{"x":1,"y":2}}', LIMIT)
    two = read_submission('{ "metadata": {"y":2,"x":1}, "prompt":"ä", "id":"a" }'.encode(), LIMIT)
    assert one.digest == two.digest
    assert one.digest != read_submission(b'{"id":"a","prompt":"b"}', LIMIT).digest


def test_canonical_json_is_what_the_contract_says() -> None:
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}'.encode()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01t01:00:10.5+01:00", 10.5),
        ("1970-01-01 00:00:10.1234567890z", 10.123456),
    ],
)
def test_times_are_read(text: str, moment: float) -> None:
    assert parse_time(text) == moment
    assert format_time(10.0) == "1970-01-01T00:00:10.000Z"


def test_a_result_leaves_out_what_it_has_not() -> None:
    document = json.loads(result_document("a", "d", State.FAILED, error=(Code.INTERNAL, "why"), text=None))
    assert document == {
        "id": "a",
        "device": "d",
        "state": "failed",
        "error": {"code": "internal", "message": "why"},
    }
