"""Claims of a source: by the size of the database, by the sources of the artifact, and in line.

    uv run bench/claims.py

By the number of replicas in the database: first the two operations alone, timed inside the writer;
then claim and complete through gRPC. The databases take turns, so that whatever else the machine
does falls on all of them alike.

By the number of replicas of the one artifact that is claimed, the same in each mode. And how long
it takes from a completion to the answer of the next of many who wait.
"""

import argparse
import itertools
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import attrs
import claim_choice
import trio
from calls import RUNTIME, claims, heartbeats, register_worker, replica
from measuring import Child, global_store, table
from populating import HOT, HOT_PORT, HOT_REPLICAS, WORKERS, open_store, populated
from wire_load import Load, LoadClient, call_each, call_once

from globalstore.caches.sources import KnownSources
from globalstore.db import Transaction
from globalstore.registry.new_ids import new_id
from globalstore.registry.runtime import transport_ends, transports
from globalstore.registry.runtime.sources import Shortlist
from globalstore.registry.runtime.transports import Granted, Round, TransportRequest
from globalstore.rules.scoring import Mode

CLAIM = "RequestReplicaTransport"
CLIENTS = 16

# Transports that one source serves at a time: enough that no claim has to wait.
_MAX_CONCURRENCY = 4


def percentile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` of the values are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _claim_and_complete(
    tx: Transaction, number: int, known: Shortlist | None
) -> tuple[float, float]:
    """Claim and complete once; return the microseconds of each."""
    request = TransportRequest(HOT, "", "q", "q.example", 0, "", f"r{number}", b"f", None, new_id())
    routable = frozenset(range(1, WORKERS + 1))
    began = time.perf_counter()
    round_ = Round(ranked=[request], newcomers=[request], routable=routable, shortlist=known)
    (answer,) = transports.grant(tx, round_, number).values()
    claimed = time.perf_counter()
    assert isinstance(answer, Granted)
    transport_ends.complete(tx, answer.transport_id, transport_ends.Outcome.SUCCESS, "", number)
    return (claimed - began) * 1e6, (time.perf_counter() - claimed) * 1e6


async def operations(
    path: Path, count: int, numbers: "itertools.count[int]"
) -> list[tuple[float, float]]:
    """Open a database, warm it up, and claim and complete ``count`` times."""
    known, took = KnownSources(), []
    async with open_store(path, partial(claim_choice.follow, known)) as store:
        for _ in range(count + count // 10):
            shortlist = known.shortlist((HOT, ""))
            took.append(await store.write(_claim_and_complete, next(numbers), shortlist))
    return took[count // 10 :]


@attrs.frozen
class Sources:
    """The workers of the hot artifact on one server, and the clients that claim from them."""

    port: int
    workers: list[str]
    client: LoadClient

    def run(self, seconds: float) -> Load:
        """Let every worker give a sign of life, then claim and complete for a while."""
        beats = [next(heartbeats(worker_id)) for worker_id in self.workers]
        call_each(self.port, beats[0].path, [beat.request for beat in beats])
        return self.client.run(seconds)


def taken_over(server: Child, stack: ExitStack) -> Sources:
    """Be the workers of the hot artifact, which after a restart have to confirm what they hold."""
    workers = [register_worker(server.port, number) for number in range(HOT_REPLICAS)]
    for number, worker_id in enumerate(workers):
        request = replica(worker_id, number, HOT, _MAX_CONCURRENCY, HOT_PORT)
        call_once(server.port, RUNTIME + "RegisterReplica", request)
    slots = [claims(HOT) for _ in range(CLIENTS)]
    return Sources(server.port, workers, stack.enter_context(LoadClient(server.port, [slots])))


def quantile_ms(loads: list[Load], quantile: float) -> float:
    """Return the median over loads of a quantile of the latency of claims, in ms."""
    return median(load.quantile_us(CLAIM, quantile) for load in loads) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 8, 128, 1000, 5000])
    parser.add_argument("--waiters", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--operations", type=int, default=1000, help="of each round")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each slice through gRPC")
    arguments = parser.parse_args()
    timed: dict[int, list[tuple[float, float]]] = {count: [] for count in arguments.replicas}
    loads: dict[int, list[Load]] = {count: [] for count in arguments.replicas}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        paths = {count: folder / f"{count}.db" for count in arguments.replicas}
        for count, path in paths.items():
            populated(path, count)
        numbers = itertools.count()
        for _ in range(arguments.rounds):
            for count, path in paths.items():
                timed[count] += trio.run(operations, path, arguments.operations, numbers)
        sources = {
            count: taken_over(stack.enter_context(global_store(path)), stack)
            for count, path in paths.items()
        }
        for round_number in range(arguments.rounds + 1):
            for count, hot in sources.items():
                load = hot.run(arguments.seconds)
                if round_number:  # the first round warms up
                    loads[count].append(load)
    _show(timed, loads)
    _by_sources(arguments)
    _in_line(arguments)


def _by_sources(arguments: argparse.Namespace) -> None:
    rows = []
    for sources, mode in itertools.product(arguments.sources, Mode):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            claimed, completed = claim_choice.run_operations(
                Path(folder) / "operations.db", mode, sources, arguments.operations
            )
            load = claim_choice.through_the_server(
                Path(folder) / "server.db", mode, sources, arguments.seconds
            )
        rows.append(
            [
                f"{sources:,}",
                mode.value,
                _median_and_tail(claimed),
                _median_and_tail(completed),
                f"{len(load.latencies[CLAIM]) / load.seconds:,.0f}",
            ]
        )
    print()
    per_second = f"claim+complete/s, {CLIENTS} in flight"
    head = ["sources", "mode", "claim µs p50 / p99", "complete µs p50 / p99", per_second]
    table(head, rows)


def _in_line(arguments: argparse.Namespace) -> None:
    rows = []
    for waiters in arguments.waiters:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            line = claim_choice.line_up(Path(folder) / "server.db", waiters, 2 * arguments.seconds)
        times = (line.handed_over, line.completed, line.heartbeats)
        rows.append([f"{waiters:,}", len(line.handed_over), *map(_ms, times)])
    print()
    table(
        [
            "waiters",
            "hand-overs",
            "completion to next grant, ms p50 / p99",
            "completion, ms p50 / p99",
            "heartbeat, ms p50 / p99",
        ],
        rows,
    )


def _ms(seconds: list[float]) -> str:
    if not seconds:
        return "none in time"
    return f"{percentile(seconds, 0.5) * 1000:.1f} / {percentile(seconds, 0.99) * 1000:.1f}"


def _median_and_tail(values: list[float]) -> str:
    return f"{percentile(values, 0.5):.0f} / {percentile(values, 0.99):.0f}"


def _show(timed: dict[int, list[tuple[float, float]]], loads: dict[int, list[Load]]) -> None:
    columns = {
        count: [list(times) for times in zip(*of, strict=True)] for count, of in timed.items()
    }
    smallest = min(columns)
    alone = percentile(columns[smallest][0], 0.5)
    through = quantile_ms(loads[smallest], 0.5)
    rows = []
    for count, (claimed, completed) in columns.items():
        of = loads[count]
        rows.append(
            [
                f"{count:,}",
                _median_and_tail(claimed),
                f"{percentile(claimed, 0.5) / alone:.2f}",
                _median_and_tail(completed),
                f"{median(len(load.latencies[CLAIM]) / load.seconds for load in of):,.0f}",
                f"{quantile_ms(of, 0.5):.1f} / {quantile_ms(of, 0.99):.1f}",
                f"{quantile_ms(of, 0.5) / through:.2f}",
            ]
        )
    table(
        [
            "replicas",
            "claim µs p50 / p99",
            "p50 ÷ smallest",
            "complete µs p50 / p99",
            f"claim+complete/s, {CLIENTS} in flight",
            "claim ms p50 / p99",
            "p50 ÷ smallest",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
