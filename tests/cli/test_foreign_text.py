"""Ids that were stored before some characters were refused: escaped when shown, and removed."""

import ast
import json
import signal
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from server_process import PATIENCE_S, Client, Process, running
from test_key import command, describe

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.text.characters import first_hidden

# CSI of C1, a line separator, an override of direction, a zero-width space, a tag, a filler.
HOSTILE = "a\x9b2J\u2028\u202eb\u200b\U000e0041\u3164c"

PACKAGE = Path(__file__).resolve().parents[2] / "globalstore"


def make_hostile(database: Path) -> None:
    """Put the characters into every text that has the place for them."""
    with sqlite3.connect(database) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
        for (table,) in tables:
            for column in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if column[2] == "TEXT":
                    connection.execute(
                        f"UPDATE {table} SET {column[1]} = replace({column[1]}, 'EVIL', ?)",
                        (HOSTILE,),
                    )
    connection.close()


def register(client: Client) -> str:
    worker = client.runtime(
        "RegisterWorker",
        wire.RegisterWorkerRequest(
            daemon_id="d-EVIL", node_id="n-EVIL", node_address="EVIL.example",
            grpc_port=50052, p2p_port=50053, mem_pool_total_size=1,
        ),
    )  # fmt: skip
    info = common.MemoryInfo(
        node_id="n-EVIL", node_address="EVIL.example", node_port=50053, memory_size=1,
        memory_type=common.MEMORY_TYPE_RAM, remote_memory_keys=["k"], buffer_sizes=[1],
    )  # fmt: skip
    client.runtime(
        "RegisterReplica",
        wire.RegisterReplicaRequest(
            artifact_id="model-EVIL", worker_id=worker.worker_id, max_concurrency=1, mem_info=info
        ),
    )
    return str(worker.worker_id)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("foreign")
    sections = {
        "database": {"db_file": str(folder / "store.db")},
        "observability": {"logging": {"level": "DEBUG"}},
    }
    with running(folder, **sections) as first, Client(first.port) as client:
        describe(first, "model-EVIL")
        for name in ("key-EVIL", "gone-EVIL"):
            assert command("key", first, "set", name, "model-EVIL")[0] == 0
        worker_id = register(client)
        first.stop()
    make_hostile(folder / "store.db")
    with running(folder, **sections) as second:
        with Client(second.port) as client:
            worker_id = worker_id.replace("EVIL", HOSTILE)
            beat = wire.WorkerHeartbeatRequest(worker_id=worker_id, state_version=1)
            client.runtime("WorkerHeartbeat", beat)
        yield second


MODEL, KEY = f"model-{HOSTILE}", f"key-{HOSTILE}"

WORDS = [
    ("artifact", "list"),
    ("artifact", "show", MODEL),
    ("artifact", "show", f"none-{HOSTILE}"),
    ("explain", MODEL),
    ("explain", f"none-{HOSTILE}"),
    ("key", "list"),
    ("key", "get", KEY),
    ("key", "get", f"none-{HOSTILE}"),
    ("key", "set", KEY, MODEL),
    ("key", "set", "plain", MODEL),
    ("key", "swap", KEY, MODEL),
    ("key", "revoke", f"none-{HOSTILE}"),
]


def is_clean(text: str) -> bool:
    return all(line.isprintable() and first_hidden(line) is None for line in text.split("\n"))


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("words", WORDS, ids=lambda words: " ".join(words)[:18])
def test_no_verb_prints_what_is_not_seen(
    process: Process, words: tuple[str, ...], form: str
) -> None:
    _, out, error = command(words[0], process, *words[1:], f"--output={form}")
    assert out + error
    assert is_clean(out), ascii(out)
    assert is_clean(error), ascii(error)


@pytest.mark.parametrize("verb", ["artifact", "key"])
def test_json_has_the_ids_themselves_so_that_programs_can_use_them(
    process: Process, verb: str
) -> None:
    _, out, _ = command(verb, process, "list", "--output=json")
    ids = {name for row in json.loads(out) for name in row.values() if isinstance(name, str)}
    assert MODEL in ids


def test_metrics_and_the_log_show_none_either(process: Process) -> None:
    with Client(process.port) as client:
        claim = wire.RequestReplicaTransportRequest(
            artifact_id=MODEL, source_node_id="r", source_address="r.example", request_id="x"
        )
        client.runtime("RequestReplicaTransport", claim)
        client.runtime(
            "WorkerHeartbeat",
            wire.WorkerHeartbeatRequest(worker_id=f"w-{HOSTILE}", state_version=1),
        )
    process.signal(signal.SIGUSR2)
    process.wait_for("globalstore.server components")
    for accept in ("text/plain", "application/openmetrics-text"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{process.http_port}/metrics", headers={"accept": accept}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        assert "model-a\\\\x9b2J" in text
        assert is_clean(text)
    assert any("w-a\\x9b2J" in line for line in process.lines)
    assert all(map(is_clean, process.lines))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RegisterWorker", wire.RegisterWorkerRequest(daemon_id=f"d{HOSTILE}")),
        ("RegisterInstance", wire.RegisterInstanceRequest(instance_id=f"d{HOSTILE}")),
        ("RegisterReplica", wire.RegisterReplicaRequest(artifact_id=f"d{HOSTILE}")),
    ],
)
def test_a_refusal_names_the_field_and_the_code_point(
    process: Process, method: str, request_: object
) -> None:
    with Client(process.port) as client, pytest.raises(grpc.RpcError) as caught:
        client.runtime(method, request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "_id contains U+009B, a control character" in caught.value.details()


def test_what_was_stored_is_still_removed(process: Process) -> None:
    assert command("key", process, "revoke", f"gone-{HOSTILE}")[0] == 0
    assert command("key", process, "get", f"gone-{HOSTILE}")[0] == 1
    with Client(process.port) as client:
        (worker,) = client.runtime(
            "ListActiveWorkers", wire.ListActiveWorkersRequest(include_unavailable=True)
        ).workers
        assert HOSTILE in worker.worker_id
        listing = wire.ListReplicasV2Request(artifact_id=MODEL)
        (replica,) = client.runtime("ListReplicasV2", listing).replicas
        assert replica.memory_info.node_id == f"n-{HOSTILE}"
        gone = client.runtime(
            "UnregisterReplicaByWorker",
            wire.UnregisterReplicaByWorkerRequest(artifact_id=MODEL, worker_id=worker.worker_id),
        )
        assert gone.status == wire.STATUS_OK
        assert not client.runtime("ListReplicasV2", listing).replicas
        ended = client.runtime(
            "UnregisterWorker", wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        assert ended.status == wire.STATUS_OK


# What writes to the standard files: the command line, the log, and a last word that is our own.
_WRITERS = {
    "cli/__init__.py",
    "cli/output.py",
    "config/__main__.py",
    "server/process_signals.py",
    "telemetry/outputs.py",
}


def test_nobody_else_writes_to_the_standard_files() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        names = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call)}  # fmt: skip
        if names & {"print", "os.write", "sys.stdout.write", "sys.stderr.write"}:
            found.add(str(path.relative_to(PACKAGE)))
    assert found == _WRITERS
