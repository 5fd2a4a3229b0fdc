"""A whole server in the test's own event loop, and stubs that call it from memory or over TCP."""

import json
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import purerpc
import pytest
import trio
import trio.testing
from server_in_memory import Memory, Stub

import globalstore.config
from globalstore.api.context import ServerInfo
from globalstore.client.connection import connection
from globalstore.db import Runner
from globalstore.gen.globalstore.admin.v1 import admin_grpc, admin_pb2
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_grpc, memory_tier_pb2
from globalstore.leases.wall_clock import wall_us
from globalstore.liveness.stalls import TICK_S
from globalstore.rpc import Call
from globalstore.rpc.headers import RequestHead
from globalstore.rpc.in_process import Channel
from globalstore.rpc.method import UNKNOWN
from globalstore.server.components import Components
from globalstore.server.lifecycle import Server

KEY = "k" * 40

# A call from memory, for tests of what is behind the handlers.
_CHANNEL = Channel(trio.Event())

_SERVICES = wire.DESCRIPTOR.services_by_name


def configuration(**sections: Any) -> globalstore.config.GlobalStoreConfig:
    """Load a configuration that takes free ports, through the real loader."""
    server = {"listen": {"port": 0}, "metrics_port": 0} | sections.pop("server", {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({"server": server} | sections))
        return globalstore.config.load(path)


@attrs.define
class Serving:
    """A running server and stubs of its services."""

    server: Server
    info: ServerInfo
    runtime: Any
    admin: Any
    catalog: Any
    tiers: Any
    operators: Any

    @property
    def components(self) -> Components:
        """What the server is made of."""
        return self.server.components

    async def register(self, daemon: str = "d1", **fields: Any) -> Any:
        """Register a worker; every daemon has a node and an address of its own."""
        request = worker_request(daemon)
        for name, value in fields.items():
            setattr(request, name, value)
        return await self.runtime.RegisterWorker(request)

    async def beat(self, worker_id: str, **fields: Any) -> Any:
        request = wire.WorkerHeartbeatRequest(
            worker_id=worker_id,
            state_version=fields.pop("state_version", 1),
            accepting_new_requests=fields.pop("accepting_new_requests", True),
            **fields,
        )
        return await self.runtime.WorkerHeartbeat(request)

    async def replica(self, worker_id: str, artifact_id: str = "model", **fields: Any) -> Any:
        return await self.runtime.RegisterReplica(replica_request(worker_id, artifact_id, **fields))

    async def claim(self, artifact_id: str = "model", **fields: Any) -> Any:
        return await self.runtime.RequestReplicaTransport(claim_request(artifact_id, **fields))

    async def complete(self, transport_id: str, outcome: int = 1, **fields: Any) -> Any:
        return await self.runtime.CompleteReplicaTransport(
            wire.CompleteReplicaTransportRequest(
                transport_id=transport_id, outcome=outcome, **fields
            )
        )

    async def active(self, **fields: Any) -> list[Any]:
        answer = await self.runtime.ListActiveWorkers(wire.ListActiveWorkersRequest(**fields))
        return list(answer.workers)

    async def counts(self, *artifact_ids: str) -> list[tuple[int, int]]:
        answer = await self.runtime.BatchGetReplicaCounts(
            wire.BatchGetReplicaCountsRequest(artifact_ids=artifact_ids)
        )
        return [(each.replica_count, each.available_count) for each in answer.counts]

    async def replicas(self, **filters: Any) -> list[Any]:
        answer = await self.runtime.ListReplicasV2(wire.ListReplicasV2Request(**filters))
        return [record.memory_info for record in answer.replicas]

    async def read(self, sql: str, *values: object) -> list[Any]:
        """Look into the database."""
        return await self.components.store.read(lambda tx: tx.all(sql, values))


def worker_request(daemon: str = "d1", **fields: Any) -> Any:
    return wire.RegisterWorkerRequest(
        **{
            "daemon_id": daemon,
            "node_id": f"node-{daemon}",
            "node_address": f"{daemon}.example",
            "grpc_port": 50052,
            "p2p_port": 50053,
            "mem_pool_total_size": 1000,
            "mem_pool_available_size": 400,
        }
        | fields
    )


def a_call() -> Call:
    """Return a call as a handler gets it; its client stays."""
    return Call(_CHANNEL, 1, RequestHead("/test"), UNKNOWN, trio.current_time())


def memory_info(node: str = "d1", **fields: Any) -> Any:
    return common.MemoryInfo(
        **{
            "node_id": f"node-{node}",
            "node_address": f"{node}.example",
            "node_port": 50053,
            "memory_size": 100,
            "memory_type": common.MEMORY_TYPE_RAM,
            "remote_memory_keys": [KEY],
            "buffer_sizes": [100],
        }
        | fields
    )


def replica_request(worker_id: str, artifact_id: str = "model", **fields: Any) -> Any:
    node = fields.pop("node", "d1")
    request = wire.RegisterReplicaRequest(
        artifact_id=artifact_id,
        worker_id=worker_id,
        max_concurrency=fields.pop("max_concurrency", 1),
        mem_info=fields.pop("mem_info", None) or memory_info(node),
    )
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def claim_request(artifact_id: str = "model", wait_s: float = 0, **fields: Any) -> Any:
    request = wire.RequestReplicaTransportRequest(
        **{
            "artifact_id": artifact_id,
            "source_node_id": "requester",
            "source_address": "requester.example",
            "request_id": str(uuid.uuid4()),
        }
        | fields
    )
    if wait_s:
        request.wait_timeout_dur.FromMilliseconds(round(wait_s * 1000))
    return request


def wall_of_trio() -> Callable[[], int]:
    """Return a wall clock that nobody sets: it runs with trio's, also with a mock one."""
    ahead_us = wall_us() - round(trio.current_time() * 1_000_000)
    return lambda: ahead_us + round(trio.current_time() * 1_000_000)


@asynccontextmanager
async def serving(
    config: globalstore.config.GlobalStoreConfig | None = None,
    wall: Any = None,
    runner: Runner = Runner.INLINE,
) -> AsyncIterator[Serving]:
    """Run a server that is called from memory; its database is there too unless configured.

    ``runner`` says where the database runs: inline, unless the test is about what happens while
    that is at work.
    """
    server = Server(config or configuration(), wall or wall_of_trio(), runner)
    memory = Memory(server.components)
    in_process = memory.in_process
    async with trio.open_nursery() as nursery:
        info = await nursery.start(server.serve, memory)
        yield Serving(
            server,
            info,
            Stub(in_process, _SERVICES["ClusterRuntimeService"]),
            Stub(in_process, _SERVICES["ClusterAdminService"]),
            Stub(in_process, _SERVICES["ArtifactCatalogService"]),
            Stub(in_process, memory_tier_pb2.DESCRIPTOR.services_by_name["MemoryTierService"]),
            Stub(in_process, admin_pb2.DESCRIPTOR.services_by_name["AdminService"]),
        )
        server.stop()


@asynccontextmanager
async def serving_over_tcp(
    config: globalstore.config.GlobalStoreConfig | None = None,
    wall: Any = None,
    prepare: Callable[[Server], object] = lambda server: None,
) -> AsyncIterator[Serving]:
    """Run a server with sockets, its database in threads: for tests of connections and drains.

    ``prepare`` is called with the server before it starts.
    """
    server = Server(config or configuration(), wall or wall_of_trio())
    prepare(server)
    async with trio.open_nursery() as nursery:
        info = await nursery.start(server.run)
        async with connection("127.0.0.1", info.listen_port) as channel:
            yield Serving(
                server,
                info,
                services.ClusterRuntimeServiceStub(channel),
                services.ClusterAdminServiceStub(channel),
                services.ArtifactCatalogServiceStub(channel),
                memory_tier_grpc.MemoryTierServiceStub(channel),
                admin_grpc.AdminServiceStub(channel),
            )
        server.stop()


@asynccontextmanager
async def refused(code: purerpc.StatusCode, *fragments: str) -> AsyncIterator[None]:
    """Expect a call to end with a code, and its text to hold every fragment."""
    with pytest.raises(purerpc.RpcFailedError) as caught:
        yield
    assert caught.value.status.status_code is code, caught.value.status
    for fragment in fragments:
        assert fragment in caught.value.status.status_message


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let time pass in steps that the server does not take for a stall of its own."""
    while seconds > 0:
        step = min(seconds, TICK_S)
        clock.jump(step)
        seconds -= step
        await trio.testing.wait_all_tasks_blocked()


async def eventually(condition: Any) -> None:
    """Let other tasks run until a condition holds; the test's time limit bounds it."""
    while not condition():
        await trio.lowlevel.checkpoint()
