"""The certificate of the gRPC port, and its renewal while the server runs."""

from collections.abc import Callable, Iterable
from pathlib import Path

from globalstore.config import GlobalStoreConfig
from globalstore.rpc import Listener
from globalstore.server.renewals import Renewal, warn_of_access
from globalstore.server.tls_files import certificate_expiry, tls_context


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
        self._renewal = Renewal("certificate", self._files, self._use)
        self._show_expiry()

    def take_up(self, config: GlobalStoreConfig) -> None:
        """Use the files that ``config`` names, for connections from now on.

        Raises TlsUnusable; then the old pair stays in use, and the files are tried again when
        they change.
        """
        if config.server.grpc.tls.enabled:
            self._config = config
            self._renewal.take_up()

    async def run(self) -> None:
        """Take up changed files by themselves, until cancelled."""
        await self._renewal.run()

    def _files(self) -> Iterable[str]:
        tls = self._config.server.grpc.tls
        return filter(None, (tls.cert_file, tls.key_file, tls.client_ca_file))

    def _use(self) -> None:
        context = tls_context(self._config)
        assert context is not None
        self._listener.replace_ssl_context(context)
        warn_of_access(self._config)
        self._show_expiry()

    def _show_expiry(self) -> None:
        cert_file = Path(self._config.server.grpc.tls.cert_file).expanduser()
        self._on_expiry(certificate_expiry(str(cert_file)))
