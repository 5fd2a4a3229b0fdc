"""Where the CPU of each call goes: event loop, writer, readers.

    uv run bench/calls.py

The real server with a database file, on its default configuration; one connection keeps 64 calls in
flight. Methods take turns in short slices; the table has medians. The times are those of the
server's threads as the kernel counts them. A claim is always followed by its completion, so those
two are measured together, per pair. ``mixed`` is all of them at once, with the latency of the
heartbeats among them: what a call that needs no disk waits for when the others keep it busy.
"""

import argparse
import itertools
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from measuring import Child, global_store, table
from wire_load import Load, LoadClient, Slot, Wanted, call_once

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
ADMIN = "/tensorcast.global_store.v1.ClusterAdminService/"
IN_FLIGHT = 64

# Sources enough that no claim has to wait.
SOURCES = 8


def memory_info(number: int, node_port: int = 50053) -> common.MemoryInfo:
    """Return where worker ``number`` keeps a replica."""
    return common.MemoryInfo(
        node_id=f"n{number}",
        node_address=f"10.0.0.{number}",
        node_port=node_port,
        memory_size=100,
        memory_type=common.MEMORY_TYPE_RAM,
        remote_memory_keys=["k" * 40],
        buffer_sizes=[100],
    )


def register_worker(port: int, number: int) -> str:
    """Register worker ``number``; return its id."""
    request = wire.RegisterWorkerRequest(
        daemon_id=f"d{number}",
        node_id=f"n{number}",
        node_address=f"10.0.0.{number}",
        grpc_port=50052,
        p2p_port=50053,
    )
    answer = call_once(port, RUNTIME + "RegisterWorker", request.SerializeToString())
    worker_id: str = wire.RegisterWorkerResponse.FromString(answer).worker_id
    return worker_id


def replica(
    worker_id: str, number: int, artifact_id: str, max_concurrency: int, node_port: int = 50053
) -> bytes:
    """Return a request that registers a replica on worker ``number``."""
    return wire.RegisterReplicaRequest(
        artifact_id=artifact_id,
        worker_id=worker_id,
        max_concurrency=max_concurrency,
        mem_info=memory_info(number, node_port),
    ).SerializeToString()


def checks() -> Slot:
    """Ask whether the server is there."""
    while True:
        yield Wanted(ADMIN + "HealthCheck", b"")


def registrations(worker_id: str, numbers: Iterator[int]) -> Slot:
    """Register a new replica of a new artifact each time."""
    while True:
        request = replica(worker_id, 0, f"model-{next(numbers)}", 4)
        yield Wanted(RUNTIME + "RegisterReplica", request)


def heartbeats(worker_id: str) -> Slot:
    """Say that a worker lives."""
    request = wire.WorkerHeartbeatRequest(
        worker_id=worker_id, state_version=1, accepting_new_requests=True
    ).SerializeToString()
    while True:
        yield Wanted(RUNTIME + "WorkerHeartbeat", request)


def claims(artifact_id: str) -> Slot:
    """Claim a source and complete the transport at once."""
    request = wire.RequestReplicaTransportRequest(
        artifact_id=artifact_id, source_node_id="requester", source_address="requester.example"
    )
    request.wait_timeout_dur.FromSeconds(10)
    while True:
        request.request_id = str(uuid.uuid4())
        answer = yield Wanted(RUNTIME + "RequestReplicaTransport", request.SerializeToString())
        granted = wire.RequestReplicaTransportResponse.FromString(answer)
        if granted.status != wire.STATUS_OK:
            raise SystemExit(f"a claim was not granted: status {granted.status}")
        done = wire.CompleteReplicaTransportRequest(
            transport_id=granted.transport_id, outcome=wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS
        )
        yield Wanted(RUNTIME + "CompleteReplicaTransport", done.SerializeToString())


def counts(artifact_id: str) -> Slot:
    """Count the replicas of one artifact: the least that a read can be."""
    request = wire.BatchGetReplicaCountsRequest(artifact_ids=[artifact_id]).SerializeToString()
    while True:
        yield Wanted(RUNTIME + "BatchGetReplicaCounts", request)


def clients(server: Child, stack: ExitStack) -> dict[str, LoadClient]:
    """Set up workers and sources; return a client for each kind of load."""
    port, numbers = server.port, itertools.count()
    workers = [register_worker(port, number) for number in range(SOURCES)]
    for number, worker_id in enumerate(workers):
        request = replica(worker_id, number, "hot", IN_FLIGHT)
        call_once(port, RUNTIME + "RegisterReplica", request)
    kinds = {
        "HealthCheck": lambda _: checks(),
        "WorkerHeartbeat": lambda index: heartbeats(workers[index % SOURCES]),
        "BatchGetReplicaCounts": lambda _: counts("hot"),
        "RegisterReplica": lambda _: registrations(workers[0], numbers),
        "claim and complete": lambda _: claims("hot"),
    }
    slots = {name: [make(i) for i in range(IN_FLIGHT)] for name, make in kinds.items()}
    slots["mixed"] = [make(i) for i in range(IN_FLIGHT // 4) for make in list(kinds.values())[1:]]
    return {name: stack.enter_context(LoadClient(port, [of])) for name, of in slots.items()}


def slice_of(server: Child, client: LoadClient, seconds: float) -> tuple[dict[str, float], Load]:
    """Load a server for a while; return the CPU µs per call of each of its parts."""
    before = server.cpu_s_by_thread()
    load = client.run(seconds)
    spent = {
        name: (used - before.get(name, 0.0)) * 1e6 / load.calls
        for name, used in server.cpu_s_by_thread().items()
    }
    others = [used for name, used in spent.items() if name != "event loop"]
    # The writer is the one of the other threads that works most, except while only readers do.
    writer = max(others, default=0.0)
    return {
        "event loop": spent["event loop"],
        "busiest other thread": writer,
        "all": sum(spent.values()),
    }, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each slice")
    arguments = parser.parse_args()
    figures: dict[str, list[tuple[dict[str, float], Load]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        server = stack.enter_context(global_store(folder / "store.db"))
        loads = clients(server, stack)
        for round_number in range(arguments.rounds + 1):
            for name, client in loads.items():
                figure = slice_of(server, client, arguments.seconds)
                if round_number:  # the first round warms up
                    figures.setdefault(name, []).append(figure)
    rows = []
    for name, measured in figures.items():
        # Two calls make a pair.
        share = 2 if name == "claim and complete" else 1
        parts = [median(cpu[part] for cpu, _ in measured) * share for part in measured[0][0]]
        rate = median(load.calls / load.seconds for _, load in measured) / share
        rows.append([name, *(f"{part:,.0f}" for part in parts), f"{rate:,.0f}"])
    table(["load", "event loop", "busiest other thread", "all threads, µs", "per second"], rows)


if __name__ == "__main__":
    main()
