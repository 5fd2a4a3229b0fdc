"""The database is looked after at its own interval, whatever that of the other tasks is."""

import trio
import trio.testing
from servers import configuration, eventually, serving


async def test_the_log_is_emptied_at_the_interval_that_is_promised(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(
        database={"optimize_interval": "10s"}, worker_policy={"cleanup_interval": "3600s"}
    )
    async with serving(config) as store:
        await store.register()
        database = store.components.store

        def length() -> int:
            return database.statistics().wal_bytes

        await trio.testing.wait_all_tasks_blocked()
        assert length() > 0
        mock_clock.jump(9)
        await trio.testing.wait_all_tasks_blocked()
        assert length() > 0
        mock_clock.jump(1.1)
        await eventually(lambda: length() == 0)
