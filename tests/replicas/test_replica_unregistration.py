"""UnregisterReplica, and what becomes of the transports of a replica that is gone."""

from typing import Any

import pytest
import trio
from purerpc import StatusCode
from servers import Serving, eventually, memory_info, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

ABSENT = "00000000-0000-4000-8000-000000000000"


async def unregister(store: Serving, replica_id: str, artifact_id: str = "model") -> int:
    request = wire.UnregisterReplicaRequest(artifact_id=artifact_id, replica_id=replica_id)
    status: int = (await store.runtime.UnregisterReplica(request)).status
    return status


@pytest.mark.parametrize(
    ("artifact_id", "replica_id", "fragment"),
    [
        (" ", ABSENT, "artifact_id is required"),
        ("model", " ", "replica_id is required"),
        ("model", "no-uuid", "replica_id is not a UUID"),
        ("model", "1_" * 16, "replica_id is not a UUID"),
    ],
)
async def test_both_ids_are_required_and_the_replica_id_is_a_uuid(
    artifact_id: str, replica_id: str, fragment: str
) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, fragment):
        await unregister(store, replica_id, artifact_id)


async def test_a_session_local_id_is_refused_and_a_byte_artifact_is_a_plain_miss() -> None:
    async with serving() as store:
        async with refused(StatusCode.FAILED_PRECONDITION, "daemon-session-local"):
            await unregister(store, ABSENT, "msa1:x")
        assert await unregister(store, ABSENT, "cgid:byte_artifact~x") == wire.STATUS_NOT_FOUND


@pytest.mark.parametrize("spelled", [str.upper, lambda i: f" {{{i}}} ", lambda i: f"urn:uuid:{i}"])
async def test_a_replica_is_deleted_once_under_any_spelling_of_its_id(spelled: Any) -> None:
    async with serving() as store:
        replica = await store.replica("w")
        assert await unregister(store, spelled(replica.replica_id), " model ") == wire.STATUS_OK
        assert await store.counts("model") == [(0, 0)]
        assert await unregister(store, replica.replica_id) == wire.STATUS_NOT_FOUND


async def test_an_id_of_another_artifact_changes_nothing_at_all() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id)
        await store.replica(worker.worker_id, "other")
        await store.claim()
        assert await unregister(store, replica.replica_id, "other") == wire.STATUS_NOT_FOUND
        assert await unregister(store, replica.replica_id, "absent") == wire.STATUS_NOT_FOUND
        loads = "SELECT current_requests FROM replicas ORDER BY seq"
        assert await store.read(loads) == [(1,), (0,)]


async def test_a_transport_of_a_replica_that_is_gone_can_be_completed() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id)
        granted = await store.claim()
        await unregister(store, replica.replica_id)
        assert await store.read("SELECT outcome FROM transports") == [(0,)]
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK
        assert await store.read("SELECT outcome FROM transports") == [(1,)]


async def test_the_same_identity_registered_later_is_a_new_replica_without_load() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        old = await store.replica(worker.worker_id)
        granted = await store.claim()
        await unregister(store, old.replica_id)
        new = await store.replica(worker.worker_id)
        assert new.replica_id != old.replica_id
        assert (await store.claim()).status == wire.STATUS_OK
        await store.complete(granted.transport_id)
        rows = await store.read("SELECT seq, current_requests FROM replicas")
        assert rows == [(2, 1)]


async def test_waiters_learn_at_once_that_the_last_replica_is_gone() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        first = await store.replica(worker.worker_id)
        info = memory_info(device_id=1)
        second = await store.replica(worker.worker_id, mem_info=info)
        for _ in range(2):
            await store.claim()
        statuses = []

        async def wait() -> None:
            statuses.append((await store.claim(wait_s=3600)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(wait)
            await eventually(lambda: len(store.components.queues) == 20)
            await unregister(store, first.replica_id)
            assert len(store.components.queues) == 20
            await unregister(store, second.replica_id)
        assert statuses == [wire.STATUS_NOT_FOUND] * 20


async def test_unregistering_a_view_ends_nobody_who_waits_for_the_canonical_bytes() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        info = memory_info(byte_space={"kind": 2, "id": "v"})
        view = await store.replica(worker.worker_id, mem_info=info)
        granted = await store.claim()
        async with trio.open_nursery() as nursery:
            answers = []

            async def wait() -> None:
                answers.append(await store.claim(wait_s=3600))

            nursery.start_soon(wait)
            await eventually(lambda: len(store.components.queues) == 1)
            await unregister(store, view.replica_id)
            await store.complete(granted.transport_id)
        assert answers[0].status == wire.STATUS_OK
