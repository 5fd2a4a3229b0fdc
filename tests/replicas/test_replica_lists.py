"""ListReplicasV2 and BatchGetReplicaCounts: filters, pages, counts."""

import base64
import random
from typing import Any

import pytest
import trio
from purerpc import StatusCode
from servers import Serving, memory_info, refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

GPU = common.MEMORY_TYPE_GPU
RAM = common.MEMORY_TYPE_RAM
DISK = common.MEMORY_TYPE_DISK


async def listed(store: Serving, size: int = 0, token: str = "", **filters: Any) -> Any:
    pagination = common.Pagination(page_size=size, page_token=token)
    request = wire.ListReplicasV2Request(pagination=pagination, **filters)
    return await store.runtime.ListReplicasV2(request)


async def hold(store: Serving, count: int, artifact_id: str = "model", first: int = 0) -> list[str]:
    """Register replicas that differ in their device; return their ids."""
    ids = []
    for device in range(first, first + count):
        answer = await store.replica("w", artifact_id, mem_info=memory_info(device_id=device))
        ids.append(answer.replica_id)
    return ids


def devices(answer: Any) -> list[int]:
    return [record.memory_info.device_id for record in answer.replicas]


# Filters

HELD = {
    "a": ("model", memory_info("d1", device_id=0, memory_type=GPU)),
    "b": ("model", memory_info("d1", device_id=1, memory_type=GPU)),
    "c": ("model", memory_info("d2", device_id=0, memory_type=RAM)),
    "d": ("other", memory_info("d1", device_id=0, memory_type=DISK)),
    "e": ("other", memory_info("d1", device_id=1, memory_type=RAM, node_address="x.example")),
}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "abcde"),
        ({"artifact_id": " model "}, "abc"),
        ({"artifact_id": "mod"}, ""),
        ({"artifact_id": "MODEL"}, ""),
        ({"artifact_id": "msa1:x"}, ""),
        ({"artifact_id": "  "}, "abcde"),
        ({"node_id": "node-d1"}, "abde"),
        ({"node_id": "node-d"}, ""),
        ({"node_address": "d1.example"}, "abd"),
        ({"node_address": "x.example", "node_id": "node-d1"}, "e"),
        ({"node_address": "x.example", "node_id": "node-d2"}, ""),
        ({"memory_type": GPU}, "ab"),
        ({"memory_type": DISK}, "d"),
        ({"memory_type": common.MEMORY_TYPE_UNSPECIFIED}, "abcde"),
        ({"device_id": 0}, "acd"),
        ({"device_id": 1, "memory_type": RAM}, "e"),
        ({"artifact_id": "model", "node_id": "node-d1", "device_id": 1}, "b"),
    ],
)
async def test_all_filters_hold_together_and_exactly(
    filters: dict[str, Any], expected: str
) -> None:
    async with serving() as store:
        names = {}
        for name, (artifact_id, info) in HELD.items():
            await store.replica("w", artifact_id, mem_info=info)
            names[artifact_id, info.node_id, info.node_address, info.device_id] = name
        answer = await listed(store, **filters)
        found = [
            names[
                record.artifact_id,
                record.memory_info.node_id,
                record.memory_info.node_address,
                record.memory_info.device_id,
            ]
            for record in answer.replicas
        ]
        assert "".join(found) == expected
        assert answer.page_info.total_size == len(expected)
        assert answer.page_info.next_page_token == ""


async def test_an_unknown_memory_type_is_refused() -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, "memory_type is 9"):
        await listed(store, memory_type=9)


async def test_replicas_that_are_unavailable_or_not_readable_are_listed() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        unreadable = memory_info(device_id=1, remote_memory_keys=[], buffer_sizes=[])
        await store.replica(worker.worker_id, mem_info=unreadable)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        assert devices(await listed(store)) == [0, 1]
        assert await store.counts("model") == [(2, 0)]


# Pages


async def test_without_a_size_a_page_has_100_replicas_and_never_more_than_1000() -> None:
    async with serving() as store:
        await hold(store, 1)
        await store.components.store.write(_multiply, 1100)
        assert len((await listed(store)).replicas) == 100
        page = await listed(store, size=4_000_000_000)
        assert len(page.replicas) == 1000
        assert page.page_info.total_size == 1101
        rest = await listed(store, size=1001, token=page.page_info.next_page_token)
        assert len(rest.replicas) == 101
        assert rest.page_info.next_page_token == ""


def _multiply(tx: Any, count: int) -> None:
    """Copy the only replica to other devices, for tests of large numbers."""
    columns = [row[1] for row in tx.all("PRAGMA table_info(replicas)")]
    copied = [
        {"seq": "NULL", "replica_id": "randomblob(16)", "device_id": "n"}.get(name, name)
        for name in columns
    ]
    tx.run(
        "WITH RECURSIVE numbers(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers"
        f" WHERE n < :count) INSERT INTO replicas ({', '.join(columns)})"
        f" SELECT {', '.join(copied)} FROM numbers, replicas",
        {"count": count},
    )


