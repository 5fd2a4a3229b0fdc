"""Lines of text and JSON: their form, and that nobody can forge one."""

import enum
import json
import logging
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globalstore.telemetry import text
from globalstore.telemetry.outputs import as_json, as_line


def record(message="worker registered", error=None, created=1_790_000_000.0567, **fields):
    trace = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("globalstore.workers", logging.INFO, "", 0, message, (), trace)
    made.created = created
    made.fields = fields
    return made


def test_a_line_is_time_level_logger_message_and_pairs():
    line = as_line(record(worker_id="w-1", generation=3, share=0.25, fresh=True, lease=None))
    assert line == (
        "2026-09-21T14:13:20.056Z INFO globalstore.workers worker registered "
        "worker_id=w-1 generation=3 share=0.25 fresh=true lease=null"
    )


@pytest.mark.parametrize(
    ("level", "name"),
    [(10, "DEBUG"), (20, "INFO"), (30, "WARN"), (40, "ERROR"), (50, "ERROR"), (9, "V1"), (7, "V3")],
)
def test_a_line_names_its_level(level, name):
    made = record()
    made.levelno = level
    assert as_line(made).split()[1] == name
    assert json.loads(as_json(made))["level"] == name


class Kind(enum.IntEnum):
    RAM = 2


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("10.0.0.7:50051", "10.0.0.7:50051"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\nbreak", '"line\\nbreak"'),
        ("bell\x07", '"bell\\x07"'),
        ("sep\u2028", '"sep\\u2028"'),
        ("turn\u202e", '"turn\\u202e"'),
        ("ключ", "ключ"),
        (b"\x01\xff", "01ff"),
        (Kind.RAM, "RAM"),
        (0.123456789, "0.123457"),
        (float("nan"), "nan"),
        (["a", 1], '"[\\"a\\", 1]"'),
    ],
)
def test_a_value_is_quoted_exactly_when_its_end_would_be_unclear(value, written):
    assert text.pair("key", value) == f"key={written}"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(value=st.text(), message=st.text())
def test_no_string_of_a_client_makes_a_second_line_or_field(value, message):
    line = as_line(record(message, name=value, last="end"))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert line.endswith(" last=end")
    pairs = re.search(r' name=("(?:[^"\\]|\\.)*"|[^\s"=]+) last=end$', line)
    assert pairs is not None
    event = as_json(record(message, name=value))
    assert len(event.splitlines()) == 1
    assert json.loads(event)["name"] == text.clipped(value)


def test_a_long_value_is_clipped_with_a_count():
    assert text.pair("key", "x" * 5000) == "key=" + text.quoted("x" * 1024 + "…(+3976)")
    assert len(as_line(record("x" * 10_000_000, name="y" * 10_000_000))) < 2300


def test_a_traceback_stays_on_the_line_of_its_event():
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        made = record(error=error, a=1)
    line = as_line(made)
    assert len(line.splitlines()) == 1
    assert " a=1 traceback=" in line
    assert "ValueError: first\\nsecond" in line
    assert json.loads(as_json(made))["traceback"].endswith("ValueError: first\nsecond\n")


def test_of_a_long_traceback_the_end_is_kept():
    error = ValueError("x" * 100_000 + " the end")
    line = as_line(record(error=error))
    assert len(line) < 20_000
    assert "the end" in line


SECRETS = [
    "cluster_token",
    "lease_token",
    "capability_token",
    "token",
    "tokens",
    "Authorization",
    "client_secret",
    "password",
    "remote_memory_key",
    "remote_memory_keys",
    "rkey",
    "private_key",
]


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_is_masked_by_its_name_in_every_form(key):
    for made in (record(**{key: "hush"}), record(inner={key: "hush", "list": [{key: "hush"}]})):
        assert "hush" not in as_line(made)
        assert "hush" not in as_json(made)
        assert "***" in as_line(made)
        assert "***" in as_json(made)


@pytest.mark.parametrize("key", ["key", "token_file", "tokenizer", "worker_id", "key_name"])
def test_an_ordinary_name_is_not_masked(key):
    assert text.pair(key, "shown") == f"{key}=shown"


def test_a_value_that_cannot_be_shown_is_told_so():
    class Broken:
        def __str__(self):
            raise RuntimeError("no")

    assert text.pair("x", Broken()) == 'x="<Broken: RuntimeError in str()>"'


def test_a_field_cannot_replace_the_frame_of_an_event():
    event = json.loads(as_json(record(level="x", time="y", other="z")))
    assert event["level"] == "INFO"
    assert event["field_level"] == "x"
    assert event["field_time"] == "y"
    assert event["other"] == "z"
