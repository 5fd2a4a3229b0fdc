"""What the connections of one listener share."""

import logging
import math
import ssl
from collections.abc import Callable, Sequence

import attrs
import trio
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.dispatch import UNKNOWN_ROUTE, CallObserver, ErrorMap, Route, status_of
from globalstore.rpc.limits import Limits
from globalstore.rpc.status import Status
from globalstore.rpc.streams import InboundMemory

log = logging.getLogger("globalstore.rpc")


@attrs.frozen(kw_only=True)
class ListenerOptions:
    """Where and how to listen. Times in seconds; infinite means never."""

    host: str = "127.0.0.1"
    # 0 picks a free port.
    port: int = 0
    # None serves plaintext.
    ssl_context: ssl.SSLContext | None = None
    tcp_nodelay: bool = True
    so_reuseport: bool = False
    # A client that has sent nothing for so long is pinged,
    keepalive_time: float = math.inf
    # and dropped when it does not answer within this time.
    keepalive_timeout: float = 20.0
    # A connection without calls is ended after this time.
    max_connection_idle: float = math.inf
    # Every connection is ended after this time, once its calls have ended.
    max_connection_age: float = math.inf


class Serving:
    """Routes, observers, limits and the calls in flight of one listener."""

    def __init__(
        self,
        *,
        routes: dict[str, Route],
        limits: Limits,
        options: ListenerOptions,
        observers: Sequence[CallObserver],
        authorize: Callable[[Call], None] | None,
        map_error: ErrorMap | None,
    ) -> None:
        self.routes = routes
        self.limits = limits
        self.options = options
        self.map_error = map_error
        self.memory = InboundMemory(limits.inbound_bytes_max)
        self.draining = trio.Event()
        self.in_flight: set[Call] = set()
        self.watches_connections = (
            min(options.keepalive_time, options.max_connection_idle, options.max_connection_age)
            < math.inf
        )
        self._observers = tuple(observers)
        self._authorize = authorize
        self._calls: trio.Nursery | None = None

    @property
    def calls(self) -> trio.Nursery:
        """The nursery in which every call has its task."""
        assert self._calls is not None, "not serving"
        return self._calls

    @calls.setter
    def calls(self, nursery: trio.Nursery) -> None:
        self._calls = nursery

    def route(self, call: Call) -> Route:
        """Return the route of a call; that of a made-up path refuses it."""
        return self.routes.get(call.path, UNKNOWN_ROUTE)

    def begin(self, call: Call) -> None:
        """Take in that a call's head has arrived."""
        self.in_flight.add(call)
        for observer in self._observers:
            try:
                observer.started(call)
            except Exception:
                log.exception("observer failed method=%s", call.method.path)

    def refusal(self, call: Call) -> Status | None:
        """Return why the call must not reach its handler, or None."""
        if not call.method.known:
            return Status(StatusCode.UNIMPLEMENTED, f"no method {call.path[:200]!r} on this server")
        if self._authorize is not None:
            try:
                self._authorize(call)
            except Exception as error:  # noqa: BLE001 - a refusal, or a failure of the hook
                return status_of(call, error, self.map_error)
        return None

    def finish(self, call: Call, code: StatusCode) -> None:
        """Take in that a call has ended with ``code``."""
        self.in_flight.discard(call)
        if self._observers:
            seconds = trio.current_time() - call.received_at
            for observer in self._observers:
                try:
                    observer.finished(call, code, seconds)
                except Exception:
                    log.exception("observer failed method=%s", call.method.path)
