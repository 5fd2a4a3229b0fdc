"""Reports of chunks, small and large: how long they take, and what others notice.

    uv run bench/chunks.py

One worker reports states of chunks again and again, while a second process calls the server some
300 times a second. ``dense``: chunks that follow each other, as those of a model do. ``scattered``:
each chunk is of another artifact, the worst there can be. The last row asks for what was reported.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from measuring import Child, global_store, table
from others import NO_LIMIT, PAUSES, TIMEOUT_S, others, registration, stub

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

_NODE = "large"


def _report(worker_id: str, count: int, round_: int, *, dense: bool) -> Any:
    state = wire.CHUNK_STATE_HOT if round_ % 2 else wire.CHUNK_STATE_COLD
    updates = [
        wire.ChunkStateUpdate(
            artifact_id="model" if dense else f"mi2:{number:064}:{number:064}",
            chunk_idx=number,
            state=state,
        )
        for number in range(count)
    ]
    return wire.BatchUpdateChunkStatesRequest(worker_id=worker_id, node_id=_NODE, updates=updates)


def _row(
    server: Child, what: str, count: int, rounds: int, call: Callable[[Any, int], object]
) -> list[object]:
    """Make a call some times while others call; return the row of the table."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=NO_LIMIT) as channel:
        seconds = []
        with others(server.port) as figures:
            cpu_s = server.cpu_s()
            for round_ in range(rounds):
                # A worker that is not live has no chunks.
                stub(channel, "RegisterWorker")(registration(_NODE))
                began = time.perf_counter()
                call(channel, round_)
                seconds.append(time.perf_counter() - began)
            cpu_s = (server.cpu_s() - cpu_s) / rounds
    return [what, f"{count:,}", f"{1000 * median(seconds):.0f}", f"{1000 * cpu_s:.0f}", *figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, global_store(Path(folder) / "s.db") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            worker_id = stub(channel, "RegisterWorker")(registration(_NODE)).worker_id
        for dense in (True, False):
            for count in arguments.chunks:
                reports = [
                    _report(worker_id, count, round_, dense=dense)
                    for round_ in range(arguments.rounds)
                ]

                def send(channel: Any, round_: int, reports: list[Any] = reports) -> None:
                    stub(channel, "BatchUpdateChunkStates")(reports[round_], timeout=TIMEOUT_S)

                what = "report, dense" if dense else "report, scattered"
                rows.append(_row(server, what, count, arguments.rounds, send))
        question = wire.QueryChunkLocationsRequest(artifact_id="model")

        def ask(channel: Any, round_: int) -> None:
            answer = stub(channel, "QueryChunkLocations")(question, timeout=TIMEOUT_S)
            assert len(answer.locations) == max(arguments.chunks), round_

        rows.append(_row(server, "query, dense", max(arguments.chunks), arguments.rounds, ask))
    names = [f"{name} p99, ms" for name in PAUSES]
    table(["call", "chunks", "ms", "server CPU, ms", *names], rows)


if __name__ == "__main__":
    main()
