"""The certificate of the gRPC port, and its renewal while the server runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from globalstore.config import GlobalStoreConfig
from globalstore.host import identity_of
from globalstore.rpc import Listener
from globalstore.server.tls_files import TlsUnusable, certificate_expiry, tls_context
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# How often the files are checked. Nothing portable reports a change behind symbolic links and
# mounts, which is how certificates are rotated, so they are polled. A change is taken up once two
# checks agree on it, well within a minute: a tool that renews the pair writes one file after the
# other, and half of a new pair is no reason for an alarm.
LOOK_S: Final = 20.0

_Identity = tuple[tuple[int, int, int, int] | None, ...]


class Certificates:
    """Keeps the listener's certificate that of the configured files.

    ``on_expiry`` gets the time at which the one in use expires, in seconds since 1970.
    """

    def __init__(
        self, config: GlobalStoreConfig, listener: Listener, on_expiry: Callable[[float], object]
    ) -> None:
        self._config = config
        self._listener = listener
        self._on_expiry = on_expiry
        self._tried = self._identity()
        self._show_expiry()

    def take_up(self, config: GlobalStoreConfig) -> None:
        """Use the files that ``config`` names, for connections from now on.

        Raises TlsUnusable; then the old pair stays in use, and the files are tried again when
        they change.
        """
        if not config.server.grpc.tls.enabled:
            return
        self._config = config
        # Noted first: what changes while the files are read is new at the next look.
        self._tried = self._identity()
        context = tls_context(config)
        assert context is not None
        self._listener.replace_ssl_context(context)
        self._show_expiry()

    async def run(self) -> None:
        """Take up changed files by themselves, until cancelled."""
        last = self._tried
        while True:
            await trio.sleep(LOOK_S)
            # Beside the event loop: the files may lie on a mount that is slow to answer.
            seen = await trio.to_thread.run_sync(self._identity, abandon_on_cancel=True)
            unchanged, last = seen == last, seen
            if unchanged and seen != self._tried:
                self._take_up_changed()

    def _take_up_changed(self) -> None:
        try:
            self.take_up(self._config)
        except TlsUnusable as error:
            _log.error("certificate not renewed, the old one stays in use", reason=str(error))
        else:
            _log.info("certificate renewed", cert_file=self._config.server.grpc.tls.cert_file)

    def _identity(self) -> _Identity:
        tls = self._config.server.grpc.tls
        names = filter(None, (tls.cert_file, tls.key_file, tls.client_ca_file))
        return tuple(identity_of(Path(name).expanduser()) for name in names)

    def _show_expiry(self) -> None:
        cert_file = Path(self._config.server.grpc.tls.cert_file).expanduser()
        self._on_expiry(certificate_expiry(str(cert_file)))
