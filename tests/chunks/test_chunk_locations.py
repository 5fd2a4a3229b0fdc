"""QueryChunkLocations: who is told as having a chunk, and in which order."""

import pytest
import trio
import trio.testing
from chunk_calls import COLD, COPIED_GPU, HOT, LOCKED_TX, entry, query, report, states, where
from purerpc import StatusCode
from servers import Serving, eventually, pass_time, refused, serving

from globalstore.api.runtime import chunks as handlers
from globalstore.caches import worker_capacity
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


async def test_a_location_tells_whom_to_ask_and_for_what() -> None:
    async with serving() as store:
        await store.register("d1", p2p_port=4444)
        await report(store, entry(9, COPIED_GPU, device_uuid="GPU-7", replica=3))
        (found,) = await query(store, " model ")
        assert found == wire.ChunkLocation(
            chunk_idx=9,
            node_id="node-d1",
            node_address="d1.example",
            p2p_port=4444,
            state=wire.CHUNK_STATE_COPIED_GPU,
            node_load_ratio=0.0,
            device_uuid="GPU-7",
            replica=3,
        )


async def test_an_unknown_artifact_has_no_locations_and_a_blank_one_is_refused() -> None:
    async with serving() as store:
        assert await query(store, "unknown") == []
        async with refused(StatusCode.INVALID_ARGUMENT, "artifact_id"):
            await query(store, " ")
        async with refused(StatusCode.INVALID_ARGUMENT, "chunk_indices has 250001 entries"):
            await query(store, "model", *range(250_001))


async def test_only_chunks_that_were_asked_for_are_told() -> None:
    async with serving() as store:
        await store.register("d1")
        await report(store, *(entry(n) for n in (0, 1, 255, 256, 1000)))
        assert list(await states(store)) == [0, 1, 255, 256, 1000]
        assert list(await states(store, "model", 256, 1, 1, 77, 2**32 - 1)) == [1, 256]
        assert list(await states(store, "model", 77)) == []


async def test_artifacts_do_not_mix() -> None:
    async with serving() as store:
        await store.register("d1")
        await report(store, entry(1, HOT, "a"), entry(2, COLD, "ab"), entry(3, COLD, "A"))
        assert await states(store, "a") == {1: HOT}
        assert await states(store, "ab") == {2: COLD}


async def test_too_many_locations_are_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers, "LOCATIONS_MAX", 100)
    async with serving() as store:
        await store.register("d1")
        await report(store, *(entry(n) for n in range(101)))
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "chunk_indices"):
            await query(store)
        assert len(await query(store, "model", *range(100))) == 100


async def test_the_best_source_of_each_chunk_comes_first() -> None:
    async with serving() as store:
        for name in ("d1", "d2", "d3", "d4"):
            await store.register(name)
        for name, first, second in (
            ("d1", COLD, HOT),
            ("d2", COPIED_GPU, HOT),
            ("d3", LOCKED_TX, COLD),
            ("d4", HOT, LOCKED_TX),
        ):
            await report(store, entry(1, first), entry(2, second), node=f"node-{name}")
        assert await where(store) == [
            *((1, f"node-d{n}") for n in (4, 3, 2, 1)),
            *((2, f"node-d{n}") for n in (1, 2, 4, 3)),
        ]


async def test_ties_are_broken_by_node_device_and_replica() -> None:
    async with serving() as store:
        for name in ("d2", "d1"):
            await store.register(name)
            await report(
                store,
                entry(1, replica=2, device_uuid="b"),
                entry(1, replica=10, device_uuid="a"),
                entry(1, replica=2, device_uuid="a"),
                node=f"node-{name}",
            )
        found = [(each.node_id[-1], each.device_uuid, each.replica) for each in await query(store)]
        assert found == [
            ("1", "a", 2),
            ("1", "a", 10),
            ("1", "b", 2),
            ("2", "a", 2),
            ("2", "a", 10),
            ("2", "b", 2),
        ]


async def loaded(store: Serving, name: str, slots: int, used: int) -> str:
    """Register a worker that serves some transports; return its id."""
    worker = await store.register(name)
    artifact = f"of-{name}"
    await store.replica(worker.worker_id, artifact, node=name, max_concurrency=slots)
    for _ in range(used):
        assert (await store.claim(artifact)).status == wire.STATUS_OK
    worker_id: str = worker.worker_id
    return worker_id


