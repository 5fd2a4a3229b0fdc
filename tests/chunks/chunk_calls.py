"""What the tests of the chunk directory share."""

from typing import Any

from servers import Serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

LOCKED_TX = wire.CHUNK_STATE_LOCKED_TX
COPIED_GPU = wire.CHUNK_STATE_COPIED_GPU
COLD = wire.CHUNK_STATE_COLD
EVICTED = wire.CHUNK_STATE_EVICTED
HOT = wire.CHUNK_STATE_HOT


def entry(chunk: int = 0, state: int = HOT, artifact_id: str = "model", **more: Any) -> Any:
    return wire.ChunkStateUpdate(
        artifact_id=artifact_id,
        chunk_idx=chunk,
        state=state,  # type: ignore[arg-type]
        **more,
    )


async def report(store: Serving, *entries: Any, node: str = "node-d1", worker_id: str = "") -> int:
    answer = await store.runtime.BatchUpdateChunkStates(
        wire.BatchUpdateChunkStatesRequest(worker_id=worker_id, node_id=node, updates=entries)
    )
    assert answer.status == wire.STATUS_OK
    applied: int = answer.updates_applied
    return applied


async def query(store: Serving, artifact_id: str = "model", *chunks: int) -> list[Any]:
    answer = await store.runtime.QueryChunkLocations(
        wire.QueryChunkLocationsRequest(artifact_id=artifact_id, chunk_indices=chunks)
    )
    assert answer.status == wire.STATUS_OK
    return list(answer.locations)


async def states(store: Serving, artifact_id: str = "model", *chunks: int) -> dict[int, int]:
    """State by chunk, of an artifact that is in one place."""
    found = await query(store, artifact_id, *chunks)
    by_chunk = {each.chunk_idx: each.state for each in found}
    assert len(by_chunk) == len(found)
    return by_chunk


async def where(store: Serving, *chunks: int) -> list[tuple[int, str]]:
    return [(each.chunk_idx, each.node_id) for each in await query(store, "model", *chunks)]
