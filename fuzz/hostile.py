"""Attacks on a real server, and what an honest client notices of them.

    uv run fuzz/hostile.py --seconds=5              # every attack, as in CI
    uv run fuzz/hostile.py --attack=tiny_entries --seconds=3600 --rate=20

An honest client on grpcio calls HealthCheck and reads a list all the time. Each attack of
``hostile_attacks`` goes on for so many seconds at so many MB/s from an address of its own; before,
during and after it are printed: the honest client's p50, p99 and slowest call, and the server's
memory and processor. Exit code 1 tells that an attack made a call of the honest client fail or
wait, made the server grow, or was still felt some seconds later; see the bounds below.
"""

import argparse
import hashlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import attrs
import grpc

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import hostile_attacks  # noqa: E402
from server_process import Client, Process, running  # noqa: E402

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common  # noqa: E402
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire  # noqa: E402

# What an honest client may notice while somebody attacks at 5 MB/s, and how much the server may
# grow. Attackers with several addresses may have four times the time, and each the memory.
SLOWEST_MS, P99_MS, GROWTH_MB = 250.0, 100.0, 96.0

# So long after an attack it must be forgotten: calls as fast as before, the processor at rest.
CALM_S, CALM_LOAD = 10.0, 0.3

TOKEN = "a-token-of-the-test"

# The honest client's pause between two calls.
PAUSE_S = 0.005


@attrs.frozen
class Latency:
    """How long calls took, in milliseconds."""

    p50: float
    p99: float
    slowest: float
    failed: int

    @classmethod
    def of(cls, lines: list[str]) -> "Latency":
        """Read the lines of the honest client."""
        took = sorted(float(line) for line in lines if not line.startswith("failed"))
        failed = len(lines) - len(took)
        if not took:
            return cls(0, 0, 0, failed)
        at = statistics.quantiles(took, n=100, method="inclusive") if len(took) > 1 else took * 99
        return cls(at[49], at[98], took[-1], failed)

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"p50 {self.p50:.1f} p99 {self.p99:.1f} slowest {self.slowest:.0f} ms{failed}"


