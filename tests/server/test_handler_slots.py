"""Handler slots: full ones are told, and one address does not keep another from them."""

import json
import urllib.request

import trio
from servers import configuration, pass_time, wall_of_trio

from globalstore.server.lifecycle import Server


async def test_slots_that_stay_full_are_told_in_health(mock_clock: trio.testing.MockClock) -> None:
    server = Server(configuration(server={"max_workers": 1}), wall_of_trio())
    async with trio.open_nursery() as nursery:
        info = await nursery.start(server.run)

        async def health() -> dict[str, str]:
            url = f"http://127.0.0.1:{info.metrics_port}/health"
            read = lambda: urllib.request.urlopen(url).read()  # noqa: E731
            return json.loads(await trio.to_thread.run_sync(read))

        slots = server.components.handler_slots
        await slots._slots.acquire("somebody")
        nursery.start_soon(slots._slots.acquire, "another")
        await pass_time(mock_clock, 0.75)
        assert (await health())["status"] == "ok"
        await pass_time(mock_clock, 3)
        told = await health()
        assert told["status"] == "degraded"
        assert told["reason"].startswith("all 1 handler slots have been in use for ")
        assert told["reason"].endswith("1 calls wait for one (server.max_workers)")
        slots._slots.release()
        await pass_time(mock_clock, 1.25)
        assert (await health())["status"] == "ok"
        server.stop()
