"""Clients of several kinds, directly and through proxies, that cancel, freeze and die.

    uv run fuzz/soak.py --seconds=900

A real server with few slots for many requesters. Clients on grpcio, on grpc-go (grpcurl) and on
Node's grpc-js ask for sources, cancel or run out of time at every moment, repeat or give up, and
complete what they were granted; nginx and HAProxy stand between some of them and the server, and
connections end by age. Meanwhile clients are stopped, continued and killed. In the end:

- no slot is taken by a request whose client was told that it had failed: only by a client that was
  killed, or that gave up behind a proxy, which keeps an answer that it was given; few ended by the
  time limit meanwhile;
- after the time limit of transports every slot is free, and all can be taken at once;
- the server has answered nothing INTERNAL, has logged no error, and holds no more memory, files or
  connections than it did.

What is not on the PATH is left out and named. ``NODE_PATH`` has to lead to @grpc/grpc-js and
@grpc/proto-loader. Exit code 1 tells that something of this was not so.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import grpc

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from server_process import Client, running  # noqa: E402

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common  # noqa: E402
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire  # noqa: E402

RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"

# Slots, and about five requesters for each.
WORKERS, CONCURRENCY = 4, 2
THREADS = 4

# Transports that nobody completes end after this long.
TTL_S = 20

# Of direct calls that fail, so many may keep their slot until the time limit.
FORGOTTEN_SHARE = 0.05

# A client that is stopped stays so for a time between these; the server drops it after three.
FROZEN_S = (1.0, 8.0)

# How long a client repeats a call at its end before it gives up.
FINAL_S = 30

_SUCCESS = wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS


# --- the client on grpcio, a process of its own -----------------------------------------------


class PythonClient:
    """Threads that ask for sources over one channel, in every mood."""

    def __init__(self, port: int, name: str, seed: int) -> None:
        self.name = name
        self.random = random.Random(seed)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.request = self._method("RequestReplicaTransport")
        self.complete = self._method("CompleteReplicaTransport")
        self.stopping = threading.Event()

    def _method(self, name: str) -> Any:
        return self.channel.unary_unary(
            RUNTIME + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(wire, f"{name}Response").FromString,
        )

    def run(self) -> None:
        """Ask until standard input ends."""
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self.stopping.set()
        for thread in threads:
            thread.join()
        print("stopped", flush=True)

    def _ask(self, lane: int) -> None:
        number = 0
        while not self.stopping.is_set():
            self._transfer(f"{self.name}-{lane}-{number}")
            number += 1

    def _transfer(self, request_id: str) -> None:
        message = wire.RequestReplicaTransportRequest(
            artifact_id="model",
            request_id=request_id,
            source_node_id=self.name,
            source_address="10.0.0.9",
        )
        message.wait_timeout_dur.FromSeconds(5)
        mood = self.random.random()
        timeout_s = self.random.uniform(0.001, 0.04) if 0.35 <= mood < 0.5 else 20
        asked = self.request.future(message, timeout=timeout_s)
        if mood < 0.35:
            time.sleep(self.random.uniform(0, 0.03))
            asked.cancel()
        try:
            answer = asked.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            code = error.code().name if isinstance(error, grpc.RpcError) else "CANCELLED"
            details = str(error.details() if isinstance(error, grpc.RpcError) else "").split()
            say("failed", request_id, code, "_".join(details))
            answer = None
            if self.random.random() < 0.5:
                answer = self._until_done(self.request, message)
        if answer is None:
            say("left", request_id)
        elif not answer.transport_id:
            say("missed", request_id)
        else:
            say("granted", request_id)
            time.sleep(self.random.uniform(0, 0.02))
            ended = self._until_done(
                self.complete,
                wire.CompleteReplicaTransportRequest(
                    transport_id=answer.transport_id, outcome=_SUCCESS
                ),
            )
            say("completed" if ended else "left", request_id)

    def _until_done(self, method: Any, message: Any) -> Any:
        until = time.monotonic() + FINAL_S
        while time.monotonic() < until:
            try:
                return method(message, timeout=5)
            except grpc.RpcError:
                time.sleep(0.05)
        return None


def say(*words: str) -> None:
    """Tell the driver what became of a request."""
    print(" ".join(words) + "\n", end="", flush=True)


# --- the driver -------------------------------------------------------------------------------


@attrs.define(eq=False)
class Ledger:
    """What clients said, by request id, and what was done to them."""

    counts: dict[str, Counter[str]] = attrs.Factory(lambda: defaultdict(Counter))
    failures: Counter[str] = attrs.Factory(Counter)
    left: set[str] = attrs.Factory(set)
    killed: set[str] = attrs.Factory(set)

    def note(self, name: str, line: str) -> None:
        """Take in a line of a client."""
        word, *rest = line.split(" ", 3)
        self.counts[name.partition(".")[0]][word] += 1
        if word == "failed":
            self.failures[f"{name.partition('.')[0]} {rest[1]}"] += 1
        elif word == "left":
            self.left.add(rest[0])


class ClientProcess:
    """A client in a process, started again whenever it was killed."""

    def __init__(self, name: str, command: Callable[[str], list[str]], ledger: Ledger) -> None:
        self.name = name
        self._command = command
        self._ledger = ledger
        self._lives = 0
        self.start()

    def start(self) -> None:
        """Start a process under a name of its own."""
        self._lives += 1
        self.life = f"{self.name}.{self._lives}"
        self.child = subprocess.Popen(
            self._command(self.life),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.child.stdout, self.life))
        self._reader.start()

    def _read(self, lines: Any, life: str) -> None:
        for line in lines:
            if line.endswith("\n"):  # the last of one that was killed may be half
                self._ledger.note(life, line.strip())

    def kill(self) -> None:
        """Kill it and start another."""
        self._ledger.killed.add(self.life)
        self.child.kill()
        self.child.wait()
        self._reader.join()
        self.start()

    def stop(self) -> None:
        """Let it end what it has begun."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait(2 * FINAL_S)
        self._reader.join()


