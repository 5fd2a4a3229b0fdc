"""Requests about artifacts, with as little said as each test needs."""

from typing import Any

from servers import Serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

OK, NOT_FOUND = wire.STATUS_OK, wire.STATUS_NOT_FOUND

# The vector of the contract.
INDEX = b'{"a":[0,8388608,[2097152],[1],"F32",0],"b":[8388608,16,[4],[1],"F32",0]}'
INDEX_KEY = "eaf8d77feee68bb41d7166cf53add4f6d107d3a5ad68949139df0d32d1d90507"
OF_INDEX = "bciqov6gxp7xonc5udvywnt2tvxkpnuih2os222euse456djs2hmqkby"
OF_DATA = "bciqdu3vqpehttlehzfhtqvvs3uwf2eionaiwaitbvgushu53eow4rny"
MI2 = f"mi2:{OF_INDEX}:{OF_DATA}"
OTHER = multihash.of(b"other")

BYTE_ARTIFACT = "cgid:byte_artifact~ns~vllm~b64u.bQ~lay~b64u.ZQ"


def metadata(artifact_id: str = "model", data: bytes = INDEX, **fields: Any) -> Any:
    described = {"artifact_id": artifact_id, "index_multihash": multihash.of(data)} | fields
    return wire.UpsertArtifactMetadataRequest(
        descriptor=common.ArtifactDescriptor(**described), canonical_index_data=data
    )


async def describe(store: Serving, *positional: Any, **fields: Any) -> Any:
    return await store.catalog.UpsertArtifactMetadata(metadata(*positional, **fields))


async def index(store: Serving, key: str = INDEX_KEY) -> Any:
    return await store.catalog.GetArtifactIndex(wire.GetArtifactIndexRequest(tensor_index_key=key))


async def index_of(store: Serving, artifact_id: str = "model") -> Any:
    return await store.catalog.GetArtifactIndexById(
        wire.GetArtifactIndexByIdRequest(artifact_id=artifact_id)
    )


async def rows(store: Serving) -> list[Any]:
    return await store.read(
        "SELECT artifact_id, id_kind, index_multihash, data_multihash, total_size, encoding,"
        " schema_version FROM artifacts ORDER BY artifact_key"
    )


async def bind(store: Serving, from_: str = "cgid:assembly", to: str = MI2, **fields: Any) -> Any:
    return await store.catalog.UpsertArtifactBinding(
        wire.UpsertArtifactBindingRequest(
            binding=wire.ArtifactBinding(from_artifact_id=from_, to_artifact_id=to, **fields)
        )
    )


async def bound(store: Serving, artifact_id: str = "cgid:assembly") -> Any:
    return await store.catalog.GetArtifactBinding(
        wire.GetArtifactBindingRequest(artifact_id=artifact_id)
    )


async def lay(store: Serving, path: str = "a/b", **fields: Any) -> Any:
    request = {"artifact_id": "model", "cluster_id": store.info.cluster_id} | fields
    return await store.catalog.UpsertArtifactDiskLocation(
        wire.UpsertArtifactDiskLocationRequest(relative_path=path, **request)
    )


async def lies(store: Serving, artifact_id: str = "model", **fields: Any) -> list[Any]:
    answer = await store.catalog.ListArtifactDiskLocations(
        wire.ListArtifactDiskLocationsRequest(artifact_id=artifact_id, **fields)
    )
    assert answer.status == OK
    return list(answer.locations)
