"""QueryTransportWindow: every grant once, in the order of time."""

import math
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from purerpc import StatusCode
from servers import Serving, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

T = 1_700_000_000_000_000


def stamp(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)


async def window(
    store: Serving, start_us: float = 0, end_us: float = 2 * T, limit: int = 0
) -> list[Any]:
    answer = await store.runtime.QueryTransportWindow(
        wire.QueryTransportWindowRequest(
            created_at_start=stamp(math.floor(start_us * 1000)),
            created_at_end=stamp(math.floor(end_us * 1000)),
            limit=limit,
        )
    )
    assert answer.status == wire.STATUS_OK
    return list(answer.rows)


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({}, "created_at_start"),
        ({"created_at_start": stamp(1)}, "created_at_end"),
        ({"created_at_end": stamp(1)}, "created_at_start"),
        ({"created_at_start": stamp(2), "created_at_end": stamp(1)}, "created_at_end"),
        ({"created_at_start": Timestamp(nanos=-1), "created_at_end": stamp(1)}, "created_at_start"),
        ({"created_at_start": stamp(1), "created_at_end": Timestamp(seconds=1 << 62)}, "_end"),
    ],
)
async def test_both_ends_are_required_and_in_their_order(
    fields: dict[str, Any], fragment: str
) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, fragment):
        await store.runtime.QueryTransportWindow(wire.QueryTransportWindowRequest(**fields))


async def test_a_window_shows_all_that_is_known_of_each_grant() -> None:
    now_us = T
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register()
        replica = await store.replica(worker.worker_id, max_concurrency=9)
        assert await window(store) == []
        plain = await store.claim(request_id="r1")
        now_us += 7
        group = wire.TransportSchedulingGroup(
            group_id="g", group_kind="k", part_id="p", total_parts=3, priority=1, epoch=2
        )
        grouped = await store.claim(
            request_id="r2", requester_worker_id="w", scheduling_group=group
        )
        now_us += 5
        await store.complete(grouped.transport_id, 1)
        first, second = await window(store)
        assert first == wire.TransportWindowRow(
            transport_id=plain.transport_id,
            replica_id=replica.replica_id,
            artifact_id="model",
            status="in_progress",
            request_id="r1",
            created_at=stamp(T * 1000),
            replica_memory_size_bytes=100,
        )
        assert second == wire.TransportWindowRow(
            transport_id=grouped.transport_id,
            replica_id=replica.replica_id,
            artifact_id="model",
            status="completed",
            completion_outcome="success",
            request_id="r2",
            requester_worker_id="w",
            group_id="g",
            group_kind="k",
            group_part_id="p",
            group_total_parts=3,
            created_at=stamp((T + 7) * 1000),
            completed_at=stamp((T + 12) * 1000),
            replica_memory_size_bytes=100,
        )


@pytest.mark.parametrize(
    ("outcome", "word"), [(1, "success"), (2, "failed"), (3, "expired"), (4, "cancelled")]
)
async def test_an_end_is_told_in_its_word(outcome: int, word: str) -> None:
    async with serving() as store:
        worker = await store.register()
        await store.replica(worker.worker_id)
        granted = await store.claim()
        await store.complete(granted.transport_id, outcome)
        (row,) = await window(store, 0, 9e15)
        assert (row.status, row.completion_outcome) == ("completed", word)


async def test_a_recycled_request_id_is_told_of_its_last_attempt_alone() -> None:
    async with serving() as store:
        worker = await store.register()
        await store.replica(worker.worker_id)
        granted = await store.claim(request_id="r")
        await store.complete(granted.transport_id, 2)
        again = await store.claim(request_id="r")
        rows = {row.transport_id: row.request_id for row in await window(store, 0, 9e15)}
        assert rows == {granted.transport_id: "", again.transport_id: "r"}


async def test_both_bounds_belong_to_the_window_to_the_microsecond() -> None:
    now_us = T
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register()
        await store.replica(worker.worker_id, max_concurrency=9)
        for _ in range(3):
            await store.claim()
            now_us += 1

        async def times(start_us: float, end_us: float) -> list[int]:
            return [row.created_at.nanos // 1000 for row in await window(store, start_us, end_us)]

        assert await times(T, T + 2) == [0, 1, 2]
        assert await times(T + 1, T + 1) == [1]
        assert await times(T + 0.25, T + 1.75) == [1]
        assert await times(T + 2.5, T + 9) == []


async def test_rows_outlive_the_replica_and_waiting_requests_have_none() -> None:
    async with serving() as store:
        worker = await store.register()
        replica = await store.replica(worker.worker_id)
        await store.claim()
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT
        await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica.replica_id)
        )
        (row,) = await window(store, 0, 9e15)
        assert row.replica_id == replica.replica_id


async def test_a_walk_with_limits_finds_each_grant_though_many_began_at_one_time() -> None:
    now_us = T
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register()
        await store.replica(worker.worker_id, max_concurrency=99)
        for number in range(40):
            now_us = T + number // 4
            await store.claim()
        everything = await window(store)
        keys = [(row.created_at.nanos, row.transport_id) for row in everything]
        assert len(keys) == 40
        assert keys == sorted(keys)
        start, seen = 0, {}
        while True:
            page = await window(store, start, 2 * T, limit=7)
            fresh = [row for row in page if row.transport_id not in seen]
            seen |= {row.transport_id: row for row in fresh}
            if not fresh:
                break
            start = T + page[-1].created_at.nanos // 1000
        assert set(seen) == {row.transport_id for row in everything}


async def test_a_large_window_comes_whole() -> None:
    async with serving() as store:
        worker = await store.register()
        await store.replica(worker.worker_id)
        await store.claim()
        await store.components.store.write(
            lambda tx: tx.run(
                "INSERT INTO transports (transport_id, replica_id, artifact_key, view_id,"
                " source_worker_key, requester_node_id, requester_address, requester_port,"
                " requester_worker_id, fingerprint, replica_memory_size, outcome, created_at,"
                " completed_at) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
                " WHERE i < 5000) SELECT CAST(printf('%016d', i) AS BLOB), replica_id,"
                " artifact_key, view_id, source_worker_key, '', '', 0, '', x'', 1, 2, i, i"
                " FROM n, transports"
            )
        )
        assert len(await window(store, 0, 9e15)) == 5001
        assert len(await window(store, 0, 9e15, limit=4001)) == 4001
        assert len(await window(store, 0, 9e15, limit=2**32 - 1)) == 5001
