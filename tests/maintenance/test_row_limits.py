"""No table grows beyond its bound, and nothing but growth is refused."""

from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from filled_tables import insert, tables
from log_lines import Lines
from purerpc import StatusCode
from servers import configuration, eventually, memory_info, refused, serving

from globalstore.config.schema.limits import Rows
from globalstore.db import LimitReached, Runner, Store, Transaction
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry import row_limits
from globalstore.registry.schema import MIGRATIONS

BOUNDED = [field.name for field in attrs.fields(Rows)]


def store_in_memory() -> Store:
    return Store(None, migrations=MIGRATIONS, runner=Runner.INLINE)


def filled(tx: Transaction, number: int) -> None:
    """Insert a row into every table."""
    for table in tables(tx):
        insert(tx, table, number, "ON CONFLICT DO NOTHING")


async def test_every_table_has_a_bound_or_a_reason_for_none() -> None:
    async with store_in_memory() as store:
        names = await store.write(tables)
    assert sorted(names) == sorted([*BOUNDED, *row_limits.BOUNDED_OTHERWISE])


@pytest.mark.parametrize("table", BOUNDED)
async def test_a_full_table_takes_no_more_and_gives_up_what_it_has(table: str) -> None:
    async with store_in_memory() as store:
        await store.write(filled, 1)
        there = await store.write(lambda tx: tx.one(f"SELECT count(*) FROM {table}"))
        assert there is not None
        limits = dict.fromkeys(BOUNDED, 1000) | {table: there[0]}
        await store.write(row_limits.count_rows, limits)
        with pytest.raises(LimitReached, match=rf"limits\.rows\.{table} is {there[0]}, "):
            await store.write(insert, table, 2)
        # What is there may be written over, as an upsert does.
        await store.write(insert, table, 1, "ON CONFLICT DO NOTHING")
        counted = (await store.write(row_limits.fill, 2**40)).rows
        assert counted[table] == there[0]


async def test_counts_are_those_of_the_tables_whatever_is_undone_or_deleted() -> None:
    async with store_in_memory() as store:
        await store.write(filled, 1)
        await store.write(row_limits.count_rows, dict.fromkeys(BOUNDED, 5))

        def fails(tx: Transaction) -> None:
            insert(tx, "endpoints", 8)
            raise ValueError("undone")

        stored = []

        async def grow(number: int) -> None:
            with suppress(LimitReached):
                await store.write(insert, "endpoints", number)
                stored.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(2, 8):
                nursery.start_soon(grow, number)
        assert len(stored) == 4
        await store.write(lambda tx: tx.run("DELETE FROM endpoints WHERE endpoint_key > 1"))
        with pytest.raises(ValueError, match="undone"):
            await store.write(fails)
        counted = (await store.write(row_limits.fill, 2**40)).rows

        def true_counts(tx: Transaction) -> dict[str, Any]:
            return {
                table: row[0]
                for table in BOUNDED
                if (row := tx.one(f"SELECT count(*) FROM {table}")) is not None
            }

        assert counted == await store.write(true_counts)


async def test_a_statement_of_many_rows_is_undone_as_a_whole() -> None:
    async with store_in_memory() as store:
        await store.write(row_limits.count_rows, dict.fromkeys(BOUNDED, 5))
        rows = [(number, "n", "a", number) for number in range(6)]
        with pytest.raises(LimitReached):
            await store.write(
                lambda tx: tx.run_rows("INSERT INTO endpoints SELECT * FROM (VALUES …)", rows)
            )
        assert (await store.write(row_limits.fill, 2**40)).rows["endpoints"] == 0
        assert await store.read(lambda tx: tx.one("SELECT count(*) FROM endpoints")) == (0,)


async def test_what_would_add_one_more_is_told_the_key_and_the_rest_goes_on() -> None:
    rows = {"replicas": 1, "recorded_replies": 1, "transports": 1}
    async with serving(configuration(limits={"rows": rows})) as store:
        worker = await store.register()
        kept = await store.replica(worker.worker_id, client_request_id="r")
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "limits.rows.replicas is 1"):
            await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))
        # Known ones are refreshed, claimed and completed as ever.
        again = await store.replica(worker.worker_id, max_concurrency=2)
        assert again.replica_id == kept.replica_id
        granted = await store.claim()
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "limits.rows.transports is 1"):
            await store.claim(request_id="another")
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK
        # An end needs no room for its record.
        order = wire.UnregisterWorkerRequest(worker_id=worker.worker_id, client_request_id="u")
        for _ in range(2):
            assert (await store.runtime.UnregisterWorker(order)).status == wire.STATUS_OK
        gone = wire.UnregisterReplicaRequest(artifact_id="model", replica_id=kept.replica_id)
        assert (await store.runtime.UnregisterReplica(gone)).status == wire.STATUS_OK
        await store.register()
        await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))


