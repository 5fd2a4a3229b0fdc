"""Every grammar of ids: what is kept as it is, and that each thing has one spelling only."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globalstore.rules import multihash
from globalstore.rules.artifact_ids import (
    Scheme,
    check_cgid,
    described,
    digests_of,
    looked_up,
    mi2,
    parse_mi2,
    scheme_of,
    stored,
)
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument, Refusal
from globalstore.text.characters import first_hidden

DIGESTS = st.binary(min_size=32, max_size=32)
HASHES = DIGESTS.map(multihash.encode)
CGID_CHARACTERS = string.ascii_letters + string.digits + "-._~"
SUFFIXES = st.text(CGID_CHARACTERS, min_size=3, max_size=195)
SPACE = st.text(" \t\r\n\f\v\x85\u00a0\u2003", max_size=3)


def taken(artifact_id: str) -> bool:
    """Tell whether a descriptor may have an id."""
    try:
        described("id", artifact_id)
    except Refusal:
        return False
    return True


@given(HASHES, HASHES, SPACE, SPACE)
def test_a_mi2_id_is_read_back_whatever_space_is_around_it(
    index: str, data: str, before: str, after: str
) -> None:
    artifact_id = mi2(index, data)
    assert len(artifact_id) == 117
    assert described("id", before + artifact_id + after) == artifact_id
    assert parse_mi2("id", artifact_id) == (index, data) == digests_of(artifact_id)
    assert scheme_of(artifact_id) is Scheme.MI2


@given(HASHES, HASHES, st.integers(4, 116), st.characters(exclude_categories=["Cs"]))
def test_one_other_character_makes_another_id_or_none(
    index: str, data: str, at: int, character: str
) -> None:
    artifact_id = mi2(index, data)
    other = artifact_id[:at] + character + artifact_id[at + 1 :]
    digests = digests_of(other)
    assert taken(other) == (digests is not None)
    if digests is not None:
        # Then it is the one spelling of the digests that it has, and those are not the same.
        decoded = [multihash.decode("part", part) for part in digests]
        assert mi2(*map(multihash.encode, decoded)) == other
        assert (other == artifact_id) == (digests == (index, data))


@given(HASHES, HASHES, st.lists(HASHES | st.just("") | st.text(max_size=5), max_size=3))
def test_a_mi2_id_has_three_segments(index: str, data: str, more: list[str]) -> None:
    assert not taken(f"mi2:{index}")
    assert not taken(f"mi2:{index}:")
    assert taken(":".join(["mi2", index, data, *more])) == (not more)


@given(DIGESTS, st.integers(1, 7))
def test_bits_to_spare_are_zero(digest: bytes, spare: int) -> None:
    # 34 bytes are 272 bits; 55 digits of five bits have three more.
    text = multihash.encode(digest)
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    last = alphabet[alphabet.index(text[-1]) | spare]
    assert multihash.digest_of(text) == digest
    assert multihash.digest_of(text[:-1] + last) is None


@given(st.binary(min_size=34, max_size=34))
def test_only_the_hash_that_is_meant_has_a_spelling(raw: bytes) -> None:
    text = "b" + base64.b32encode(raw).decode().rstrip("=").lower()
    expected = raw[2:] if raw[:2] == b"\x12\x20" else None
    assert multihash.digest_of(text) == expected


@given(DIGESTS, st.sampled_from(["upper", "padded", "no b", "B", "short", "long", "spaced"]))
def test_other_forms_of_a_multihash_are_refused(digest: bytes, form: str) -> None:
    text = multihash.encode(digest)
    other = {
        "upper": "b" + text[1:].upper(),
        "padded": text + "=",
        "no b": text[1:],
        "B": "B" + text[1:],
        "short": text[:-1],
        "long": text + "a",
        "spaced": text[:9] + " " + text[9:],
    }[form]
    with pytest.raises(InvalidArgument, match="field"):
        multihash.decode("field", other)


@given(SUFFIXES.filter(lambda suffix: not suffix.startswith("byte_artifact~")), SPACE, SPACE)
def test_a_cgid_is_kept_as_it_is(suffix: str, before: str, after: str) -> None:
    artifact_id = f"cgid:{suffix}"
    assert described("id", before + artifact_id + after) == artifact_id
    assert scheme_of(artifact_id) is Scheme.CGID


@given(st.text(max_size=210))
def test_a_cgid_keeps_its_alphabet_and_its_length(suffix: str) -> None:
    artifact_id = f"cgid:{suffix}"
    legal = set(suffix) <= set(CGID_CHARACTERS) and 8 <= len(artifact_id) <= 200
    try:
        check_cgid("id", artifact_id)
    except InvalidArgument:
        assert not legal
    else:
        assert legal


SEGMENTS = st.lists(st.text(CGID_CHARACTERS.replace("~", ""), min_size=1, max_size=8), max_size=7)


@given(SEGMENTS)
def test_a_byte_artifact_is_looked_up_and_never_stored(segments: list[str]) -> None:
    artifact_id = "~".join(["cgid:byte_artifact", *segments])
    is_one = bool(segments)
    assert (scheme_of(artifact_id) is Scheme.BYTE_ARTIFACT) == is_one
    assert looked_up("id", artifact_id) == artifact_id
    if is_one:
        with pytest.raises(FailedPrecondition, match="byte artifact"):
            stored("id", artifact_id)
    else:
        assert stored("id", artifact_id) == artifact_id


@given(st.text(st.characters(exclude_categories=["C"]), max_size=20), SPACE)
def test_a_mount_means_nothing_here(rest: str, before: str) -> None:
    takes = (looked_up, stored, described) if first_hidden(rest) is None else (looked_up,)
    for take in takes:
        with pytest.raises(FailedPrecondition, match="daemon-session-local"):
            take("id", f"{before}msa1:{rest}")


PREFIXES = ("mi2:", "cgid:", "msa1:")


@given(st.text(min_size=1, max_size=40), SPACE)
def test_any_other_text_is_a_plain_string(text: str, space: str) -> None:
    kept = text.strip()
    if kept.startswith(PREFIXES):
        return
    if not kept or first_hidden(kept) is not None:
        with pytest.raises(InvalidArgument):
            described("id", text)
        return
    assert scheme_of(kept) is Scheme.OPAQUE
    assert described("id", space + text + space) == kept


@given(st.sampled_from(PREFIXES), st.data())
def test_the_case_of_a_prefix_counts(prefix: str, data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(prefix), max_size=len(prefix)))
    other = "".join(c.upper() if flag else c for c, flag in zip(prefix, flags, strict=True))
    assert (scheme_of(other + "x") is Scheme.OPAQUE) == (other != prefix)


@given(st.integers(1000, 1030), st.sampled_from(["a", "é", "\u4e2d", "😀"]))
def test_an_id_has_1024_bytes_at_most(size: int, character: str) -> None:
    width = len(character.encode())
    text = character * (size // width)
    if len(text.encode()) <= 1024:
        assert stored("id", text) == text
    else:
        with pytest.raises(InvalidArgument, match="1024"):
            stored("id", text)
