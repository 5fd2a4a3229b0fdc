"""The reference daemon: registered, heard, and back after every loss."""

import socket
from pathlib import Path

import purerpc
import pytest
import trio
import trio.testing
from servers import Serving, configuration, eventually, pass_time, serving_over_tcp

from globalstore.daemon import Daemon, Identity, StoreClient, Unreachable, read_artifact
from globalstore.daemon.bytes_server import BytesServer, TransferFailed, fetch
from globalstore.daemon.daemon import Refused
from globalstore.daemon.inventory import Held
from globalstore.daemon.safetensors import write_sample
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.server.lifecycle import Server

IDENTITY = Identity("d1", "node-1", "d1.example", 50052, 50053, pool_bytes=100)


async def start(
    nursery: trio.Nursery, store: Serving, identity: Identity = IDENTITY, **options: str
) -> Daemon:
    client = StoreClient("127.0.0.1", store.info.listen_port, seed=1)
    await nursery.start(client.run)
    daemon = Daemon(client, identity, **options)
    await nursery.start(daemon.run)
    return daemon


async def test_it_registers_and_keeps_itself_alive(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as daemons:
        await start(daemons, store)
        for _ in range(20):
            await pass_time(mock_clock, 5)
            await eventually(store.components.workers.live)
        assert [worker.daemon_id for worker in await store.active()] == ["d1"]
        daemons.cancel_scope.cancel()


async def test_it_comes_back_with_its_replicas_when_the_store_has_lost_it(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    write_sample(tmp_path / "m", 10)
    artifact = read_artifact(tmp_path / "m")
    async with serving_over_tcp() as store, trio.open_nursery() as daemons:
        daemon = await start(daemons, store)
        await daemon.offer(artifact, max_concurrency=1)
        worker_id = daemon.worker_id
        await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=worker_id))
        assert await store.counts(artifact.artifact_id) == [(1, 0)]
        await pass_time(mock_clock, 5.25)
        while await store.counts(artifact.artifact_id) != [(1, 1)]:
            await trio.lowlevel.checkpoint()
        assert daemon.worker_id == worker_id
        claimed = await daemon.claim(artifact.artifact_id, 0)
        assert claimed is not None
        await daemon.complete(claimed, True)
        daemons.cancel_scope.cancel()


async def test_it_registers_again_a_replica_that_the_store_says_it_does_not_have(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    write_sample(tmp_path / "m", 10)
    artifact = read_artifact(tmp_path / "m")
    async with serving_over_tcp() as store, trio.open_nursery() as daemons:
        daemon = await start(daemons, store)
        await daemon.offer(artifact, max_concurrency=1)
        ((replica_id,),) = await store.read("SELECT hex(replica_id) FROM replicas")
        await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id=artifact.artifact_id, replica_id=replica_id)
        )
        await pass_time(mock_clock, 5.25)
        while await store.counts(artifact.artifact_id) != [(1, 1)]:
            await trio.lowlevel.checkpoint()
        daemons.cancel_scope.cancel()


async def test_it_outlives_a_restart_of_the_server(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = configuration(
        server={"listen": {"port": port}}, database={"db_file": str(tmp_path / "store.db")}
    )
    client = StoreClient("127.0.0.1", port, seed=1)
    daemon = Daemon(client, IDENTITY)
    async with trio.open_nursery() as daemons:
        first = Server(config)
        await daemons.start(first.run)
        await daemons.start(client.run)
        await daemons.start(daemon.run)
        worker_id = daemon.worker_id
        first.stop()
        for _ in range(20):
            await pass_time(mock_clock, 0.25)
        await eventually(lambda: "CLOSED" in repr(first.components.store))
        second = Server(config)
        await daemons.start(second.run)
        for _ in range(400):
            await pass_time(mock_clock, 0.25)
            if second.components.workers.live():
                break
        (worker,) = second.components.workers.listed(0, include_unavailable=True)
        assert worker.worker_id == daemon.worker_id == worker_id
        assert client.connections > 1
        daemons.cancel_scope.cancel()


async def test_a_server_of_another_cluster_is_refused() -> None:
    async with serving_over_tcp(configuration(meta={"cluster_token": "blue"})) as store:
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="another cluster")):
            async with trio.open_nursery() as daemons:
                await start(daemons, store, cluster_token="green")
        assert await store.active() == []


async def test_an_address_that_nobody_can_reach_is_refused_for_good() -> None:
    local = Identity("d1", "node-1", "127.0.0.1", 50052, 50053)
    async with serving_over_tcp() as store:
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="node_address")):
            async with trio.open_nursery() as daemons:
                await start(daemons, store, local)


async def test_a_call_without_a_server_ends_at_its_deadline(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        client = StoreClient("127.0.0.1", closed.getsockname()[1], seed=1)
        nursery.start_soon(client.run)
        began = trio.current_time()
        with pytest.raises(Unreachable):
            await client.call(
                "admin", "HealthCheck", wire.HealthCheckRequest(), timeout_s=3, repeatable=False
            )
        assert trio.current_time() - began == pytest.approx(3, abs=0.5)


async def test_bytes_that_are_not_those_asked_for_are_noticed(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    write_sample(tmp_path / "m", 1000)
    artifact = read_artifact(tmp_path / "m")
    server = BytesServer()
    port = await nursery.start(server.serve, "127.0.0.1")
    server.streams["good"] = (artifact.size, artifact.stream)
    server.streams["bad"] = (artifact.size, lambda: iter([bytes(artifact.size)]))
    server.streams["short"] = (artifact.size, lambda: iter([bytes(10)]))
    target, sizes = tmp_path / "target", []

    async def pull(key: str) -> int:
        return await fetch("127.0.0.1", port, key, artifact.data_multihash, target, sizes.append)

    assert await pull("good") == sum(sizes) == 8000
    assert target.read_bytes() == b"".join(artifact.stream())
    for key, reason in (("bad", "digest"), ("short", "early"), ("unknown", "early")):
        with pytest.raises(TransferFailed, match=reason):
            await pull(key)


async def test_what_no_repeat_can_cure_is_told_and_holds_nothing_else_up() -> None:
    config = configuration(
        server={"limits": {"max_message_bytes": 100_000}, "listen": {"port": 0}, "metrics_port": 0}
    )
    async with serving_over_tcp(config) as store, trio.open_nursery() as daemons:
        daemon = await start(daemons, store)
        with pytest.raises(purerpc.RpcFailedError, match="RESOURCE_EXHAUSTED"):
            await daemon.publish(Held("large", 100, "key", index=bytes(200_000)))
        await daemon.publish(Held("small", 100, "key"))
        assert await store.counts("large", "small") == [(0, 0), (1, 1)]
        daemons.cancel_scope.cancel()