async def test_a_page_that_ends_exactly_at_the_end_is_the_last() -> None:
    async with serving() as store:
        await hold(store, 4)
        first = await listed(store, size=2)
        last = await listed(store, size=2, token=first.page_info.next_page_token)
        assert (devices(first), devices(last)) == ([0, 1], [2, 3])
        assert last.page_info.next_page_token == ""


async def test_registering_again_moves_no_replica_to_another_page() -> None:
    async with serving() as store:
        await hold(store, 4)
        first = await listed(store, size=2)
        await hold(store, 1)
        rest = await listed(store, token=first.page_info.next_page_token)
        assert devices(rest) == [2, 3]


@pytest.mark.parametrize(
    "token", ["x", "!!!!", "ä", "AAAA", "a" * 200, " ", base64.b64encode(bytes(16)).decode()]
)
async def test_a_token_that_no_list_call_returned_is_refused(token: str) -> None:
    async with serving() as store:
        await hold(store, 2)
        async with refused(StatusCode.INVALID_ARGUMENT, "pagination.page_token"):
            await listed(store, size=1, token=token)


@pytest.mark.parametrize(
    "filters",
    [
        {"artifact_id": "model"},
        {"node_id": "n"},
        {"node_address": "n"},
        {"memory_type": GPU},
        {"device_id": 0},
    ],
)
async def test_a_token_is_good_for_the_filters_it_was_made_for(filters: dict[str, Any]) -> None:
    async with serving() as store:
        await hold(store, 2)
        token = (await listed(store, size=1)).page_info.next_page_token
        async with refused(StatusCode.INVALID_ARGUMENT, "pagination.page_token"):
            await listed(store, token=token, **filters)
        assert devices(await listed(store, token=token)) == [1]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_walk_sees_all_that_stays_once_while_others_come_and_go(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    async with serving() as store:
        ids = await hold(store, 60)
        alive = dict(zip(range(60), ids, strict=True))
        stays = set(rng.sample(range(60), 30))
        seen: list[int] = []
        walking = True

        async def disturb() -> None:
            added = 60
            while walking:
                mortal = [device for device in alive if device not in stays]
                if mortal and rng.random() < 0.6:
                    device = rng.choice(mortal)
                    request = wire.UnregisterReplicaRequest(
                        artifact_id="model", replica_id=alive.pop(device)
                    )
                    await store.runtime.UnregisterReplica(request)
                elif rng.random() < 0.5:
                    (alive[added],) = await hold(store, 1, first=added)
                    added += 1
                else:
                    await hold(store, 1, first=rng.choice(sorted(stays)))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(disturb)
            token = ""
            while True:
                page = await listed(store, size=rng.randint(1, 4), token=token)
                seen += devices(page)
                token = page.page_info.next_page_token
                if not token:
                    break
            walking = False
        assert len(seen) == len(set(seen))
        assert stays <= set(seen)
        earlier = [device for device in seen if device < 60]
        assert seen[: len(earlier)] == sorted(earlier)


# Counts


async def test_counts_come_in_the_order_asked_and_views_count_with_their_artifact() -> None:
    async with serving() as store:
        await hold(store, 2)
        view = memory_info(byte_space={"kind": common.BYTE_SPACE_KIND_VIEW, "id": "v"})
        await store.replica("w", mem_info=view)
        await hold(store, 1, "other")
        request = wire.BatchGetReplicaCountsRequest(
            artifact_ids=["unknown", " other ", "", "model", "other", " \t", "msa1:x"]
        )
        answer = await store.runtime.BatchGetReplicaCounts(request)
        assert answer.status == wire.STATUS_OK
        found = [(c.artifact_id, c.replica_count, c.available_count) for c in answer.counts]
        assert found == [
            ("unknown", 0, 0),
            ("other", 1, 1),
            ("model", 3, 3),
            ("msa1:x", 0, 0),
        ]


@pytest.mark.parametrize("ids", [[], ["", " "]])
async def test_counting_nothing_is_no_error(ids: list[str]) -> None:
    async with serving() as store:
        request = wire.BatchGetReplicaCountsRequest(artifact_ids=ids)
        answer = await store.runtime.BatchGetReplicaCounts(request)
        assert (answer.status, len(answer.counts)) == (wire.STATUS_OK, 0)


async def test_ten_thousand_artifacts_are_counted_at_once_and_not_one_more() -> None:
    async with serving() as store:
        await hold(store, 1, "a7")
        ids = [f"a{number}" for number in range(10_000)]
        counts = await store.counts(*ids, "a7")
        assert len(counts) == 10_000
        assert counts[7] == (1, 1)
        async with refused(StatusCode.INVALID_ARGUMENT, "artifact_ids", "10000"):
            await store.counts(*ids, "one more")


async def test_whether_a_worker_is_heard_does_not_change_what_is_available() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        await store.beat(worker.worker_id, accepting_new_requests=False)
        assert await store.counts("model") == [(1, 1)]
