"""RegisterGroupVersionSet: what is refused, what names a set, and what the first one keeps."""

from typing import Any

import pytest
import trio
from purerpc import RpcFailedError, StatusCode
from realization_calls import (
    CANONICAL,
    MANIFEST_HASH,
    OK,
    PER_PART,
    SAME,
    SELECTION_HASH,
    VIEW,
    on,
    part,
    register,
    selection,
)
from servers import refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
EXISTS = StatusCode.ALREADY_EXISTS


def space(kind: int, id_: str = "") -> Any:
    return common.ByteSpaceRef(kind=kind, id=id_)


@pytest.mark.parametrize(
    "call",
    [
        ("RegisterGroupVersionSet", wire.RegisterGroupVersionSetRequest()),
        ("BeginOrJoinGroupRealization", wire.BeginOrJoinGroupRealizationRequest()),
        ("ReportGroupRealizationPrepared", wire.ReportGroupRealizationPreparedRequest()),
        ("PublishGroupRealization", wire.PublishGroupRealizationRequest()),
        ("WaitGroupRealizationPublished", wire.WaitGroupRealizationPublishedRequest()),
        ("AbortGroupRealization", wire.AbortGroupRealizationRequest()),
        ("GetGroupRealization", wire.GetGroupRealizationRequest()),
    ],
    ids=lambda call: call[0],
)
async def test_no_call_about_groups_works_unless_they_are_switched_on(call: Any) -> None:
    method, request = call
    async with serving() as store, refused(FAILED, "worker_policy.group_realization.enabled"):
        await getattr(store.catalog, method)(request)
    async with serving(on()) as store, refused(INVALID):
        await getattr(store.catalog, method)(request)


BAD: dict[str, tuple[Any, dict[str, Any], StatusCode, str]] = {
    "no kind": (["0"], {"kind": 0}, INVALID, "realization_kind"),
    "unknown kind": (["0"], {"kind": 3}, INVALID, "realization_kind"),
    "no part": ([], {}, INVALID, "parts is required"),
    "no part of its own": ([], {"kind": PER_PART}, INVALID, "parts is required"),
    "blank part": (["0", " "], {}, INVALID, "parts[1].part_id is required"),
    "same part twice": (["0", " 0 "], {}, INVALID, "parts[1].part_id"),
    "own part twice": (["0", "0"], {"kind": PER_PART}, INVALID, "parts[1].part_id"),
    "no selection": ([wire.GroupVersionSetPart(part_id="0")], {}, INVALID, "parts[0].selection"),
    "blank artifact": ([part("0", selection(" "))], {}, INVALID, "selection.artifact_id"),
    "mount": ([part("0", selection("msa1:x"))], {}, FAILED, "daemon-session-local"),
    "byte artifact": ([part("0", selection("cgid:byte_artifact~a"))], {}, FAILED, "byte artifact"),
    "other selections": (
        ["0", part("1", selection("other"))],
        {},
        INVALID,
        "requires identical selections",
    ),
    "other tensors": (
        ["0", part("1", selection(tensor_names=["t"]))],
        {},
        INVALID,
        "requires identical selections",
    ),
    "other spaces": (
        ["0", part("1", space=space(VIEW, "v"))],
        {},
        INVALID,
        "requires identical byte spaces",
    ),
    "view without id": (
        [part("0", space=space(VIEW))],
        {},
        INVALID,
        "requested_byte_space required",
    ),
    "view of another id": (
        [part("0", selection(view_id="v"), space(VIEW, "w"))],
        {},
        INVALID,
        "requested_byte_space.id",
    ),
    "id without kind": ([part("0", space=space(0, "v"))], {}, INVALID, "requested_byte_space.kind"),
    "unknown space": ([part("0", space=space(9))], {}, INVALID, "requested_byte_space.kind"),
    "canonical with id": ([part("0", space=space(CANONICAL, "v"))], {}, INVALID, "only a VIEW"),
    "long metadata": (
        [part("0", part_metadata_json="x" * 65537)],
        {},
        INVALID,
        "part_metadata_json",
    ),
    "long hash": (
        [part("0", selection(selection_hash=b"x" * 1025))],
        {},
        INVALID,
        "selection_hash",
    ),
    "key generation": (["0"], {"key_generation": 2**63}, INVALID, "key_generation"),
    "key": (["0"], {"key": "a\0"}, INVALID, "key"),
    "namespace": (["0"], {"namespace": "x" * 1025}, INVALID, "namespace"),
}


