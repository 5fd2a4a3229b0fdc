"""How long a start takes: of the command line, of a verb that asks a server, and of the server.

    uv run bench/start.py

All of it is set beside ``python -c pass``, which takes turns with it. A start of the server counts
from its process's first instant to the first answer to a write, RegisterWorker; between two starts
the server is killed (``kill -9``).

Python compiles every module whose byte code it does not find on file. So each start is measured
with the byte code of all modules on file, as pip leaves them; of all but the program's own, as uv
leaves a checkout where byte code may not be written; and of the standard library alone.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import attrs
from calls import RUNTIME
from measuring import LISTENING, PACKAGE, ROOT, global_store, spread, table, write_config
from populating import populated
from wire_load import call_once

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

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
    path = folder / f"{name}.json"
    write_config(path, folder / f"{name}.db", 0)
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
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(LISTENING, line):
                    call_once(int(found.group(1)), RUNTIME + "RegisterWorker", request)
                    return time.perf_counter() - began
            raise RuntimeError("the server did not start:\n" + "".join(lines))
        finally:
            server.kill()
            server.communicate()

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
    """Return the environments by whose byte code is on file; everything has run in the first."""
    every, dependencies, standard = (folder / name for name in ("every", "dependencies", "python"))
    inherited = {name: value for name, value in os.environ.items() if name[:8] != "PYTHONDO"}
    writing = inherited | {"PYTHONPYCACHEPREFIX": str(every)}
    for start in measured:
        start.once(writing)
    # The folders are laid out like the modules themselves.
    shutil.copytree(every, dependencies)
    shutil.rmtree(dependencies / PACKAGE.relative_to("/"))
    shutil.copytree(dependencies, standard)
    for installed in list(standard.rglob("site-packages")):
        shutil.rmtree(installed)
    fixed = inherited | {"PYTHONDONTWRITEBYTECODE": "1"}
    return {
        "all": fixed | {"PYTHONPYCACHEPREFIX": str(every)},
        "all but the program's": fixed | {"PYTHONPYCACHEPREFIX": str(dependencies)},
        "Python's own": fixed | {"PYTHONPYCACHEPREFIX": str(standard)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, global_store() as server:
        measured = starts(Path(name), server.port, arguments.replicas)
        by_code = environments(Path(name), measured)
        for _ in range(arguments.rounds):
            for code, environment in by_code.items():
                for start in measured:
                    seconds[code, start.name].append(start.once(environment))
    rows = []
    for code in by_code:
        # Of the least times, since other programs only ever add to a start.
        unit = min(seconds[code, _PASS])
        for start in measured:
            took = seconds[code, start.name]
            multiple = f"{min(took) / unit:.1f}"
            target = f"≤ {start.target}" if start.target else "–"
            rows.append([code, start.name, spread([1000 * s for s in took]), multiple, target])
    table(["byte code on file", "start", "ms", f"÷ `{_PASS}`", "target"], rows)


if __name__ == "__main__":
    main()
