"""Whether the published mix of a busy cluster is served, and how fast.

16 workers: a heartbeat every 0.1 s, a snapshot of 50 replicas every 0.5 s, a refresh of a replica
every 0.5 s (in the place of chunk syncs); 32 clients that resolve a key 20 times a second. Together
864 calls a second, each sent at its time whether or not those before it were answered, by one
client of grpcio in a process of its own.
"""

import argparse
import asyncio
import multiprocessing
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import grpc
import grpc.aio
from measuring import global_store, table

from globalstore.daemon import Held, Identity, Inventory
from globalstore.daemon.cursor import Cursor
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

_RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
_CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"
_OF_CATALOG = frozenset({"UpsertArtifactMetadata", "UpsertKeyMapping", "ResolveKeyMapping"})
_WORKERS = 16
_REPLICAS = 50
_CLIENTS = 32

# Calls a second of each worker, or client.
_HEARTBEATS = 10
_SNAPSHOTS = 2
_REFRESHES = 2
_RESOLVES = 20

_TIMEOUT_S = 10.0

_INDEX = b'{"a":[0,100,[100],[1],"U8",0]}'


@attrs.define(eq=False)
class _Figures:
    """What came of the calls, by method."""

    offered: Counter[str] = attrs.field(factory=Counter)
    late_s: list[float] = attrs.field(factory=list)
    seconds: dict[str, list[float]] = attrs.field(factory=lambda: defaultdict(list))
    codes: Counter[str] = attrs.field(factory=Counter)


class _Worker:
    """A daemon's side of its calls."""

    def __init__(self, number: int) -> None:
        name = f"d{number}"
        self.identity = Identity(name, f"n-{name}", f"{name}.bench", 50052, 50053)
        self.inventory = Inventory(self.identity)
        self.cursor = Cursor()
        self.worker_id = ""
        self.held = [
            self.inventory.put(Held(f"model-{each}", 100, "k" * 40)) for each in range(_REPLICAS)
        ]

    def registration(self) -> wire.RegisterWorkerRequest:
        return wire.RegisterWorkerRequest(
            daemon_id=self.identity.daemon_id,
            node_id=self.identity.node_id,
            node_address=self.identity.node_address,
            grpc_port=self.identity.grpc_port,
            p2p_port=self.identity.p2p_port,
        )

    def heartbeat(self) -> wire.WorkerHeartbeatRequest:
        return wire.WorkerHeartbeatRequest(
            worker_id=self.worker_id,
            state_version=self.cursor.state_version,
            accepting_new_requests=True,
            state_checksum=self.inventory.checksum(),
        )

    def snapshot(self) -> wire.ReconcileWorkerStateRequest:
        return self.cursor.request(
            self.worker_id, self.identity.daemon_id, self.inventory.snapshot()
        )

    def refresh(self) -> wire.RegisterReplicaRequest:
        held = random.choice(self.held)
        return wire.RegisterReplicaRequest(
            artifact_id=held.artifact_id,
            worker_id=self.worker_id,
            max_concurrency=held.max_concurrency,
            mem_info=self.inventory.memory_info(held),
        )


