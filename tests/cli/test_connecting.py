"""How a verb reaches a server that has TLS, and what it says when it does not."""

from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from rpc.certificates import KeyPair, issue
from server_process import Process, running, write_config

from globalstore.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connecting")


@pytest.fixture(scope="module")
def ca(folder: Path) -> KeyPair:
    return issue(folder, "ca")


@pytest.fixture(scope="module")
def process(folder: Path, ca: KeyPair) -> Iterator[Process]:
    """A server that wants certificates of its clients."""
    pair = issue(folder, "server", ca)
    tls = {"enabled": True, "cert_file": pair.cert_file, "key_file": pair.key_file}
    server = {"grpc": {"tls": tls | {"client_ca_file": ca.cert_file}}}
    with running(folder, server=server) as started:
        (folder / "other").mkdir()
        listen = {"listen": {"port": started.port, "host": "0.0.0.0"}}
        write_config(folder / "other", server=server | listen)
        yield started


@pytest.fixture(scope="module")
def client(folder: Path, ca: KeyPair) -> list[str]:
    pair = issue(folder, "client", ca)
    return [f"--cert={pair.cert_file}", f"--key={pair.key_file}"]


def list_keys(*words: str) -> tuple[int, str]:
    """Run a verb; return its exit code and what it wrote."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(["key", "list", *words])
    return code, said.getvalue()


def test_a_known_client_is_answered(process: Process, ca: KeyPair, client: list[str]) -> None:
    server = f"--server=localhost:{process.port}"
    code, said = list_keys(server, f"--ca={ca.cert_file}", *client)
    assert (code, said.split()[0]) == (0, "key")


def test_a_configuration_names_the_certificate_to_trust(
    process: Process, folder: Path, client: list[str]
) -> None:
    code, said = list_keys(f"--config={folder / 'other' / 'config.json'}", *client)
    assert (code, said.split()[0]) == (0, "key")


def test_a_server_that_is_not_trusted_is_not_asked(process: Process, folder: Path) -> None:
    stranger = issue(folder, "stranger")
    server = f"--server=localhost:{process.port}"
    code, said = list_keys(server, f"--ca={stranger.cert_file}")
    assert code == 6
    assert said.startswith(f"key list: localhost:{process.port}: ")
    assert "certificate verify failed" in said
    assert said.count("\n") == 1


def test_a_certificate_for_another_name_is_not_trusted(process: Process, ca: KeyPair) -> None:
    code, said = list_keys(f"--server=127.0.0.1:{process.port}", f"--ca={ca.cert_file}")
    assert code == 6
    assert "IP address mismatch" in said


@pytest.mark.parametrize("has_tls", [True, False])
def test_who_is_not_let_in_is_told_in_one_line(
    process: Process, ca: KeyPair, has_tls: bool
) -> None:
    words = [f"--ca={ca.cert_file}"] if has_tls else []
    code, said = list_keys(f"--server=localhost:{process.port}", *words)
    assert code in {6, 7}
    assert said.startswith(f"key list: localhost:{process.port}: ")
    assert said.count("\n") == 1


def test_a_key_that_is_not_there_is_an_error_of_usage(ca: KeyPair, client: list[str]) -> None:
    code, said = list_keys("--server=h:1", f"--ca={ca.cert_file}", client[0], "--key=/none")
    assert code == 2
    assert said == "key list: --key: /none cannot be read: No such file or directory\n"


def test_a_certificate_and_a_key_that_do_not_match_are_named(
    ca: KeyPair, client: list[str], folder: Path
) -> None:
    other = issue(folder, "other-client", ca)
    pairs = [
        (client[0], f"--key={other.key_file}"),
        (f"--cert={other.key_file}", f"--key={other.key_file}"),
    ]
    for certificate, key in pairs:
        code, said = list_keys("--server=h:1", f"--ca={ca.cert_file}", certificate, key)
        assert code == 2
        assert said.startswith(f"key list: --cert: {certificate.partition('=')[2]} and --key: ")
        assert said.count("\n") == 1


def test_a_server_on_every_interface_is_dialled_at_this_machine(tmp_path: Path) -> None:
    with running(tmp_path, server={"listen": {"host": "*", "port": 0}}) as started:
        listen = {"listen": {"port": started.port, "host": "*"}}
        (tmp_path / "other").mkdir()
        config = write_config(tmp_path / "other", server=listen)
        assert list_keys(f"--config={config}")[0] == 0
