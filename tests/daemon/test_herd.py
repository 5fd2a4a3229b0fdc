"""Many daemons come back at once."""

import socket
from pathlib import Path

import trio
import trio.testing
from servers import configuration, serving_over_tcp

from globalstore.daemon import Daemon, Held, Identity, StoreClient

DAEMONS = 40
REPLICAS = 10

# Time passes this much faster than it does, so that the pauses between attempts are short.
RATE = 5


async def test_a_herd_is_back_soon_after_a_restart_and_nothing_went_wrong(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = RATE
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = configuration(
        server={"listen": {"port": port}}, database={"db_file": str(tmp_path / "store.db")}
    )
    events: list[str] = []
    clients = [StoreClient("127.0.0.1", port, seed=number) for number in range(DAEMONS)]
    daemons = [
        Daemon(
            client,
            Identity(f"d{number}", f"n{number}", f"d{number}.herd", 50052, 50053),
            on_event=events.append,
        )
        for number, client in enumerate(clients)
    ]
    artifacts = [f"model-{number}" for number in range(REPLICAS)]

    async def fill(daemon: Daemon) -> None:
        for artifact_id in artifacts:
            await daemon.publish(Held(artifact_id, 100, "key"))

    for client, daemon in zip(clients, daemons, strict=True):
        nursery.start_soon(client.run)
        nursery.start_soon(daemon.run)
    async with serving_over_tcp(config) as store:
        async with trio.open_nursery() as filling:
            for daemon in daemons:
                filling.start_soon(fill, daemon)
        assert await store.counts(*artifacts) == [(DAEMONS, DAEMONS)] * REPLICAS
    registered = sorted(f"registered as {daemon.worker_id}" for daemon in daemons)
    async with serving_over_tcp(config) as store:
        began = trio.current_time()
        while await store.counts(*artifacts) != [(DAEMONS, DAEMONS)] * REPLICAS:
            await trio.lowlevel.checkpoint()
        assert trio.current_time() - began < 60
        generations = await store.read("SELECT DISTINCT generation FROM worker_cursors")
    # No failure, and nobody had to register again.
    assert sorted(events) == registered
    assert [tuple(row) for row in generations] == [(1,)]
