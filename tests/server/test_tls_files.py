"""The files of TLS: each fault is told of the file that has it, by its key and path."""

import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from rpc.certificates import KeyPair, issue
from servers import configuration

from globalstore.server.tls_files import TlsUnusable, tls_context


@attrs.define
class Files:
    """The paths of a configuration, which a test spoils."""

    certificate: Path
    key: Path
    authorities: Path

    def context(self) -> ssl.SSLContext | None:
        tls = {
            "enabled": True,
            "cert_file": str(self.certificate),
            "key_file": str(self.key),
            "client_ca_file": str(self.authorities),
        }
        return tls_context(configuration(server={"grpc": {"tls": tls}}))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    ca = issue(tmp_path, "ca")
    pair: KeyPair = issue(tmp_path, "server", ca)
    return Files(Path(pair.cert_file), Path(pair.key_file), Path(ca.cert_file))


def test_good_files_are_taken(files: Files) -> None:
    assert files.context() is not None


def encrypt(path: Path) -> None:
    plain = path.with_suffix(".plain")
    path.rename(plain)
    command = ["openssl", "pkey", "-in", plain, "-aes128", "-passout", "pass:secret", "-out", path]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no openssl")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def spoil_body(path: Path) -> None:
    first, _, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, "AAAA", *rest]))


SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    (each, spoil, said)
    for each in ("certificate", "key", "authorities")
    for spoil, said in (
        (Path.unlink, "No such file"),
        (lambda path: path.write_text(""), "in PEM form"),
        (lambda path: path.write_bytes(b"\xff\x00junk"), "in PEM form"),
        (lambda path: path.write_bytes(bytes(5 << 20)), "larger than"),
        (spoil_body, "write"),
        (directory, "directory"),
        (pipe, "pipe or socket"),
        (circle, "symbolic links"),
    )
] + [("key", encrypt, "is encrypted")]

KEYS = {"certificate": "cert_file", "key": "key_file", "authorities": "client_ca_file"}


@pytest.mark.parametrize(("which", "spoil", "said"), SPOILED)
def test_a_file_that_cannot_be_used_is_named(
    files: Files, which: str, spoil: Callable[[Path], object], said: str
) -> None:
    path: Path = getattr(files, which)
    spoil(path)
    with pytest.raises(TlsUnusable) as refusal:
        files.context()
    text = str(refusal.value)
    assert text.startswith(f"server.grpc.tls.{KEYS[which]} {path}"), text
    assert said in text
    assert "; " in text, "no cure"


def test_a_key_of_another_pair_is_named_with_the_certificate(files: Files, tmp_path: Path) -> None:
    files.key = Path(issue(tmp_path, "other").key_file)
    with pytest.raises(TlsUnusable) as refusal:
        files.context()
    text = str(refusal.value)
    assert text == (
        f"server.grpc.tls.key_file {files.key} is not the key of server.grpc.tls.cert_file"
        f" {files.certificate}; name the two files of one pair"
    )
