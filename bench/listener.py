"""CPU of the listener per call, beside grpcio's two servers in the same run.

Each server runs in a process of its own and answers the same HealthCheck; one client drives them
in turn, in short slices, so that whatever else the machine does falls on all of them alike.
"""

import argparse
import asyncio
import statistics
import sys
from contextlib import ExitStack
from functools import partial

import grpc.aio
from measuring import ROOT, Child, child, driven, global_store, spread, table

METHOD = "/tensorcast.global_store.v1.ClusterAdminService/HealthCheck"
SERVERS = ("globalstore", "grpcio threads", "grpcio asyncio")
IN_FLIGHT = (1, 128)


async def slice_of(server: Child, in_flight: int, seconds: float) -> tuple[float, float]:
    """Drive a server for a while; return CPU microseconds per call and calls per second."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary(METHOD)
        await call(b"")
        return await driven(server, partial(call, b""), in_flight, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each slice")
    arguments = parser.parse_args()
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        peers = [
            stack.enter_context(
                child([sys.executable, str(ROOT / "bench/peers.py"), kind], r"port=(\d+)")
            )
            for kind in ("threads", "asyncio")
        ]
        servers = dict(zip(SERVERS, [stack.enter_context(global_store()), *peers], strict=True))
        for _ in range(arguments.rounds):
            for in_flight in IN_FLIGHT:
                for name, server in servers.items():
                    figure = asyncio.run(slice_of(server, in_flight, arguments.seconds))
                    figures.setdefault((name, in_flight), []).append(figure)
    rows = []
    for in_flight in IN_FLIGHT:
        ours = statistics.median(cpu for cpu, _ in figures["globalstore", in_flight])
        for name in SERVERS:
            cpu, rate = zip(*figures[name, in_flight], strict=True)
            ratio = ours / statistics.median(cpu)
            rows.append([in_flight, name, spread(cpu), spread(rate), f"{ratio:.2f}"])
    table(["in flight", "server", "CPU µs per call", "calls/s", "ours ÷ this"], rows)


if __name__ == "__main__":
    main()
