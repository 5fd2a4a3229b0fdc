"""``globalstore explain``: what it prints of a running server, and how it fails."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import Client, Process, running, write_config
from servers import claim_request, memory_info, replica_request, worker_request
from test_key import command

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common


def explain(*words: str) -> tuple[int, str, str]:
    """Run the verb; return its exit code and what it wrote."""
    return command("explain", None, *words)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("explain")) as server:
        yield server


@pytest.fixture(scope="module")
def worker(process: Process) -> str:
    """The worker of the replicas of ``model``."""
    return populate(process)


def populate(process: Process, metadata: Any = None) -> str:
    """Register a replica that is free, one that serves and one that nobody can read."""
    with Client(process.port) as client:

        def call(method: str, request: Any) -> Any:
            return client.runtime(method, request, metadata=metadata)

        worker: str = call("RegisterWorker", worker_request()).worker_id
        ram, disk = common.MEMORY_TYPE_RAM, common.MEMORY_TYPE_DISK
        call("RegisterReplica", replica_request(worker, mem_info=memory_info(memory_type=ram)))
        assert call("RequestReplicaTransport", claim_request()).transport_id
        call("RegisterReplica", replica_request(worker, mem_info=memory_info(memory_type=disk)))
        unread = memory_info(device_id=7, remote_memory_keys=[], buffer_sizes=[])
        call("RegisterReplica", replica_request(worker, mem_info=unread))
        return worker


def test_a_table_shows_every_replica_with_its_terms_or_what_rules_it_out(
    process: Process, worker: str
) -> None:
    words = ["explain", "model", f"--server=127.0.0.1:{process.port}", f"--for={worker}"]
    done = subprocess.run(
        [sys.executable, "-m", "globalstore", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, blank, titles, *rows = done.stdout.rstrip("\n").split("\n")
    assert head == (
        "model: a request would be told 'granted' (GROUP_DISPATCH); 0 waiting, 0 of them its own"
    )
    assert blank == ""
    assert titles.split()[:4] == ["#", "replica", "worker", "address"]
    free, busy, unread = sorted(rows, key=lambda row: ("saturated" in row, "presence" in row))
    assert free.split()[0] == "1"
    assert f"{worker} (own)" in free
    assert "d1.example:50053" in free
    assert "DISK 0" in free
    assert "never" in free
    assert "-0.667" in free  # the worker's 1/3, less 1 for one that was never used
    assert busy.startswith("-")
    assert busy.endswith("saturated") or unread.endswith("saturated")
    assert any(row.endswith("presence_only") for row in rows)


def test_json_has_the_same(process: Process, worker: str) -> None:
    _, out, _ = explain("model", f"--server=127.0.0.1:{process.port}", "--output=json")
    answer = json.loads(out)
    assert answer["verdict"] == "granted"
    assert answer["mode"] == "GROUP_DISPATCH"
    first, *others = answer["sources"]
    assert (first["rank"], first["worker_id"], first["reasons"]) == (1, worker, [])
    assert first["score"] == pytest.approx(1 / 3 - 1)
    assert "idle_seconds" not in first
    assert sorted(tuple(each["reasons"]) for each in others) == [
        ("presence_only",),
        ("saturated",),
    ]


def test_what_nobody_holds_has_a_verdict_and_no_table(process: Process) -> None:
    server = f"--server=127.0.0.1:{process.port}"
    code, out, _ = explain("none", "--view=v", server)
    assert code == 1
    assert out == (
        "none, view v: a request would be told 'no replica' (GROUP_DISPATCH); 0 waiting\n"
    )
    code, _, error = explain(" ", server)
    assert code == 5
    assert error.startswith("explain: INVALID_ARGUMENT: artifact_id")


def test_a_configuration_names_the_server_and_a_token_opens_it(tmp_path: Path) -> None:
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    digests = [hashlib.sha256(word).hexdigest() for word in (b"reader", b"writer")]
    tokens.write_text(f"read {digests[0]}\nfull {digests[1]}\n")
    token.write_text("reader\n")
    auth = {"auth": {"token_file": str(tokens)}}
    with running(tmp_path, server=auth) as process:
        populate(process, metadata=(("authorization", "Bearer writer"),))
        server = auth | {"listen": {"port": process.port, "host": "0.0.0.0"}}
        (tmp_path / "other").mkdir()
        config = write_config(tmp_path / "other", server=server)
        assert explain("model", f"--config={config}")[2].startswith("explain: UNAUTHENTICATED")
        code, out, error = explain("model", f"--config={config}", f"--token-file={token}")
        assert (code, error) == (0, "")
        assert "'granted'" in out


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--server=nowhere"], "HOST:PORT"),
        (["--server=h:0"], "HOST:PORT"),
        (["--config=/does/not/exist"], "/does/not/exist"),
        (["--server=h:1", "--token-file=/does/not/exist"], "/does/not/exist"),
        (["--server=h:1", "--ca=/does/not/exist"], "--ca: /does/not/exist cannot be read: No such"),
    ],
)
def test_arguments_that_lead_nowhere_are_an_error_of_usage(words: list[str], fragment: str) -> None:
    code, _, error = explain("model", *words)
    assert code == 2
    assert fragment in error
    assert "Traceback" not in error


def test_a_port_that_nobody_listens_on_is_said_in_one_line() -> None:
    code, _, error = explain("model", "--server=127.0.0.1:1")
    assert code == 6
    assert error.startswith("explain: 127.0.0.1:1: ")
    assert error.count("\n") == 1


def test_a_configuration_with_any_free_port_does_not_name_a_server(tmp_path: Path) -> None:
    code, _, error = explain("model", f"--config={write_config(tmp_path)}")
    assert code == 2
    assert "use --server" in error
