"""The step of the schema that brought the scheduling: what it makes of an older database."""

from pathlib import Path

from globalstore.db import Snapshot, Store, Transaction
from globalstore.registry import new_ids, worker_ids
from globalstore.registry.runtime import replicas
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.registry.runtime.replicas import ReplicaRegistration
from globalstore.registry.schema import MIGRATIONS
from globalstore.registry.worker_ids import NOBODY
from globalstore.rules.transfer import ExportState, Transfer

BEFORE = tuple(step for step in MIGRATIONS if step.number < 6)
READABLE = Transfer(ExportState.EXPORTABLE, 0, ("k",), (100,))


def register(tx: Transaction, device: int, worker: str, slots: int) -> None:
    registration = ReplicaRegistration(
        "model", "", Place("n", "h", 1, MemoryTier.RAM, device), 100, slots, worker, READABLE,
        "", False, "", None, None, None,
    )  # fmt: skip
    replicas.register_replica(tx, registration, new_ids.new_id(), 1)


def loads(tx: Snapshot) -> dict[str, tuple[int, int]]:
    rows = tx.all("SELECT worker_id, load_sum, limit_sum FROM worker_ids WHERE worker_key != 0")
    return {worker: (load, limit) for worker, load, limit in rows}


async def test_loads_are_summed_and_hidden_replicas_get_out_of_the_way(tmp_path: Path) -> None:
    assert MIGRATIONS[5].name == "scheduling"
    path = tmp_path / "store.db"
    async with Store(path, migrations=BEFORE) as store:
        # What today's operations look at came later.
        view = "CREATE TEMP VIEW held_replicas AS SELECT * FROM replicas WHERE worker_key != 0"
        await store.write(lambda tx: tx.run(view))
        for device, worker, slots in ((0, "a", 4), (1, "a", 3), (2, "b", 2)):
            await store.write(register, device, worker, slots)
        await store.write(worker_ids.intern, "idle")
        await store.write(
            lambda tx: tx.run("UPDATE replicas SET current_requests = 2 WHERE device_id != 1")
        )
        await store.write(
            lambda tx: tx.run(
                "UPDATE replicas SET worker_key = ?, is_available = 0 WHERE device_id = 2",
                (NOBODY,),
            )
        )
    async with Store(path, migrations=MIGRATIONS) as store:
        assert await store.read(loads) == {"a": (2, 7), "b": (0, 0), "idle": (0, 0)}
        devices = "SELECT device_id FROM replicas ORDER BY seq"
        assert await store.read(lambda tx: tx.all(devices)) == [(0,), (1,), (-3,)]
        await store.write(register, 2, "b", 5)
        assert await store.read(loads) == {"a": (2, 7), "b": (0, 5), "idle": (0, 0)}


async def test_every_way_to_change_a_replica_keeps_the_loads_of_workers() -> None:
    async with Store(None, migrations=MIGRATIONS) as store:

        async def after(sql: str) -> dict[str, tuple[int, int]]:
            await store.write(lambda tx: tx.run(sql))
            return await store.read(loads)

        for device, worker in ((0, "a"), (1, "a"), (2, "b")):
            await store.write(register, device, worker, 4)
        assert await store.read(loads) == {"a": (0, 8), "b": (0, 4)}
        grant = "UPDATE replicas SET current_requests = current_requests + 1"
        assert await after(grant) == {"a": (2, 8), "b": (1, 4)}
        limit = "UPDATE replicas SET max_concurrency = 9 WHERE device_id = 1"
        assert await after(limit) == {"a": (2, 13), "b": (1, 4)}
        move = (
            "UPDATE replicas SET current_requests = 3, worker_key ="
            " (SELECT worker_key FROM worker_ids WHERE worker_id = 'b') WHERE device_id = 1"
        )
        assert await after(move) == {"a": (1, 4), "b": (4, 13)}
        other = "UPDATE replicas SET updated_at = 7, is_available = 0"
        assert await after(other) == {"a": (1, 4), "b": (4, 13)}
        gone = "DELETE FROM replicas WHERE device_id = 2"
        assert await after(gone) == {"a": (1, 4), "b": (3, 9)}


async def test_a_source_is_listed_in_the_order_of_its_index() -> None:
    async with Store(None, migrations=MIGRATIONS) as store:
        await store.write(register, 0, "a", 4)

        def plan(tx: Snapshot) -> list[str]:
            from globalstore.registry.runtime.sources import _LISTED

            where = {"artifact_key": 1, "view_id": "", "now": 1, "limit": 9}
            return [row[3] for row in tx.all(f"EXPLAIN QUERY PLAN {_LISTED}", where)]

        steps = await store.read(plan)
        assert any("USING INDEX replica_sources" in step for step in steps), steps
        assert not any("TEMP B-TREE" in step for step in steps), steps
