"""How long a busy writer thread may keep the interpreter lock from the event loop.

    uv run bench/switching.py

Servers that differ in ``sys.setswitchinterval`` alone take turns under the same load: registrations
that keep the writer busy, and, on a connection of their own, a few heartbeats, which need no disk.
Their latency is what the interval is for; the registrations and the CPU show what it costs.
"""

import argparse
import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import attrs
from calls import heartbeats, register_worker, registrations
from measuring import Child, global_store, table
from wire_load import Load, LoadClient

INTERVALS_MS = (5.0, 1.0, 0.5, 0.2, 0.05)
WRITERS = 60
HEARTBEATS = 4

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
        return self.load.quantile_us("WorkerHeartbeat", quantile) / 1000

    @property
    def registrations(self) -> float:
        return len(self.load.latencies["RegisterReplica"]) / self.load.seconds


def client(server: Child) -> LoadClient:
    """Return the load: one connection that writes, one that sends heartbeats."""
    worker_id, numbers = register_worker(server.port, 0), itertools.count()
    return LoadClient(
        server.port,
        [
            [registrations(worker_id, numbers) for _ in range(WRITERS)],
            [heartbeats(worker_id) for _ in range(HEARTBEATS)],
        ],
    )


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
            "RegisterReplica/s",
            "CPU µs per call",
        ],
        [
            [
                f"{interval:g}",
                f"{median(each.heartbeat_ms(0.5) for each in found):.1f}",
                f"{median(each.heartbeat_ms(0.99) for each in found):.1f}",
                f"{median(each.registrations for each in found):,.0f}",
                f"{median(each.cpu_us for each in found):,.0f}",
            ]
            for interval, found in figures.items()
        ],
    )


if __name__ == "__main__":
    main()
