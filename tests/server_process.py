"""The server as a process of its own, and a stock gRPC client to talk to it."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import grpc

from globalstore.cli import main
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.server.process_signals import TAKEN

RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
ADMIN = "/tensorcast.global_store.v1.ClusterAdminService/"

# Longest that a start or an end may take on a machine that does other things too.
PATIENCE_S = 60


class Process:
    """A running ``python -m globalstore``; its log is read as it comes."""

    def __init__(
        self,
        config: Path,
        environment: dict[str, str] | None = None,
        files_max: tuple[int, int] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        """Start it; ``files_max`` is its soft and hard limit of open files."""

        def limit_files() -> None:
            if files_max is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, files_max)

        self.child = subprocess.Popen(
            [sys.executable, "-m", "globalstore", f"--config={config}", *flags],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | (environment or {}),
            preexec_fn=limit_files,  # noqa: PLW1509  it makes one system call
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log; fails when the process ends without it."""

        def found() -> re.Match[str] | None:
            return next((m for line in self.lines if (m := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, PATIENCE_S)
            match = found()
        assert match is not None, f"no line matches {pattern!r}:\n" + "\n".join(self.lines)
        return match

    @property
    def port(self) -> int:
        return int(self.wait_for(r"globalstore.server listening .*port=(\d+)").group(1))

    @property
    def http_port(self) -> int:
        return int(self.wait_for(r"http listening .*port=(\d+)").group(1))

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.child.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.child.stderr is not None
        self.child.stderr.close()
        return code

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()


def write_config(folder: Path, **sections: Any) -> Path:
    server = {"listen": {"port": 0}, "metrics_port": 0} | sections.pop("server", {})
    path = folder / "config.json"
    path.write_text(json.dumps({"server": server} | sections))
    return path


@contextmanager
def started(
    config: Path,
    environment: dict[str, str] | None = None,
    files_max: tuple[int, int] | None = None,
) -> Iterator[Process]:
    """Start a server that is ready; killed at the end if it still runs."""
    process = Process(config, environment, files_max)
    try:
        process.wait_for("globalstore.server ready")
        yield process
    finally:
        if process.child.poll() is None:
            process.signal(signal.SIGKILL)
            process.wait()


@contextmanager
def running(folder: Path, **sections: Any) -> Iterator[Process]:
    """Start a server with a configuration that it writes into ``folder``."""
    with started(write_config(folder, **sections)) as process:
        yield process


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process; it must end before it would serve."""
    out, error = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in TAKEN}
    with redirect_stdout(out), redirect_stderr(error):
        try:
            code = main(list(words))
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), error.getvalue())


def refusal(config: Path) -> tuple[int, str]:
    """Start a server that refuses; return its exit code and last line."""
    process = Process(config)
    code = process.wait()
    assert not any("Traceback" in line for line in process.lines), process.lines
    return code, process.lines[-1]


class Client:
    """A grpcio channel with the store's calls as attributes of ``runtime`` and ``admin``."""

    def __init__(self, port: int, credentials: grpc.ChannelCredentials | None = None) -> None:
        target = f"localhost:{port}" if credentials else f"127.0.0.1:{port}"
        self.channel = (
            grpc.secure_channel(target, credentials)
            if credentials
            else grpc.insecure_channel(target)
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.channel.close()

    def _stub(self, service: str, method: str) -> Callable[..., Any]:
        response = getattr(wire, f"{method}Response")
        return self.channel.unary_unary(
            service + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def runtime(self, method: str, request: Any, **options: Any) -> Any:
        return self._stub(RUNTIME, method)(request, **({"timeout": PATIENCE_S} | options))

    def admin(self, method: str, request: Any, **options: Any) -> Any:
        return self._stub(ADMIN, method)(request, **({"timeout": PATIENCE_S} | options))
