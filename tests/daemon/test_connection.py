"""The daemon's connection: that its end is noticed, whichever way it comes."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from servers import serving_over_tcp

from globalstore.daemon import StoreClient, Unreachable
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


async def listen(
    nursery: trio.Nursery, answer: Callable[[trio.SocketStream], Awaitable[None]]
) -> StoreClient:
    """Serve connections with ``answer`` and return a client that keeps one."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answer, [listener])
    client = StoreClient("127.0.0.1", listener.socket.getsockname()[1], seed=1)
    await nursery.start(client.run)
    return client


async def test_a_server_that_answers_no_ping_is_left_after_forty_seconds(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    client = await listen(nursery, silent)
    await trio.testing.wait_all_tasks_blocked()
    assert client.connection == 1
    mock_clock.jump(30)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(9)
    await trio.testing.wait_all_tasks_blocked()
    assert client.connection == 1
    mock_clock.jump(2)
    await trio.testing.wait_all_tasks_blocked()
    assert client.connection == 0
    # A second of goodbye, a second at most until the next attempt.
    mock_clock.jump(1)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(1)
    assert await client.newer_than(1) == 2


async def test_a_server_that_answers_pings_is_kept(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with serving_over_tcp() as store:
        client = StoreClient("127.0.0.1", store.info.listen_port, seed=1)
        await nursery.start(client.run)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(30)
            await trio.testing.wait_all_tasks_blocked()
            # Its answer comes after that to the ping.
            await client.call(
                "admin", "HealthCheck", wire.HealthCheckRequest(), timeout_s=60, repeatable=False
            )
            mock_clock.jump(11)
        await trio.testing.wait_all_tasks_blocked()
        assert client.connection == 1
        nursery.cancel_scope.cancel()


async def test_a_call_ends_with_its_connection_and_not_only_at_its_deadline(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    called = trio.Event()

    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await called.wait()

    client = await listen(nursery, hang_up)

    async def hang_up_when_asked() -> None:
        await trio.testing.wait_all_tasks_blocked()
        called.set()

    nursery.start_soon(hang_up_when_asked)
    with pytest.raises(Unreachable, match="HealthCheck"):
        await client.call(
            "admin", "HealthCheck", wire.HealthCheckRequest(), timeout_s=3, repeatable=False
        )
    assert trio.current_time() == 0
