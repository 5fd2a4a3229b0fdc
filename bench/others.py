"""Other clients, who call a server all the while that something large is done with it."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc.aio

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SERVICE = "/tensorcast.global_store.v1.ClusterRuntimeService/"

# Large messages are what is measured.
NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

TIMEOUT_S = 60.0

# Pauses between the calls of the others, in seconds.
PAUSES = {"WorkerHeartbeat": 0.005, "RegisterReplica": 0.01, "BatchGetReplicaCounts": 0.01}


def stub(channel: Any, method: str) -> Any:
    """Return a callable for a method of the service."""
    return channel.unary_unary(
        SERVICE + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(wire, f"{method}Response").FromString,
    )


def registration(name: str) -> wire.RegisterWorkerRequest:
    """Return the request by which a worker of this name registers."""
    return wire.RegisterWorkerRequest(
        daemon_id=name, node_id=name, node_address=f"{name}.bench", grpc_port=1, p2p_port=2
    )


def memory_info(name: str, **more: Any) -> common.MemoryInfo:
    """Return the description of a replica that lies on this node."""
    return common.MemoryInfo(
        node_id=name,
        node_address=f"{name}.bench",
        node_port=50053,
        memory_size=100,
        memory_type=common.MEMORY_TYPE_RAM,
        **more,
    )


async def _call_all_the_while(port: int, pipe: Connection) -> dict[str, list[float]]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await stub(channel, "RegisterWorker")(registration("other"))
        worker_id = answer.worker_id
        requests = {
            "WorkerHeartbeat": wire.WorkerHeartbeatRequest(
                worker_id=worker_id, state_version=1, accepting_new_requests=True
            ),
            "RegisterReplica": wire.RegisterReplicaRequest(
                artifact_id="other",
                worker_id=worker_id,
                max_concurrency=1,
                mem_info=memory_info("other"),
            ),
            "BatchGetReplicaCounts": wire.BatchGetReplicaCountsRequest(artifact_ids=["other"]),
        }
        seconds: dict[str, list[float]] = {method: [] for method in requests}
        pipe.send("calling")

        async def repeat(method: str) -> None:
            call = stub(channel, method)
            while not pipe.poll():
                began = time.perf_counter()
                await call(requests[method], timeout=TIMEOUT_S)
                seconds[method].append(time.perf_counter() - began)
                await asyncio.sleep(PAUSES[method])

        await asyncio.gather(*map(repeat, requests))
    return seconds


def _run(port: int, pipe: Connection) -> None:
    pipe.send(asyncio.run(_call_all_the_while(port, pipe)))


@contextmanager
def others(port: int) -> Iterator[list[str]]:
    """Let others call during the block; the list gets the p99 of each of their calls, in ms."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_run, args=(port, theirs))
    process.start()
    figures: list[str] = []
    try:
        ours.recv()
        yield figures
        ours.send("enough")
        for times in ours.recv().values():
            p99 = sorted(times)[int(len(times) * 0.99)] if times else 0.0
            figures.append(f"{1000 * p99:.0f}" if times else "–")
    finally:
        process.join()
