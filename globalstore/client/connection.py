"""purerpc's channel to a server, made to notice its end.

purerpc itself leaves calls waiting when their connection ends, sends no pings, and leaves its
socket open.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import globalstore.rpc  # noqa: F401  makes purerpc importable

# isort: split
import anyio
import anyio.abc
import attrs
import trio
from anyio.streams.tls import TLSStream
from purerpc.grpc_proto import GRPCProtoSocket
from purerpc.grpclib.config import GRPCConfiguration

# HTTP/2 keepalive, in seconds: how often the server is asked whether it is there, and how long its
# answer may take.
_PING_EVERY_S = 30.0
_PING_TIMEOUT_S = 10.0


class Socket(GRPCProtoSocket):  # type: ignore[misc]
    """purerpc's client side of a connection, which notices its end and sends pings."""

    def __init__(self, stream: Any) -> None:
        super().__init__(GRPCConfiguration(client_side=True), stream)
        self.ended = trio.Event()
        self._pong = trio.Event()
        self._grpc_connection._ping_acknowledged = self._ponged

    async def _reader_thread(self) -> None:
        try:
            await super()._reader_thread()
        finally:
            self.ended.set()
            for stream in self._streams.values():
                stream._incoming_events[0].close()

    def _ponged(self, event: object) -> tuple[()]:
        self._pong.set()
        return ()

    async def keep_alive(self) -> None:
        """Ping for ever; raises TooSlowError when the other side does not answer."""
        while True:
            await trio.sleep(_PING_EVERY_S)
            self._pong = trio.Event()
            self._grpc_connection.h2_connection.ping(b"keepaliv")
            await self._socket.flush()
            with trio.fail_after(_PING_TIMEOUT_S):
                await self._pong.wait()


@attrs.frozen
class _Channel:
    """What purerpc's stubs want of a channel."""

    _host: str
    _port: int
    _grpc_socket: Socket


@asynccontextmanager
async def connection(
    host: str, port: int, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Any]:
    """Open a channel for purerpc's stubs, and close its socket at the end."""
    stream: anyio.abc.SocketStream | TLSStream = (
        await anyio.connect_tcp(host, port)
        if ssl_context is None
        else await anyio.connect_tcp(
            host, port, ssl_context=ssl_context, tls_standard_compatible=False
        )
    )
    try:
        async with Socket(stream) as socket:
            yield _Channel(host, port, socket)
    finally:
        # purerpc itself leaves it open.
        await anyio.aclose_forcefully(stream)
