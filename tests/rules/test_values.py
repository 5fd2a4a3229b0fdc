"""Single values: text, integers, UUIDs."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globalstore.rules import values
from globalstore.rules.refusals import InvalidArgument


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "a\x7fb", "ä" * 513, "x" * 1025])
def test_control_characters_and_overlong_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="key"):
        values.identifier("key", text)


def test_white_space_around_an_id_does_not_count() -> None:
    assert values.required("key", "\t käse\u00a0x \n") == "käse\u00a0x"
    assert values.identifier("key", "x" * 1024) == "x" * 1024
    with pytest.raises(InvalidArgument, match="key is required"):
        values.required("key", " \n ")


def test_numbers_that_no_column_holds_are_refused() -> None:
    assert values.storable("size", 2**63 - 1) == 2**63 - 1
    for bad in (2**63, 2**64 - 1):
        with pytest.raises(InvalidArgument, match="size"):
            values.storable("size", bad)
    with pytest.raises(InvalidArgument, match="above 0"):
        values.positive("size", 0)


@pytest.mark.parametrize("number", [0, 65536, 2**32 - 1])
def test_ports_have_bounds(number: int) -> None:
    with pytest.raises(InvalidArgument, match=r"1\.\.65535"):
        values.port("grpc_port", number)


@given(st.uuids())
def test_every_spelling_of_a_uuid_is_the_same_bytes(value: uuid.UUID) -> None:
    for spelling in (str(value), str(value).upper(), value.hex, f"{{{value}}}", value.urn):
        assert values.uuid_bytes("id", spelling) == value.bytes
    assert values.uuid_text(value.bytes) == str(value)


@pytest.mark.parametrize("text", ["", "x", "1234", "g" * 32, "0" * 31, "0" * 33])
def test_what_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="replica_id"):
        values.uuid_bytes("replica_id", text)


@given(st.integers(0, 2**64 - 1))
def test_all_64_bits_survive_a_signed_column(flags: int) -> None:
    assert -(2**63) <= values.signed64(flags) < 2**63
    assert values.unsigned64(values.signed64(flags)) == flags
