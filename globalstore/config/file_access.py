"""What others may do with the files that a configuration names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from globalstore.config.schema import GlobalStoreConfig
from globalstore.host import access_by_others


class _Risk(NamedTuple):
    """What others could do by writing a file, and whether it holds something secret."""

    written: str
    is_secret: bool


_CONFIG: Final = _Risk("what this server does", False)
_CERTIFICATE: Final = _Risk("for whom this server passes", False)
_KEY: Final = _Risk("for whom this server passes", True)
_AUTHORITIES: Final = _Risk("who gets in", False)
_TOKENS: Final = _Risk("who may call", True)


def access_warnings(config: GlobalStoreConfig, source: str = "") -> Iterator[str]:
    """Yield a line for each file that others may read or change and should not.

    ``source`` is the path of the configuration itself, "" to leave it out. Files that cannot be
    looked at are left out: whoever opens them says so. The database has a check of its own.
    """
    for key, path, risk in _files(config, source):
        try:
            access = access_by_others(path)
            around = access_by_others(path.resolve().parent)
        except OSError:
            continue
        name = f"{key} {path}".strip()
        if access.others_write:
            yield (
                f"{name}: its mode {access.mode} lets others decide {risk.written};"
                " chmod it to 0600"
            )
        elif around.others_write:
            yield (
                f"{name}: the mode {around.mode} of its directory lets others replace it and so"
                f" decide {risk.written}; chmod the directory to 0755 or less"
            )
        if risk.is_secret and access.others_read:
            yield f"{name}: its mode {access.mode} lets others read it; chmod it to 0600"


def _files(config: GlobalStoreConfig, source: str) -> Iterator[tuple[str, Path, _Risk]]:
    tls = config.server.grpc.tls
    if source:
        yield "", Path(source).expanduser(), _CONFIG
    if config.server.auth.token_file:
        yield "server.auth.token_file", Path(config.server.auth.token_file).expanduser(), _TOKENS
    if tls.enabled:
        for name, file, risk in (
            ("cert_file", tls.cert_file, _CERTIFICATE),
            ("key_file", tls.key_file, _KEY),
            ("client_ca_file", tls.client_ca_file, _AUTHORITIES),
        ):
            if file:
                yield f"server.grpc.tls.{name}", Path(file).expanduser(), risk
