"""When chunks are forgotten, and when they are not; and what dashboards are told of them."""

from pathlib import Path

import pytest
import trio
import trio.testing
from chunk_calls import COLD, HOT, entry, query, report, states, where
from servers import Serving, configuration, eventually, pass_time, serving
from simulated_host import CallFailed, Host

from globalstore.db import Full, Store, Transaction
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import chunks
from globalstore.registry.runtime.chunks import ChunkReport
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.chunk_states import ChunkState, Patches
from globalstore.rules.refusals import Unavailable
from globalstore.waiting.chunk_reports import ChunkReports


async def goodbye(store: Serving, worker_id: str, graceful: bool = True) -> None:
    await store.runtime.UnregisterWorker(
        wire.UnregisterWorkerRequest(worker_id=worker_id, is_graceful_shutdown=graceful)
    )


async def rows(store: Serving) -> int:
    ((count,),) = await store.read("SELECT count(*) FROM chunk_blocks")
    return int(count)


async def test_the_goodbye_of_the_last_worker_takes_its_nodes_chunks_along() -> None:
    async with serving() as store:
        first = await store.register("d1", node_id="host")
        second = await store.register("d2", node_id="host")
        await store.register("d3")
        await report(store, entry(1), node="host")
        await report(store, entry(1), node="node-d3")
        await goodbye(store, first.worker_id)
        assert len(await query(store)) == 2
        await goodbye(store, second.worker_id)
        await store.register("d1", node_id="host")
        assert await where(store) == [(1, "node-d3")]
        # What the node reports from now on is not mixed with what is still to be deleted.
        await report(store, entry(2), node="host")
        assert await where(store) == [(1, "node-d3"), (2, "host")]
        await store.components.maintenance.run_pass()
        assert await rows(store) == 2
        assert await store.read("SELECT count(*) FROM chunk_nodes") == [(2,)]


async def test_any_other_end_of_a_worker_leaves_its_chunks() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await report(store, entry(1))
        await goodbye(store, worker.worker_id, graceful=False)
        assert await query(store) == []
        await store.components.maintenance.run_pass()
        await store.register("d1")
        assert await states(store) == {1: HOT}


async def test_unregistering_a_replica_leaves_chunks_alone() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        await report(store, entry(1))
        ((replica_id,),) = await store.read("SELECT hex(replica_id) FROM replicas")
        request = wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica_id)
        assert (await store.runtime.UnregisterReplica(request)).status == wire.STATUS_OK
        assert await states(store) == {1: HOT}


async def test_chunks_of_a_node_without_a_worker_are_deleted_after_the_threshold(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"chunk_stale_threshold": "100s"})
    async with serving(config) as store:
        worker = await store.register("d1")
        for node in ("node-d1", "nowhere"):
            await report(store, entry(1), node=node)
        look = store.components.maintenance.run_pass
        await look()
        # While somebody is heard there, chunks are kept however old they are.
        for _ in range(10):
            await pass_time(mock_clock, 20)
            await store.beat(worker.worker_id)
        await look()
        assert await rows(store) == 1
        await pass_time(mock_clock, 40)
        await eventually(lambda: store.components.workers.find(worker.worker_id) is None)
        await look()
        await pass_time(mock_clock, 99)
        await look()
        assert await rows(store) == 1
        await pass_time(mock_clock, 2)
        await look()
        assert await rows(store) == 0
        assert await store.read("SELECT count(*) FROM chunk_nodes") == [(0,)]


async def test_a_node_that_still_reports_or_comes_back_keeps_its_chunks(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"chunk_stale_threshold": "100s"})
    async with serving(config) as store:
        await report(store, entry(1))
        await report(store, entry(1), node="node-d2")
        look = store.components.maintenance.run_pass
        await look()
        await pass_time(mock_clock, 60)
        await report(store, entry(2))
        await look()
        await pass_time(mock_clock, 30)
        back = await store.register("d2")
        await pass_time(mock_clock, 25)
        await store.beat(back.worker_id)
        await look()
        await store.register("d1")
        assert await where(store) == [(1, "node-d1"), (1, "node-d2"), (2, "node-d1")]


async def test_neither_the_wall_clock_nor_a_restart_ages_chunks(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path, nursery, worker_policy={"chunk_stale_threshold": "100s"})
    await host.start()
    await host.call(wire.BatchUpdateChunkStatesRequest(node_id="n1", updates=[entry(1)]))
    await host.running.components.maintenance.run_pass()
    host.wall_step_us = 10**12
    await trio.sleep(90)
    await host.running.components.maintenance.run_pass()
    await host.stop()
    await trio.sleep(50)
    await host.start()
    await host.running.components.maintenance.run_pass()
    await trio.sleep(90)
    await host.running.components.maintenance.run_pass()
    assert await host.rows("SELECT count(*) FROM chunk_blocks") == [(1,)]
    await trio.sleep(11)
    await host.running.components.maintenance.run_pass()
    assert await host.rows("SELECT count(*) FROM chunk_blocks") == [(0,)]


