"""``globalstore key``: what it prints of a running server, what it changes, and how it fails."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import grpc
import pytest
from server_process import Process, running

from globalstore.cli import main
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

INDEX = b'{"a":[0,16,[4],[1],"F32",0]}'


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("keys")) as started:
        describe(started, "model-a", "model-b")
        yield started


def describe(process: Process, *artifact_ids: str) -> None:
    """Make artifacts that keys may point at."""
    with grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        call = channel.unary_unary(
            "/tensorcast.global_store.v1.ArtifactCatalogService/UpsertArtifactMetadata",
            request_serializer=wire.UpsertArtifactMetadataRequest.SerializeToString,
        )
        for artifact_id in artifact_ids:
            described = common.ArtifactDescriptor(
                artifact_id=artifact_id, index_multihash=multihash.of(INDEX)
            )
            call(
                wire.UpsertArtifactMetadataRequest(
                    descriptor=described, canonical_index_data=INDEX
                ),
                timeout=30,
            )


def command(verb: str, process: Process | None, *words: str) -> tuple[int, str, str]:
    """Run a verb against a server; return its exit code and what it wrote."""
    server = [f"--server=127.0.0.1:{process.port}"] if process is not None else []
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        try:
            code = main([verb, *words, *server])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, out.getvalue(), error.getvalue()


def key(process: Process | None, *words: str) -> tuple[int, str, str]:
    return command("key", process, *words)


def test_a_key_goes_through_its_life(process: Process) -> None:
    assert key(process, "set", "life", "model-a") == (0, "life points at model-a\n", "")
    code, out, _ = key(process, "set", "life", "model-b")
    assert (code, out) == (1, "key life points at model-a; swap it to change that\n")
    lost = "life points at model-a, generation 0; nothing was changed\n"
    assert key(process, "swap", "life", "model-b", "--if-generation=1") == (1, lost, "")
    assert key(process, "swap", "life", "model-b", "--if-artifact=x") == (1, lost, "")
    won = "life points at model-b, generation 1\n"
    guards = ("--if-generation=0", "--if-artifact=model-a", "--operation=op")
    assert key(process, "swap", "life", "model-b", *guards) == (0, won, "")
    assert key(process, "swap", "life", "model-b", *guards) == (0, won, ""), "a repeat"
    assert key(process, "revoke", "life") == (0, "life points at nothing now\n", "")
    gone = "life points at nothing; nothing was changed\n"
    assert key(process, "revoke", "life") == (1, gone, "")
    absent = "life points at no artifact; nothing was changed\n"
    assert key(process, "swap", "life", "model-b", "--if-generation=1") == (1, absent, "")


def test_a_key_is_shown_with_its_targets_the_latest_first(process: Process) -> None:
    key(process, "set", "shown", "model-a")
    key(process, "swap", "shown", "model-b")
    hints = ("--replica=r1", "--daemon=h:1", "--ttl=3600")
    assert key(process, "set", "shown", "model-b", *hints)[0] == 0
    code, out, _ = key(process, "get", "shown")
    assert code == 0
    above, below = out.split("\n\n")
    facts = dict(line.split(":", 1) for line in above.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts.pop("updated").startswith("20")
    assert 0 < float(facts.pop("expires in").removesuffix(" s")) <= 3600
    assert facts == {
        "key": "shown",
        "points at": "model-b",
        "generation": "1",
        "kind": "ALIAS",
        "replica": "r1",
        "daemon": "h:1",
    }
    head, latest, first = below.splitlines()
    assert head.split() == ["generation", "artifact", "from", "until"]
    assert latest.split()[:2] == ["1", "model-b"]
    assert latest.split()[-1] == "-"
    assert first.split()[:2] == ["0", "model-a"]
    assert first.split()[-1].startswith("20")


def test_json_has_the_same(process: Process) -> None:
    key(process, "set", "json", "model-a", "--ttl=0")
    key(process, "swap", "json", "model-b")
    key(process, "revoke", "json")
    code, out, _ = key(process, "get", "json", "--output=json")
    assert code == 1, "it points at nothing"
    shown = json.loads(out)
    assert (shown["key"]["artifact_id"], shown["key"]["generation"]) == ("", 1)
    assert "ttl_seconds" not in shown["key"]
    assert [each["artifact_id"] for each in shown["generations"]] == ["model-b", "model-a"]
    assert all("ended_at" in each for each in shown["generations"])
    code, out, _ = key(process, "swap", "json", "model-a", "--output=json")
    assert json.loads(out) == {"status": "STATUS_OK", "artifact_id": "model-a", "generation": 2}
    code, out, _ = key(process, "set", "json", "model-b", "--output=json")
    assert (code, json.loads(out)["status"]) == (1, "STATUS_ERROR")
    code, out, _ = key(process, "revoke", "json", "--output=json")
    assert (code, json.loads(out)) == (0, {"status": "STATUS_OK"})


def test_keys_are_listed_by_prefix_page_by_page(process: Process) -> None:
    for number in range(3):
        key(process, "set", f"list/{number}", "model-a")
    key(process, "revoke", "list/1")
    key(process, "set", "lisz", "model-a")
    code, out, _ = key(process, "list", "list/")
    assert code == 0
    head, *rows = [line.split() for line in out.splitlines()]
    assert head == ["key", "points", "at", "generation", "kind", "expires", "in"]
    assert rows == [
        ["list/0", "model-a", "0", "IMMUTABLE", "-"],
        ["list/2", "model-a", "0", "IMMUTABLE", "-"],
    ]
    _, out, _ = key(process, "list", "list/", "--all", "--output=json")
    assert [each["key"] for each in json.loads(out)] == ["list/0", "list/1", "list/2"]
    _, out, error = key(process, "list", "list/", "--limit=1")
    assert out.splitlines()[1:] == ["list/0  model-a      0             IMMUTABLE  -"]
    assert error == "key list: there are more; these are 1 of them\n"
    _, out, error = key(process, "list", "list/", "--limit=1", "--output=json")
    assert [each["key"] for each in json.loads(out)] == ["list/0"]
    assert error == "key list: there are more; these are 1 of them\n"
    assert key(process, "list", "no such/")[1].splitlines()[1:] == []


def test_what_goes_wrong_is_one_line(process: Process) -> None:
    code, out, error = key(process, "get", "never")
    assert (code, out) == (1, "")
    assert error == "key get: NOT_FOUND: there never was a key 'never'\n"
    code, _, error = key(process, "set", "k", "unknown")
    assert (code, error.count("\n")) == (5, 1)
    assert "artifact unknown is not ready" in error
    code, _, error = key(process, "set", "k", "model-a", "--ttl=-1")
    assert code == 2
    assert error.endswith("--ttl: expected a whole number from 0 to 315576000000, got '-1'\n")
    assert key(process)[0] == 2
    assert key(process, "get")[0] == 2
    code, _, error = command("key", None, "list", "--server=127.0.0.1:1")
    assert code == 6
    assert error.startswith("key list: 127.0.0.1:1: ")


def test_a_reader_may_look_and_change_nothing(tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text(f"read {hashlib.sha256(b'secret').hexdigest()}\n")
    mine.write_text("secret\n")
    with running(tmp_path, server={"auth": {"token_file": str(tokens)}}) as secured:
        assert key(secured, "list")[0] == 5
        token = f"--token-file={mine}"
        assert key(secured, "list", token)[0] == 0
        assert "NOT_FOUND" in key(secured, "get", "k", token)[2]
        assert command("artifact", secured, "list", token)[0] == 0
        assert "NOT_FOUND" in command("artifact", secured, "show", "a", token)[2]
        for words in (("set", "k", "a"), ("swap", "k", "a"), ("revoke", "k")):
            code, _, error = key(secured, *words, token)
            assert (code, "PERMISSION_DENIED" in error) == (5, True)


def test_the_program_has_the_verb(process: Process) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "globalstore", "key", "list", f"--server=127.0.0.1:{process.port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("key ")
