"""Config files that anybody may have written: a dictionary or one clear error, never anything else, and quickly."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config_file import MAX_CONFIG_BYTES, MAX_DEPTH, parse_config, printable, read_config
from planner.errors import InvalidConfigError, QplanError, UnknownModelError

HOSTILE = {
    "brackets": b"[" * MAX_CONFIG_BYTES,
    "objects": b'{"a":' * (MAX_CONFIG_BYTES // 5),
    "elements": b'{"model_type":"x","a":[' + b"[]," * (MAX_CONFIG_BYTES // 3 - 20) + b"[]]}",
    "deep": b'{"model_type":"x","a":' + b"[" * 90 + b"]" * 90 + b"}",
    "digits": b'{"model_type":"x","a":' + b"9" * 10_000 + b"}",
    "nan": b'{"model_type":"x","a":NaN}',
    "infinity": b'{"model_type":"x","a":{"b":[-Infinity]}}',
    "overflow": b'{"model_type":"x","a":1e999}',
    "surrogate": b'{"model_type":"x","a":"\\ud800"}',
    "surrogate key": b'{"model_type":"x","\\ud800":1}',
    "utf-16": '{"model_type":"x"}'.encode("utf-16"),
    "latin-1": b'{"model_type":"\xe9"}',
    "empty": b"",
    "blank": b" \n",
    "null byte": b'{"model_type":"\0"}',
    "two documents": b'{"model_type":"x"}{}',
    "web page": b"<!doctype html>",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n",
    "array": b"[]",
    "string": b'"llama"',
    "null": b"null",
    "no model_type": b'{"hidden_size":4}',
    "number as model_type": b'{"model_type":7}',
    "blank model_type": b'{"model_type":" "}',
    "line break in model_type": b'{"model_type":"x\\ny"}',
    "endless model_type": b'{"model_type":"' + b"x" * 1000 + b'"}',
    "too large": b" " * (MAX_CONFIG_BYTES + 1),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_at_once(case: str):
    """One short printable line, a hint, and no wait."""
    began = time.perf_counter()
    with pytest.raises(InvalidConfigError) as caught:
        parse_config(HOSTILE[case], "config.json")

    assert time.perf_counter() - began < 1
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert caught.value.hint


def test_an_error_says_where():
    """Broken JSON is told with line and column, a bad number with its field."""
    with pytest.raises(InvalidConfigError, match="line 2, column 8"):
        parse_config(b'{"model_type": "x",\n  "a": }', "config.json")
    with pytest.raises(InvalidConfigError, match="`rope_theta` is nan"):
        parse_config(b'{"model_type": "x", "rope_theta": NaN}', "config.json")


def test_what_is_harmless_is_read():
    """A byte order mark, a key twice (the last counts), big integers, and Mamba's unlimited time step."""
    config = parse_config(b'\xef\xbb\xbf{"a": 1, "a": 2, "model_type": "x", "time_step_limit": [0.0, Infinity]}', "config.json")

    assert config == {"a": 2, "model_type": "x", "time_step_limit": [0.0, math.inf]}
    assert parse_config(b'{"model_type": "x", "a": 1000000000000000000000}', "c")["a"] == 10**21


def test_an_adapter_is_named_with_its_base():
    """adapter_config.json given as a model leads to the base model."""
    with pytest.raises(UnknownModelError, match=r"PEFT adapter \(LORA\)") as caught:
        parse_config(b'{"peft_type": "LORA", "base_model_name_or_path": "org/base"}', "adapter_config.json")

    assert caught.value.hint == "plan for its base: qplan estimate org/base"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_dictionary_or_an_error(data: bytes):
    """No bytes raise anything but an error of ours."""
    try:
        told = parse_config(data, "config.json")["model_type"]
    except QplanError as error:
        told = error.hint

    assert told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text() | st.sampled_from(["model_type", "time_step_limit", "base_model_name_or_path"]), JSON))
def test_any_json_comes_back_as_it_is_or_is_refused(config: dict):
    """What is accepted is what was written, and finite but for the one field."""
    message = ""
    try:
        read = parse_config(json.dumps(config).encode(), "config.json")
    except QplanError as error:
        read, message = config, error.message

    assert read == config
    assert message.isprintable()
    assert message or isinstance(read["model_type"], str)


@given(st.text())
def test_what_is_shown_fits_on_a_line(text: str):
    """Text from outside cannot break the line, colour the terminal or fill the screen."""
    shown = printable(text)

    assert shown.isprintable()
    assert len(shown) <= 80 * len("\\U00010000") + 3


def test_nesting_up_to_the_limit_is_read():
    """The limit is where the comment says."""
    nested = b'{"model_type":"x","a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"

    assert parse_config(nested, "c")["model_type"] == "x"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    """What is not a regular file is not opened."""
    os.mkfifo(tmp_path / "config.json")

    with pytest.raises(InvalidConfigError, match="not a regular file"):
        read_config(tmp_path / "config.json")


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    """A path that vanished between the look and the reading is an error like the others."""
    with pytest.raises(InvalidConfigError, match="not a regular file"):
        read_config(tmp_path / "gone.json")
