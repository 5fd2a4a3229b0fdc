"""What the connections of one listener share."""

import math
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.dispatch import UNKNOWN_ROUTE, CallObserver, ErrorMap, Route, status_of
from globalstore.rpc.ledger import Ledger, Network
from globalstore.rpc.limits import Limits
from globalstore.rpc.receipts import Undo
from globalstore.rpc.status import Status
from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")


@attrs.frozen(kw_only=True)
class ListenerOptions:
    """Where and how to listen. Times in seconds; infinite means never."""

    host: str = "127.0.0.1"
    # 0 picks a free port.
    port: int = 0
    # None serves plaintext.
    ssl_context: ssl.SSLContext | None = None
    tcp_nodelay: bool = True
    # Files that the rest of the process may have open: new connections leave so many free.
    files_reserved: int = 0
    so_reuseport: bool = False
    # A client that has sent nothing for so long is pinged, and sooner while calls of it wait. Half
    # of what middleboxes forget a silent connection after, and what the clients' own pings take.
    keepalive_time: float = 30.0
    # It is dropped when it does not answer within this time: far above any network, and a tenth
    # of what a slot that waits for it would otherwise be lost for.
    keepalive_timeout: float = 10.0
    # A connection without calls is ended after this time.
    max_connection_idle: float = math.inf
    # Every connection is ended after this time, once its calls have ended.
    max_connection_age: float = math.inf
    # Addresses of proxies: many clients come from one, so that no bounds of one address apply.
    proxy_networks: Sequence[Network] = ()
    # A number from 0 to 1, for ages that differ a little.
    random: Callable[[], float] = random.random


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
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        self.routes = routes
        self.limits = limits
        self.options = options
        self.map_error = map_error
        # The largest request of each path.
        self.bytes_max = {path: route.bytes_max for path, route in routes.items()}
        self.ledger = Ledger(limits, options.proxy_networks)
        self.draining = trio.Event()
        self.in_flight: set[Call] = set()
        self.watches_connections = (
            min(options.keepalive_time, options.max_connection_idle, options.max_connection_age)
            < math.inf
        )
        self._observers = tuple(observers)
        self._authorize = authorize
        self._open_paths = open_paths
        self._calls: trio.Nursery | None = None
        # In which answers that did not arrive are undone.
        self._undos: trio.Nursery | None = None
        self._undoing = 0
        self._all_undone = trio.Event()

    @property
    def calls(self) -> trio.Nursery:
        """The nursery in which every call has its task."""
        assert self._calls is not None, "not serving"
        return self._calls

    @calls.setter
    def calls(self, nursery: trio.Nursery) -> None:
        self._calls = nursery

    @asynccontextmanager
    async def undoing(self) -> AsyncIterator[None]:
        """Take back what undelivered answers handed out, while the block runs and then the rest."""
        async with trio.open_nursery() as self._undos:
            yield

    def take_back(self, undo: Undo) -> None:
        """Undo what an answer handed out that did not arrive."""
        assert self._undos is not None, "not serving"
        self._undoing += 1
        self._undos.start_soon(self._undone, undo)

    async def _undone(self, undo: Undo) -> None:
        try:
            await self.undone(undo)
        finally:
            self._undoing -= 1
            if not self._undoing:
                self._all_undone.set()

    async def undone(self, undo: Undo) -> None:
        """Run ``undo`` within its time; that it fails is logged and ends nothing else."""
        with trio.move_on_after(self.limits.undo_seconds) as patience:
            try:
                await undo()
            except Exception:
                log.exception("an undelivered answer was not undone")
        if patience.cancelled_caught:
            log.error("an undelivered answer was not undone in time")

    async def all_undone(self) -> None:
        """Wait until nothing is being taken back, each for no longer than its time."""
        while self._undoing:
            self._all_undone = trio.Event()
            await self._all_undone.wait()

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
                log.exception("observer failed", method=call.method.path)

    def refusal(self, call: Call) -> Status | None:
        """Return why the call must not reach its handler, or None."""
        if not call.method.known:
            return Status(StatusCode.UNIMPLEMENTED, f"no method {call.path[:200]!r} on this server")
        if self._authorize is not None and not self.is_open(call):
            try:
                self._authorize(call)
            except Exception as error:  # noqa: BLE001 - a refusal, or a failure of the hook
                return status_of(call, error, self.map_error)
        return None

    def is_open(self, call: Call) -> bool:
        """Whether clients may make this call whoever they are."""
        return call.path in self._open_paths

    def finish(self, call: Call, code: StatusCode) -> None:
        """Take in that a call has ended with ``code``."""
        self.in_flight.discard(call)
        if self._observers:
            seconds = trio.current_time() - call.received_at
            for observer in self._observers:
                try:
                    observer.finished(call, code, seconds)
                except Exception:
                    log.exception("observer failed", method=call.method.path)
