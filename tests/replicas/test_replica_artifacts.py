"""What a registration says of its artifact: the tensor index and the descriptor."""

import hashlib
from typing import Any

import pytest
from purerpc import StatusCode
from servers import memory_info, refused, replica_request, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

INDEX = b'{"a":[0,100,[100],[1],"U8",0]}'
DIGEST = hashlib.sha256(INDEX).digest()
OF_INDEX = multihash.encode(DIGEST)
OF_DATA = multihash.of(b"data")
OTHER = multihash.of(b"other")
MI2 = f"mi2:{OF_INDEX}:{OF_DATA}"

ROW = "SELECT artifact_id, id_kind, index_multihash, data_multihash, total_size FROM artifacts"


def described(artifact_id: str, worker_id: str = "w", **fields: Any) -> Any:
    """Build a registration with a descriptor; ``tensor_index_data`` and ``mem_info`` apart."""
    data = fields.pop("tensor_index_data", b"")
    request = replica_request(worker_id, "", mem_info=fields.pop("mem_info", None))
    request.tensor_index_data = data
    request.descriptor.CopyFrom(common.ArtifactDescriptor(artifact_id=artifact_id, **fields))
    return request


async def test_without_a_descriptor_an_artifact_is_made_from_its_id_alone() -> None:
    async with serving() as store:
        await store.replica("w", "plain")
        await store.replica("w", "cgid:assembly")
        await store.replica("w", MI2)
        assert await store.read(ROW + " ORDER BY artifact_key") == [
            ("plain", 0, "", "", 0),
            ("cgid:assembly", 2, "", "", 0),
            (MI2, 1, OF_INDEX, OF_DATA, 0),
        ]


async def test_the_bytes_of_an_index_are_stored_under_their_digest_and_name_the_key() -> None:
    async with serving() as store:
        await store.replica("w", tensor_index_data=INDEX)
        rows = await store.read(
            "SELECT index_digest, index_data, encoding, schema_version FROM tensor_indexes"
        )
        assert rows == [(DIGEST, INDEX, "json", "v3")]
        assert await store.read(ROW) == [("model", 0, OF_INDEX, "", 0)]
        (shown,) = await store.replicas()
        assert shown.tensor_index_key == DIGEST.hex()
        await store.replica("w", "again", tensor_index_data=INDEX, encoding=" json ")
        assert await store.read("SELECT count(*) FROM tensor_indexes") == [(1,)]


@pytest.mark.parametrize(("key", "fits"), [(DIGEST.hex(), True), (DIGEST.hex().upper(), False)])
async def test_a_key_that_is_given_must_be_that_of_the_bytes(key: str, fits: bool) -> None:
    async with serving() as store:
        request = replica_request(
            "w", mem_info=memory_info(tensor_index_key=key), tensor_index_data=INDEX
        )
        if fits:
            await store.runtime.RegisterReplica(request)
        else:
            async with refused(StatusCode.INVALID_ARGUMENT, "mem_info.tensor_index_key"):
                await store.runtime.RegisterReplica(request)


async def test_bytes_that_contradict_the_address_of_the_content_are_refused() -> None:
    async with serving() as store:
        async with refused(StatusCode.FAILED_PRECONDITION, "index_multihash"):
            await store.replica("w", f"mi2:{OTHER}:{OF_DATA}", tensor_index_data=INDEX)
        for table in ("artifacts", "tensor_indexes", "replicas"):
            assert await store.read(f"SELECT * FROM {table}") == []
        await store.replica("w", MI2, tensor_index_data=INDEX)


async def test_bytes_that_contradict_the_descriptor_are_refused() -> None:
    async with serving() as store:
        request = described("model", index_multihash=OTHER, tensor_index_data=INDEX)
        async with refused(StatusCode.FAILED_PRECONDITION, "index_multihash"):
            await store.runtime.RegisterReplica(request)
        assert await store.read("SELECT * FROM tensor_indexes") == []