async def test_a_snapshot_that_does_not_fit_is_refused_and_an_empty_one_is_not() -> None:
    async with serving(configuration(limits={"rows": {"replicas": 1}})) as store:
        worker = await store.register()
        await store.replica(worker.worker_id)

        def request(seq: int, *artifacts: str) -> Any:
            return wire.ReconcileWorkerStateRequest(
                worker_id=worker.worker_id,
                generation=1,
                request_seq=seq,
                request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
                inventory=[
                    {"ref": {"artifact_id": name}, "memory_info": memory_info()}
                    for name in artifacts
                ],
            )

        async with refused(StatusCode.RESOURCE_EXHAUSTED, "limits.rows.replicas"):
            await store.runtime.ReconcileWorkerState(request(1, "model", "other"))
        assert await store.counts("model", "other") == [(1, 1), (0, 0)]
        await store.runtime.ReconcileWorkerState(request(1))
        assert await store.counts("model") == [(0, 0)]


async def test_a_large_chunk_report_fits_as_a_whole_or_is_refused() -> None:
    def report(artifact: str, blocks: int) -> Any:
        return wire.BatchUpdateChunkStatesRequest(
            node_id="n",
            updates=[
                wire.ChunkStateUpdate(
                    artifact_id=artifact, chunk_idx=256 * block, state=wire.CHUNK_STATE_HOT
                )
                for block in range(blocks)
            ],
        )

    async with serving(configuration(limits={"rows": {"chunk_blocks": 1600}})) as store:
        await store.runtime.BatchUpdateChunkStates(report("a", 500))
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "limits.rows.chunk_blocks is 1600"):
            await store.runtime.BatchUpdateChunkStates(report("b", 1101))
        # Accepted is accepted, whatever came in meanwhile.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.runtime.BatchUpdateChunkStates, report("c", 1000))
            await eventually(store.components.chunk_reports._busy)
            await store.runtime.BatchUpdateChunkStates(report("d", 100))
        found = await store.read("SELECT artifact_id, count(*) FROM chunk_blocks GROUP BY 1")
        assert found == [("a", 500), ("c", 1000), ("d", 100)]
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "limits.rows.chunk_blocks"):
            await store.runtime.BatchUpdateChunkStates(report("e", 1))


async def test_what_was_accepted_may_pass_the_bound() -> None:
    async with store_in_memory() as store:
        await store.write(row_limits.count_rows, dict.fromkeys(BOUNDED, 1))
        await store.write(row_limits.check_room, "endpoints", 1)

        def promised(tx: Transaction) -> None:
            with row_limits.beyond_bound(tx, "endpoints"):
                insert(tx, "endpoints", 2)

        await store.write(insert, "endpoints", 1)
        await store.write(promised)
        with pytest.raises(LimitReached, match="endpoints"):
            await store.write(row_limits.check_room, "endpoints", 1)
        with pytest.raises(LimitReached, match="endpoints"):
            await store.write(insert, "endpoints", 3)


async def test_a_table_that_fills_up_is_told_of(
    lines: Lines,
) -> None:
    async with serving(configuration(limits={"rows": {"replicas": 5}})) as store:
        worker = await store.register()
        for device in range(3):
            await store.replica(worker.worker_id, mem_info=memory_info(device_id=device))
        await store.components.maintenance.run_pass()
        assert not lines.named("a table fills up")
        await store.replica(worker.worker_id, mem_info=memory_info(device_id=3))
        await store.components.maintenance.run_pass()
        warned = lines.only("a table fills up", "WARNING")
        assert warned == {"key": "limits.rows.replicas", "rows": 4, "limit": 5}
        value = store.components.metrics.registry.get_sample_value
        assert value("tc_db_rows", {"table": "replicas"}) == 4
        assert value("tc_db_rows_limit", {"table": "replicas"}) == 5


async def test_a_file_that_has_all_its_bytes_takes_no_more_rows(lines: Lines) -> None:
    async with serving(configuration(database={"max_bytes": 1})) as store:
        warned = lines.only("the database fills up", "WARNING")
        assert (warned["key"], warned["limit"]) == ("database.max_bytes", 1)
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "database.max_bytes"):
            await store.register()
    config = configuration(
        database={"max_bytes": 4 << 20}, worker_policy={"cleanup_interval": "1000000s"}
    )
    async with serving(config) as store:
        worker = await store.register()
        kept = await store.replica(worker.worker_id, tensor_index_data=b" " * (4 << 20))
        await store.components.maintenance.run_pass()
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "database.max_bytes"):
            await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))
        assert (await store.replica(worker.worker_id)).replica_id == kept.replica_id
        gone = wire.UnregisterReplicaRequest(artifact_id="model", replica_id=kept.replica_id)
        await store.runtime.UnregisterReplica(gone)
        await store.components.store.write(lambda tx: tx.run("DELETE FROM tensor_indexes"))
        await store.components.maintenance.run_pass()
        await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))
