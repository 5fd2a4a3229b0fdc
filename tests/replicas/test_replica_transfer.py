"""Transfer metadata: two forms come in, one is kept, both go out."""

from typing import Any

import pytest
from servers import KEY, Serving, memory_info, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

Metadata = common.ReplicaTransportMetadata
UNSPECIFIED = Metadata.EXPORT_STATE_UNSPECIFIED
PRESENCE_ONLY = Metadata.EXPORT_STATE_PRESENCE_ONLY
EXPORTABLE = Metadata.EXPORT_STATE_EXPORTABLE
DRAINING = Metadata.EXPORT_STATE_DRAINING

DIRECT = {"remote_memory_keys": [KEY], "buffer_sizes": [100], "verification_json": "{}"}
NOTHING: dict[str, Any] = {"remote_memory_keys": [], "buffer_sizes": []}


def metadata(state: int, generation: int = 0, **fields: Any) -> Any:
    fields = {"remote_memory_keys": ["k1", "k2"], "buffer_sizes": [60, 40]} | fields
    fields.setdefault("verification_json", '{"v":1}')
    return Metadata(export_state=state, export_generation=generation, **fields)


def reported(transport: Any = None, **direct: Any) -> Any:
    info = memory_info(**(NOTHING | direct))
    if transport is not None:
        info.transport.CopyFrom(transport)
    return info


async def shown(store: Serving) -> Any:
    """Return the metadata of the only replica after checking that both forms of it agree."""
    (info,) = await store.replicas()
    assert info.HasField("transport")
    assert list(info.remote_memory_keys) == list(info.transport.remote_memory_keys)
    assert list(info.buffer_sizes) == list(info.transport.buffer_sizes)
    assert info.verification_json == info.transport.verification_json
    return info.transport


async def is_source(store: Serving) -> bool:
    answer = await store.claim()
    if answer.status == wire.STATUS_OK:
        assert list(answer.remote_memory_info.remote_memory_keys) == list(
            answer.remote_memory_info.transport.remote_memory_keys
        )
        await store.complete(answer.transport_id)
        return True
    assert answer.status == wire.STATUS_NOT_FOUND
    return False


def cleared(state: int, generation: int = 0) -> Any:
    return metadata(state, generation, remote_memory_keys=[], buffer_sizes=[], verification_json="")


INVALID = [
    {"remote_memory_keys": [], "buffer_sizes": []},
    {"remote_memory_keys": ["k1"]},
    {"buffer_sizes": [100]},
    {"buffer_sizes": [100, 0]},
    {"buffer_sizes": [60, 41]},
    {"buffer_sizes": [2**64 - 1, 101]},
]


@pytest.mark.parametrize(
    ("given", "kept", "source"),
    [
        (metadata(EXPORTABLE, 7), metadata(EXPORTABLE, 7), True),
        (metadata(DRAINING, 7), metadata(DRAINING, 7), False),
        (metadata(PRESENCE_ONLY, 7), cleared(PRESENCE_ONLY, 7), False),
        (metadata(UNSPECIFIED, 7), cleared(PRESENCE_ONLY, 7), False),
        (metadata(42, 7), cleared(PRESENCE_ONLY, 7), False),
        (Metadata(), cleared(PRESENCE_ONLY), False),
        *((metadata(EXPORTABLE, 7, **bad), cleared(PRESENCE_ONLY, 7), False) for bad in INVALID),
        *((metadata(DRAINING, 7, **bad), cleared(DRAINING, 7), False) for bad in INVALID),
    ],
)
async def test_the_submessage_is_normalised_and_wins_over_the_direct_fields(
    given: Any, kept: Any, source: bool
) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(given, **DIRECT))
        assert await shown(store) == kept
        assert await is_source(store) == source


async def test_consistent_direct_fields_are_exportable_at_generation_zero() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(metadata(EXPORTABLE, 7)))
        await store.replica(worker.worker_id, mem_info=reported(**DIRECT))
        assert await shown(store) == metadata(EXPORTABLE, 0, **DIRECT)
        assert await is_source(store)


async def test_a_new_replica_that_says_nothing_is_presence_only_and_listed() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(verification_json="{}"))
        assert await shown(store) == cleared(PRESENCE_ONLY)
        assert not await is_source(store)
        assert await store.counts("model") == [(1, 1)]


@pytest.mark.parametrize("state", [EXPORTABLE, DRAINING])
async def test_saying_nothing_again_keeps_what_is_known(state: int) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(metadata(state, 7)))
        await store.replica(worker.worker_id, mem_info=reported())
        assert await shown(store) == metadata(state, 7)


async def test_an_empty_submessage_clears_what_is_known() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(**DIRECT))
        await store.replica(worker.worker_id, mem_info=reported(Metadata(), **DIRECT))
        assert await shown(store) == cleared(PRESENCE_ONLY)
        assert not await is_source(store)


async def test_keys_that_no_longer_fit_the_size_of_the_replica_make_no_source() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(**DIRECT))
        await store.replica(worker.worker_id, mem_info=reported(memory_size=101))
        assert not await is_source(store)
        await store.replica(worker.worker_id, mem_info=reported())
        assert await is_source(store)


# Generations


@pytest.mark.parametrize("generation", [0, 6, 7, 8])
async def test_the_latest_keys_count_whatever_their_export_generation(generation: int) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(metadata(EXPORTABLE, 7)))
        anew = metadata(EXPORTABLE, generation, remote_memory_keys=["new1", "new2"])
        await store.replica(worker.worker_id, mem_info=reported(anew), max_concurrency=5)
        assert await shown(store) == anew
        assert await store.read("SELECT max_concurrency FROM replicas") == [(5,)]


@pytest.mark.parametrize("recovery", [False, True])
async def test_a_new_generation_of_the_worker_starts_the_export_generations_anew(
    recovery: bool,
) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(metadata(EXPORTABLE, 7)))
        await store.register("d1", is_recovery_registration=recovery)
        early = metadata(EXPORTABLE, 1, remote_memory_keys=["new1", "new2"])
        await store.replica(worker.worker_id, mem_info=reported(early))
        assert await shown(store) == early


async def test_after_a_new_process_a_replica_that_says_nothing_has_lost_its_keys() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(**DIRECT))
        await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported())
        assert await shown(store) == cleared(PRESENCE_ONLY)
        assert not await is_source(store)


async def test_after_a_recovery_a_replica_that_says_nothing_keeps_its_keys() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, mem_info=reported(**DIRECT))
        await store.register("d1", is_recovery_registration=True)
        await store.replica(worker.worker_id, mem_info=reported())
        assert await is_source(store)


async def test_keys_that_another_worker_registered_are_not_taken_over() -> None:
    async with serving() as store:
        first = await store.register("d1")
        second = await store.register("d2")
        await store.replica(first.worker_id, mem_info=reported(**DIRECT))
        await store.replica(second.worker_id, mem_info=reported())
        assert await shown(store) == cleared(PRESENCE_ONLY)
