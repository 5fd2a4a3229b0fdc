"""The listener: binds, accepts, serves and drains."""

import errno
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import attrs
import trio
from h2.errors import ErrorCodes
from purerpc import Service, StatusCode

from globalstore.rpc import frames
from globalstore.rpc.call import Call
from globalstore.rpc.connection import Connection, Transport
from globalstore.rpc.connection_admission import ConnectionAdmission, Place
from globalstore.rpc.dispatch import CallObserver, ErrorMap, Interceptor, routes
from globalstore.rpc.limits import Limits
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rpc.serving import ListenerOptions, Serving
from globalstore.rpc.sockets import address_of, display_address, listening_sockets
from globalstore.rpc.status import DRAINING, Status
from globalstore.rpc.tls import TlsTransport, handshake, prepared
from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

# Out of file descriptors: existing connections must end before another accept can succeed.
ACCEPT_PAUSE_SECONDS = 0.1
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
_FULL = frames.settings(()) + frames.goaway(
    0, ErrorCodes.ENHANCE_YOUR_CALM, "the server has as many connections as it may"
)


@attrs.frozen
class Statistics:
    """What a listener holds at this moment."""

    connections: int = 0
    calls_in_flight: int = 0
    buffered_bytes: int = 0
    incomplete_message_bytes: int = 0
    # What the clients make the process hold, and the address that holds most.
    held_bytes: int = 0
    largest_address_bytes: int = 0
    # Since the start: connections that made room for others, calls ended for what all held.
    ended_for_room: int = 0
    ended_for_memory: int = 0


@attrs.frozen
class DrainReport:
    """How a drain went, in calls."""

    in_flight: int
    cancelled: int
    # Calls whose handlers did not even end when cancelled; their tasks still run.
    abandoned: int


