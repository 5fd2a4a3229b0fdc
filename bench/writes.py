"""Durable RegisterReplica calls per second, by the number of clients that call at once.

With ``--fsync-ms`` every fsync of the server takes that much longer (a library put before the
system's own; needs a C compiler), which makes a fast disk behave like an ordinary one.
"""

import argparse
import asyncio
import itertools
import statistics
import subprocess
import tempfile
from pathlib import Path

import grpc.aio
from measuring import Child, driven, global_store, spread, table

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SERVICE = "/tensorcast.global_store.v1.ClusterRuntimeService/"
CLIENTS = (1, 16, 64)

_SLOW_FSYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static int slow(const char *name, int fd) {
    usleep(atoi(getenv("SLOW_FSYNC_US")));
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return slow("fsync", fd); }
int fdatasync(int fd) { return slow("fdatasync", fd); }
"""


def slow_fsync(folder: Path, milliseconds: float) -> dict[str, str]:
    """Return the environment in which every fsync takes longer."""
    if milliseconds == 0:
        return {}
    source, library = folder / "slow.c", folder / "slow.so"
    source.write_text(_SLOW_FSYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOW_FSYNC_US": str(round(milliseconds * 1000))}


def request(worker_id: str, number: int) -> bytes:
    """Return an encoded RegisterReplica of the artifact with this number."""
    return wire.RegisterReplicaRequest(
        artifact_id=f"model-{number}",
        worker_id=worker_id,
        max_concurrency=4,
        mem_info=common.MemoryInfo(
            node_id="n1",
            node_address="10.0.0.1",
            node_port=50053,
            memory_size=100,
            memory_type=common.MEMORY_TYPE_RAM,
            remote_memory_keys=["k" * 40],
            buffer_sizes=[100],
        ),
    ).SerializeToString()


async def slice_of(
    server: Child, clients: int, seconds: float, numbers: "itertools.count[int]"
) -> tuple[float, float]:
    """Register for a while; return CPU microseconds per call and calls per second."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        worker = wire.RegisterWorkerRequest(
            daemon_id="d1", node_id="n1", node_address="10.0.0.1", grpc_port=50052, p2p_port=50053
        )
        answer = await channel.unary_unary(SERVICE + "RegisterWorker")(worker.SerializeToString())
        worker_id = wire.RegisterWorkerResponse.FromString(answer).worker_id
        register = channel.unary_unary(SERVICE + "RegisterReplica")

        async def call() -> None:
            await register(request(worker_id, next(numbers)))

        return await driven(server, call, clients, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fsync-ms", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each slice")
    arguments = parser.parse_args()
    figures: dict[int, list[tuple[float, float]]] = {clients: [] for clients in CLIENTS}
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        environment = slow_fsync(folder, arguments.fsync_ms)
        with global_store(folder / "store.db", environment) as server:
            for _ in range(arguments.rounds):
                for clients in CLIENTS:
                    figure = asyncio.run(slice_of(server, clients, arguments.seconds, numbers))
                    figures[clients].append(figure)
    alone = statistics.median(rate for _, rate in figures[1])
    rows = []
    for clients in CLIENTS:
        cpu, rate = zip(*figures[clients], strict=True)
        times = f"{statistics.median(rate) / alone:.1f} ×"
        rows.append([clients, spread(rate), times, spread(cpu)])
    table(["clients", "RegisterReplica/s", "one at a time", "CPU µs per call"], rows)


if __name__ == "__main__":
    main()
