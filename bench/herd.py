"""How long a cluster takes to be whole again after its store was killed.

Daemons in one other process register with a real server and publish replicas. The server is killed
(``kill -9``) and started again on the same file and port at once; nobody tells the daemons.

Then once more with the daemons' process stopped meanwhile: they meet a server that was just
started, and the server is measured instead of the daemons' pauses between attempts to connect.
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import trio
from measuring import free_port, global_store, table

from globalstore.daemon import Daemon, Held, Identity, RpcFailedError, StoreClient, Unreachable


@attrs.define(eq=False)
class _Tally:
    """What the daemons' calls met since the server was killed."""

    seconds: list[float] = attrs.field(factory=list)
    codes: Counter[str] = attrs.field(factory=Counter)


class _CountingClient(StoreClient):
    """Notes what became of each attempt that a server answered, and of those that none did."""

    tally: _Tally

    async def _attempt(self, service: str, method: str, request: Any, timeout_s: float) -> Any:
        if not self.connection:
            # The wait for a server is no part of a call's time.
            await self.newer_than(self.connections)
        began = time.perf_counter()
        try:
            answer = await super()._attempt(service, method, request, timeout_s)
        except RpcFailedError as error:
            self.tally.codes[error.status.status_code.name] += 1
            raise
        except Unreachable:
            self.tally.codes["no answer"] += 1
            raise
        self.tally.codes["OK"] += 1
        self.tally.seconds.append(time.perf_counter() - began)
        return answer


async def _herd(port: int, daemons: int, replicas: int, pipe: Connection) -> None:
    herd: list[tuple[_CountingClient, Daemon]] = []
    async with trio.open_nursery() as nursery:
        for number in range(daemons):
            client = _CountingClient("127.0.0.1", port)
            client.tally = _Tally()
            name = f"d{number}"
            daemon = Daemon(client, Identity(name, f"n-{name}", f"{name}.herd", 50052, 50053))
            nursery.start_soon(client.run)
            nursery.start_soon(daemon.run)
            herd.append((client, daemon))
        async with trio.open_nursery() as filling:
            for _, daemon in herd:
                filling.start_soon(_fill, daemon, replicas)
        pipe.send("filled")
        await trio.to_thread.run_sync(pipe.recv)  # about to be killed
        tally = _Tally()
        before = [client.connections for client, _ in herd]
        for client, _ in herd:
            client.tally = tally
        pipe.send("counting")
        connected: list[float] = []
        whole: list[float] = []
        async with trio.open_nursery() as returning:
            for (client, daemon), connection in zip(herd, before, strict=True):
                returning.start_soon(_back, client, daemon, connection, connected, whole)
        pipe.send((max(connected), sorted(whole), tally.seconds, dict(tally.codes)))
        nursery.cancel_scope.cancel()


async def _fill(daemon: Daemon, replicas: int) -> None:
    await daemon.until_in_step()
    for number in range(replicas):
        await daemon.publish(Held(f"model-{number}", 100, "k" * 40))


async def _back(
    client: _CountingClient,
    daemon: Daemon,
    connection: int,
    connected: list[float],
    whole: list[float],
) -> None:
    await client.newer_than(connection)
    connected.append(time.time())
    await daemon.until_in_step()
    whole.append(time.time())


def _run_herd(port: int, daemons: int, replicas: int, pipe: Connection) -> None:
    trio.run(_herd, port, daemons, replicas, pipe)


def measure(daemons: int, replicas: int, down_s: float, *, unaware: bool) -> list[object]:
    """Return a row of the table; ``unaware`` daemons are stopped while there is no server."""
    port = free_port()
    here, there = multiprocessing.get_context("spawn").Pipe()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        file = Path(name) / "store.db"
        herd = multiprocessing.get_context("spawn").Process(
            target=_run_herd, args=(port, daemons, replicas, there)
        )
        try:
            with global_store(file, port=port) as server:
                herd.start()
                here.recv()
                here.send("now")
                here.recv()
                assert herd.pid is not None
                if unaware:
                    os.kill(herd.pid, signal.SIGSTOP)
                server.process.kill()
                server.process.wait()
            killed = time.time()
            time.sleep(down_s)
            with global_store(file, port=port) as server:
                started = time.time()
                os.kill(herd.pid, signal.SIGCONT)
                connected, whole, seconds, codes = here.recv()
                cpu_s = server.cpu_s()
        finally:
            if herd.pid is not None:
                herd.kill()
                herd.join()
    seconds.sort()
    return [
        "unaware" if unaware else "aware",
        daemons,
        daemons * replicas,
        f"{started - killed:.1f}",
        f"{statistics.median(whole) - started:.1f}",
        f"{connected - started:.1f}",
        f"{whole[-1] - started:.1f}",
        f"{seconds[len(seconds) // 2] * 1e3:.0f} / {seconds[len(seconds) * 99 // 100] * 1e3:.0f}",
        f"{cpu_s:.1f}",
        ", ".join(f"{code} {count:,}" for code, count in sorted(codes.items())),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daemons", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=50, help="of each daemon")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--down-s", type=float, default=0.0, help="wait before starting again")
    arguments = parser.parse_args()
    rows = [
        measure(arguments.daemons, arguments.replicas, arguments.down_s, unaware=unaware)
        for unaware in (False, True)
        for _ in range(arguments.rounds)
    ]
    table(
        [
            "of the outage",
            "daemons",
            "replicas",
            "killed to ready, s",
            "ready to half back, s",
            "to last connection, s",
            "to all back, s",
            "call ms p50 / p99",
            "server CPU s",
            "attempts",
        ],
        rows,
    )
    if any("INTERNAL" in str(row[-1]) for row in rows):
        sys.exit("a call met INTERNAL")


if __name__ == "__main__":
    main()
