"""The files of TLS: certificate, key and client authorities, each checked and named by itself."""

import ssl
import time
from pathlib import Path
from typing import Final

from globalstore.config import GlobalStoreConfig
from globalstore.host import HostRefused, host_step, read_bounded
from globalstore.rpc import server_context

# A chain has a few kB, a bundle of all public authorities 200 kB.
_FILE_BYTES_MAX: Final = 4 << 20

_SECTION: Final = "server.grpc.tls"


class TlsUnusable(HostRefused):
    """The certificate, key or client authorities cannot be used; the text says which and why."""

    word = "tls"


def tls_context(config: GlobalStoreConfig) -> ssl.SSLContext | None:
    """Return the TLS context of the configured files, None when TLS is off. Raises TlsUnusable."""
    tls = config.server.grpc.tls
    if not tls.enabled:
        return None
    certificate = _pem("cert_file", tls.cert_file, b"CERTIFICATE")
    if certificate_expiry(certificate) <= time.time():
        raise TlsUnusable(f"{_SECTION}.cert_file {certificate} has expired; renew it")
    key = _pem("key_file", tls.key_file, b"PRIVATE KEY")
    with host_step(f"{_SECTION}.key_file", key, TlsUnusable):  # it may have gone since
        try:
            server_context(certificate, key)
        except ssl.SSLError as error:
            fault = (
                f"is not the key of {_SECTION}.cert_file {certificate}; name the two files of one"
                " pair"
                if error.reason == "KEY_VALUES_MISMATCH"
                else f"does not go with {_SECTION}.cert_file {certificate} ({_said(error)}); write"
                " both anew"
            )
            raise TlsUnusable(f"{_SECTION}.key_file {key} {fault}") from error
    authorities = ""
    if tls.client_ca_file:
        authorities = _pem("client_ca_file", tls.client_ca_file, b"CERTIFICATE")
    with host_step(f"{_SECTION}.client_ca_file", authorities or certificate, TlsUnusable):
        try:
            return server_context(certificate, key, authorities or None)
        except ssl.SSLError as error:
            raise TlsUnusable(
                f"{_SECTION}.client_ca_file {authorities} cannot be read ({_said(error)}); write it"
                " anew"
            ) from error


def certificate_expiry(cert_file: str) -> float:
    """Return when a certificate expires, in seconds since 1970. Raises TlsUnusable."""
    try:
        # The ssl module reads certificates of a file only through this function, which its own
        # tests use. The file may just be being written by the tool that renews it.
        decoded = ssl._ssl._test_decode_cert(cert_file)  # type: ignore[attr-defined]
    except OSError as error:
        raise TlsUnusable(
            f"{_SECTION}.cert_file {cert_file} holds no certificate that can be read"
            f" ({_said(error)}); write it anew"
        ) from error
    return ssl.cert_time_to_seconds(decoded["notAfter"])


def _pem(name: str, file: str, kind: bytes) -> str:
    """Return the path of a file that holds at least one PEM block of a kind, none of it secret."""
    setting, path = f"{_SECTION}.{name}", Path(file).expanduser()
    with host_step(setting, path, TlsUnusable):
        content = read_bounded(path, _FILE_BYTES_MAX)
    if len(content) > _FILE_BYTES_MAX:
        raise TlsUnusable(f"{setting} {path}: larger than {_FILE_BYTES_MAX} bytes; name a PEM file")
    if kind + b"-----" not in content:
        raise TlsUnusable(
            f"{setting} {path}: no {kind.decode().lower()} in PEM form in it; name a file that has"
            " one"
        )
    if b"ENCRYPTED" in content:
        raise TlsUnusable(
            f"{setting} {path} is encrypted, and nobody can enter a passphrase here; write it"
            " without one, readable by this user only"
        )
    return str(path)


def _said(error: OSError) -> str:
    """Return what the TLS library says, in words rather than in its numbers."""
    reason = getattr(error, "reason", None)
    return reason.lower().replace("_", " ") if reason else str(error.strerror or error)
