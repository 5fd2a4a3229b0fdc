"""What the benchmarks share: servers in processes of their own, their CPU time, and tables."""

import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "globalstore"

# What our server writes to stderr once its port is bound.
LISTENING = r"server listening .*port=(\d+)"


class Child:
    """A server process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used, in user and kernel mode."""
        # The process's own clock, by the number that clock_getcpuclockid(3) gives: it counts
        # nanoseconds, /proc hundredths of a second.
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def cpu_s_by_thread(self) -> dict[str, float]:
        """Return the CPU seconds of each thread so far; the main thread is ``event loop``."""
        used = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            name = "event loop" if task.name == str(self.process.pid) else task.name
            used[name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return used

    def resident_bytes(self) -> int:
        """Return how much memory of the process is in RAM."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found is not None
        return int(found.group(1)) * 1024


@contextmanager
def child(
    command: Sequence[str], pattern: str, environment: dict[str, str] | None = None
) -> Iterator[Child]:
    """Run a server; ``pattern`` finds its port in what it writes to stderr."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    assert process.stderr is not None
    port = None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if port is None and (found := re.search(pattern, line)):
            port = int(found.group(1))
        if port is not None and ("ready" in line or "globalstore" not in line):
            break
    if port is None:
        raise RuntimeError("the server did not start:\n" + "".join(lines))
    try:
        yield Child(process, port)
    finally:
        process.terminate()
        process.communicate()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(
    path: Path, db_file: Path | None, port: int, sections: dict[str, Any] | None = None
) -> None:
    """Write a configuration for a database, a port of gRPC (0: any) and any port of HTTP."""
    config: dict[str, Any] = {
        "server": {"listen": {"port": port}, "metrics_port": 0},
        "database": {"db_file": str(db_file) if db_file else None},
    } | (sections or {})
    path.write_text(json.dumps(config))


@contextmanager
def global_store(
    db_file: Path | None = None,
    environment: dict[str, str] | None = None,
    program: Sequence[str] = ("-m", "globalstore"),
    port: int = 0,
    sections: dict[str, Any] | None = None,
) -> Iterator[Child]:
    """Run the server as it is shipped, but on free ports, or a given one for gRPC.

    ``program`` is what Python is told to run, ``sections`` are further ones of the configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        write_config(path, db_file, port, sections)
        command = [sys.executable, *program, f"--config={path}"]
        with child(command, LISTENING, environment) as server:
            yield server


async def driven(
    server: Child, call: Callable[[], Awaitable[object]], in_flight: int, seconds: float
) -> tuple[float, float]:
    """Make calls for a while, so many at a time; return CPU µs per call and calls per second."""
    calls = 0
    began, cpu = time.monotonic(), server.cpu_s()
    ends = began + seconds

    async def loop() -> None:
        nonlocal calls
        while time.monotonic() < ends:
            await call()
            calls += 1

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    return (server.cpu_s() - cpu) * 1e6 / calls, calls / (time.monotonic() - began)


def spread(values: Sequence[float]) -> str:
    """Return median and range of some figures."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
