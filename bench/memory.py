"""Memory and file size with many replicas, each with one 40-byte memory key; and the start."""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import grpc.aio
from measuring import Child, global_store, table
from populating import populated

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SERVICE = "/tensorcast.global_store.v1.ClusterRuntimeService/"


async def read_a_little(server: Child) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        counts = wire.BatchGetReplicaCountsRequest(artifact_ids=["hot", "model-0", "model-1"])
        await channel.unary_unary(SERVICE + "BatchGetReplicaCounts")(counts.SerializeToString())
        for _ in range(10):
            await channel.unary_unary(SERVICE + "ListReplicasV2")(b"")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_000_000)
    count = parser.parse_args().replicas
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "store.db"
        populated(path, count)
        size = path.stat().st_size
        began = time.monotonic()
        with global_store(path) as server:
            started = time.monotonic() - began
            asyncio.run(read_a_little(server))
            resident = server.resident_bytes()
    table(
        ["replicas", "resident MB", "file bytes per replica", "start s"],
        [[f"{count:,}", f"{resident / 1e6:.0f}", f"{size / count:.0f}", f"{started:.1f}"]],
    )


if __name__ == "__main__":
    main()
