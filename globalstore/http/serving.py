"""Serves the HTTP app with hypercorn's protocol code and limits of our own.

Hypercorn speaks HTTP on a connection. What it leaves open is closed here: a client that does not
read, a client that never finishes, more connections than there is room for.
"""

import errno
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from importlib import import_module
from typing import Any, Final

import trio

from globalstore.host import is_host_error, reason
from globalstore.http.app import HttpApp
from globalstore.http.heads import Heads
from globalstore.telemetry import get_logger

# From the connection, or the last answer, to the end of the next request's head. Scrapers and
# probes send theirs at once.
HEAD_SECONDS_MAX: Final = 10.0

# For the client to take an answer: 2 MB over a bad line.
WRITE_SECONDS_MAX: Final = 10.0

# A connection ends after this long whatever it does; the next request opens another.
CONNECTION_SECONDS_MAX: Final = 300.0

# Request line and headers together; a scraper needs a few hundred bytes, and a proxy before it may
# add cookies and tokens of its own.
HEAD_BYTES_MAX: Final = 16 << 10

# A handful of scrapers and probes, and room for those that do not behave. When all are taken the
# oldest connection makes room, so that many silent clients cannot shut out a probe.
CONNECTIONS_MAX: Final = 128

# Hypercorn is loaded this long after the start, unless a client connects before: it takes longer to
# import than the rest of the start, and that time belongs to the daemons. Not later still, since
# the installation of another version puts other files in its place.
_LOAD_AFTER_S: Final = 1.0

# Out of open files or memory: some have to be given back before another connection can be had.
_OUT_OF_RESOURCES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
_ACCEPT_PAUSE_S: Final = 0.1

_PROTOCOL: Final = "globalstore.http.conversation"

_STATUS_LINE: Final = re.compile(rb"\AHTTP/1\.1 (\d{3}) \r\n")

_log = get_logger("globalstore.http")


def _with_reason(line: re.Match[bytes]) -> bytes:
    phrase = HTTPStatus(int(line[1])).phrase
    return b"HTTP/1.1 %b %b\r\n" % (line[1], phrase.encode())


class _PatientStream:
    """A connection that waits for its client only so long.

    Hypercorn sends under a shield without a deadline and may keep waiting after it has closed;
    here a send has its deadline, and closing ends everything that goes on for the connection. It
    sees whole heads of HTTP/1 only, and no bodies.
    """

    def __init__(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        self.socket = stream.socket
        self._heads = Heads(HEAD_BYTES_MAX)
        self._stream = stream
        self._scope = scope

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        while data := await self._stream.receive_some(max_bytes):
            if passed := self._heads.take(data):
                return passed
        return self._heads.rest()

    async def send_all(self, data: bytes) -> None:
        # Hypercorn sends no reason with a status, which the first line of HTTP/1.1 has room for.
        data = _STATUS_LINE.sub(_with_reason, data, count=1)
        with trio.move_on_after(WRITE_SECONDS_MAX) as patience:
            await self._stream.send_all(data)
        if patience.cancelled_caught:
            self._log_end("client does not read")
            await self.aclose()
            raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._scope.cancel()
        await self._stream.aclose()

    async def close_when_cancelled(self) -> None:
        """Close the socket as soon as the connection is to end, also under a shielded send."""
        try:
            await trio.sleep_forever()
        finally:
            self.socket.close()

    def _log_end(self, reason: str) -> None:
        _log.limited(reason, "http connection ended", reason=reason)


class _HttpServer:
    """The open connections of one ``serve_http``, the oldest first."""

    def __init__(self, app: HttpApp) -> None:
        self._app = app
        self._speak: Callable[[Any], Awaitable[None]] | None = None
        self._open: dict[trio.CancelScope, None] = {}

    async def load_soon(self) -> None:
        """Import hypercorn a little after the start."""
        await trio.sleep(_LOAD_AFTER_S)
        try:
            await self._load()
        except Exception as error:  # noqa: BLE001 (each connection tries again, and says so again)
            _log_failure("http connections cannot be served", error)

    async def _load(self) -> Callable[[Any], Awaitable[None]]:
        """Return what speaks HTTP on a connection, imported beside the event loop."""
        if self._speak is None:
            protocol = await trio.to_thread.run_sync(
                import_module, _PROTOCOL, abandon_on_cancel=True
            )
            self._speak = protocol.Conversation(self._app, HEAD_SECONDS_MAX, HEAD_BYTES_MAX).hold
        return self._speak

    async def serve(self, stream: trio.SocketStream) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            oldest.cancel()
            self._open.pop(oldest)
            _log.limited("crowded", "http connection ended", reason="too many connections")
        scope = trio.CancelScope(deadline=trio.current_time() + CONNECTION_SECONDS_MAX)
        self._open[scope] = None
        try:
            with scope:
                await self._converse(_PatientStream(stream, scope))
        except Exception as error:  # noqa: BLE001 (one client's fault must not end the others)
            _log_failure("http connection failed", error)
        finally:
            self._open.pop(scope, None)

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Serve whoever connects, until cancelled; says once when nobody can, and once after."""
        refusing = False
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _OUT_OF_RESOURCES:
                        raise
                    if not refusing:
                        _log.warning("http connections not accepted", reason=error.strerror)
                    refusing = True
                    await trio.sleep(_ACCEPT_PAUSE_S)
                    continue
                if refusing:
                    _log.info("http connections accepted again")
                    refusing = False
                nursery.start_soon(self._served, stream)

    async def _served(self, stream: trio.SocketStream) -> None:
        try:
            await self.serve(stream)
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: _PatientStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.close_when_cancelled)
            speak = await self._load()
            await speak(stream)
            nursery.cancel_scope.cancel()


def _log_failure(message: str, error: Exception) -> None:
    """Log a bug with its traceback, and what the host refused in one line a minute."""
    if is_host_error(error):
        _log.limited(message, message, level=logging.ERROR, reason=reason(error))
    else:
        _log.exception(message, error)


async def serve_http(
    app: HttpApp,
    sockets: Sequence[trio.socket.SocketType],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on listening sockets until cancelled, and close them then.

    Started means that connections are being accepted. When cancelled, all connections end at once:
    cancel it last, so that probes see the drain.
    """
    server = _HttpServer(app)
    listeners = [trio.SocketListener(sock) for sock in sockets]
    async with trio.open_nursery() as connections:
        connections.start_soon(server.load_soon)
        for listener in listeners:
            connections.start_soon(server.accept, listener, connections)
        task_status.started()
