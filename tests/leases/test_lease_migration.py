"""A database from before there were leases is taken over, with all that it holds."""

from pathlib import Path

from servers import configuration, serving

from globalstore.db import Store
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.schema import MIGRATIONS


async def test_an_older_database_gets_the_tables_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with Store(path, migrations=MIGRATIONS[:3]) as old:
        await old.write(
            lambda tx: tx.run("INSERT INTO cluster VALUES (1, '20260101T000000Z_00000000', 1)")
        )
        await old.write(lambda tx: tx.run("INSERT INTO worker_ids (worker_id) VALUES ('w')"))
    async with serving(configuration(database={"db_file": str(path)})) as store:
        assert store.info.cluster_id == "20260101T000000Z_00000000"
        assert ("w",) in await store.read("SELECT worker_id FROM worker_ids")
        answer = await store.runtime.AcquireShardHomeLease(
            wire.AcquireShardHomeLeaseRequest(shard_id=1, holder_daemon_id="d", ttl_ms=60_000)
        )
        assert answer.lease.lease_generation == 1
