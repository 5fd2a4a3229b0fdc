"""A lease that is being extended at its last moment is never told to have ended."""

import threading
from pathlib import Path

import trio
import trio.testing
from purerpc import StatusCode
from servers import configuration, refused, serving
from shard_lease_calls import acquire, get, keep

from globalstore.db import Runner, Site, Store
from globalstore.registry.runtime import shard_leases
from globalstore.registry.schema import MIGRATIONS

SECOND = 1_000_000


async def test_a_reader_does_not_decide_what_the_writer_may_have_decided_otherwise(
    tmp_path: Path,
) -> None:
    now = [0]
    reached, go_on = threading.Event(), threading.Event()
    go_on.set()

    def at_site(site: Site) -> None:
        if site is Site.BEFORE_COMMIT and not go_on.is_set():
            reached.set()
            go_on.wait(30)

    def clock() -> int:
        return now[0]

    async with (
        Store(tmp_path / "store.db", migrations=MIGRATIONS, at_site=at_site) as store,
        trio.open_nursery() as nursery,
    ):
        await store.write(shard_leases.acquire, 7, "a", "t" * 32, SECOND, clock)
        now[0] = SECOND - 1
        go_on.clear()
        extended = trio.Event()

        async def extend() -> None:
            assert await store.write(shard_leases.keepalive, "t" * 32, SECOND, clock) is not None
            extended.set()

        nursery.start_soon(extend)
        await trio.to_thread.run_sync(reached.wait, 30)
        # The keepalive was in time and is not committed; for a reader the lease is over.
        now[0] = SECOND + 1
        assert await store.read(shard_leases.routes, [7], clock) == ([], [7])
        go_on.set()
        (route,), doubtful = await store.write(shard_leases.routes, [7], clock)
        await extended.wait()
        assert (route.holder, route.expires_at_us, doubtful) == ("a", 2 * SECOND - 1, [])
        # Long after the end there is no doubt left, and none about what was never held.
        now[0] = 100 * SECOND
        assert await store.read(shard_leases.routes, [7, 8], clock) == ([], [])


async def test_reads_of_a_lease_that_has_just_ended_write_nothing(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config, runner=Runner.THREADS) as store:
        lease = (await acquire(store, ttl_ms=1)).lease
        mock_clock.jump(0.01)
        wal = store.components.store.statistics().wal_bytes
        for _ in range(50):
            async with refused(StatusCode.NOT_FOUND):
                await get(store)
        assert store.components.store.statistics().wal_bytes == wal
        async with refused(StatusCode.NOT_FOUND):
            await keep(store, lease.lease_token)
