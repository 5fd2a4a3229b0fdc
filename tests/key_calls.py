"""Requests about keys, with as little said as each test needs, and artifacts to point them at."""

from typing import Any

import attrs
from servers import Serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

OK, ERROR, NOT_FOUND = wire.STATUS_OK, wire.STATUS_ERROR, wire.STATUS_NOT_FOUND

INDEX = b'{"a":[0,100,[100],[1],"U8",0]}'


@attrs.define
class Wall:
    """A wall clock that a test sets."""

    us: int = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.us

    def pass_s(self, seconds: float) -> None:
        self.us += round(seconds * 1_000_000)


async def ready(store: Serving, *artifact_ids: str) -> None:
    """Make artifacts that keys may point at."""
    for artifact_id in artifact_ids:
        await store.catalog.UpsertArtifactMetadata(
            wire.UpsertArtifactMetadataRequest(
                descriptor=common.ArtifactDescriptor(
                    artifact_id=artifact_id, index_multihash=multihash.of(INDEX)
                ),
                canonical_index_data=INDEX,
            )
        )


async def upsert(
    store: Serving, key: str = "k", artifact_id: str = "a", ttl_s: float | None = None, **say: Any
) -> Any:
    request = wire.UpsertKeyMappingRequest(key=key, artifact_id=artifact_id, **say)
    if ttl_s is not None:
        request.ttl.FromNanoseconds(round(ttl_s * 1e9))
    return await store.catalog.UpsertKeyMapping(request)


async def swap(store: Serving, key: str = "k", artifact_id: str = "b", **say: Any) -> Any:
    return await store.catalog.SwapKeyMapping(
        wire.SwapKeyMappingRequest(key=key, new_artifact_id=artifact_id, **say)
    )


async def swapped(store: Serving, key: str = "k", artifact_id: str = "b", **say: Any) -> Any:
    """Swap; return status, artifact and generation."""
    answer = await swap(store, key, artifact_id, **say)
    return answer.status, answer.artifact_id, answer.generation


async def resolve(store: Serving, key: str = "k") -> Any:
    return await store.catalog.ResolveKeyMapping(wire.ResolveKeyMappingRequest(key=key))


async def target(store: Serving, key: str = "k") -> tuple[str, int] | None:
    """Return where a key points and its generation, or None."""
    answer = await resolve(store, key)
    assert answer.status in {OK, NOT_FOUND}
    return (answer.artifact_id, answer.generation) if answer.status == OK else None


async def revoke(store: Serving, key: str = "k") -> int:
    answer = await store.catalog.RevokeKeyMapping(wire.RevokeKeyMappingRequest(key=key))
    return int(answer.status)


async def history(store: Serving, key: str = "k") -> list[Any]:
    """Every generation of a key and what it names."""
    return await store.read(
        "SELECT g.generation, a.artifact_id FROM key_generations g JOIN key_mappings m"
        " USING (mapping_key) JOIN artifacts a ON a.artifact_key = g.artifact_key"
        " WHERE m.key = ? ORDER BY g.generation",
        key,
    )
