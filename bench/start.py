"""How long a start takes: of the command line, of a verb that asks a server, and of the server.

    uv run bench/start.py

All of it is set beside ``python -c pass``, which takes turns with it. A start of the server counts
from its process's first instant to the first answer to a write, RegisterWorker; between two starts
the server is killed (``kill -9``).

Each start is measured twice: with the modules' byte code on file, as pip leaves it or the first
start makes it, and with that of the standard library alone, as in an image whose files nobody may
write and nobody compiled.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
from calls import RUNTIME
from measuring import ROOT, free_port, global_store, spread, table, write_config
from populating import populated
from wire_load import call_once

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# A server that takes longer than this to answer is not coming up.
_PATIENCE_S = 60.0

# Pause between two attempts to connect: a small part of the shortest start.
_ATTEMPT_S = 0.001

_PASS = "python -c pass"

# Targets, as multiples of ``python -c pass``.
_TARGETS = {"globalstore --help": 6, "server": 40}


@attrs.frozen
class _Start:
    """Something that is started, and how: ``once`` returns the seconds that it took."""

    name: str
    once: Callable[[dict[str, str]], float]

    @property
    def target(self) -> int | None:
        """The multiple of ``python -c pass`` that it should not exceed, if there is one."""
        return next((most for name, most in _TARGETS.items() if self.name.startswith(name)), None)


def run_to_end(*arguments: str) -> Callable[[dict[str, str]], float]:
    """Return what times Python from its start to its end."""

    def once(environment: dict[str, str]) -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - began

    return once


def run_to_first_write(folder: Path, name: str) -> Callable[[dict[str, str]], float]:
    """Return what times a server from its start to its first answered write, and kills it."""
    path, port = folder / f"{name}.json", free_port()
    write_config(path, folder / f"{name}.db", port)
    request = wire.RegisterWorkerRequest(
        daemon_id="start", node_id="start", node_address="start.bench", grpc_port=1, p2p_port=2
    ).SerializeToString()

    def once(environment: dict[str, str]) -> float:
        began = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-m", "globalstore", f"--config={path}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while True:
                try:
                    call_once(port, RUNTIME + "RegisterWorker", request)
                    return time.perf_counter() - began
                except ConnectionRefusedError:
                    late = time.perf_counter() - began > _PATIENCE_S
                    if late or server.poll() is not None:
                        raise RuntimeError("the server did not start") from None
                    time.sleep(_ATTEMPT_S)
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()

    return once


def starts(folder: Path, port: int, replicas: int) -> list[_Start]:
    """Return everything to be measured; ``port`` is that of a running server to be asked."""
    populated(folder / "full.db", replicas)
    return [
        _Start(_PASS, run_to_end("-c", "pass")),
        _Start("globalstore --help", run_to_end("-m", "globalstore", "--help")),
        _Start(
            "globalstore key list",
            run_to_end("-m", "globalstore", "key", "list", f"--server=127.0.0.1:{port}"),
        ),
        _Start("server, no replicas", run_to_first_write(folder, "empty")),
        _Start(f"server, {replicas:,} replicas", run_to_first_write(folder, "full")),
    ]


def environments(folder: Path, measured: list[_Start]) -> dict[str, dict[str, str]]:
    """Return the environments by how much byte code is on file; everything ran in them once."""
    every, standard = folder / "every", folder / "standard"
    plain = {name: value for name, value in os.environ.items() if name[:8] != "PYTHONDO"}
    with_every = plain | {"PYTHONPYCACHEPREFIX": str(every)}
    for start in measured:
        start.once(with_every)
    shutil.copytree(every, standard)
    for ours in (*standard.rglob("site-packages"), standard / ROOT.relative_to("/")):
        shutil.rmtree(ours, ignore_errors=True)
    with_standard = plain | {
        "PYTHONPYCACHEPREFIX": str(standard),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {"all": with_every, "standard library": with_standard}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, global_store() as server:
        measured = starts(Path(name), server.port, arguments.replicas)
        by_code = environments(Path(name), measured)
        for _ in range(arguments.rounds):
            for code, environment in by_code.items():
                for start in measured:
                    seconds.setdefault((code, start.name), []).append(start.once(environment))
    rows = []
    for code in by_code:
        unit = statistics.median(seconds[code, _PASS])
        for start in measured:
            took = seconds[code, start.name]
            multiple = f"{statistics.median(took) / unit:.1f}"
            target = f"≤ {start.target}" if start.target else "–"
            rows.append([start.name, code, spread([1000 * s for s in took]), multiple, target])
    table(["start", "byte code on file", "ms", f"÷ `{_PASS}`", "target"], rows)


if __name__ == "__main__":
    main()
