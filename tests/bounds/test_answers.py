"""No answer exceeds what stock clients take, unless it was asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from key_calls import ready, swap, upsert
from purerpc import StatusCode
from servers import Serving, configuration, memory_info, refused, serving

from globalstore.api.bounds.answers import ANSWERS
from globalstore.api.bounds.fields import MESSAGES
from globalstore.api.bounds.methods import methods, request_bounds
from globalstore.api.room import PAGE_BYTES_MAX, STOCK_ANSWER_BYTES_MAX
from globalstore.config import GlobalStoreConfig
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.values import TEXT_BYTES_MAX


def grows(kind: Descriptor, seen: set[str]) -> bool:
    """Tell whether a message has a list or bytes, itself or within."""
    if kind.full_name in seen:
        return False
    seen.add(kind.full_name)
    return any(
        field.is_repeated
        or field.type == FieldDescriptor.TYPE_BYTES
        or (field.message_type is not None and grows(field.message_type, seen))
        for field in kind.fields
    )


def test_every_answer_that_can_grow_says_what_bounds_it() -> None:
    assert set(ANSWERS) == {path for path, method in methods() if grows(method.output_type, set())}


def test_lists_are_bounded_by_what_stock_clients_take() -> None:
    assert GlobalStoreConfig().server.limits.max_answer_bytes == STOCK_ANSWER_BYTES_MAX
    assert STOCK_ANSWER_BYTES_MAX == 4 * 1024 * 1024


# The ids and addresses of a replica, as long as they may be.
IDS_BYTES_MAX = 16 * (TEXT_BYTES_MAX + 8)


def test_no_claim_and_no_page_can_exceed_what_stock_clients_take() -> None:
    transfer = MESSAGES["tensorcast.common.v1.MemoryInfo"].most
    largest = 2 * transfer + IDS_BYTES_MAX
    assert largest < STOCK_ANSWER_BYTES_MAX
    assert max(PAGE_BYTES_MAX, largest) < STOCK_ANSWER_BYTES_MAX


def large_replica(*, number: int = 0) -> common.MemoryInfo:
    """Return the description of a replica that is as large as it may be."""
    info = memory_info(
        node="n" * 1000,
        memory_size=25,
        remote_memory_keys=[f"{n}" + "k" * 62_600 for n in range(25)],
        buffer_sizes=[1] * 25,
        device_id=number,
    )
    bound = MESSAGES["tensorcast.common.v1.MemoryInfo"].most
    info.verification_json = "v" * (bound - info.ByteSize() - 10)
    assert bound - 100 < info.ByteSize() <= bound
    return info


async def test_a_claim_of_the_largest_replica_fits_what_stock_clients_take() -> None:
    async with serving() as store:
        worker = await store.register()
        request = wire.RegisterReplicaRequest(
            artifact_id="a" * TEXT_BYTES_MAX,
            worker_id=worker.worker_id,
            max_concurrency=1,
            mem_info=large_replica(),
        )
        check = request_bounds(GlobalStoreConfig())[
            "/tensorcast.global_store.v1.ClusterRuntimeService/RegisterReplica"
        ].check
        assert check is not None
        check(request)
        await store.runtime.RegisterReplica(request)
        answer = await store.claim("a" * TEXT_BYTES_MAX)
        assert answer.status == wire.STATUS_OK
        assert 3_000_000 < answer.ByteSize() < STOCK_ANSWER_BYTES_MAX


async def walk(store: Serving, page_size: int) -> AsyncIterator[Any]:
    token = ""
    while True:
        answer = await store.runtime.ListReplicasV2(
            wire.ListReplicasV2Request(
                pagination=common.Pagination(page_size=page_size, page_token=token)
            )
        )
        yield answer
        token = answer.page_info.next_page_token
        if not token:
            return


async def test_pages_of_replicas_end_by_their_bytes() -> None:
    async with serving() as store:
        worker = await store.register()
        for number in range(3):
            await store.replica(worker.worker_id, mem_info=large_replica(number=number))
        for number in range(5):
            info = memory_info(
                device_id=100 + number,
                remote_memory_keys=["k" * 50_000] * 4,
                buffer_sizes=[25] * 4,
            )
            await store.replica(worker.worker_id, mem_info=info)
        pages = [page async for page in walk(store, 1000)]
        assert all(page.ByteSize() < STOCK_ANSWER_BYTES_MAX for page in pages)
        counts = [len(page.replicas) for page in pages]
        assert counts[:3] == [1, 1, 1]
        assert max(counts) == 2
        devices = [each.memory_info.device_id for page in pages for each in page.replicas]
        assert devices == [0, 1, 2, 100, 101, 102, 103, 104]
        assert {page.page_info.total_size for page in pages} == {8}


async def test_small_replicas_fill_pages_by_their_number() -> None:
    async with serving() as store:
        worker = await store.register()
        for number in range(25):
            await store.replica(worker.worker_id, mem_info=memory_info(device_id=number))
        assert [len(page.replicas) async for page in walk(store, 10)] == [10, 10, 5]


async def test_pages_of_keys_and_artifacts_end_by_their_bytes() -> None:
    async with serving() as store:
        artifacts = [f"{number:04}" + "a" * 1000 for number in range(700)]
        await ready(store, *artifacts)
        for artifact_id in artifacts:
            await upsert(store, artifact_id[:500], artifact_id, daemon_address="d" * 1000)
        keys, after = [], ""
        while True:
            page = await store.operators.ListKeys(
                admin.ListKeysRequest(page_size=1000, after=after)
            )
            assert page.ByteSize() < PAGE_BYTES_MAX + 10_000
            keys += [key.key for key in page.keys]
            after = page.next_after
            if not after:
                break
        assert keys == [artifact_id[:500] for artifact_id in artifacts]
        found, after = [], ""
        while True:
            listed = await store.operators.ListArtifacts(
                admin.ListArtifactsRequest(page_size=1000, after=after)
            )
            assert listed.ByteSize() < PAGE_BYTES_MAX + 10_000
            found += [artifact.artifact_id for artifact in listed.artifacts]
            after = listed.next_after
            if not after:
                break
        assert found == artifacts


async def test_what_is_shown_of_an_artifact_is_cut_off_by_its_bytes() -> None:
    async with serving() as store:
        await ready(store, "a")
        for number in range(600):
            await upsert(store, f"{number:04}" + "k" * 1000)
            await store.catalog.UpsertArtifactBinding(
                wire.UpsertArtifactBindingRequest(
                    binding=wire.ArtifactBinding(
                        from_artifact_id=f"{number:04}" + "f" * 1000, to_artifact_id="a"
                    )
                )
            )
        shown = await store.operators.ShowArtifact(admin.ShowArtifactRequest(artifact_id="a"))
        assert shown.is_truncated
        assert (len(shown.sealed_from), len(shown.keys)) == (600, 438)
        assert shown.ByteSize() < PAGE_BYTES_MAX + 10_000


async def test_what_is_shown_of_a_key_is_cut_off_by_its_bytes() -> None:
    async with serving() as store:
        artifacts = [f"{number}" + "a" * 1020 for number in range(2)]
        await ready(store, *artifacts)
        for number in range(1010):
            await swap(store, "k", artifacts[number % 2])
        shown = await store.operators.ShowKey(admin.ShowKeyRequest(key="k"))
        assert shown.is_truncated
        assert 900 < len(shown.generations) < 1000
        assert shown.ByteSize() < PAGE_BYTES_MAX + 10_000


async def test_an_explanation_is_cut_off_by_its_bytes() -> None:
    async with serving() as store:
        workers = [await store.register(f"d{n}", node_id=f"{n:03}" + "n" * 900) for n in range(10)]
        for number in range(600):
            info = memory_info(f"{number:03}" + "n" * 900, device_id=number)
            await store.replica(workers[number % 10].worker_id, mem_info=info)
        shown = await store.operators.ExplainSources(
            admin.ExplainSourcesRequest(artifact_id="model")
        )
        assert shown.is_truncated
        assert 300 < len(shown.sources) < 600
        assert shown.ByteSize() < PAGE_BYTES_MAX + 10_000


@asynccontextmanager
async def sparing(max_answer_bytes: int) -> AsyncIterator[Serving]:
    """Run a server whose lists have so many bytes at most."""
    config = configuration(
        server={"limits": {"max_answer_bytes": max_answer_bytes}},
        worker_policy={"group_realization": {"enabled": True}},
    )
    async with serving(config) as store:
        yield store


@asynccontextmanager
async def too_long(cure: str) -> AsyncIterator[None]:
    async with refused(StatusCode.RESOURCE_EXHAUSTED, "server.limits.max_answer_bytes", cure):
        yield


async def test_a_list_of_workers_that_clients_would_not_take_is_refused() -> None:
    async with sparing(300) as store:
        await store.register("d1")
        assert len(await store.active()) == 1
        for number in range(2, 6):
            await store.register(f"d{number}")
        async with too_long("required_capability_flags"):
            await store.active()


async def test_a_list_of_instances_that_clients_would_not_take_is_refused() -> None:
    async with sparing(1000) as store:
        await store.register("d1")
        for number in range(30):
            await store.runtime.RegisterInstance(
                wire.RegisterInstanceRequest(
                    instance_id=f"i{number}", daemon_id="d1", engine="e", labels={"a": "b" * 100}
                )
            )
        async with too_long("required_capability_flags"):
            await store.runtime.ListActiveInstances(wire.ListActiveInstancesRequest())


async def test_locations_that_clients_would_not_take_are_refused() -> None:
    async with sparing(1000) as store:
        await store.register("d1")
        await store.runtime.BatchUpdateChunkStates(
            wire.BatchUpdateChunkStatesRequest(
                node_id="node-d1",
                updates=[
                    wire.ChunkStateUpdate(artifact_id="a", chunk_idx=number, state=3)
                    for number in range(100)
                ],
            )
        )
        question = wire.QueryChunkLocationsRequest(artifact_id="a")
        async with too_long("chunk_indices"):
            await store.runtime.QueryChunkLocations(question)
        question.chunk_indices.extend(range(10))
        assert len((await store.runtime.QueryChunkLocations(question)).locations) == 10


async def test_homes_of_shards_that_clients_would_not_take_are_refused() -> None:
    async with sparing(1000) as store:
        for shard_id in range(20):
            await store.runtime.AcquireShardHomeLease(
                wire.AcquireShardHomeLeaseRequest(
                    shard_id=shard_id, holder_daemon_id="d" * 200, ttl_ms=10_000
                )
            )
        async with too_long("shard_ids"):
            await store.runtime.BatchGetShardHomeLeases(
                wire.BatchGetShardHomeLeasesRequest(shard_ids=range(20))
            )
        few = await store.runtime.BatchGetShardHomeLeases(
            wire.BatchGetShardHomeLeasesRequest(shard_ids=range(4))
        )
        assert len(few.leases) == 4


async def test_places_on_disk_that_clients_would_not_take_are_refused() -> None:
    async with sparing(1000) as store:
        assert store.info is not None
        for number in range(30):
            await store.catalog.UpsertArtifactDiskLocation(
                wire.UpsertArtifactDiskLocationRequest(
                    artifact_id="a",
                    cluster_id=store.info.cluster_id,
                    relative_path=f"p{number}",
                )
            )
        async with too_long("delete"):
            await store.catalog.ListArtifactDiskLocations(
                wire.ListArtifactDiskLocationsRequest(artifact_id="a")
            )


async def test_an_audit_is_as_long_as_was_asked_for() -> None:
    async with sparing(500) as store:
        worker = await store.register()
        await store.replica(worker.worker_id, max_concurrency=10)
        for _ in range(10):
            await store.claim()
        question = wire.QueryTransportWindowRequest()
        question.created_at_start.FromSeconds(0)
        question.created_at_end.FromSeconds(10_000_000_000)
        async with too_long("limit"):
            await store.runtime.QueryTransportWindow(question)
        question.limit = 100
        assert len((await store.runtime.QueryTransportWindow(question)).rows) == 10


async def snapshot(store: Serving, worker: Any, count: int, key_bytes: int, **fields: Any) -> Any:
    """Reconcile a worker with an inventory of so many replicas."""
    info = memory_info(remote_memory_keys=["k" * key_bytes])
    return await store.runtime.ReconcileWorkerState(
        wire.ReconcileWorkerStateRequest(
            **{
                "worker_id": worker.worker_id,
                "generation": worker.reconcile_generation,
                "request_seq": 1,
                "request_kind": wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
                "inventory": [
                    common.ReplicaInfo(
                        ref=common.ReplicaRef(artifact_id=f"model-{number:04}"), memory_info=info
                    )
                    for number in range(count)
                ],
            }
            | fields
        )
    )


@pytest.mark.parametrize("count", [150, 1200])
async def test_changes_are_listed_as_far_as_a_message_goes(count: int) -> None:
    """Past three quarters of it without memory keys, past all of it not at all."""
    config = configuration(server={"limits": {"max_message_bytes": 40_000}})
    async with serving(config) as store:
        worker = await store.register()
        answer = await snapshot(store, worker, count, key_bytes=1000)
        assert 30_000 < answer.ByteSize() < 50_000
        listed = [len(c.replica_info.memory_info.remote_memory_keys) for c in answer.state_changes]
        assert listed == sorted(listed, reverse=True)
        assert 10 < sum(listed) < 20
        assert len(listed) < count
        assert await store.counts("model-0000", f"model-{count - 1:04}") == [(1, 1)] * 2


async def test_a_rebase_that_no_message_holds_is_refused_whole() -> None:
    config = configuration(server={"limits": {"max_message_bytes": 40_000}})
    async with serving(config) as store:
        worker = await store.register()
        await snapshot(store, worker, 50, key_bytes=10)
        rebase = await snapshot(store, worker, 0, 0, generation=99, request_seq=2)
        assert len(rebase.expected_replicas) == 50
        await snapshot(store, worker, 500, key_bytes=10, request_seq=2)
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "server.limits.max_message_bytes"):
            await snapshot(store, worker, 0, 0, generation=99, request_seq=3)
        assert await store.counts("model-0499") == [(1, 1)]
