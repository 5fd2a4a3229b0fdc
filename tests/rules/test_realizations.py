"""What names version sets and realizations."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globalstore.rules import realizations
from globalstore.rules.realizations import (
    CANONICAL_SPACE,
    TRANSACTION_PREFIX,
    VERSION_SET_PREFIX,
    VIEW_SPACE,
    ByteSpace,
    Part,
    RealizationKind,
    Selection,
    digest_of,
    effective_space,
    manifest,
    member_fingerprint,
    same_for_all,
    transaction_fingerprint,
)

# ArtifactSelection {artifact_id: "aid-shared"} on the wire.
ENCODED = b"\x0a\x0aaid-shared"
SELECTION_HASH = "1ecdf2a54ee377fc72f638ed2ba91bb036f144a8cba50a331b1b30addf2dff35"
SET_ID = "gvs_592afe97085c9c1100fcd2f59c72631f6d2cd720909f70289472c031b87ac062"
TRANSACTION_ID = "grt_4ae84452e9199d0511496d91bde9ce29664340f140038d8e65ee77bfc964b214"
MEMBER = "fc8b24579c3aa188496771717470885f4bc6739ae67d4af3257aa3b5b50f3067"


def chosen(
    encoded: bytes = ENCODED, artifact_id: str = "aid-shared", view_id: str = ""
) -> Selection:
    return Selection(encoded, artifact_id, view_id, realizations.computed_hash(encoded), b"")


def test_the_vectors_of_the_contract() -> None:
    assert realizations.computed_hash(ENCODED).hex() == SELECTION_HASH
    version_set = same_for_all(chosen(), ["1", "0"])
    assert version_set.version_set_id == SET_ID
    fingerprint = transaction_fingerprint(
        group_kind="tp_serving",
        group_id="g1",
        epoch=7,
        required_part_ids=["0", "1"],
        manifest_hash=version_set.manifest_hash,
        kind=version_set.kind,
        key_generation=None,
    )
    assert TRANSACTION_PREFIX + fingerprint.hex() == TRANSACTION_ID
    reported: dict[str, str | int] = {
        "part_id": "0",
        "daemon_id": "d1",
        "daemon_session_id": "s1",
        "worker_id": "w1",
        "staged_binding_id": "b1",
        "staged_binding_value_id": "v1",
        "staging_token": "t1",
        "staging_epoch": 1,
        "materialization_attempt_id": "",
        "source_replica_id": "",
        "source_export_generation": 0,
        "child_transport_request_id": "",
    }
    selection_hash = bytes.fromhex(SELECTION_HASH)
    assert member_fingerprint(TRANSACTION_ID, SET_ID, selection_hash, reported).hex() == MEMBER


def test_all_but_ascii_is_escaped() -> None:
    part = Part("é😀", chosen(), ByteSpace(VIEW_SPACE, "ü"))
    content = (
        '{"parts":[{"artifact_id":"aid-shared","logical_layout_hash":"","part_id":'
        '"\\u00e9\\ud83d\\ude00","requested_byte_space":"{\\"id\\":\\"\\\\u00fc\\",\\"kind\\":2}",'
        f'"selection_hash":"{SELECTION_HASH}","view_id":""}}],'
        '"realization_kind":"per_part_selection"}'
    )
    assert json.loads(content)["parts"][0]["part_id"] == "é😀"
    expected = hashlib.sha256(b"tensorcast.group_version_set.v1\0" + content.encode()).digest()
    assert manifest(RealizationKind.PER_PART_SELECTION, [part]).manifest_hash == expected


@given(st.permutations(["a", "b", "Z", "é", "10", "9"]))
def test_the_order_of_parts_does_not_matter(order: list[str]) -> None:
    one = same_for_all(chosen(), order)
    assert one == same_for_all(chosen(), sorted(order))
    assert [part.part_id for part in one.parts] == sorted(order, key=str.encode)


PARTS = st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True)


@given(PARTS, PARTS, st.sampled_from(["", "v"]), st.sampled_from(["", "v"]))
def test_different_contents_have_different_names(
    first: list[str], second: list[str], view: str, other_view: str
) -> None:
    one = same_for_all(chosen(view_id=view), first)
    other = same_for_all(chosen(view_id=other_view), second)
    same = (sorted(first), view) == (sorted(second), other_view)
    assert (one.manifest_hash == other.manifest_hash) == same


@given(st.integers(0, 3), st.integers(0, 3), st.none() | st.integers(0, 2))
def test_every_field_of_a_slot_counts(epoch: int, number: int, generation: int | None) -> None:
    def of(**fields: object) -> bytes:
        usual: dict[str, object] = {
            "group_kind": "k",
            "group_id": "g",
            "epoch": 0,
            "required_part_ids": ["0"],
            "manifest_hash": bytes(32),
            "kind": RealizationKind.SAME_SELECTION,
            "key_generation": None,
        }
        return transaction_fingerprint(**usual | fields)  # type: ignore[arg-type]

    fields = {
        "epoch": epoch,
        "group_id": f"g{number}" if number else "g",
        "key_generation": generation,
    }
    usual = {"epoch": 0, "group_id": "g", "key_generation": None}
    assert (of(**fields) == of()) == (fields == usual)


@pytest.mark.parametrize(
    ("given", "view_id", "effective"),
    [
        (ByteSpace(0, ""), "", ByteSpace(CANONICAL_SPACE, "")),
        (ByteSpace(0, ""), "v", ByteSpace(VIEW_SPACE, "v")),
        (ByteSpace(CANONICAL_SPACE, ""), "v", ByteSpace(CANONICAL_SPACE, "")),
        (ByteSpace(VIEW_SPACE, "w"), "", ByteSpace(VIEW_SPACE, "w")),
        (ByteSpace(0, "w"), "", ByteSpace(0, "w")),
    ],
)
def test_the_effective_space(given: ByteSpace, view_id: str, effective: ByteSpace) -> None:
    assert effective_space(given, view_id) == effective


@given(
    st.sampled_from([VERSION_SET_PREFIX, TRANSACTION_PREFIX]), st.binary(min_size=32, max_size=32)
)
def test_an_id_is_read_back(prefix: str, digest: bytes) -> None:
    assert digest_of(prefix, prefix + digest.hex()) == digest
    assert digest_of("x" + prefix, prefix + digest.hex()) is None


@given(st.binary(min_size=32, max_size=32), st.integers(0, 63), st.sampled_from("AGgz Éx-"))
def test_another_spelling_is_no_id(digest: bytes, at: int, character: str) -> None:
    text = digest.hex()
    for other in (
        text[:at] + character + text[at + 1 :],
        text[:at] + text[at + 1 :],
        text + character,
        character + text,
        text.upper() if text != text.upper() else "",
        text + "\n",
    ):
        assert digest_of(VERSION_SET_PREFIX, VERSION_SET_PREFIX + other) is None
        assert digest_of(VERSION_SET_PREFIX, other) is None
