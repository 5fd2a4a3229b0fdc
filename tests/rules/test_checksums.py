"""The digest of a replica set, byte for byte."""

import random

import pytest

from globalstore.rules.checksums import EMPTY, Entry, fnv1a_64, of_replicas


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "cbf29ce484222325"),
        (b"a", "af63dc4c8601ec8c"),
        (b"foobar", "85944171f73967e8"),
    ],
)
def test_fnv1a_has_its_published_values(data: bytes, digest: str) -> None:
    assert f"{fnv1a_64(data):016x}" == digest


def entry(artifact_id: str, label: str, device: int, available: bool, view_id: str = "") -> Entry:
    return Entry(artifact_id, view_id, "node-7", "10.20.0.7", 50052, label, device, available)


FIVE = [
    entry("cgid:model-a", "GPU", 2, False),
    entry("cgid:model-a", "GPU", 10, True),
    entry("cgid:model-a", "RAM", 0, True),
    entry("cgid:model-a", "RAM", 0, False, "view-2"),
    entry("cgid:model-b", "GPU", 1, True),
]


def test_no_replicas_have_the_digest_of_nothing() -> None:
    assert of_replicas([]) == EMPTY == "cbf29ce484222325"


def test_one_replica() -> None:
    one = entry("mi2:idxA:datA", "RAM", 0, True)
    assert one.text() == "mi2:idxA:datA::node-7:10.20.0.7:50052:0:RAM:1;"
    assert of_replicas([one]) == "6a632e6b6f7b9497"


def test_devices_sort_as_numbers_and_the_order_of_input_does_not_matter() -> None:
    shuffled = FIVE[:]
    random.Random(7).shuffle(shuffled)
    assert len("".join(each.text() for each in FIVE)) == 232
    assert of_replicas(shuffled) == of_replicas(FIVE) == "71db85343054e026"
