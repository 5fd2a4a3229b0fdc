"""Calls to the Global Store over one connection, which is made again whenever it breaks.

The rules are those a daemon of a large cluster should follow:

- A deadline on every call.
- Retries of a single call only after answers and faults that a retry may cure, with jitter.
- Reconnecting for ever, because a limit strands a daemon after a long outage; with full jitter up
  to a minute, because two hundred daemons come back at once.
- A ping every 30 s whose answer may take 10 s, because a connection can die without a word. With
  grpcio: ``grpc.keepalive_time_ms`` and ``grpc.keepalive_timeout_ms``.
"""

import random
import ssl
from contextlib import suppress
from datetime import timedelta
from typing import Any

import globalstore.rpc  # noqa: F401  makes purerpc importable

# isort: split
import anyio
import h2.exceptions
import purerpc
import trio
from purerpc.grpclib.exceptions import GRPCError
from purerpc.wrappers import ClientStubUnaryUnary

from globalstore.client.connection import Socket, connection
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.rpc import StatusCode

# Pauses between attempts to connect, in seconds: full jitter below a bound that doubles.
_CONNECT_PAUSE_FIRST_S = 1.0
_CONNECT_PAUSE_MAX_S = 60.0
_CONNECT_TIMEOUT_S = 10.0

# Attempts at one call and the pauses between them, each up to half longer or shorter.
_ATTEMPTS = 3
_PAUSE_FIRST_S = 0.1

_SERVICES: dict[str, Any] = {
    "runtime": services.ClusterRuntimeServiceServicer().service,
    "admin": services.ClusterAdminServiceServicer().service,
}

_RETRIED = frozenset({StatusCode.UNAVAILABLE, StatusCode.ABORTED})

# How much longer than its deadline a call is waited for: the server ends it by then.
_DEADLINE_MARGIN_S = 1.0

_TRANSPORT_ERRORS = (
    GRPCError,
    # What h2 makes of a connection that the server has said goodbye on.
    h2.exceptions.H2Error,
    OSError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    trio.TooSlowError,
)


class Unreachable(Exception):
    """The store did not answer: no connection, or it broke before the answer came."""


class StoreClient:
    """Calls to one Global Store. ``run`` keeps the connection; everything else needs it running.

    ``seed`` makes the jitter of a test repeatable.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        seed: int | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._ssl_context = ssl_context
        self._random = random.Random(seed)
        self._connected = trio.Event()
        self._broken = trio.Event()
        self._made = trio.Event()
        self._channel: Any = None
        self.connections = 0

    def __repr__(self) -> str:
        state = "CONNECTED" if self._connected.is_set() else "CONNECTING"
        return f"<StoreClient [{self._host}:{self._port}, {state}]>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection, until cancelled. Started means that the first one stands."""
        bound_s = _CONNECT_PAUSE_FIRST_S
        started = False
        while True:
            try:
                with trio.fail_after(_CONNECT_TIMEOUT_S) as connecting:
                    async with connection(self._host, self._port, self._ssl_context) as channel:
                        connecting.deadline = float("inf")
                        bound_s = _CONNECT_PAUSE_FIRST_S
                        self._take(channel)
                        if not started:
                            task_status.started()
                            started = True
                        await self._until_broken(channel._grpc_socket)
                        # Leaving the channel waits for its peer's goodbye, which may never come.
                        connecting.deadline = trio.current_time() + _DEADLINE_MARGIN_S
            except (*_TRANSPORT_ERRORS, BaseExceptionGroup) as error:
                if not _is_transport_error(error):
                    raise
            finally:
                self._connected = trio.Event()
            await trio.sleep(self._random.uniform(0, bound_s))
            bound_s = min(bound_s * 2, _CONNECT_PAUSE_MAX_S)

    def _take(self, channel: Any) -> None:
        self._broken = trio.Event()
        self._channel = channel
        self.connections += 1
        self._connected.set()
        self._made.set()
        self._made = trio.Event()

    async def _until_broken(self, socket: Socket) -> None:
        broken = self._broken

        async def until_ended() -> None:
            await socket.ended.wait()
            broken.set()

        async def keep_alive() -> None:
            with suppress(trio.TooSlowError):
                await socket.keep_alive()
            broken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_ended)
            nursery.start_soon(keep_alive)
            await broken.wait()
            nursery.cancel_scope.cancel()

    @property
    def connection(self) -> int:
        """The number of the connection that stands, counted from 1; 0 while there is none."""
        return self.connections if self._connected.is_set() and not self._broken.is_set() else 0

    async def broken(self) -> None:
        """Wait until the connection that stands breaks; return at once while there is none."""
        await self._broken.wait()

    async def newer_than(self, connection: int) -> int:
        """Wait for a connection with a higher number, and return that.

        Cancellation changes nothing.
        """
        while self.connections <= connection:
            await self._made.wait()
        return self.connections

    def jittered(self, seconds: float) -> float:
        """Return a pause up to half longer or shorter, so that not all daemons act at once."""
        return seconds * self._random.uniform(0.5, 1.5)

    async def call(
        self, service: str, method: str, request: Any, *, timeout_s: float, repeatable: bool
    ) -> Any:
        """Make a call and return its answer.

        ``service`` is ``runtime`` or ``admin``. ``timeout_s`` is the deadline of each attempt, the
        wait for a connection included. A ``repeatable`` call is tried up to three times. Raises
        purerpc's RpcFailedError for an answer that is an error, Unreachable when none came.
        """
        pause_s = _PAUSE_FIRST_S
        for attempt in range(1, _ATTEMPTS + 1):
            last = not repeatable or attempt == _ATTEMPTS
            try:
                return await self._attempt(service, method, request, timeout_s)
            except purerpc.RpcFailedError as error:
                if last or error.status.status_code not in _RETRIED:
                    raise
            except Unreachable:
                if last:
                    raise
            await trio.sleep(self.jittered(pause_s))
            pause_s *= 2
        raise AssertionError("unreachable")

    async def _attempt(self, service: str, method: str, request: Any, timeout_s: float) -> Any:
        try:
            with trio.fail_after(timeout_s):
                await self._connected.wait()
        except trio.TooSlowError:
            raise Unreachable(f"no connection to {self._host}:{self._port}") from None
        broken = self._broken

        async def start(metadata: object) -> Any:
            # purerpc's own stubs cannot tell the server a deadline; its connection can.
            signature = _SERVICES[service].methods[method].signature
            stream = await self._channel._grpc_socket.start_request(
                "http",
                _SERVICES[service].name,
                method,
                signature.request_type.DESCRIPTOR.full_name,
                f"{self._host}:{self._port}",
                timedelta(seconds=timeout_s),
            )
            stream.expect_message_type(signature.response_type)
            return stream

        try:
            with trio.fail_after(timeout_s + _DEADLINE_MARGIN_S):
                return await ClientStubUnaryUnary(start)(request)
        except purerpc.RpcFailedError:
            raise
        except _TRANSPORT_ERRORS as error:
            broken.set()
            raise Unreachable(f"{method}: {error or type(error).__name__}") from error


def _is_transport_error(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_transport_error(each) for each in error.exceptions)
    return isinstance(error, _TRANSPORT_ERRORS)
