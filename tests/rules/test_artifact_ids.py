"""Schemes, grammars and content addresses."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globalstore.rules import artifact_ids, descriptors, multihash, tensor_index
from globalstore.rules.artifact_ids import Scheme, scheme_of
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument
from globalstore.rules.tensor_index import Tensor

INDEX = b'{"a":[0,8388608,[2097152],[1],"F32",0],"b":[8388608,16,[4],[1],"F32",0]}'
INDEX_MULTIHASH = "bciqov6gxp7xonc5udvywnt2tvxkpnuih2os222euse456djs2hmqkby"
DATA_MULTIHASH = "bciqdu3vqpehttlehzfhtqvvs3uwf2eionaiwaitbvgushu53eow4rny"
MI2 = f"mi2:{INDEX_MULTIHASH}:{DATA_MULTIHASH}"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "bciqohmgeikmpyhautl57jsezn64sij5oihsgjg4tjssjlgi3pbjlqvi"),
        (INDEX, INDEX_MULTIHASH),
        (b"data", DATA_MULTIHASH),
    ],
)
def test_multihash_vectors(data: bytes, text: str) -> None:
    assert multihash.of(data) == text
    assert multihash.decode("field", text) == hashlib.sha256(data).digest()


def test_index_key_vector() -> None:
    key = "eaf8d77feee68bb41d7166cf53add4f6d107d3a5ad68949139df0d32d1d90507"
    assert hashlib.sha256(INDEX).hexdigest() == key


@given(st.binary(min_size=32, max_size=32))
def test_multihash_round_trip(digest: bytes) -> None:
    text = multihash.encode(digest)
    assert len(text) == 56
    assert text.startswith("bciq")
    assert multihash.decode("field", text) == digest


@given(st.binary(min_size=32, max_size=32), st.integers(1, 55))
def test_only_the_lower_case_spelling_is_a_multihash(digest: bytes, position: int) -> None:
    text = multihash.encode(digest)
    upper = text[:position] + text[position].upper() + text[position + 1 :]
    if upper != text:
        with pytest.raises(InvalidArgument, match="field"):
            multihash.decode("field", upper)


@pytest.mark.parametrize("last", "bcdefgh")
def test_spare_bits_must_be_zero(last: str) -> None:
    # 34 bytes leave three spare bits in the last of the 55 digits.
    canonical = multihash.of(b"data")
    other = canonical[:-1] + last
    if other != canonical:
        with pytest.raises(InvalidArgument):
            multihash.decode("field", other)


@pytest.mark.parametrize("text", ["", "b", "bciq", DATA_MULTIHASH[1:], DATA_MULTIHASH + "a", "ä"])
def test_malformed_multihashes_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="multihash"):
        multihash.decode("field", text)


@pytest.mark.parametrize(
    ("artifact_id", "scheme"),
    [
        (MI2, Scheme.MI2),
        ("mi2:x", Scheme.MI2),
        ("cgid:a", Scheme.CGID),
        ("cgid:byte_artifact~n~e", Scheme.BYTE_ARTIFACT),
        ("msa1:x", Scheme.MSA1),
        ("MI2:x", Scheme.OPAQUE),
        ("../etc", Scheme.OPAQUE),
    ],
)
def test_the_prefix_tells_the_scheme(artifact_id: str, scheme: Scheme) -> None:
    assert scheme_of(artifact_id) is scheme


def test_a_mi2_id_has_117_characters_and_parses() -> None:
    assert artifact_ids.mi2(INDEX_MULTIHASH, DATA_MULTIHASH) == MI2
    assert len(MI2) == 117
    assert artifact_ids.parse_mi2("id", MI2) == (INDEX_MULTIHASH, DATA_MULTIHASH)
    assert artifact_ids.digests_of(MI2) == (INDEX_MULTIHASH, DATA_MULTIHASH)


@pytest.mark.parametrize("artifact_id", [MI2 + ":x", "mi2:" + INDEX_MULTIHASH, "mi2:a:b"])
def test_a_mi2_id_of_another_form_is_refused(artifact_id: str) -> None:
    with pytest.raises(InvalidArgument):
        descriptors.check(artifact_id, "", "")
    assert artifact_ids.digests_of(artifact_id) is None


@pytest.mark.parametrize("artifact_id", ["cgid:" + "x" * 3, "cgid:A-z.0_9~x", "cgid:" + "x" * 195])
def test_cgid_grammar_accepts(artifact_id: str) -> None:
    descriptors.check(artifact_id, "", "")


@pytest.mark.parametrize(
    "artifact_id",
    ["cgid:xx", "cgid:" + "x" * 196, "cgid:a:bcd", "cgid:äöüx", "cgid:a b c", "cgid:abc\n"],
)
def test_cgid_grammar_refuses(artifact_id: str) -> None:
    with pytest.raises(InvalidArgument, match="cgid"):
        descriptors.check(artifact_id, "", "")


def test_ids_that_must_not_be_stored() -> None:
    with pytest.raises(FailedPrecondition, match="daemon-session-local"):
        artifact_ids.stored("artifact_id", "msa1:x")
    with pytest.raises(FailedPrecondition, match="byte artifact"):
        artifact_ids.stored("artifact_id", "cgid:byte_artifact~a~b")
    assert artifact_ids.looked_up("artifact_id", " cgid:byte_artifact~a ") == "cgid:byte_artifact~a"


@pytest.mark.parametrize(
    ("artifact_id", "index", "data", "refusal"),
    [
        (MI2, DATA_MULTIHASH, "", FailedPrecondition),
        (MI2, "", INDEX_MULTIHASH, FailedPrecondition),
        (MI2, "junk", "", InvalidArgument),
        ("cgid:model", "", DATA_MULTIHASH, InvalidArgument),
        ("opaque", "junk", "", InvalidArgument),
    ],
)
def test_descriptors_that_contradict_their_id_are_refused(
    artifact_id: str, index: str, data: str, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        descriptors.check(artifact_id, index, data)


def test_a_given_kind_must_not_contradict_the_prefix() -> None:
    assert descriptors.id_kind(MI2, 0) == descriptors.ID_KIND_MI2
    assert descriptors.id_kind("opaque", descriptors.ID_KIND_CGID) == descriptors.ID_KIND_CGID
    assert descriptors.id_kind("opaque", 0) == 0
    with pytest.raises(InvalidArgument):
        descriptors.id_kind("cgid:abc", descriptors.ID_KIND_MI2)
    with pytest.raises(InvalidArgument):
        descriptors.id_kind("opaque", 9)


def test_the_canonical_index_is_sorted_compact_and_without_gaps() -> None:
    tensors = [
        Tensor("b", "F32", (4,), 0, 16),
        Tensor("a", "F32", (2097152,), 16, 16 + 8388608),
    ]
    assert tensor_index.canonical(tensors) == INDEX


def test_strides_are_those_of_rows() -> None:
    assert tensor_index.strides((2, 3, 4)) == [12, 4, 1]
    assert tensor_index.strides(()) == []
