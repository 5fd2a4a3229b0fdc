"""UpsertArtifactMetadata: the order of its checks, and what merging keeps."""

import hashlib
import json
from typing import Any

import pytest
import trio
from artifact_calls import (
    BYTE_ARTIFACT,
    INDEX,
    INDEX_KEY,
    MI2,
    OF_DATA,
    OF_INDEX,
    OK,
    OTHER,
    describe,
    index,
    index_of,
    metadata,
    rows,
)
from purerpc import RpcFailedError, StatusCode
from servers import configuration, refused, replica_request, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash
from globalstore.rules.json_objects import MEMBER_BYTES_MAX

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED


async def test_a_descriptor_is_required() -> None:
    request = wire.UpsertArtifactMetadataRequest(canonical_index_data=INDEX)
    async with serving() as store, refused(INVALID, "descriptor is required"):
        await store.catalog.UpsertArtifactMetadata(request)


# Each request has this fault and those of all later rows of the contract's table that can come
# together with it: the first one is what the caller is told.
LATE = {"data_multihash": "junk", "encoding": "json"}
CHECKS: list[tuple[str, dict[str, Any], StatusCode, str]] = [
    (
        "artifact_id",
        {"artifact_id": " ", "index_multihash": "", "data": b""},
        INVALID,
        "artifact_id is required",
    ),
    (
        "index_multihash",
        {"artifact_id": "msa1:x", "index_multihash": " ", "data": b""},
        INVALID,
        "index_multihash is required",
    ),
    (
        "canonical_index_data",
        {"artifact_id": "msa1:x", "index_multihash": "junk", "data": b""},
        INVALID,
        "canonical_index_data is required",
    ),
    (
        "msa1",
        {"artifact_id": "msa1:x", "index_multihash": "junk", **LATE},
        FAILED,
        "daemon-session-local",
    ),
    (
        "byte artifact",
        {"artifact_id": BYTE_ARTIFACT, "index_multihash": "junk", **LATE},
        FAILED,
        "byte artifact",
    ),
    (
        "cgid grammar",
        {"artifact_id": "cgid:a:b", "index_multihash": "junk", **LATE},
        INVALID,
        "cgid id",
    ),
    (
        "mi2 segments",
        {"artifact_id": MI2 + ":x", "index_multihash": "junk", **LATE},
        INVALID,
        "segments",
    ),
    (
        "mi2 hash",
        {"artifact_id": MI2[:-1] + "z", "index_multihash": "junk", **LATE},
        INVALID,
        "data segment",
    ),
    (
        "multihash",
        {"artifact_id": MI2, "index_multihash": "junk", **LATE},
        INVALID,
        "descriptor.index_multihash",
    ),
    (
        "upper case",
        {"index_multihash": OF_INDEX.upper(), **LATE},
        INVALID,
        "descriptor.index_multihash",
    ),
    ("digest", {"artifact_id": MI2, "index_multihash": OTHER, **LATE}, FAILED, "SHA-256"),
    ("mi2 index", {"artifact_id": f"mi2:{OTHER}:{OF_DATA}", **LATE}, FAILED, "index_multihash"),
    ("mi2 data", {"artifact_id": MI2, "data_multihash": OTHER}, FAILED, "data_multihash"),
    (
        "data multihash",
        {"data": b"[]", "data_multihash": "junk"},
        INVALID,
        "descriptor.data_multihash",
    ),
    (
        "cgid data multihash",
        {"artifact_id": "cgid:abc", "data": b"[]", "data_multihash": "junk"},
        INVALID,
        "descriptor.data_multihash",
    ),
    (
        "array",
        {"artifact_id": "cgid:abc", "data": b"[]", "data_multihash": OF_DATA},
        INVALID,
        "canonical_index_data",
    ),
    ("not JSON", {"data": b"{", "encoding": " json "}, INVALID, "canonical_index_data"),
    ("not UTF-8", {"data": b'{"\xff":1}'}, INVALID, "canonical_index_data"),
    ("UTF-16", {"data": '{"a":1}'.encode("utf-16")}, INVALID, "canonical_index_data"),
    ("deep", {"data": b"[" * 100_000}, INVALID, "canonical_index_data"),
    ("long number", {"data": b'{"a":%s}' % (b"1" * 10_000)}, INVALID, "canonical_index_data"),
    ("cgid with data", {"artifact_id": "cgid:abc", "data_multihash": OF_DATA}, INVALID, "cgid"),
    ("kind", {"artifact_id": "cgid:abc", "id_kind": 1}, INVALID, "id_kind"),
    ("unknown kind", {"id_kind": 7}, INVALID, "id_kind"),
    ("total size", {"total_size": 2**63}, INVALID, "total_size"),
    ("encoding", {"encoding": "x\0"}, INVALID, "encoding"),
    ("schema version", {"schema_version": "x" * 1025}, INVALID, "schema_version"),
]


