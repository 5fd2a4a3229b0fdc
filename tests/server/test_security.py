"""TLS, client certificates and tokens of the running server."""

import hashlib
import queue
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rpc.certificates import KeyPair, issue
from server_process import PATIENCE_S, Client, Process, running, write_config
from servers import worker_request

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.server.tls_files import TlsUnusable, certificate_expiry


def tls(pair: KeyPair, ca: KeyPair | None = None) -> dict[str, Any]:
    files = {"enabled": True, "cert_file": pair.cert_file, "key_file": pair.key_file}
    return {"grpc": {"tls": files | ({"client_ca_file": ca.cert_file} if ca else {})}}


def credentials(ca: KeyPair, pair: KeyPair | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        Path(ca.cert_file).read_bytes(),
        Path(pair.key_file).read_bytes() if pair else None,
        Path(pair.cert_file).read_bytes() if pair else None,
    )


def health_code(port: int, trusted: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    with Client(port, trusted) as client:
        try:
            client.admin("HealthCheck", wire.HealthCheckRequest(), timeout=20)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_with_tls_a_plaintext_client_is_refused_and_others_are_served(tmp_path: Path) -> None:
    ca = issue(tmp_path, "ca")
    with running(tmp_path, server=tls(issue(tmp_path, "server", ca))) as process:
        assert health_code(process.port, None) is grpc.StatusCode.UNAVAILABLE
        assert health_code(process.port, credentials(ca)) is grpc.StatusCode.OK


def test_with_client_authorities_only_their_clients_get_in(tmp_path: Path) -> None:
    ca = issue(tmp_path, "ca")
    foreign = issue(tmp_path, "foreign")
    expired = issue(tmp_path, "expired", ca, days=-1)
    with running(tmp_path, server=tls(issue(tmp_path, "server", ca), ca)) as process:
        for pair in (None, issue(tmp_path, "stranger", foreign), expired):
            code = health_code(process.port, credentials(ca, pair))
            assert code is grpc.StatusCode.UNAVAILABLE
        known = credentials(ca, issue(tmp_path, "client", ca))
        assert health_code(process.port, known) is grpc.StatusCode.OK


def test_an_expired_certificate_is_refused_at_start(tmp_path: Path) -> None:
    expired = issue(tmp_path, "server", issue(tmp_path, "ca"), days=-1)
    process = Process(write_config(tmp_path, server=tls(expired)))
    assert process.wait() == 4
    assert process.lines[-1].startswith("tls: ")
    assert "expired" in process.lines[-1]


def test_sighup_takes_new_certificates_and_keeps_the_old_ones_when_new_ones_are_bad(
    tmp_path: Path,
) -> None:
    old_ca, new_ca = issue(tmp_path, "ca"), issue(tmp_path, "new-ca")
    pair = issue(tmp_path, "server", old_ca)
    with running(tmp_path, server=tls(pair)) as process:
        good = Path(pair.cert_file).read_bytes()
        Path(pair.cert_file).write_text("junk")
        process.signal(signal.SIGHUP)
        process.wait_for("files not reloaded")
        assert health_code(process.port, credentials(old_ca)) is grpc.StatusCode.OK
        assert good
        issue(tmp_path, "server", new_ca)
        process.signal(signal.SIGHUP)
        process.wait_for("configuration reloaded")
        assert health_code(process.port, credentials(old_ca)) is grpc.StatusCode.UNAVAILABLE
        assert health_code(process.port, credentials(new_ca)) is grpc.StatusCode.OK
        metrics = urllib.request.urlopen(
            f"http://127.0.0.1:{process.http_port}/metrics", timeout=PATIENCE_S
        ).read()
        assert b"tc_tls_cert_expiry_timestamp_seconds 1." in metrics


def test_a_reload_cannot_turn_tls_or_tokens_on_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        secured = tls(issue(tmp_path, "server")) | {"auth": {"token_file": str(tmp_path / "t")}}
        write_config(tmp_path, server=secured)
        process.signal(signal.SIGHUP)
        process.wait_for("needs a restart key=server.grpc.tls.enabled")
        process.wait_for("needs a restart key=server.auth.token_file")
        process.wait_for("configuration reloaded")
        assert health_code(process.port, None) is grpc.StatusCode.OK


def test_a_certificate_that_is_half_written_when_its_expiry_is_read_is_named(
    tmp_path: Path,
) -> None:
    half = tmp_path / "half.crt"
    half.write_text(Path(issue(tmp_path, "server").cert_file).read_text()[:200])
    with pytest.raises(TlsUnusable, match=r"half\.crt"):
        certificate_expiry(str(half))


FULL, READ = "full-token", "read-token"


def token_file(folder: Path) -> Path:
    path = folder / "tokens"
    lines = [
        f"{role} {hashlib.sha256(token.encode()).hexdigest()}"
        for role, token in (("full", FULL), ("read", READ))
    ]
    path.write_text("# who may call\n\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that asks for tokens; its log never shows one."""
    folder = tmp_path_factory.mktemp("secured")
    with running(folder, server={"auth": {"token_file": str(token_file(folder))}}) as process:
        yield process
        assert process.stop() == 0
        assert not any(FULL in line or READ in line for line in process.lines)


@pytest.mark.parametrize(
    ("header", "read", "mutation"),
    [
        (None, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        ("Bearer wrong", "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (FULL, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (f"Bearer {READ}", "OK", "PERMISSION_DENIED"),
        (f"bearer {FULL}", "OK", "OK"),
    ],
)
def test_tokens_say_who_may_read_and_who_may_write(
    secured: Process, header: str | None, read: str, mutation: str
) -> None:
    metadata = [("authorization", header)] if header else []

    def code(method: str, request: Any) -> str:
        try:
            client.runtime(method, request, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    with Client(secured.port) as client:
        assert code("ListActiveWorkers", wire.ListActiveWorkersRequest()) == read
        assert code("RegisterWorker", worker_request()) == mutation
        assert health_code(secured.port, None) is grpc.StatusCode.OK


def test_a_stream_ends_when_the_token_it_was_opened_with_is_withdrawn(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    with running(tmp_path, server={"auth": {"token_file": str(path)}}) as process:
        with Client(process.port) as client:
            listing = client.channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            stream = listing(
                iter(asked.get, None), metadata=[("authorization", f"Bearer {READ}")], timeout=60
            )
            asked.put(b"\x3a\x00")  # which services there are
            assert next(stream)
            path.write_text(f"full {hashlib.sha256(FULL.encode()).hexdigest()}\n")
            process.signal(signal.SIGHUP)
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "withdrawn" in ended.value.details()
            asked.put(None)
        assert process.stop() == 0


@pytest.mark.parametrize("text", [None, "", "full nothex", "admin " + "0" * 64, "full"])
def test_an_unusable_token_file_refuses_the_start(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    process = Process(write_config(tmp_path, server={"auth": {"token_file": str(path)}}))
    assert process.wait() == 4
    assert process.lines[-1].startswith("tls: server.auth.token_file")