async def test_bytes_that_contradict_what_is_known_are_refused() -> None:
    async with serving() as store:
        await store.replica("w", "cgid:assembly", tensor_index_data=INDEX)
        async with refused(StatusCode.FAILED_PRECONDITION, "index_multihash"):
            await store.replica("w", "cgid:assembly", tensor_index_data=b"{}")
        assert await store.read("SELECT count(*) FROM tensor_indexes") == [(1,)]
        assert await store.read(ROW) == [("cgid:assembly", 2, OF_INDEX, "", 0)]


@pytest.mark.parametrize(
    ("fields", "code", "fragment"),
    [
        ({"artifact_id": "mi2:x:y"}, "INVALID_ARGUMENT", "descriptor.artifact_id"),
        ({"artifact_id": "mi2:x"}, "INVALID_ARGUMENT", "descriptor.artifact_id"),
        ({"artifact_id": "cgid:a:b"}, "INVALID_ARGUMENT", "descriptor.artifact_id"),
        ({"artifact_id": "cgid:"}, "INVALID_ARGUMENT", "descriptor.artifact_id"),
        (
            {"artifact_id": "cgid:assembly", "data_multihash": OF_DATA},
            "INVALID_ARGUMENT",
            "descriptor.data_multihash",
        ),
        ({"index_multihash": "bciq"}, "INVALID_ARGUMENT", "descriptor.index_multihash"),
        ({"index_multihash": OF_INDEX.upper()}, "INVALID_ARGUMENT", "descriptor.index_multihash"),
        ({"data_multihash": "x"}, "INVALID_ARGUMENT", "descriptor.data_multihash"),
        ({"total_size": 2**63}, "INVALID_ARGUMENT", "descriptor.total_size"),
        ({"id_kind": 9}, "INVALID_ARGUMENT", "descriptor.id_kind"),
        ({"artifact_id": MI2, "id_kind": 2}, "INVALID_ARGUMENT", "descriptor.id_kind"),
        ({"artifact_id": "cgid:assembly", "id_kind": 1}, "INVALID_ARGUMENT", "descriptor.id_kind"),
        (
            {"artifact_id": MI2, "index_multihash": OTHER},
            "FAILED_PRECONDITION",
            "descriptor.index_multihash",
        ),
        (
            {"artifact_id": MI2, "data_multihash": OTHER},
            "FAILED_PRECONDITION",
            "descriptor.data_multihash",
        ),
        ({"encoding": "j\0n"}, "INVALID_ARGUMENT", "descriptor.encoding"),
    ],
)
async def test_a_bad_field_of_a_descriptor_is_named_and_changes_nothing(
    fields: dict[str, Any], code: str, fragment: str
) -> None:
    async with serving() as store:
        request = described(**({"artifact_id": "model"} | fields))
        async with refused(StatusCode[code], fragment):
            await store.runtime.RegisterReplica(request)
        assert await store.read("SELECT * FROM artifacts") == []


async def test_a_descriptor_fills_gaps_and_blanks_erase_nothing() -> None:
    async with serving() as store:
        await store.replica("w", "model")
        await store.runtime.RegisterReplica(
            described("model", index_multihash=OF_INDEX, total_size=100, id_kind=1)
        )
        await store.runtime.RegisterReplica(described("model", data_multihash=OF_DATA))
        await store.runtime.RegisterReplica(described("model"))
        await store.replica("w", "model")
        assert await store.read(ROW) == [("model", 1, OF_INDEX, OF_DATA, 100)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"index_multihash": OF_INDEX}, {"index_multihash": OTHER}),
        ({"data_multihash": OF_DATA}, {"data_multihash": OTHER}),
        ({"total_size": 100}, {"total_size": 101}),
    ],
)
async def test_a_digest_or_size_once_said_cannot_be_changed(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    async with serving() as store:
        await store.runtime.RegisterReplica(described("model", **before))
        rows = await store.read(ROW)
        async with refused(StatusCode.FAILED_PRECONDITION, *after):
            await store.runtime.RegisterReplica(described("model", **after))
        assert await store.read(ROW) == rows


async def test_the_disk_path_of_a_registration_is_ignored() -> None:
    async with serving() as store:
        answer = await store.replica("w", disk_path="/etc/../\0")
        assert answer.status == wire.STATUS_OK
