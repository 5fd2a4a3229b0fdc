"""How long a busy database thread may keep the interpreter lock from the event loop.

    uv run bench/switching.py

Servers that differ in ``sys.setswitchinterval`` alone take turns under the same load:
registrations keep the writer busy, a list of a thousand replicas after another keeps a reader
busy, and on a connection of their own come heartbeats, one at a time, which need no disk. Their
latency is what the interval is for; the other columns show what it costs.
"""

import argparse
import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import attrs
from calls import RUNTIME, heartbeats, register_worker, registrations
from measuring import Child, global_store, table
from wire_load import Load, LoadClient, Slot, Wanted

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

INTERVALS_MS = (5.0, 1.0, 0.5, 0.2, 0.05)

# Enough to share commits, and few enough that handling them does not hide what is looked for.
WRITERS = 4
LISTED = 1000

# The server sets an interval of its own when it starts; this one is to hold instead.
_PROGRAM = """
import sys
sys.setswitchinterval({seconds})
sys.setswitchinterval = lambda _: None
from globalstore.cli import main
sys.exit(main())
"""


@attrs.frozen
class Figure:
    """What one slice gave."""

    load: Load
    cpu_us: float

    def heartbeat_ms(self, quantile: float) -> float:
        """Return a quantile of the latency of heartbeats, in ms."""
        return self.load.quantile_us("WorkerHeartbeat", quantile) / 1000

    def per_second(self, method: str) -> float:
        """Return how many calls of a method were answered in a second."""
        return len(self.load.latencies[method]) / self.load.seconds


def lists() -> Slot:
    """List the first replicas, a large page of them."""
    request = wire.ListReplicasV2Request(pagination=common.Pagination(page_size=LISTED))
    while True:
        yield Wanted(RUNTIME + "ListReplicasV2", request.SerializeToString())


def client(server: Child) -> LoadClient:
    """Return the load: a connection each that writes, that lists, and that sends heartbeats."""
    worker_id, numbers = register_worker(server.port, 0), itertools.count()
    writes = [registrations(worker_id, numbers) for _ in range(WRITERS)]
    return LoadClient(server.port, [writes, [lists()], [heartbeats(worker_id)]])


def slice_of(server: Child, load: LoadClient, seconds: float) -> Figure:
    """Load one server for a while."""
    before = server.cpu_s_by_thread()
    result = load.run(seconds)
    after = server.cpu_s_by_thread()
    return Figure(result, (sum(after.values()) - sum(before.values())) * 1e6 / result.calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--intervals-ms", type=float, nargs="+", default=INTERVALS_MS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each slice")
    arguments = parser.parse_args()
    figures: dict[float, list[Figure]] = {interval: [] for interval in arguments.intervals_ms}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        servers = {
            interval: stack.enter_context(
                global_store(
                    folder / f"{interval}.db",
                    program=("-c", _PROGRAM.format(seconds=interval / 1000)),
                )
            )
            for interval in arguments.intervals_ms
        }
        loads = {
            interval: stack.enter_context(client(server)) for interval, server in servers.items()
        }
        for round_number in range(arguments.rounds + 1):
            for interval, server in servers.items():
                figure = slice_of(server, loads[interval], arguments.seconds)
                if round_number:  # the first round warms up
                    figures[interval].append(figure)
    table(
        [
            "switch interval, ms",
            "heartbeat ms p50",
            "p99",
            "heartbeats/s",
            "RegisterReplica/s",
            "lists/s",
            "CPU µs per call",
        ],
        [
            [
                f"{interval:g}",
                f"{median(each.heartbeat_ms(0.5) for each in found):.1f}",
                f"{median(each.heartbeat_ms(0.99) for each in found):.1f}",
                f"{median(each.per_second('WorkerHeartbeat') for each in found):,.0f}",
                f"{median(each.per_second('RegisterReplica') for each in found):,.0f}",
                f"{median(each.per_second('ListReplicasV2') for each in found):,.0f}",
                f"{median(each.cpu_us for each in found):,.0f}",
            ]
            for interval, found in figures.items()
        ],
    )


if __name__ == "__main__":
    main()
