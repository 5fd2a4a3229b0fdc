"""Claims that run beside the test, and clients that tell a deadline or go away."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import purerpc
import trio
from servers import Serving, claim_request

from globalstore.client.connection import connection
from globalstore.client.store import StoreClient
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

OK = wire.STATUS_OK
NOT_FOUND = wire.STATUS_NOT_FOUND
TIMED_OUT = wire.STATUS_TIMED_OUT
TOO_MANY = wire.STATUS_TOO_MANY_REQUESTS

LOADS = "SELECT current_requests FROM replicas ORDER BY seq"
OUTCOMES = "SELECT outcome, outcome_detail FROM transports ORDER BY transport_key"


@attrs.define(eq=False)
class Pending:
    """A claim that was started; ``answer`` or ``error`` is set once it has ended."""

    request: Any
    answer: Any = None
    error: purerpc.RpcFailedError | None = None
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    ended: trio.Event = attrs.Factory(trio.Event)

    async def result(self) -> Any:
        """Return the answer; raises the error that the call ended with."""
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.answer

    async def status(self) -> int:
        status: int = (await self.result()).status
        return status


def start(
    nursery: trio.Nursery,
    store: Serving,
    artifact_id: str = "model",
    wait_s: float = 3600,
    apart: bool = False,
    **fields: Any,
) -> Pending:
    """Start a claim in the background.

    ``apart`` gives it a connection of its own; cancelling ``scope`` then cuts that off.
    """
    pending = Pending(claim_request(artifact_id, wait_s, **fields))

    async def run() -> None:
        with pending.scope:
            try:
                if apart:
                    async with another_client(store) as stub:
                        pending.answer = await stub.RequestReplicaTransport(pending.request)
                else:
                    call = store.runtime.RequestReplicaTransport
                    pending.answer = await call(pending.request)
            except purerpc.RpcFailedError as error:
                pending.error = error
        pending.ended.set()

    nursery.start_soon(run)
    return pending


async def until(store: Serving, condition: Callable[[], object]) -> None:
    """Return once a condition holds; between two looks a reader thread has its turn."""
    while not condition():
        await store.components.store.read(lambda tx: None)


async def parked(store: Serving, count: int) -> None:
    """Return once so many claims wait and each of them has had its first try."""

    def settled() -> bool:
        waiters = store.components.queues.waiters
        return len(waiters) == count and all(w.attempted and not w.deciding for w in waiters)

    await until(store, settled)


@asynccontextmanager
async def another_client(store: Serving) -> AsyncIterator[Any]:
    """Open a connection of its own; cancelling the block cuts it off."""
    async with connection("127.0.0.1", store.info.listen_port) as channel:
        yield services.ClusterRuntimeServiceStub(channel)


async def client_with_deadlines(store: Serving, nursery: trio.Nursery) -> StoreClient:
    client = StoreClient("127.0.0.1", store.info.listen_port)
    await nursery.start(client.run)
    return client


async def source(store: Serving, slots: int = 1, artifact_id: str = "model", **fields: Any) -> Any:
    """Register a worker and a replica of an artifact; return the worker's answer."""
    worker = await store.register("d1")
    await store.replica(worker.worker_id, artifact_id, max_concurrency=slots, **fields)
    return worker


def nothing_waits(store: Serving) -> bool:
    """Tell whether the queues are as empty as at the start."""
    queues = store.components.queues
    return not (
        queues.waiters
        or queues.waiters._by_requester
        or queues.waiters._by_group
        or queues.waiters.queues()
    )


def all_received(store: Serving) -> bool:
    """Tell whether everybody has got what was granted, and the rest was given back."""
    return nothing_waits(store) and not len(store.components.handouts)
