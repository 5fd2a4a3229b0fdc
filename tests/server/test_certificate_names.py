"""With client certificates a daemon's id may be what its certificate says."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
from cryptography import x509
from rpc.certificates import KeyPair, issue
from server_process import Client, Process, running
from servers import worker_request

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

URI = "spiffe://cluster.example/daemon/d4"


def server_section(folder: Path, ca: KeyPair, **more: Any) -> dict[str, Any]:
    pair = issue(folder, "server", ca)
    files = {"cert_file": pair.cert_file, "key_file": pair.key_file, "client_ca_file": ca.cert_file}
    tls = files | {"enabled": True, "daemon_id_from_certificate": True}
    return {"grpc": {"tls": tls}} | more


@attrs.define
class Cluster:
    """A server, and what its clients show."""

    process: Process
    folder: Path
    ca: KeyPair

    def code(self, name: str, daemon_id: str, *names: x509.GeneralName, token: str = "") -> str:
        """Register a daemon as a client whose certificate has these names; return the code."""
        pair = issue(self.folder, name, self.ca, alternatives=names or [x509.DNSName("x")])
        credentials = grpc.ssl_channel_credentials(
            *(
                Path(file).read_bytes()
                for file in (self.ca.cert_file, pair.key_file, pair.cert_file)
            )
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with Client(self.process.port, credentials) as client:
            try:
                client.runtime("RegisterWorker", worker_request(daemon_id), metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("names")
    ca = issue(folder, "ca")
    with running(folder, server=server_section(folder, ca)) as process:
        yield Cluster(process, folder, ca)


def test_a_certificate_registers_the_daemon_that_it_names_and_no_other(cluster: Cluster) -> None:
    assert cluster.code("d1", "d1") == "OK"
    assert cluster.code("d1", "d2") == "PERMISSION_DENIED"
    assert cluster.code("operator", "d1") == "PERMISSION_DENIED"


def test_alternative_names_count_if_they_are_dns_or_uri(cluster: Cluster) -> None:
    dns, uri, mail = (
        x509.DNSName("d3"),
        x509.UniformResourceIdentifier(URI),
        x509.RFC822Name("d5@x"),
    )
    assert cluster.code("a", "d3", dns) == "OK"
    assert cluster.code("a", URI, dns, uri) == "OK"
    assert cluster.code("a", "d5@x", mail) == "PERMISSION_DENIED"


def test_whoever_gets_in_may_read(cluster: Cluster) -> None:
    pair = issue(cluster.folder, "reader", cluster.ca)
    files = (cluster.ca.cert_file, pair.key_file, pair.cert_file)
    credentials = grpc.ssl_channel_credentials(*(Path(file).read_bytes() for file in files))
    with Client(cluster.process.port, credentials) as client:
        client.runtime("ListActiveWorkers", wire.ListActiveWorkersRequest())


def test_a_daemons_token_and_its_certificate_have_to_agree(tmp_path: Path) -> None:
    ca, tokens = issue(tmp_path, "ca"), tmp_path / "tokens"
    lines = [("daemon", "one", "d1,d2"), ("full", "all", "")]
    text = "\n".join(f"{r} {hashlib.sha256(t.encode()).hexdigest()} {i}" for r, t, i in lines)
    tokens.write_text(text)
    section = server_section(tmp_path, ca, auth={"token_file": str(tokens)})
    with running(tmp_path, server=section) as process:
        cluster = Cluster(process, tmp_path, ca)
        assert cluster.code("d1", "d1", token="one") == "OK"
        assert cluster.code("d1", "d2", token="one") == "PERMISSION_DENIED"
        assert cluster.code("d3", "d3", token="one") == "PERMISSION_DENIED"
        assert cluster.code("d1", "d1") == "UNAUTHENTICATED"
        assert cluster.code("operator", "d3", token="all") == "OK"
