"""Whatever concurrent clients do, one sequence of events explains what all of them saw.

That is, for each shard: at most one holder at any instant, generations that go up one by one, no
token that comes back to life, deadlines that are kept to the microsecond, and nothing forgotten.
"""

import logging
import random
from typing import Any

import pytest
import trio
import trio.testing
from lease_clients import DAEMONS, Clients, NoAnswer, cut_off_after
from lease_model import Shard, step
from linearizability import assert_linearizable
from purerpc import StatusCode
from servers import serving
from simulated_host import CallFailed, Host, folder_in_memory

from globalstore.db import Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

CLIENTS = 9


def judge(clients: Clients) -> None:
    for history in clients.histories.values():
        assert_linearizable(history, Shard(), step)


@pytest.mark.parametrize("_", range(3))
async def test_clients_of_a_real_server_see_one_history(
    _: int, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 20  # time passes for leases, and hardly any for the test
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    async with serving(runner=Runner.THREADS) as store:
        ids = {daemon: (await store.register(daemon)).worker_id for daemon in DAEMONS}

        async def call(request: Any) -> Any:
            name = request.DESCRIPTOR.name.removesuffix("Request")
            return await getattr(store.runtime, name)(request)

        clients = Clients(call, store.components.clock.lease_us, rng, ids)

        async def client() -> None:
            for _ in range(40):
                await clients.one()
                await trio.sleep(rng.random() * 0.02)

        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client)
    assert clients.answered == CLIENTS * 40
    assert any(len(tokens) > 5 for tokens in clients.tokens.values())
    judge(clients)


SEEDS = range(15)


@pytest.mark.parametrize("seed", SEEDS)
def test_crashes_cut_off_calls_and_clocks_leave_one_history(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "disabled", True)
    rng = random.Random(seed)

    async def main() -> Clients:
        with folder_in_memory() as folder:
            async with trio.open_nursery() as nursery:
                host = Host(folder, nursery)
                await host.start()
                clients = await run(host, rng)
                nursery.cancel_scope.cancel()
        return clients

    clients = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert clients.answered > 100
    judge(clients)


async def run(host: Host, rng: random.Random) -> Clients:
    ids = {}
    for daemon in DAEMONS:
        request = wire.RegisterWorkerRequest(
            daemon_id=daemon,
            node_id=f"node-{daemon}",
            node_address=f"{daemon}.example",
            grpc_port=50052,
            p2p_port=50053,
        )
        ids[daemon] = (await host.call(request)).worker_id

    async def call(request: Any) -> Any:
        try:
            return await host.call(request)
        except CallFailed as failed:
            if failed.code is StatusCode.UNAVAILABLE:
                raise NoAnswer from failed
            raise

    clients = Clients(call, host.wall_us, rng, ids)

    async def client() -> None:
        for _ in range(40):
            if rng.random() < 0.1:
                await cut_off_after(rng.randrange(12), clients.one)
            else:
                await clients.one()
            # Time stands still during a call: those of one instant are concurrent.
            await trio.sleep(rng.randrange(4) * 0.01)

    async def restarts() -> None:
        for _ in range(3):
            await trio.sleep(rng.random() * 0.4)
            await (host.kill() if rng.random() < 0.7 else host.stop())
            await trio.sleep(rng.random() * 0.03)
            await host.start()

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(client)
        nursery.start_soon(restarts)
    return clients
