"""How calls and probes reach a server: over sockets of its own, or another transport."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import trio

import globalstore
from globalstore.api.context import ServerInfo
from globalstore.config import AddressSource, GlobalStoreConfig, advertised_address
from globalstore.host import HostRefused, host_step
from globalstore.http import HttpApp, serve_http
from globalstore.rpc import DrainReport, Listener, PortBusy, Statistics
from globalstore.rpc.sockets import listening_sockets
from globalstore.server import grpc_listener
from globalstore.server.certificates import Certificates
from globalstore.server.components import Components
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")


class AddressUnusable(HostRefused):
    """The host has no such address, or none that this process may listen on."""

    word = "address"


class PortTaken(HostRefused):
    """Something else listens on a port."""

    word = "port-busy"


@contextmanager
def _opening(port_setting: str) -> Iterator[None]:
    """Turn what the host says to opening a port into a refusal that names the setting."""
    with host_step(port_setting, "", AddressUnusable, address="server.listen.host"):
        try:
            yield
        except PortBusy as error:
            raise PortTaken(f"{port_setting} {error.strerror}") from error


class Transport(Protocol):
    """The way in which calls reach a server and probes learn of its health."""

    async def answer_probes(self, nursery: trio.Nursery) -> None:
        """Answer probes from now on; the server is not ready yet."""

    async def take_calls(self, nursery: trio.Nursery, cluster_id: str) -> ServerInfo:
        """Take calls from now on; return where."""

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return what runs in the background for as long as calls are taken, by name."""

    def statistics(self) -> Statistics:
        """Return what the clients hold at this moment."""

    def reload(self, config: GlobalStoreConfig) -> None:
        """Apply what may change while running."""

    async def drain(self, grace_s: float) -> DrainReport:
        """Take no new calls, and give those in flight so long to end."""


class Sockets:
    """A gRPC port for calls, and an HTTP port for probes and metrics.

    Its methods raise PortTaken or AddressUnusable when a port cannot be had; making it raises
    TlsUnusable when the certificate cannot be used, before anything is opened.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self.listener = grpc_listener.listener(components)
        self._metrics_port = 0
        self._certificates: Certificates | None = None

    def statistics(self) -> Statistics:
        """Return what the clients of the gRPC port hold at this moment."""
        return self.listener.statistics()

    async def answer_probes(self, nursery: trio.Nursery) -> None:
        """Open the HTTP port."""
        server = self._components.config.server
        with _opening("server.metrics_port"):
            sockets = await listening_sockets(
                server.listen.host, server.metrics_port, reuse_port=False
            )
        self._metrics_port = sockets[0].getsockname()[1]
        app = HttpApp(self._components.metrics.registry, self._components.health)
        await nursery.start(serve_http, app, sockets)
        _log.info("http listening", address=server.listen.host, port=self._metrics_port)

    async def take_calls(self, nursery: trio.Nursery, cluster_id: str) -> ServerInfo:
        """Open the gRPC port."""
        components, listener = self._components, self.listener
        with _opening("server.listen.port"):
            await listener.bind()
        if components.config.server.grpc.tls.enabled:
            self._certificates = Certificates(
                components.config, listener, components.metrics.server.tls_cert_expiry.set
            )
        info = self._info(listener, cluster_id)
        # Known before the first call that may ask for it.
        components.context.info = info
        await nursery.start(listener.serve)
        return info

    def _info(self, listener: Listener, cluster_id: str) -> ServerInfo:
        config = self._components.config
        advertised = advertised_address(config.server, listener.port)
        warn = advertised.source is AddressSource.FALLBACK
        (_log.warning if warn else _log.info)(
            "advertise", address=str(advertised), source=advertised.source.value
        )
        path = self._components.store.path
        _log.info("listening", address=listener.host, port=listener.port)
        return ServerInfo(
            listen_host=listener.host,
            listen_port=listener.port,
            advertise_host=advertised.host,
            advertise_port=advertised.port,
            metrics_port=self._metrics_port,
            version=globalstore.__version__,
            db_file=str(path) if path else "",
            cluster_id=cluster_id,
        )

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return the task that takes up renewed certificates, if there are any."""
        return {} if self._certificates is None else {"certificates": self._certificates.run}

    def reload(self, config: GlobalStoreConfig) -> None:
        """Take up the certificate files that ``config`` names. Raises TlsUnusable."""
        if self._certificates is not None:
            self._certificates.take_up(config)

    async def drain(self, grace_s: float) -> DrainReport:
        """Close the gRPC port, and give calls in flight so long to end."""
        return await self.listener.drain(grace_s)
