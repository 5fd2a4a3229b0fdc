"""Claims of a source, by the number of replicas in the database.

First the two operations alone, timed inside the writer; then claim and complete through gRPC.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from pathlib import Path

import grpc.aio
import trio
from measuring import Child, global_store, table
from populating import HOT, HOT_REPLICAS, WORKERS, open_store, populated

from globalstore.db import Transaction
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry import replicas, transports
from globalstore.registry.transports import Granted, Outcome, Request

SERVICE = "/tensorcast.global_store.v1.ClusterRuntimeService/"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _claim_and_complete(tx: Transaction, number: int) -> tuple[float, float]:
    """Claim and complete once; return the microseconds of each."""
    request = Request(
        HOT, "", "q", "q.example", 0, "", f"r{number}", b"f", None, replicas.fresh_id()
    )
    routable = frozenset(range(1, WORKERS + 1))
    began = time.perf_counter()
    (answer,) = transports.grant(tx, [request], [], routable, frozenset(), number)
    claimed = time.perf_counter()
    assert isinstance(answer, Granted)
    transports.complete(tx, answer.transport_id, Outcome.SUCCESS, "", number)
    return (claimed - began) * 1e6, (time.perf_counter() - claimed) * 1e6


async def operations(path: Path, count: int) -> list[tuple[float, float]]:
    async with open_store(path) as store:
        return [await store.write(_claim_and_complete, number) for number in range(count)]


async def through_grpc(server: Child, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Return claim-and-complete pairs per second, and the milliseconds of each claim."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:

        def call(method: str) -> grpc.aio.UnaryUnaryMultiCallable:
            return channel.unary_unary(
                SERVICE + method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(wire, f"{method}Response").FromString,
            )

        await _take_over(call)
        claim, complete = call("RequestReplicaTransport"), call("CompleteReplicaTransport")
        waits: list[float] = []
        ends = time.monotonic() + seconds

        async def loop() -> None:
            while time.monotonic() < ends:
                asked = wire.RequestReplicaTransportRequest(
                    artifact_id=HOT,
                    source_node_id="q",
                    source_address="q.example",
                    request_id=str(uuid.uuid4()),
                )
                asked.wait_timeout_dur.FromSeconds(10)
                began = time.monotonic()
                granted = await claim(asked)
                waits.append((time.monotonic() - began) * 1000)
                await complete(
                    wire.CompleteReplicaTransportRequest(
                        transport_id=granted.transport_id,
                        outcome=wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS,
                    )
                )

        await asyncio.gather(*(loop() for _ in range(clients)))
        return len(waits) / seconds, waits


async def _take_over(call: "type[grpc.aio.UnaryUnaryMultiCallable]") -> None:
    """Be the workers of the hot artifact: after the restart they have to confirm it."""
    for number in range(HOT_REPLICAS):
        answer = await call("RegisterWorker")(
            wire.RegisterWorkerRequest(
                daemon_id=f"d{number}",
                node_id=f"n{number}",
                node_address=f"10.0.0.{number}",
                grpc_port=50052,
                p2p_port=50053,
            )
        )
        await call("RegisterReplica")(
            wire.RegisterReplicaRequest(
                artifact_id=HOT,
                worker_id=answer.worker_id,
                max_concurrency=4,
                mem_info=common.MemoryInfo(
                    node_id=f"n{number}",
                    node_address=f"10.0.0.{number}",
                    node_port=50_000,
                    memory_size=100,
                    memory_type=common.MEMORY_TYPE_RAM,
                    remote_memory_keys=["k" * 40],
                    buffer_sizes=[100],
                ),
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--operations", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    rows = []
    smallest: float | None = None
    for count in arguments.replicas:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            path = Path(folder) / "store.db"
            populated(path, count)
            timed = trio.run(operations, path, arguments.operations)
            claims, ends = (list(column) for column in zip(*timed, strict=True))
            with global_store(path) as server:
                rate, waits = asyncio.run(through_grpc(server, 16, arguments.seconds))
        median = percentile(claims, 0.5)
        smallest = smallest or median
        rows.append(
            [
                f"{count:,}",
                f"{median:.0f} / {percentile(claims, 0.99):.0f}",
                f"{median / smallest:.2f}",
                f"{percentile(ends, 0.5):.0f} / {percentile(ends, 0.99):.0f}",
                f"{rate:,.0f}",
                f"{percentile(waits, 0.5):.1f} / {percentile(waits, 0.99):.1f}",
            ]
        )
    table(
        [
            "replicas",
            "claim µs p50 / p99",
            "÷ first row",
            "complete µs p50 / p99",
            "claim+complete/s, 16 clients",
            "claim ms p50 / p99",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