class Listener:
    """Serves purerpc services on one port."""

    def __init__(
        self,
        services: Iterable[Service],
        *,
        limits: Limits | None = None,
        options: ListenerOptions | None = None,
        bounds: Mapping[str, RequestBounds] | None = None,
        interceptors: Sequence[Interceptor] = (),
        observers: Sequence[CallObserver] = (),
        authorize: Callable[[Call], None] | None = None,
        open_paths: frozenset[str] = frozenset(),
        map_error: ErrorMap | None = None,
    ) -> None:
        """Prepare to serve; nothing is opened yet.

        ``bounds`` are those of requests, by path; others have those of ``limits`` alone.
        ``authorize`` sees every call of a known method before anything of it is kept, but for
        those of ``open_paths``, which anybody may make; it refuses by raising. ``map_error`` names
        the status of an application's own error, or None. Raises ValueError for services that
        clash or a context that allows old TLS.
        """
        self._options = options or ListenerOptions()
        self._limits = limits or Limits()
        self._ssl_context: ssl.SSLContext | None = None
        if self._options.ssl_context is not None:
            self._ssl_context = prepared(self._options.ssl_context)
        self._serving = Serving(
            routes=routes(services, interceptors, self._limits, bounds),
            limits=self._limits,
            options=self._options,
            observers=observers,
            authorize=authorize,
            map_error=map_error,
            open_paths=open_paths,
        )
        self._sockets: list[trio.socket.SocketType] = []
        self._bound = (self._options.host, self._options.port)
        self._connections: set[Connection] = set()
        self._admission = self._connection_admission()
        self._accepting: trio.CancelScope | None = None
        self._drained = trio.Event()
        self._changed = trio.Event()
        self._report = DrainReport(0, 0, 0)

    def __repr__(self) -> str:
        state = "DRAINING" if self.draining.is_set() else "BOUND" if self._sockets else "CLOSED"
        return (
            f"<Listener [{state}, connections: {self._admission.open}, "
            f"calls: {len(self._serving.in_flight)}]>"
        )

    @property
    def host(self) -> str:
        """The address bound, or before that the one asked for."""
        return self._bound[0]

    @property
    def port(self) -> int:
        """The port bound, or before that the one asked for."""
        return self._bound[1]

    @property
    def draining(self) -> trio.Event:
        """Set from the moment ``drain`` is called."""
        return self._serving.draining

    def statistics(self) -> Statistics:
        """Return the connections, calls and bytes held now, and what was ended so far."""
        ledger = self._serving.ledger
        return Statistics(
            connections=self._admission.open,
            calls_in_flight=len(self._serving.in_flight),
            buffered_bytes=sum(each.buffered_bytes for each in self._connections),
            incomplete_message_bytes=ledger.arriving_bytes,
            held_bytes=ledger.held_bytes,
            largest_address_bytes=ledger.largest_bytes,
            ended_for_room=self._admission.ended_for_room,
            ended_for_memory=ledger.relieved,
        )

    def replace_ssl_context(self, context: ssl.SSLContext) -> None:
        """Use ``context`` for connections from now on; those that exist live on.

        Raises ValueError if the listener serves plaintext, or the context allows old TLS.
        """
        if self._ssl_context is None:
            raise ValueError("ssl_context: the listener was not started with TLS")
        self._ssl_context = prepared(context)

    async def bind(self) -> None:
        """Open the port. Clients that connect now are served once ``serve`` runs.

        Raises PortBusy if anything listens there already, CannotListen for other reasons.
        """
        self._sockets = await listening_sockets(
            self._options.host, self._options.port, reuse_port=self._options.so_reuseport
        )
        self._bound = self._sockets[0].getsockname()[:2]

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained; binds first if ``bind`` was not called. Reports the port.

        Returns when ``drain`` has ended and every handler's task with it. Cancellation drops
        all connections and calls at once.
        """
        if not self._sockets:
            await self.bind()
        self._admission = self._connection_admission()
        try:
            async with self._serving.undoing(), trio.open_nursery() as calls:
                self._serving.calls = calls
                async with trio.open_nursery() as connections:
                    with trio.CancelScope() as self._accepting:
                        async with trio.open_nursery() as accepting:
                            for sock in self._sockets:
                                accepting.start_soon(self._accept, sock, connections)
                            task_status.started(self.port)
                    await self._drained.wait()
                    connections.cancel_scope.cancel()
        finally:
            self._close_sockets()

    async def drain(self, grace_seconds: float) -> DrainReport:
        """Stop: accept nobody, let calls in flight end, cancel them after ``grace_seconds``.

        Clients are told by GOAWAY, and what they sent before they could know is served.
        Returns at the latest a few seconds after the grace period, even if a handler does not
        end when cancelled. Calling it again waits for the first.
        """
        serving = self._serving
        if serving.draining.is_set():
            await self._drained.wait()
            return self._report
        serving.draining.set()
        in_flight = len(serving.in_flight)
        cancelled = 0
        try:
            if self._accepting is not None:
                self._accepting.cancel()
            self._close_sockets()
            for call in list(serving.in_flight):
                call.drain()
            for connection in list(self._connections):
                connection.begin_drain()
            with trio.move_on_after(grace_seconds):
                await self._connections_gone()
            cancelled = len(serving.in_flight)
            for call in list(serving.in_flight):
                call.cancel(Status(StatusCode.UNAVAILABLE, DRAINING))
            if cancelled:
                with trio.move_on_after(self._limits.unwind_seconds):
                    await self._connections_gone()
        finally:
            await self._end_connections()
            with trio.move_on_after(self._limits.undo_seconds):
                await serving.all_undone()
            self._report = DrainReport(in_flight, cancelled, len(serving.in_flight))
            self._drained.set()
        return self._report

    def _connection_admission(self) -> ConnectionAdmission:
        return ConnectionAdmission(self._limits.connections_max, self._options.files_reserved)

    async def _connections_gone(self) -> None:
        while self._connections:
            self._changed = trio.Event()
            await self._changed.wait()

    async def _end_connections(self) -> None:
        with trio.CancelScope(
            deadline=trio.current_time() + self._limits.flush_seconds, shield=True
        ):
            await self._connections_gone()
        for connection in list(self._connections):
            connection.close()
        # What they take back at their end is then waited for like the rest.
        with trio.CancelScope(
            deadline=trio.current_time() + self._limits.unwind_seconds, shield=True
        ):
            await self._connections_gone()

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    async def _accept(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        admission = self._admission
        while True:
            try:
                accepted, address = await sock.accept()
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    admission.refuse(f"no means for another one: {error.strerror}")
                    await trio.sleep(ACCEPT_PAUSE_SECONDS)
                elif error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    raise
                continue
            peer = display_address(address)
            account = self._serving.ledger.account(address_of(peer))
            place = Place(account, peer)
            if not admission.admits(place, accepted.fileno()):
                self._serving.ledger.tidy(account)
                self._turn_away(accepted, peer)
                continue
            nursery.start_soon(self._serve_connection, accepted, place)

    def _turn_away(self, sock: trio.socket.SocketType, peer: str) -> None:
        log.debug("connection refused", peer=peer)
        if self._ssl_context is None:
            try:
                sock._sock.send(_FULL, socket.MSG_DONTWAIT)  # type: ignore[attr-defined]
            except OSError:
                log.debug("client did not wait for its refusal", peer=peer)
        sock.close()

    async def _serve_connection(self, sock: trio.socket.SocketType, place: Place) -> None:
        peer = place.peer
        try:
            with place.scope:
                await self._serve_client(sock, place)
        except OSError as error:
            log.debug("connection lost", peer=peer, reason=str(error))
        except Exception:
            # A fault of ours must not become the end of every other client.
            log.exception("connection failed", peer=peer)
        finally:
            self._admission.leave(place)
            self._serving.ledger.tidy(place.account)
            sock.close()

    async def _serve_client(self, sock: trio.socket.SocketType, place: Place) -> None:
        stream = trio.SocketStream(sock)
        # trio has set it by now, asked for or not.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self._options.tcp_nodelay)
        transport: Transport | None = stream
        if self._ssl_context is not None:
            transport = await handshake(
                stream, self._ssl_context, self._limits.handshake_seconds, place.peer
            )
        if transport is None:
            return
        connection = Connection(self._serving, transport, place.peer, place.account.address)
        connection.prove = partial(self._admission.prove, place)
        if isinstance(transport, TlsTransport):
            connection.peer_names = transport.peer_names
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._changed.set()