async def test_many_chunks_are_deleted_in_bounded_slices(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await report(store, *(entry(n * 256) for n in range(2500)))
        assert await rows(store) == 2500
        operations = store.components.store.statistics().operations
        await goodbye(store, worker.worker_id)
        deleted = await store.components.store.bulk(chunks.purge_chunks, 0, 1000)
        assert deleted == 1000
        # The last operation is counted a moment after it was answered.
        assert store.components.store.statistics().operations - operations in {1, 2}
        await store.components.maintenance.run_pass()
        assert await rows(store) == 0


async def test_dashboards_are_told_distinct_chunks_by_state_and_by_node() -> None:
    async with serving() as store:
        await store.register("d1")
        await report(store, entry(1, HOT), entry(2, COLD), entry(300, HOT, replica=1))
        await report(store, entry(300, HOT))
        await report(store, entry(1, HOT), entry(2, HOT), node="node-d2")
        read = store.components.store.read
        assert await read(chunks.distribution, "model") == (
            {ChunkState.HOT: 3, ChunkState.COLD: 1},
            {"node-d1": 3, "node-d2": 2},
        )
        assert await read(chunks.distribution, "unknown") == ({}, {})


def scattered(state: int) -> Patches:
    patches = Patches()
    for number in range(1700):
        patches.add(f"a{number:04}", "", 0, number, state)
    return patches


@pytest.mark.parametrize("parts_applied", [0, 1, 3])
async def test_a_scattered_report_that_was_accepted_is_applied_by_the_next_server(
    parts_applied: int, tmp_path: Path
) -> None:
    chunk_report = ChunkReport("n1", "w1", 1)
    path = tmp_path / "store.db"
    async with Store(path, migrations=MIGRATIONS) as store:
        batch = await store.write(chunks.open_batch, chunk_report)
        for part in scattered(COLD).parts(500):
            await store.bulk(chunks.add_part, batch, chunks.part_json(part))
        await store.write(chunks.accept_report, batch, chunk_report)
        for _ in range(parts_applied):
            assert await store.bulk(chunks.apply_part)
    async with Store(path, migrations=MIGRATIONS) as store, trio.open_nursery() as nursery:
        reports = ChunkReports(store)
        nursery.start_soon(reports.run)
        await reports.once_applied(lambda: store.read(chunks.held, "a0000", None, frozenset[int]()))
        assert await store.read(lambda tx: tx.all("SELECT count(*) FROM chunk_blocks")) == [(1700,)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 60, 200])
async def test_a_scattered_report_that_is_cut_off_happened_wholly_or_not_at_all(
    turns: int, tmp_path: Path
) -> None:
    async with (
        Store(tmp_path / "store.db", migrations=MIGRATIONS) as store,
        trio.open_nursery() as nursery,
    ):
        reports = ChunkReports(store)
        nursery.start_soon(reports.run)

        async def keep() -> None:
            with scope:
                await reports.keep(ChunkReport("n1", "w1", 1), scattered(HOT))

        scope = trio.CancelScope()
        async with trio.open_nursery() as callers:
            callers.start_soon(keep)
            for _ in range(turns):
                await store.read(lambda tx: None)
            scope.cancel()

        async def left() -> int:
            await reports.once_applied(
                lambda: store.read(chunks.held, "a0000", None, frozenset[int]())
            )
            ((count,),) = await store.read(lambda tx: tx.all("SELECT count(*) FROM chunk_batches"))
            return int(count)

        while await left():
            pass
        ((count,),) = await store.read(lambda tx: tx.all("SELECT count(*) FROM chunk_blocks"))
        assert count in {0, 1700}
        assert await store.read(lambda tx: tx.all("SELECT count(*) FROM chunk_parts")) == [(0,)]
        nursery.cancel_scope.cancel()


async def test_nobody_waits_for_a_report_that_cannot_be_applied(
    autojump_clock: trio.testing.MockClock,
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk, for instance; what was accepted is applied as soon as there is room."""
    host = Host(tmp_path, nursery)
    await host.start()
    reports = host.running.components.chunk_reports
    apply_part, full = chunks.apply_part, [True]

    def refuse(tx: Transaction) -> bool:
        if full[0]:
            raise Full("no space")
        return apply_part(tx)

    monkeypatch.setattr(chunks, "apply_part", refuse)
    question = wire.QueryChunkLocationsRequest(artifact_id="a0001")
    with pytest.raises(Unavailable, match="no space"):
        await reports.keep(ChunkReport("n1", "w1", 1), scattered(HOT))
    with pytest.raises(CallFailed, match="UNAVAILABLE"):
        await host.call(question)
    full[0] = False
    await trio.sleep(2)
    await host.call(question)
    assert await host.rows("SELECT count(*) FROM chunk_blocks") == [(1700,)]
