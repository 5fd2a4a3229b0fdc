"""Tools that operators use, and h2spec, each run as a program against the listener.

A tool that is not installed skips its tests; where ``CI`` is ``true`` it fails them.

h2spec's sections ``generic`` and ``hpack`` hold, but for two cases of ``generic/2`` that
wait for a DATA frame in answer to a GET: a gRPC server answers a GET with HTTP 405 and no body.
Its section ``http2`` cannot be held against a gRPC server as a whole: it too sends GETs, and
ten of its cases then find the stream answered and closed before their fault arrives. What
they mean to test is in test_engine.py, with requests a gRPC client would send.
"""

import os
import re
import shutil
import subprocess

import pytest
import trio

from globalstore.api.standard.health import HealthService, ServingStatus
from globalstore.api.standard.reflection import reflection_services
from globalstore.rpc import ListenerOptions, server_context

from .certificates import issue
from .echo import Echo, listening

TIMEOUT = 60


def tool(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{names[0]} is not installed, and CI must not pass without it")
    pytest.skip(f"{names[0]} is not installed")


async def run(*command: str) -> "subprocess.CompletedProcess[str]":
    def start() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    return await trio.to_thread.run_sync(start)


def services():
    health = HealthService()
    health.set("", ServingStatus.SERVING)
    health.set("down", ServingStatus.NOT_SERVING)
    return [Echo().service, health.service, *reflection_services(["grpc.health.v1.Health"])]


async def test_grpcurl_lists_describes_and_calls_without_proto_files():
    grpcurl = tool("grpcurl")
    async with listening(*services()) as listener:
        address = f"127.0.0.1:{listener.port}"
        listed = await run(grpcurl, "-plaintext", address, "list")
        assert listed.stdout.split() == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
        described = await run(grpcurl, "-plaintext", address, "describe", "grpc.health.v1.Health")
        assert "rpc Check" in described.stdout
        called = await run(grpcurl, "-plaintext", address, "grpc.health.v1.Health/Check")
        assert '"status": "SERVING"' in called.stdout
        unknown = await run(
            grpcurl, "-plaintext", "-d", '{"service":"x"}', address, "grpc.health.v1.Health/Check"
        )
        assert "Code: NotFound" in unknown.stderr


async def test_grpcurl_over_tls(tmp_path):
    grpcurl = tool("grpcurl")
    ca = issue(tmp_path, "ca")
    pair = issue(tmp_path, "server", ca)
    options = ListenerOptions(ssl_context=server_context(pair.cert_file, pair.key_file))
    async with listening(*services(), options=options) as listener:
        address = f"localhost:{listener.port}"
        called = await run(grpcurl, "-cacert", ca.cert_file, address, "grpc.health.v1.Health/Check")
        assert '"status": "SERVING"' in called.stdout
        plain = await run(grpcurl, "-plaintext", "-connect-timeout", "1", address, "list")
        assert plain.returncode != 0


async def test_a_stock_health_probe_passes():
    probe = tool("grpc_health_probe", "grpc-health-probe")
    async with listening(*services()) as listener:
        address = f"-addr=127.0.0.1:{listener.port}"
        assert (await run(probe, address)).returncode == 0
        assert (await run(probe, address, "-service=down")).returncode == 4
        assert (await run(probe, address, "-service=unknown")).returncode != 0


async def test_buf_curl_calls_by_reflection():
    buf = tool("buf")
    async with listening(*services()) as listener:
        url = f"http://127.0.0.1:{listener.port}/grpc.health.v1.Health/Check"
        called = await run(
            buf, "curl", "--protocol=grpc", "--http2-prior-knowledge", "-d", "{}", url
        )
        assert '"SERVING"' in called.stdout, called.stderr


async def test_h2spec_holds_but_for_what_needs_a_body_in_answer_to_a_get():
    h2spec = tool("h2spec")
    async with listening(*services()) as listener:
        path = "/grpc.health.v1.Health/Check"
        where = ("-h", "127.0.0.1", "-p", str(listener.port), "-P", path)
        done = await run(h2spec, "generic", "hpack", *where)
        failures = done.stdout.partition("Failures:")[2]
        assert "51 tests, 49 passed" in done.stdout
        assert set(re.findall(r"× \d+: (.*)", failures)) == {
            "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
            "Sends a PRIORITY frame on half-closed (remote) stream",
        }
