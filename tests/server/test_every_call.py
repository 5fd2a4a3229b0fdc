"""Every method of the contract is counted under its name, and every service is known to probes."""

import hashlib
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from server_process import PATIENCE_S, Client, Process, running

from globalstore.gen.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2

SERVICES = [
    service
    for module in (global_store_pb2, memory_tier_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
PATHS = [
    f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
]
NAMES = ["", *(service.full_name for service in SERVICES)]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("calls")) as started:
        yield started


def ask(client: Client, path: str, payload: bytes = b"") -> tuple[str, bytes]:
    """Call a method by its path; return the name of the code, and the answer."""
    call = client.channel.unary_unary(
        path, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw
    )
    try:
        return "OK", call(payload, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return error.code().name, b""


def counted(process: Process) -> dict[tuple[str, str], int]:
    """Finished calls by method and code, as scraped."""
    url = f"http://127.0.0.1:{process.http_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    pattern = r'^tc_grpc_server_handled_total\{code="(\w+)",method="([^"]+)"\} (\S+)$'
    return {
        (method, code): int(float(count))
        for code, method, count in re.findall(pattern, text, re.MULTILINE)
    }


def test_each_method_is_counted_once_under_the_code_its_caller_saw(process: Process) -> None:
    before = counted(process)
    with Client(process.port) as client:
        seen = {(path, ask(client, path)[0]) for path in PATHS}
    after = counted(process)
    assert len(seen) == 79
    rose = {key: count - before.get(key, 0) for key, count in after.items()}
    assert {key for key, more in rose.items() if more} == seen
    assert all(rose[key] == 1 for key in seen)


def test_made_up_paths_share_one_name_and_add_no_other(process: Process) -> None:
    before = counted(process)
    made_up = ["/a.B/C", PATHS[0] + "X", PATHS[0].replace("/", "/x", 1), "/x", "/" + "y" * 2000]
    with Client(process.port) as client:
        for path in made_up:
            assert ask(client, path)[0] == "UNIMPLEMENTED"
    after = counted(process)
    unknown = ("unknown", "UNIMPLEMENTED")
    assert after[unknown] - before.get(unknown, 0) == len(made_up)
    assert set(after) - set(before) <= {unknown}


def test_a_request_that_is_no_message_is_counted_under_its_method(process: Process) -> None:
    before = counted(process)
    key = (PATHS[0], "INVALID_ARGUMENT")
    with Client(process.port) as client:
        assert ask(client, PATHS[0], b"\xff\xff")[0] == "INVALID_ARGUMENT"
    assert counted(process)[key] == before.get(key, 0) + 1


def test_a_call_refused_before_its_handler_is_counted_too(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"full {hashlib.sha256(b'secret').hexdigest()}\n")
    path = "/tensorcast.global_store.v1.ClusterRuntimeService/ListActiveWorkers"
    with (
        running(tmp_path, server={"auth": {"token_file": str(tokens)}}) as secured,
        Client(secured.port) as client,
    ):
        assert ask(client, path)[0] == "UNAUTHENTICATED"
        assert counted(secured) == {(path, "UNAUTHENTICATED"): 1}


def check(client: Client, service: str) -> tuple[str, int]:
    request = HealthCheckRequest(service=service).SerializeToString()
    code, raw = ask(client, "/grpc.health.v1.Health/Check", request)
    return code, HealthCheckResponse.FromString(raw).status


@pytest.mark.parametrize("service", NAMES, ids=lambda name: name or "the whole server")
def test_probes_may_ask_for_every_service_by_its_name(process: Process, service: str) -> None:
    with Client(process.port) as client:
        assert check(client, service) == ("OK", HealthCheckResponse.SERVING)


@pytest.mark.parametrize("service", ["tensorcast.global_store.v1.NoSuchService", "x", "\0"])
def test_a_name_that_no_service_has_is_not_found(process: Process, service: str) -> None:
    with Client(process.port) as client:
        assert check(client, service)[0] == "NOT_FOUND"