class _Load:
    """The calls of one run."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._stubs: dict[tuple[int, str], Any] = {}
        self.figures = _Figures()

    async def call(self, channel: int, method: str, request: Any, due: float | None = None) -> Any:
        """Make a call; its time counts from when it was ``due``, if that is given."""
        stub = self._stubs.get((channel, method))
        if stub is None:
            stub = self._stubs[channel, method] = self._channels[channel].unary_unary(
                (_CATALOG if method in _OF_CATALOG else _RUNTIME) + method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(wire, f"{method}Response").FromString,
            )
        began = due or time.perf_counter()
        try:
            answer = await stub(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.figures.codes[f"{method} {error.code().name}"] += 1
            return None
        self.figures.seconds[method].append(time.perf_counter() - began)
        return answer

    async def repeat(
        self,
        rate: float,
        seconds: float,
        method: str,
        make: Callable[[], Any],
        channel: int,
    ) -> None:
        """Call so many times a second, at even distances from a random start."""
        offset = random.random() / rate

        began = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for number in range(round(seconds * rate)):
                due = began + offset + number / rate
                await asyncio.sleep(due - time.perf_counter())
                self.figures.late_s.append(time.perf_counter() - due)
                self.figures.offered[method] += 1
                calls.create_task(self.call(channel, method, make(), due))

    async def reconcile(self, worker: _Worker, number: int, rate: float, seconds: float) -> None:
        """Send snapshots; as their numbers go up one by one, each waits for the one before."""
        turn = asyncio.Lock()
        offset = random.random() / rate

        async def one(due: float) -> None:
            async with turn:
                answer = await self.call(number, "ReconcileWorkerState", worker.snapshot(), due)
                if answer is not None:
                    worker.cursor.answered(answer)
                    if answer.result_kind not in {
                        wire.RECONCILE_RESULT_KIND_APPLIED,
                        wire.RECONCILE_RESULT_KIND_NOOP,
                    }:
                        name = wire.ReconcileResultKind.Name(answer.result_kind)
                        self.figures.codes[f"ReconcileWorkerState {name}"] += 1

        began = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for each in range(round(seconds * rate)):
                due = began + offset + each / rate
                await asyncio.sleep(due - time.perf_counter())
                self.figures.offered["ReconcileWorkerState"] += 1
                calls.create_task(one(due))


async def _make_key(load: _Load, artifact_id: str) -> None:
    """Point a key at an artifact, after making that something to point at."""
    described = common.ArtifactDescriptor(
        artifact_id=artifact_id, index_multihash=multihash.of(_INDEX)
    )
    metadata = wire.UpsertArtifactMetadataRequest(descriptor=described, canonical_index_data=_INDEX)
    await load.call(0, "UpsertArtifactMetadata", metadata)
    key = wire.UpsertKeyMappingRequest(key=f"key of {artifact_id}", artifact_id=artifact_id)
    await load.call(0, "UpsertKeyMapping", key)


def _resolve() -> wire.ResolveKeyMappingRequest:
    return wire.ResolveKeyMappingRequest(key=f"key of model-{random.randrange(_REPLICAS)}")


async def _offer(port: int, times: float, seconds: float, pipe: Connection) -> _Figures:
    channels = [
        # A connection each, as daemons and clients have.
        grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        for _ in range(_WORKERS + _CLIENTS)
    ]
    load = _Load(channels)
    workers = [_Worker(number) for number in range(_WORKERS)]
    for number, worker in enumerate(workers):
        answer = await load.call(number, "RegisterWorker", worker.registration())
        worker.worker_id = answer.worker_id
        worker.cursor.registered(answer)
        worker.cursor.answered(await load.call(number, "ReconcileWorkerState", worker.snapshot()))
    for number in range(_REPLICAS):
        await _make_key(load, f"model-{number}")
    for number in range(_WORKERS, len(channels)):
        await load.call(number, "ResolveKeyMapping", _resolve())
    load.figures = _Figures()
    pipe.send("ready")
    async with asyncio.TaskGroup() as tasks:
        for number, worker in enumerate(workers):
            tasks.create_task(
                load.repeat(
                    _HEARTBEATS * times, seconds, "WorkerHeartbeat", worker.heartbeat, number
                )
            )
            tasks.create_task(load.reconcile(worker, number, _SNAPSHOTS * times, seconds))
            tasks.create_task(
                load.repeat(_REFRESHES * times, seconds, "RegisterReplica", worker.refresh, number)
            )
        for number in range(_CLIENTS):
            tasks.create_task(
                load.repeat(
                    _RESOLVES * times, seconds, "ResolveKeyMapping", _resolve, _WORKERS + number
                )
            )
    for channel in channels:
        await channel.close()
    return load.figures


def _run(port: int, times: float, seconds: float, pipe: Connection) -> None:
    figures = asyncio.run(_offer(port, times, seconds, pipe))
    pipe.send((figures.offered, dict(figures.seconds), figures.late_s, figures.codes))


def _quantiles(seconds: list[float]) -> str:
    values = sorted(seconds)
    return " / ".join(
        f"{values[len(values) * share // 100] * 1e3:.1f}" if values else "–"
        for share in (50, 95, 99)
    )


def measure(times: float, seconds: float) -> Iterator[list[object]]:
    """Yield the rows of one load: one per method, and their sum."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as name,
        global_store(Path(name) / "store.db") as server,
    ):
        client = context.Process(target=_run, args=(server.port, times, seconds, there))
        client.start()
        there.close()  # so that a client that fails is noticed
        try:
            here.recv()
            cpu_s, began = server.cpu_s(), time.perf_counter()
            offered, by_method, late_s, codes = here.recv()
            cpu_s = (server.cpu_s() - cpu_s) / (time.perf_counter() - began)
        finally:
            client.join()
    for method in sorted(offered):
        said = ", ".join(f"{c.split()[1]} {n}" for c, n in codes.items() if c.startswith(method))
        yield [
            f"{times:g} ×",
            method,
            f"{offered[method] / seconds:,.0f}",
            f"{len(by_method[method]) / offered[method]:.1%}" + (f" ({said})" if said else ""),
            _quantiles(by_method[method]),
            "–",
        ]
    yield [
        f"{times:g} ×",
        "all",
        f"{offered.total() / seconds:,.0f}",
        f"{sum(map(len, by_method.values())) / offered.total():.1%}",
        f"{_quantiles(late_s)} late",
        f"{cpu_s:.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    arguments = parser.parse_args()
    rows = [row for times in arguments.times for row in measure(times, arguments.seconds)]
    table(
        ["load", "method", "offered/s", "served", "ms p50 / p95 / p99", "server, share of a core"],
        rows,
    )


if __name__ == "__main__":
    main()