@attrs.frozen
class Footprint:
    """What the server takes at one moment."""

    resident_mb: float
    processor_s: float
    at_s: float

    @classmethod
    def of(cls, server: Process) -> "Footprint":
        """Ask the operating system, which answers whatever the server does."""
        stat = Path(f"/proc/{server.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = Path(f"/proc/{server.child.pid}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        ticks = int(stat[11]) + int(stat[12])
        resident_mb = int(resident[1]) / 1024 if resident else 0.0
        return cls(resident_mb, ticks / os.sysconf("SC_CLK_TCK"), time.monotonic())

    def load_until(self, later: "Footprint") -> float:
        """Return what part of a processor was used."""
        return (later.processor_s - self.processor_s) / (later.at_s - self.at_s)


class Honest:
    """The honest client, a process of its own, and what it has measured since it was asked last."""

    def __init__(self, port: int, folder: Path) -> None:
        self._path = folder / "honest"
        self._read = 0
        with self._path.open("w") as out:
            self._child = subprocess.Popen(
                [sys.executable, __file__, f"--honest={port}"], stdin=subprocess.PIPE, stdout=out
            )

    def measured(self) -> Latency:
        """Return what was measured since the last time."""
        with self._path.open() as lines:
            lines.seek(self._read)
            text = lines.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole)
        return Latency.of(whole.split("\n")[:-1])

    def stop(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()


def be_honest(port: int) -> None:
    """Call all the time and print how long each call took, in milliseconds."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    service = "/tensorcast.global_store.v1.Cluster"
    token = [("authorization", f"Bearer {TOKEN}")]
    calls = [
        (f"{service}AdminService/HealthCheck", wire.HealthCheckRequest(), None),
        (f"{service}RuntimeService/ListActiveWorkers", wire.ListActiveWorkersRequest(), token),
    ]
    stubs = [
        (
            channel.unary_unary(path, request_serializer=type(request).SerializeToString),
            request,
            own,
        )
        for path, request, own in calls
    ]
    while True:
        for stub, request, own in stubs:
            began = time.perf_counter()
            try:
                stub(request, timeout=10, metadata=own)
            except grpc.RpcError as error:
                print("failed", error.code().name, flush=True)
            else:
                print(f"{(time.perf_counter() - began) * 1000:.2f}", flush=True)
            time.sleep(PAUSE_S)


def offer(server: Process) -> None:
    """Let there be an artifact with an index of 4 MB, and a replica of it with one slot.

    Whoever asks for that second waits.
    """
    token = {"metadata": [("authorization", f"Bearer {TOKEN}")]}
    place = {"node_id": "n", "node_address": "10.0.0.9"}
    with Client(server.port) as client:
        registered = client.runtime(
            "RegisterWorker",
            wire.RegisterWorkerRequest(daemon_id="d", grpc_port=50052, p2p_port=50053, **place),
            **token,
        )
        held = common.MemoryInfo(
            node_port=50053,
            memory_size=4096,
            memory_type=common.MEMORY_TYPE_RAM,
            remote_memory_keys=["key"],
            buffer_sizes=[4096],
            **place,
        )
        request = wire.RegisterReplicaRequest(
            artifact_id="model", worker_id=registered.worker_id, max_concurrency=1, mem_info=held
        )
        client.runtime("RegisterReplica", request, **token)
        index = b"{" + b",".join(b'"%d":"%b"' % (n, b"x" * 10_000) for n in range(400)) + b"}"
        store_index = client.channel.unary_unary(
            hostile_attacks.CATALOG + "UpsertArtifactMetadata",
            wire.UpsertArtifactMetadataRequest.SerializeToString,
        )
        store_index(hostile_attacks.index_of("model", index), timeout=30, **token)


@contextmanager
def attacking(
    name: str, server: Process, rate_mb: float, told: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Attack while the block runs; what was sent, in bytes, is told again and again."""
    child = subprocess.Popen(
        [
            sys.executable, __file__, f"--attacker={name}", f"--rate={rate_mb}",
            f"--ports={server.port},{server.http_port}",
        ],
        stdout=told,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def held_mb(server: Process) -> float:
    """Return what the server holds for clients."""
    url = f"http://127.0.0.1:{server.http_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r"^tc_grpc_server_held_bytes (\S+)$", text, re.MULTILINE)
    return float(found[1]) / 1e6 if found else 0.0


def sent_mb(told: IO[bytes]) -> float:
    """Return what an attacker has sent so far."""
    lines = os.pread(told.fileno(), os.fstat(told.fileno()).st_size, 0).split(b"\n")
    return int(lines[-2]) / 1e6 if len(lines) > 1 else 0.0


def measured(
    name: str, server: Process, honest: Honest, seconds: float, rate_mb: float
) -> list[str]:
    """Attack, print what was seen, and return what is not as it has to be."""
    honest.measured()
    time.sleep(1)
    before, calm = Footprint.of(server), honest.measured()
    largest = before.resident_mb
    with tempfile.TemporaryFile() as told, attacking(name, server, rate_mb, told) as child:
        while not sent_mb(told) and child.poll() is None:
            time.sleep(0.02)
        honest.measured()
        began = Footprint.of(server)
        held = 0.0
        for number in itertools.count():
            if time.monotonic() > began.at_s + seconds:
                break
            time.sleep(0.05)
            largest = max(largest, Footprint.of(server).resident_mb)
            if number % 10 == 9:
                held = max(held, held_mb(server))
        during, end = honest.measured(), Footprint.of(server)
        ended, sent = child.poll(), sent_mb(told)
    load = began.load_until(end)
    last = end
    while True:
        honest.measured()
        rest = last
        time.sleep(1)
        after, last = honest.measured(), Footprint.of(server)
        rest_load = rest.load_until(last)
        is_calm = after.p99 <= max(20.0, 2 * calm.p99) and rest_load < CALM_LOAD
        if is_calm or last.at_s > end.at_s + CALM_S:
            break
    print(
        f"{name}: {sent:.1f} MB sent, {held:.1f} MB held; before {calm}; during {during},"
        f" processor {load:.0%},"
        f" memory {before.resident_mb:.0f} -> {largest:.0f} MB; after {after},"
        f" {last.at_s - end.at_s:.0f} s later, processor {rest_load:.0%},"
        f" memory {last.resident_mb:.0f} MB",
        flush=True,
    )
    wrong = []
    if held < hostile_attacks.HOLDS_MB[name]:
        wrong.append(f"the attack does not do what it means: {held:.1f} MB were held")
    if ended is not None:
        wrong.append(f"the attack itself ended with {ended}")
    if during.failed or after.failed:
        wrong.append(f"{during.failed + after.failed} calls of the honest client failed")
    addresses = hostile_attacks.ADDRESSES[name]
    patience = 4 if addresses > 1 else 1
    if during.slowest > patience * SLOWEST_MS or during.p99 > patience * P99_MS:
        wrong.append(f"the honest client had to wait: {during}")
    if largest - before.resident_mb > GROWTH_MB * addresses:
        wrong.append(f"the server grew by {largest - before.resident_mb:.0f} MB")
    if not is_calm:
        wrong.append(f"it was not calm {CALM_S:.0f} s later: {after}, processor {rest_load:.0%}")
    return [f"{name}: {each}" for each in wrong]


def attacked(name: str, folder: Path, seconds: float, rate_mb: float) -> list[str]:
    """Attack a new server; return what is not as it has to be."""
    tokens = folder / "tokens"
    tokens.write_text(f"full {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    tokens.chmod(0o600)
    with running(
        folder,
        server={"listen": {"port": 0}, "metrics_port": 0, "auth": {"token_file": str(tokens)}},
        database={"db_file": str(folder / "store.db")},
    ) as server:
        offer(server)
        honest = Honest(server.port, folder)
        try:
            wrong = measured(name, server, honest, seconds, rate_mb)
        finally:
            honest.stop()
        lines = [line for line in server.lines if "Traceback" in line or " ERROR " in line]
        return wrong + [f"{name}: the server's log: {line}" for line in lines[:5]]


def main() -> int:
    """Run as the driver, or as one of the clients that it starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(hostile_attacks.ATTACKS)
    parser.add_argument("--seconds", type=float, default=5, help="of each attack")
    parser.add_argument("--rate", type=float, default=5, help="MB a second")
    parser.add_argument("--attack", action="append", choices=names, help="this one only")
    parser.add_argument("--attacker", help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    parser.add_argument("--honest", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.honest:
        be_honest(arguments.honest)
    if arguments.attacker:
        port, http_port = map(int, arguments.ports.split(","))
        hostile_attacks.run(arguments.attacker, port, http_port, TOKEN, arguments.rate * 1e6)
    wrong = []
    for each in arguments.attack or hostile_attacks.ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            wrong += attacked(each, Path(folder), arguments.seconds, arguments.rate)
    for each in wrong:
        print("WRONG:", each)
    print("as it has to be" if not wrong else f"{len(wrong)} things are not as they have to be")
    return bool(wrong)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(main())