def grpcurl_loop(name: str, port: int, seed: int, ledger: Ledger, stop: threading.Event) -> None:
    """Ask with one process a call, as a person does; some are killed."""
    chance = random.Random(seed)
    number = 0

    def call(method: str, message: dict[str, Any], killed_after_s: float | None = None) -> Any:
        child = subprocess.Popen(
            ["grpcurl", "-plaintext", "-max-time", "8", "-d", json.dumps(message),
             f"127.0.0.1:{port}", f"{RUNTIME[1:]}{method}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            out, _ = child.communicate(timeout=killed_after_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return None
        return json.loads(out) if child.returncode == 0 else None

    while not stop.is_set():
        request_id = f"{name}-0-{number}"
        number += 1
        after_s = chance.uniform(0.02, 0.2) if chance.random() < 0.3 else None
        answer = call(
            "RequestReplicaTransport",
            {"artifact_id": "model", "request_id": request_id, "source_node_id": name,
             "source_address": "10.0.0.9", "wait_timeout_dur": "5s"},
            after_s,
        )  # fmt: skip
        if answer is None:
            ledger.killed.add(request_id)
            ledger.note(name, f"failed {request_id} KILLED")
        elif "transport_id" not in answer:
            ledger.note(name, f"missed {request_id}")
        else:
            ledger.note(name, f"granted {request_id}")
            message = {"transport_id": answer["transport_id"],
                       "outcome": "TRANSPORT_COMPLETION_OUTCOME_SUCCESS"}  # fmt: skip
            until = time.monotonic() + FINAL_S
            while (ended := call("CompleteReplicaTransport", message)) is None:
                if time.monotonic() > until:
                    break
            ledger.note(name, f"{'left' if ended is None else 'completed'} {request_id}")


@contextmanager
def process(command: list[str], port: int) -> Iterator[None]:
    """Run a proxy until the end; it listens when this begins."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"{command[0]} does not listen")
        yield
    finally:
        child.terminate()
        child.wait(30)


def free_port() -> int:
    """Return a port of the loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def nginx(folder: Path, port: int, server: int) -> list[str]:
    """Write the configuration of nginx as a proxy of gRPC; return how it is started."""
    paths = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(f"""
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
{paths}
  upstream store {{
    server 127.0.0.1:{server}; keepalive 4; keepalive_requests 300; keepalive_time 7s;
  }}
  server {{
    listen 127.0.0.1:{port} http2; keepalive_requests 400; keepalive_time 5s;
    location / {{ grpc_pass grpc://store; grpc_read_timeout 60s; }}
  }}
}}
""")
    return ["nginx", "-e", str(folder / "nginx.log"), "-c", str(config)]


def haproxy(folder: Path, port: int, server: int) -> list[str]:
    """Write the configuration of HAProxy as a proxy of gRPC; return how it is started."""
    config = folder / "haproxy.cfg"
    config.write_text(f"""
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 3s
frontend in
  bind 127.0.0.1:{port} proto h2
  default_backend store
backend store
  server store 127.0.0.1:{server} proto h2 max-reuse 200
""")
    return ["haproxy", "-f", str(config)]


PROXIES: dict[str, Callable[[Path, int, int], list[str]]] = {"nginx": nginx, "haproxy": haproxy}


@attrs.frozen
class Footprint:
    """What the server holds, and what it has answered."""

    resident_mb: float
    files: float
    connections: float
    transports: float
    faults: float

    @classmethod
    def of(cls, http_port: int) -> "Footprint":
        """Scrape the server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()

        def value(name: str) -> float:
            found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
            return sum(map(float, found))

        return cls(
            value("process_resident_memory_bytes") / 1e6,
            value("process_open_fds"),
            value("tc_grpc_server_connections"),
            value("tc_active_transports"),
            value(r"tc_grpc_server_handled_total\{code=\"(?:INTERNAL|UNKNOWN)\".*\}"),
        )


def populate(port: int) -> list[str]:
    """Register the sources; return their workers."""
    workers = []
    with Client(port) as client:
        for number in range(WORKERS):
            node, address = f"n{number}", f"10.0.0.{number + 1}"
            registered = client.runtime(
                "RegisterWorker",
                wire.RegisterWorkerRequest(
                    daemon_id=node,
                    node_id=node,
                    node_address=address,
                    grpc_port=50052,
                    p2p_port=50053,
                ),
            )
            worker = registered.worker_id
            held = common.MemoryInfo(
                node_id=node,
                node_address=address,
                node_port=50053,
                memory_size=4096,
                memory_type=common.MEMORY_TYPE_RAM,
                remote_memory_keys=["key"],
                buffer_sizes=[4096],
            )
            client.runtime(
                "RegisterReplica",
                wire.RegisterReplicaRequest(
                    artifact_id="model",
                    worker_id=worker,
                    max_concurrency=CONCURRENCY,
                    mem_info=held,
                ),
            )
            workers.append(worker)
    return workers


def keep_alive(port: int, workers: list[str], stop: threading.Event) -> None:
    """Send the heartbeats of the sources."""
    with Client(port) as client:
        while not stop.wait(1.0):
            for worker in workers:
                client.runtime(
                    "WorkerHeartbeat",
                    wire.WorkerHeartbeatRequest(
                        worker_id=worker, state_version=1, accepting_new_requests=True
                    ),
                )


def harm(clients: list[ClientProcess], chance: random.Random, until: float) -> Counter[str]:
    """Stop, continue and kill clients until then; return how often."""
    done: Counter[str] = Counter()
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, chance.uniform(0.3, 1.5)))
        client = chance.choice(clients)
        if chance.random() < 0.6:
            client.child.send_signal(signal.SIGSTOP)
            time.sleep(min(chance.uniform(*FROZEN_S), max(0.0, until - time.monotonic())))
            client.child.send_signal(signal.SIGCONT)
            done["frozen"] += 1
        else:
            client.kill()
            done["killed"] += 1
    return done


def soak(seconds: float, seed: int, folder: Path) -> list[str]:
    """Run it; return what was not as it has to be."""
    chance, ledger, stop = random.Random(seed), Ledger(), threading.Event()
    config = {
        "server": {
            "grpc": {
                "keepalive_time": "2s", "keepalive_timeout": "1s", "max_connection_age": "6s",
            }
        },
        "database": {"db_file": str(folder / "store.db")},
        "worker_policy": {"transport_ttl": f"{TTL_S}s", "cleanup_interval": "1s"},
    }  # fmt: skip
    with ExitStack() as stack:
        server = stack.enter_context(running(folder, **config))
        ports = {"direct": server.port}
        for name, configure in PROXIES.items():
            if shutil.which(name) is None:
                print(f"left out: {name} is not on the PATH")
                continue
            ports[name] = free_port()
            stack.enter_context(process(configure(folder, ports[name], server.port), ports[name]))
        workers = populate(server.port)
        pool = stack.enter_context(futures.ThreadPoolExecutor())
        stack.callback(stop.set)
        beating = pool.submit(keep_alive, server.port, workers, stop)
        clients = [
            ClientProcess(f"{kind}/{way}", command, ledger)
            for way, port in ports.items()
            for kind, command in kinds(port, seed)
        ]
        loops = [
            pool.submit(grpcurl_loop, f"grpcurl/{way}", port, seed, ledger, stop)
            for way, port in ports.items()
            if shutil.which("grpcurl") is not None
        ]
        if not loops:
            print("left out: grpcurl is not on the PATH")
        try:
            harm(clients, chance, time.monotonic() + seconds / 4)
            before = Footprint.of(server.http_port)
            harmed = harm(clients, chance, time.monotonic() + seconds * 3 / 4)
        finally:
            stop.set()
            for client in clients:
                client.stop()
        for loop in (*loops, beating):
            loop.result()
        report(ledger, harmed)
        return verdict(server, ledger, before, workers)


def kinds(port: int, seed: int) -> Iterator[tuple[str, Callable[[str], list[str]]]]:
    """Yield the kinds of clients that run in a process, and how one is started."""
    yield "grpcio", lambda life: [sys.executable, __file__, "--client", str(port), life, str(seed)]
    script = Path(__file__).with_name("soak_client.js")
    if has_node():
        yield "grpc-js", lambda life: [
            "node", str(script), str(port), life, str(seed), str(ROOT / "protos")
        ]  # fmt: skip


def has_node() -> bool:
    """Tell whether Node is there with the packages of the client."""
    probe = "require('@grpc/grpc-js'); require('@grpc/proto-loader')"
    done = shutil.which("node") and subprocess.run(
        ["node", "-e", probe], stderr=subprocess.DEVNULL, check=False
    )
    if not done or done.returncode != 0:
        print("left out: node with @grpc/grpc-js and @grpc/proto-loader on NODE_PATH")
        return False
    return True


def report(ledger: Ledger, harmed: Counter[str]) -> None:
    """Print what happened."""
    for name, counts in sorted(ledger.counts.items()):
        print(f"{name:18}", *(f"{word} {count}" for word, count in sorted(counts.items())))
    print("failures:", *(f"{what}: {count};" for what, count in sorted(ledger.failures.items())))
    print("clients:", *(f"{what} {count};" for what, count in sorted(harmed.items())))


def verdict(server: Any, ledger: Ledger, before: Footprint, workers: list[str]) -> list[str]:
    """Look at what is left when every client has ended; return what must not be."""
    wrong = []
    with Client(server.port) as client:
        held = taken(client)
        told = [f for f in held if not may_hold(f, ledger)]
        wrong += forgotten(client, ledger)
        print(f"slots held at the end: {len(held)} {sorted(held)}")
        if told:
            wrong.append(f"slots of requests that had failed or were completed: {told}")
        until = time.monotonic() + TTL_S + 10
        while taken(client) and time.monotonic() < until:
            beat(client, workers)
            time.sleep(0.2)
        beat(client, workers)
        answers = [
            client.runtime(
                "RequestReplicaTransport",
                wire.RequestReplicaTransportRequest(
                    artifact_id="model", request_id=f"last-{number}", source_address="10.0.0.9",
                    source_node_id="last",
                ),
            )
            for number in range(WORKERS * CONCURRENCY + 1)
        ]  # fmt: skip
        granted = sum(bool(answer.transport_id) for answer in answers)
        if granted != WORKERS * CONCURRENCY:
            wrong.append(f"{granted} slots can be taken, expected {WORKERS * CONCURRENCY}")
        for answer in answers[:granted]:
            client.runtime(
                "CompleteReplicaTransport",
                wire.CompleteReplicaTransportRequest(
                    transport_id=answer.transport_id, outcome=_SUCCESS
                ),
            )
        after = Footprint.of(server.http_port)
    print(f"before: {before}\nafter:  {after}")
    if after.faults:
        wrong.append(f"{after.faults:.0f} calls were answered INTERNAL or UNKNOWN")
    if after.transports:
        wrong.append(f"{after.transports:.0f} transports are in progress")
    if after.connections > 1:
        wrong.append(f"{after.connections:.0f} connections are open, expected one")
    if after.files > before.files:
        wrong.append(f"{after.files:.0f} files are open, {before.files:.0f} before")
    if after.resident_mb > 1.3 * before.resident_mb + 20:
        wrong.append(f"{after.resident_mb:.0f} MB are resident, {before.resident_mb:.0f} before")
    errors = [line for line in server.lines if " ERROR " in line or "Traceback" in line]
    if errors:
        wrong.append(f"errors in the log: {errors[:3]}")
    if server.stop() != 0:
        wrong.append("the server did not stop cleanly")
    return wrong


def forgotten(client: Client, ledger: Ledger) -> list[str]:
    """Count the transports that ended by their time limit although nobody was killed.

    A client that has read its answer and then tells its caller "cancelled" sends nothing that a
    server could notice; of direct ones that may be few.
    """
    ended = [row.request_id for row in window(client) if row.completion_outcome == "expired"]
    ways = Counter(
        re.split(r"[/.-]", request_id.partition("/")[2])[0]
        for request_id in ended
        if request_id and not was_killed(request_id, ledger)
    )
    failed = sum(c["failed"] for name, c in ledger.counts.items() if name.endswith("/direct"))
    print("ended by the time limit:", *(f"{way} {count};" for way, count in sorted(ways.items())))
    if ways["direct"] > failed * FORGOTTEN_SHARE:
        return [f"{ways['direct']} of {failed} direct calls that failed kept their slot"]
    return []


def was_killed(request_id: str, ledger: Ledger) -> bool:
    """Tell whether the client of a request was killed."""
    return not ledger.killed.isdisjoint({request_id, request_id.rsplit("-", 2)[0]})


def may_hold(request_id: str, ledger: Ledger) -> bool:
    """Tell whether a request may hold a slot although every client has ended."""
    if was_killed(request_id, ledger):
        return True
    return request_id in ledger.left and "/direct" not in request_id


def taken(client: Client) -> set[str]:
    """Return the request ids of all transports in progress."""
    return {row.request_id for row in window(client) if row.status == "in_progress"}


def window(client: Client) -> list[Any]:
    """Return all transports there were."""
    message = wire.QueryTransportWindowRequest()
    message.created_at_start.FromSeconds(0)
    message.created_at_end.FromSeconds(int(time.time()) + 3600)
    return list(client.runtime("QueryTransportWindow", message).rows)


def beat(client: Client, workers: list[str]) -> None:
    """Keep the sources alive."""
    for worker in workers:
        message = wire.WorkerHeartbeatRequest(
            worker_id=worker, state_version=1, accepting_new_requests=True
        )
        client.runtime("WorkerHeartbeat", message)


def main() -> int:
    """Run as the driver, or as the client that the driver starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--client", nargs=3, metavar=("PORT", "NAME", "SEED"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.client:
        port, name, seed = arguments.client
        PythonClient(int(port), name, int(seed)).run()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(arguments.seconds, arguments.seed, Path(folder))
    for each in wrong:
        print("WRONG:", each)
    print("as it has to be" if not wrong else f"{len(wrong)} things are not as they have to be")
    return bool(wrong)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(main())