@pytest.mark.parametrize(
    ("fields", "code", "fragment"),
    [check[1:] for check in CHECKS],
    ids=[check[0] for check in CHECKS],
)
async def test_the_first_fault_is_told_and_nothing_is_stored(
    fields: dict[str, Any], code: StatusCode, fragment: str
) -> None:
    async with serving() as store:
        async with refused(code, fragment):
            await describe(store, **fields)
        assert await rows(store) == []
        assert await store.read("SELECT count(*) FROM tensor_indexes") == [(0,)]


async def test_a_mi2_artifact_gets_its_data_multihash_from_its_id() -> None:
    async with serving() as store:
        answer = await describe(store, f" {MI2} ", total_size=8388624, id_kind=1)
        assert answer == wire.UpsertArtifactMetadataResponse(status=OK)
        assert await rows(store) == [(MI2, 1, OF_INDEX, OF_DATA, 8388624, "", "")]
        assert await store.read("SELECT count(*) FROM replicas") == [(0,)]
        assert await store.read("SELECT count(*) FROM disk_locations") == [(0,)]


async def test_the_kind_is_that_of_the_prefix_or_for_an_opaque_id_the_given_one() -> None:
    async with serving() as store:
        for artifact_id, given in (("cgid:abc", 0), (MI2, 0), ("plain", 0), ("opaque", 2)):
            await describe(store, artifact_id, id_kind=given)
        assert [row[:2] for row in await rows(store)] == [
            ("cgid:abc", 2), (MI2, 1), ("plain", 0), ("opaque", 2),
        ]  # fmt: skip


async def test_the_same_request_again_is_fine_and_changes_nothing() -> None:
    async with serving() as store:
        await describe(store, data_multihash=OF_DATA, total_size=7)
        before = await rows(store)
        assert (await describe(store, data_multihash=OF_DATA, total_size=7)).status == OK
        assert await rows(store) == before


async def test_only_what_changes_an_artifact_is_dated() -> None:
    now_us = 1_700_000_000_000_000
    times = "SELECT created_at, updated_at FROM artifacts"
    async with serving(wall=lambda: now_us) as store:
        began_us = now_us
        await describe(store)
        now_us += 1
        await describe(store)
        await store.replica("w", tensor_index_data=INDEX)
        assert await store.read(times) == [(began_us, began_us)]
        await describe(store, total_size=7)
        assert await store.read(times) == [(began_us, now_us)]


async def test_blank_fields_erase_nothing_and_gaps_are_filled() -> None:
    async with serving() as store:
        await describe(store, encoding="cbor", schema_version="v9", total_size=7)
        await describe(store)
        assert await rows(store) == [("model", 0, OF_INDEX, "", 7, "cbor", "v9")]
        await describe(store, data_multihash=OF_DATA)
        assert await rows(store) == [("model", 0, OF_INDEX, OF_DATA, 7, "cbor", "v9")]


@pytest.mark.parametrize(
    ("later", "fragment"),
    [
        ({"data": b"{}"}, "index_multihash"),
        ({"data_multihash": OTHER}, "data_multihash"),
        ({"total_size": 8}, "total_size"),
    ],
)
async def test_a_digest_or_size_once_said_is_frozen(later: dict[str, Any], fragment: str) -> None:
    async with serving() as store:
        await describe(store, data_multihash=OF_DATA, total_size=7)
        before = await rows(store)
        async with refused(FAILED, fragment):
            await describe(store, **later)
        assert await rows(store) == before
        assert await store.read("SELECT count(*) FROM tensor_indexes") == [(1,)]


async def test_an_assembly_gains_an_index_once() -> None:
    async with serving() as store:
        await store.replica("w", "cgid:assembly")
        await describe(store, "cgid:assembly")
        assert await rows(store) == [("cgid:assembly", 2, OF_INDEX, "", 0, "", "")]
        async with refused(FAILED, "index_multihash"):
            await describe(store, "cgid:assembly", data=b"{}")


async def test_of_many_who_describe_one_assembly_differently_one_is_right() -> None:
    async with serving() as store:
        indexes = [json.dumps({"t": [number, 1]}).encode() for number in range(40)]
        won, lost = [], []

        async def one(data: bytes) -> None:
            try:
                await describe(store, "cgid:assembly", data=data)
            except RpcFailedError as error:
                lost.append((error.status.status_code, "index_multihash" in str(error)))
            else:
                won.append(data)

        async with trio.open_nursery() as nursery:
            for data in indexes:
                nursery.start_soon(one, data)
        assert len(won) == 1
        assert lost == [(FAILED, True)] * (len(indexes) - 1)
        assert (await index_of(store, "cgid:assembly")).tensor_index_data == won[0]
        assert await store.read("SELECT count(*) FROM tensor_indexes") == [(1,)]


@pytest.mark.parametrize("tensors", [500, 40_000])
async def test_a_long_index_is_judged_and_stored_too(tensors: int) -> None:
    names = (f"model.layers.{number}.mlp.down_proj.weight" for number in range(tensors))
    data = json.dumps({name: [0, 1, [1], [1], "U8", 0] for name in names}).encode()
    async with serving() as store:
        await describe(store, data=data)
        assert (await index_of(store)).tensor_index_data == data
        async with refused(INVALID, "canonical_index_data"):
            await describe(store, "other", data=b"[%s]" % data)
        async with refused(FAILED, "SHA-256"):
            await describe(store, "other", data=data, index_multihash=OTHER)


