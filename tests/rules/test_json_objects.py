"""A JSON object is judged piece by piece as the standard parser judges it whole."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globalstore.rules import json_objects
from globalstore.rules.json_objects import MEMBER_BYTES_MAX, NotAnObject, check_object


def accepted(data: bytes) -> bool:
    try:
        for _ in check_object(data):
            pass
    except NotAnObject:
        return False
    return True


def is_object(data: bytes) -> bool:
    """What the standard parser says."""
    try:
        return isinstance(json.loads(data.decode()), dict)
    except (ValueError, RecursionError):
        return False


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut after some bytes, so that short texts have many pieces."""
    monkeypatch.setattr(json_objects, "_PIECE_BYTES", 12)
    monkeypatch.setattr(json_objects, "_TOKENS_PER_TURN", 3)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["],", "},", '"', "\\", '\\"', "{", "[", ",", ":", "é", "\ud800"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["],", '"', ","]), inner, max_size=4
        )
    ),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=12)
SPACES = st.text(" \t\n\r", max_size=20)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """JSON objects and other JSON values, written in any way, some of them broken somewhere."""
    value: Any = draw(OBJECTS | VALUES)
    text = json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")])),
        indent=draw(st.sampled_from([None, 1])),
    )
    data = bytearray((draw(SPACES) + text + draw(SPACES)).encode(errors="surrogatepass"))
    signs = st.sampled_from([b"", b",", b"{", b"}", b"[", b"]", b'"', b"\\", b":", b"\x80", b" "])
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(signs)
    return bytes(data)


@given(data=texts())
@settings(max_examples=1500)
@pytest.mark.usefixtures("small_pieces")
def test_it_is_accepted_or_refused_as_by_the_standard_parser(data: bytes) -> None:
    assert accepted(data) == is_object(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", b"}", b"{}", b" { } ", b"{,}", b'{"a":1,}', b'{,"a":1}', b'{"a":1,,"b":2}',
        b'{"a":1}{"b":2}', b'{"a":1},{"b":2}', b'{"a":1} x', b"[]", b'"{}"', b"{}}", b"{{}}",
        b"\xef\xbb\xbf{}", b'{"\xff":1}', '{"a":1}'.encode("utf-16"), b'{"a":NaN}', b'{"a":01}',
        b'{"a":"\n"}', b'{"a":1 "b":2}', b'{"a"}', b'{"a":"' + b"]," * 99 + b'"}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":0' + b',"],":["}"]' * 99 + b"}", b'{"a":0' + b',"b":["}"]' * 99 + b',"b":[]]}',
    ],
)  # fmt: skip
@pytest.mark.usefixtures("small_pieces")
def test_so_are_texts_at_the_edge(data: bytes) -> None:
    assert accepted(data) == is_object(data)


def test_no_step_parses_more_than_a_member_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    parse = json_objects._has_members

    def has_members(piece: bytes) -> bool:
        lengths.append(len(piece))
        return parse(piece)

    monkeypatch.setattr(json_objects, "_has_members", has_members)
    longest = b'"a":"%s"' % (b"x" * (MEMBER_BYTES_MAX - 6))
    assert len(longest) == MEMBER_BYTES_MAX
    for body, good in (
        (longest, True),
        (longest[:-1] + b'x"', False),
        (b'"b":1,' + longest + b',"b":2', True),
        (b'"b":[],' * 9999 + b'"b":[]', True),
        (b" " * 99_999, False),
        (b"," * 99_999, False),
        (b'"' * 99_999, False),
        (b"[" * 99_999, False),
        (b'"b":' + b"[1]," * 99_999, False),
        (b'"b":[' + b"[1]," * 99_999 + b"1]", False),
    ):
        assert accepted(b"{" + body + b"}") == good, body[:20]
        assert accepted(b" " * 99_999 + b"{" + body + b"}" + b" " * 99_999) == good, body[:20]
    assert max(lengths) <= MEMBER_BYTES_MAX