@pytest.mark.parametrize(("parts", "fields", "code", "fragment"), BAD.values(), ids=BAD)
async def test_a_bad_set_is_refused_and_nothing_is_stored(
    parts: Any, fields: dict[str, Any], code: StatusCode, fragment: str
) -> None:
    async with serving(on()) as store:
        async with refused(code, fragment):
            await register(store, *parts, **fields)
        for table in ("version_sets", "version_set_parts", "selections"):
            assert await store.read(f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.mark.parametrize("kind", [SAME, PER_PART])
async def test_the_number_of_parts_is_bounded(kind: int) -> None:
    async with serving(on(max_parts_per_version_set=2)) as store:
        await register(store, "0", "1", kind=kind)
        async with refused(INVALID, "parts has 3 entries, expected at most 2"):
            await register(store, "0", "1", "2", kind=kind)


async def test_the_set_of_the_contract_has_the_name_of_the_contract() -> None:
    async with serving(on()) as store:
        answer = await register(store, "1", " 0 ", namespace="ns", key="k", key_generation=0)
        expected = wire.RegisterGroupVersionSetResponse(
            status=OK,
            version_set=wire.GroupVersionSetRef(
                version_set_id=f"gvs_{MANIFEST_HASH.hex()}",
                manifest_hash=MANIFEST_HASH,
                manifest_generation=1,
            ),
            realization_kind=SAME,
        )
        for part_id in "01":
            expected.parts.add(
                part_id=part_id,
                selection=selection(),
                requested_byte_space=space(CANONICAL),
                selection_hash=SELECTION_HASH,
            )
        assert answer == expected
        assert await store.read("SELECT count(*) FROM key_mappings") == [(0,)], "no key is moved"


async def test_the_same_set_again_is_the_same_and_the_first_description_stays() -> None:
    async with serving(on()) as store:
        first = await register(
            store, part("0", part_metadata_json="one"), key="k", namespace="n", key_generation=3
        )
        again = await register(store, part("0", part_metadata_json="two"), key="other")
        assert again == first
        assert again.parts[0].part_metadata_json == "one"
        assert await store.read("SELECT namespace, key, key_generation FROM version_sets") == [
            ("n", "k", 3)
        ]


async def test_hashes_sent_beside_the_selection_are_ignored_those_in_it_count() -> None:
    async with serving(on()) as store:
        plain = await register(store, "0")
        beside = await register(store, part("0", selection_hash=b"x", logical_layout_hash=b"y"))
        assert beside == plain
        inside = await register(
            store, part("0", selection(selection_hash=b"x", logical_layout_hash=b"y"))
        )
        assert inside.version_set != plain.version_set
        assert (inside.parts[0].selection_hash, inside.parts[0].logical_layout_hash) == (b"x", b"y")


@pytest.mark.parametrize("kind", [SAME, PER_PART])
@pytest.mark.parametrize(
    ("chosen", "given", "effective"),
    [
        (selection(), None, (CANONICAL, "")),
        (selection(view_id="v"), None, (VIEW, "v")),
        (selection(view_id=" v "), space(0), (VIEW, "v")),
        (selection(view_id="v"), space(CANONICAL), (CANONICAL, "")),
        (selection(), space(VIEW, " v "), (VIEW, "v")),
        (selection(view_id="v"), space(VIEW, "v"), (VIEW, "v")),
    ],
)
async def test_a_part_has_the_space_of_its_view_unless_another_is_given(
    kind: int, chosen: Any, given: Any, effective: tuple[int, str]
) -> None:
    async with serving(on()) as store:
        answer = await register(store, part("0", chosen, given), kind=kind)
        shown = answer.parts[0].requested_byte_space
        assert (shown.kind, shown.id) == effective
        explicit = await register(store, part("0", chosen, space(*effective)), kind=kind)
        assert explicit == answer


async def test_a_selection_is_kept_as_sent_but_for_space_around_its_ids() -> None:
    chosen = selection(
        " aid-shared ", tensor_names=[" t ", ""], view_subset_hash=b"\0", logical_layout_hash=b"l"
    )
    chosen.view_spec.SetInParent()
    async with serving(on()) as store:
        answer = await register(store, part("0", chosen))
        chosen.artifact_id = "aid-shared"
        assert answer.parts[0].selection == chosen
        assert (await register(store, part("0", chosen))).version_set == answer.version_set


async def test_parts_may_differ_in_a_set_of_that_kind() -> None:
    async with serving(on()) as store:
        parts = [part("b", selection("two")), part("a", selection("one", view_id="v"))]
        answer = await register(store, *parts, kind=PER_PART)
        shown = [(each.part_id, each.selection.artifact_id) for each in answer.parts]
        assert shown == [("a", "one"), ("b", "two")]
        same = await register(store, "0", "1", kind=PER_PART)
        assert same.version_set.manifest_hash != MANIFEST_HASH, "the kind is part of the name"


async def test_another_selection_under_the_same_hash_is_refused() -> None:
    async with serving(on()) as store:
        first = selection(selection_hash=b"h", tensor_names=["a"])
        await register(store, part("0", first))
        async with refused(EXISTS, "gvs_", "another selection"):
            await register(store, part("0", selection(selection_hash=b"h", tensor_names=["b"])))
        answer = await register(store, part("0", first))
        assert answer.parts[0].selection == first
        assert await store.read("SELECT count(*) FROM selections") == [(1,)]


async def test_of_many_who_claim_one_hash_for_different_selections_one_is_right() -> None:
    async with serving(on()) as store:
        outcomes: dict[str, Any] = {}

        async def one(name: str) -> None:
            chosen = selection(selection_hash=b"h", tensor_names=[name])
            try:
                outcomes[name] = await register(store, part("0", chosen))
            except RpcFailedError as error:
                outcomes[name] = error.status.status_code

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, f"t{number}")
        [(winner, answer)] = [each for each in outcomes.items() if each[1] is not EXISTS]
        assert answer.parts[0].selection.tensor_names == [winner]


@pytest.mark.parametrize("kind", [SAME, PER_PART])
async def test_a_set_of_thousands_of_parts_is_one_answer(kind: int) -> None:
    ids = [f"rank-{number:04}" for number in range(4096)]
    async with serving(on()) as store:
        first = await register(store, *reversed(ids), kind=kind)
        assert [each.part_id for each in first.parts] == ids
        assert await register(store, *ids, kind=kind) == first
        assert await store.read("SELECT count(*) FROM selections") == [(1,)]