async def test_an_index_of_more_bytes_than_allowed_is_refused_wherever_it_comes_in() -> None:
    most = configuration(registration={"max_index_bytes": len(INDEX)})
    async with serving(most) as store:
        await describe(store)
        for data in (INDEX + b" ", INDEX + b" " * 40_000):
            refusal = f"expected at most {len(INDEX)} bytes (registration.max_index_bytes)"
            async with refused(EXHAUSTED, f"canonical_index_data: {refusal}"):
                await describe(store, "other", data=data)
            async with refused(EXHAUSTED, f"tensor_index_data: {refusal}"):
                await store.replica("w", "other", tensor_index_data=data)
        assert await store.read("SELECT count(*) FROM artifacts") == [(1,)]
        await store.replica("w", "other", tensor_index_data=INDEX, client_request_id="r")


async def test_a_long_index_can_come_with_a_replica_too() -> None:
    data = b" " * 40_000
    async with serving() as store:
        request = replica_request("w", tensor_index_data=data, client_request_id="r")
        first = await store.runtime.RegisterReplica(request)
        assert await store.runtime.RegisterReplica(request) == first
        key = hashlib.sha256(data).hexdigest()
        assert (await index(store, key)).tensor_index_data == data


async def test_others_have_their_turn_while_a_large_index_is_judged() -> None:
    data = b'{"a":0' + b',"b":[[],[1],{"c":"],"}]' * 60_000 + b"}"
    async with serving() as store:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            before = turns
            async with refused(INVALID, "canonical_index_data is not a JSON object"):
                await describe(store, data=data + b"}")
            await describe(store, data=data)
            nursery.cancel_scope.cancel()
        assert turns - before > 2 * len(data) / MEMBER_BYTES_MAX


# Reading indexes.


async def test_an_index_is_found_by_its_digest_as_it_is_stored() -> None:
    async with serving() as store:
        await describe(store)
        expected = {"status": OK, "tensor_index_data": INDEX, "encoding": "json"}
        assert await index(store, f" {INDEX_KEY} ") == wire.GetArtifactIndexResponse(
            **expected, schema_version="v3"
        )
        assert await index_of(store, " model ") == wire.GetArtifactIndexByIdResponse(
            **expected, schema_version="v3"
        )


async def test_encoding_and_schema_are_those_of_the_index_or_by_id_those_of_the_artifact() -> None:
    async with serving() as store:
        await describe(store, "one", encoding="cbor", schema_version="v4", data=b"\x01")
        await describe(store, "two", encoding="own", data=b"\x01")
        key = multihash.decode("", multihash.of(b"\x01")).hex()
        first = await index(store, key)
        assert (first.encoding, first.schema_version) == ("cbor", "v4"), "stored once"
        one, two = await index_of(store, "one"), await index_of(store, "two")
        assert (one.encoding, one.schema_version) == ("cbor", "v4")
        assert (two.encoding, two.schema_version) == ("own", "v3")


@pytest.mark.parametrize(
    "key", ["0" * 64, INDEX_KEY.upper(), INDEX_KEY[:-1], INDEX_KEY + "0", "no hex", OF_INDEX, "é"]
)
async def test_what_names_no_index_is_not_found(key: str) -> None:
    async with serving() as store:
        await describe(store)
        assert await index(store, key) == wire.GetArtifactIndexResponse(
            status=wire.STATUS_NOT_FOUND
        )


async def test_an_artifact_without_a_stored_index_has_none_to_show() -> None:
    nothing = wire.GetArtifactIndexByIdResponse(status=wire.STATUS_NOT_FOUND)
    async with serving() as store:
        await store.replica("w", "plain")
        await store.replica("w", MI2)
        for artifact_id in ("unknown", "plain", MI2, BYTE_ARTIFACT, "mi2:x"):
            assert await index_of(store, artifact_id) == nothing
        await describe(store)
        await store.components.store.write(
            lambda tx: tx.run("UPDATE artifacts SET index_multihash = 'junk'")
        )
        assert await index_of(store) == nothing


async def test_a_look_up_needs_a_name_and_no_mount() -> None:
    async with serving() as store:
        for blank in ("", " \t"):
            async with refused(INVALID, "tensor_index_key"):
                await index(store, blank)
            async with refused(INVALID, "artifact_id"):
                await index_of(store, blank)
        async with refused(FAILED, "daemon-session-local"):
            await index_of(store, "msa1:x")


async def test_what_metadata_says_holds_for_registrations_of_replicas() -> None:
    async with serving() as store:
        await describe(store, encoding="cbor", schema_version="v9")
        await store.replica("w", tensor_index_data=INDEX)
        assert (await rows(store))[0][5:] == ("cbor", "v9")
        async with refused(FAILED, "index_multihash"):
            await store.replica("w", tensor_index_data=b"{}")


def test_the_vector_is_that_of_the_contract() -> None:
    assert metadata().descriptor.index_multihash == OF_INDEX