async def test_the_load_of_a_node_is_what_its_live_workers_serve_now() -> None:
    async with serving() as store:
        await loaded(store, "d1", slots=4, used=3)
        await loaded(store, "d2", slots=4, used=1)
        await store.register("d3")
        for name in ("d1", "d2", "d3"):
            await report(store, entry(1), node=f"node-{name}")
        assert [(each.node_id, each.node_load_ratio) for each in await query(store)] == [
            ("node-d3", 0.0),
            ("node-d2", 0.25),
            ("node-d1", 0.75),
        ]
        # What is served and what may be served change, and the load with them.
        for _ in range(3):
            await store.claim("of-d2")
        second = await store.register("d4", node_id="node-d1")
        await store.replica(second.worker_id, "more", node="d4", max_concurrency=12)
        ratios = {each.node_id: each.node_load_ratio for each in await query(store)}
        assert ratios == {"node-d1": 3 / 16, "node-d2": 1.0, "node-d3": 0.0}


async def test_slots_of_very_many_replicas_are_added_up_once_a_second(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_capacity, "REPLICAS_MANY", 2)
    async with serving() as store:
        worker_id = await loaded(store, "d1", slots=4, used=3)
        await report(store, entry(1))

        async def load() -> float:
            (found,) = await query(store)
            ratio: float = found.node_load_ratio
            return ratio

        assert await load() == 3 / 4
        await store.replica(worker_id, "second", max_concurrency=2)
        assert await load() == 3 / 6
        await store.replica(worker_id, "third", max_concurrency=6)
        assert await load() == 3 / 6
        # What is in use is never out of date.
        await store.claim("of-d1")
        assert await load() == pytest.approx(4 / 6)
        mock_clock.jump(1.1)
        assert await load() == pytest.approx(4 / 12)


async def test_a_load_above_the_limit_is_told_as_full() -> None:
    async with serving() as store:
        worker_id = await loaded(store, "d1", slots=4, used=3)
        await store.replica(worker_id, "of-d1", max_concurrency=2)
        await report(store, entry(1))
        assert [each.node_load_ratio for each in await query(store)] == [1.0]


async def test_state_goes_before_load_and_accepting_before_both() -> None:
    async with serving() as store:
        await loaded(store, "d1", slots=4, used=4)
        await store.register("d2")
        idle = await store.register("d3")
        await report(store, entry(1, HOT), node="node-d1")
        await report(store, entry(1, COLD), node="node-d2")
        await report(store, entry(1, HOT), entry(2, HOT), node="node-d3")
        assert await where(store, 1) == [(1, "node-d3"), (1, "node-d1"), (1, "node-d2")]
        await store.beat(idle.worker_id, accepting_new_requests=False)
        assert await where(store, 1) == [(1, "node-d1"), (1, "node-d2"), (1, "node-d3")]
        # It is listed all the same, where it is the only one.
        assert await where(store, 2) == [(2, "node-d3")]


async def test_a_node_that_is_not_heard_disappears_and_comes_back(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        first = await store.register("d1")
        second = await store.register("d2")
        for node in ("node-d1", "node-d2", "node-d3"):
            await report(store, entry(1), node=node)
        await pass_time(mock_clock, 25)
        await store.beat(second.worker_id)
        await pass_time(mock_clock, 5.5)
        # Stale, and not even expired yet.
        assert store.components.workers.find(first.worker_id) is not None
        assert await where(store) == [(1, "node-d2")]
        await pass_time(mock_clock, 10)
        await eventually(lambda: store.components.workers.find(first.worker_id) is None)
        assert await where(store) == [(1, "node-d2")]
        await store.register("d1")
        assert await where(store) == [(1, "node-d1"), (1, "node-d2")]


async def test_of_several_workers_the_one_that_reported_gives_the_address(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        ids = {}
        for name in ("d1", "d2", "d3"):
            worker = await store.register(name, node_id="host")
            ids[name] = worker.worker_id
            mock_clock.jump(0.1)
        await report(store, entry(1), node="host", worker_id=ids["d1"])
        await report(store, entry(2), node="host", worker_id=ids["d2"])
        await report(store, entry(3), node="host", worker_id="unknown")

        async def addresses() -> list[str]:
            found = await query(store)
            assert [each.chunk_idx for each in found] == [1, 2, 3]
            return [each.node_address.partition(".")[0] for each in found]

        assert await addresses() == ["d1", "d2", "d3"]
        # A chunk is the later reporter's, and told once.
        await report(store, entry(1, COLD), node="host", worker_id=ids["d2"])
        assert await addresses() == ["d2", "d2", "d3"]
        assert (await states(store))[1] == COLD
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=ids["d2"], is_graceful_shutdown=True)
        )
        assert await addresses() == ["d3", "d3", "d3"]


async def test_a_dead_workers_chunks_are_told_through_another_worker_of_its_node() -> None:
    async with serving() as store:
        old = await store.register("d1", node_id="host")
        await report(store, entry(1), node="host", worker_id=old.worker_id)
        await store.register("d2", node_id="host")
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=old.worker_id, is_graceful_shutdown=False)
        )
        assert [each.node_address for each in await query(store)] == ["d2.example"]
