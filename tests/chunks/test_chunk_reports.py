"""BatchUpdateChunkStates: what it takes, what it refuses, and that it is all or nothing."""

import pytest
import trio
import trio.testing
from chunk_calls import COLD, COPIED_GPU, EVICTED, HOT, LOCKED_TX, entry, query, report, states
from purerpc import StatusCode
from servers import refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


async def test_what_was_reported_last_is_told() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        by = {"worker_id": worker.worker_id}
        assert await report(store, entry(1, HOT), entry(2, COLD), entry(300, LOCKED_TX), **by) == 3
        assert await states(store) == {1: HOT, 2: COLD, 300: LOCKED_TX}
        assert await report(store, entry(2, COPIED_GPU), **by) == 1
        assert await states(store) == {1: HOT, 2: COPIED_GPU, 300: LOCKED_TX}


async def test_of_the_same_key_twice_the_later_entry_counts_and_both_are_counted() -> None:
    async with serving() as store:
        await store.register("d1")
        assert await report(store, entry(1, HOT), entry(1, EVICTED), entry(1, COLD)) == 3
        assert await states(store) == {1: COLD}
        assert await report(store, entry(1, HOT), entry(1, EVICTED)) == 2
        assert await states(store) == {}


async def test_an_evicted_chunk_leaves_no_trace_and_may_never_have_been_there() -> None:
    async with serving() as store:
        await store.register("d1")
        await report(store, entry(1), entry(255), entry(256))
        assert await report(store, *(entry(n, EVICTED) for n in (1, 255, 256, 999))) == 4
        assert await states(store) == {}
        assert await store.read("SELECT count(*) FROM chunk_blocks") == [(0,)]


async def test_device_and_replica_are_part_of_the_key() -> None:
    async with serving() as store:
        await store.register("d1")
        copies = [("", 0), ("", 1), ("GPU-1", 0), ("GPU-1", 2**32 - 1)]
        await report(store, *(entry(5, COLD, device_uuid=d, replica=r) for d, r in copies))
        await report(store, entry(5, HOT, device_uuid=" GPU-1 "))
        found = [(each.device_uuid, each.replica, each.state) for each in await query(store)]
        assert sorted(found) == [
            ("", 0, COLD),
            ("", 1, COLD),
            ("GPU-1", 0, HOT),
            ("GPU-1", 2**32 - 1, COLD),
        ]


@pytest.mark.parametrize("chunk", [0, 255, 256, 2**31, 2**32 - 1])
async def test_every_number_is_a_chunk(chunk: int) -> None:
    async with serving() as store:
        await store.register("d1")
        await report(store, entry(chunk, COLD))
        assert await states(store) == {chunk: COLD}
        assert await states(store, "model", chunk) == {chunk: COLD}


@pytest.mark.parametrize("node", ["", "node-d1", "nowhere"])
async def test_a_report_of_nothing_is_welcome_from_anybody(node: str) -> None:
    async with serving() as store:
        assert await report(store, node=node, worker_id="nobody") == 0
        assert await store.read("SELECT count(*) FROM chunk_nodes") == [(0,)]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (entry(artifact_id=" "), "updates[1].artifact_id"),
        (entry(artifact_id="a\nb"), "updates[1].artifact_id"),
        (entry(state=0), "updates[1].state"),
        (entry(state=6), "updates[1].state"),
        (entry(state=-1), "updates[1].state"),
        (entry(device_uuid="\0"), "updates[1].device_uuid"),
    ],
)
async def test_one_wrong_entry_refuses_the_whole_report(bad: object, says: str) -> None:
    async with serving() as store:
        await store.register("d1")
        async with refused(StatusCode.INVALID_ARGUMENT, says):
            await report(store, entry(1), bad, entry(3))
        assert await query(store) == []
        for table in ("chunk_blocks", "chunk_nodes"):
            assert await store.read(f"SELECT count(*) FROM {table}") == [(0,)]


async def test_a_blank_node_and_too_many_entries_are_refused() -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, "node_id"):
            await report(store, entry(1), node="  ")
        async with refused(StatusCode.INVALID_ARGUMENT, "updates has 100001 entries"):
            await report(store, *[entry(1)] * 100_001)
        assert await store.read("SELECT count(*) FROM chunk_blocks") == [(0,)]


@pytest.mark.parametrize("blocks", [1, 600])
async def test_a_worker_cannot_speak_for_another_node(blocks: int) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.register("d2")
        entries = [entry(n * 256) for n in range(blocks)]
        async with refused(StatusCode.INVALID_ARGUMENT, "node_id", "node-d1"):
            await report(store, *entries, node="node-d2", worker_id=worker.worker_id)
        assert await query(store) == []
        # Also one that is not active any more.
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        async with refused(StatusCode.INVALID_ARGUMENT, "node_id"):
            await report(store, *entries, node="node-d2", worker_id=worker.worker_id)
        assert await report(store, entry(1), node="node-d2", worker_id="unknown") == 1


async def test_a_report_may_come_before_the_registration() -> None:
    async with serving() as store:
        await report(store, entry(1), worker_id="worker_to_be")
        assert await query(store) == []
        await store.register("d1")
        assert await states(store) == {1: HOT}


async def test_a_scattered_report_of_thousands_is_told_as_a_whole_or_not_at_all() -> None:
    """It is written in many transactions; whoever looks in between sees all of it."""
    count = 3000
    async with serving() as store:
        await store.register("d1")
        before = [entry(0, COLD, f"a{n}") for n in range(count)]
        after = [entry(0, HOT, f"a{n}") for n in range(count)]
        await report(store, *before)
        seen: list[tuple[int, int]] = []
        done = trio.Event()

        async def look() -> None:
            while not done.is_set():
                first = await states(store, "a1")
                last = await states(store, f"a{count - 1}")
                seen.append((first[0], last[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            assert await report(store, *after) == count
            # It is answered when it is seen.
            assert await states(store, f"a{count - 1}") == {0: HOT}
            done.set()
        # Of two looks the second may come after the change, the first never before it alone.
        assert (HOT, COLD) not in seen
        assert await store.read("SELECT count(*) FROM chunk_batches") == [(0,)]
        assert await store.read("SELECT count(*) FROM chunk_parts") == [(0,)]


async def test_the_last_writer_wins_also_against_a_scattered_report() -> None:
    async with serving() as store:
        await store.register("d1")
        scattered = [entry(0, COLD, f"a{n:04}") for n in range(1500)]
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(report, store, *scattered)
            nursery.start_soon(report, store, entry(0, HOT, "a0000"), entry(0, HOT, "a1499"))
        first, last = await states(store, "a0000"), await states(store, "a1499")
        assert first == last
        assert first[0] in {HOT, COLD}
        assert await store.read("SELECT count(*) FROM chunk_batches") == [(0,)]
