"""Calls from within the process: all of a call but its connection."""

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import trio
from purerpc import Service, StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.dispatch import (
    UNKNOWN_ROUTE,
    CallObserver,
    ErrorMap,
    Interceptor,
    routes,
    status_of,
)
from globalstore.rpc.headers import RequestHead
from globalstore.rpc.limits import Limits
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rpc.serving import ListenerOptions, Serving
from globalstore.rpc.status import DRAINING, OK, Status

_PEER = "in-process"
_DRAINING = Status(StatusCode.UNAVAILABLE, DRAINING)
_GONE = Status(StatusCode.CANCELLED, "the caller has gone")
_NO_ANSWER = Status(StatusCode.UNAVAILABLE, "no answer")


class CallEnded(Exception):
    """A call ended without an answer; ``status`` says how."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code.name}: {status.message}")
        self.status = status


def _field(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    raw = value.encode("latin-1") if isinstance(value, str) else value
    return name.encode("ascii"), b64encode(raw) if name.endswith("-bin") else raw


@attrs.define(eq=False)
class Channel:
    """What a call needs of a connection. Nothing is buffered here."""

    draining: trio.Event
    peer: str = _PEER
    turn: str = _PEER
    peer_names: frozenset[str] = frozenset()

    suspect = False

    def consumed(self, call: Call, size: int) -> None:
        """Do nothing: there is no window to give back."""

    def hold(self, call: Call, size: int) -> bool:
        """Say that there is room: callers in the process are trusted."""
        return True

    async def answer_turn(self, call: Call) -> None:
        """Return at once: answers are taken at once."""

    def park(self, calls: int) -> None:
        """Do nothing: nobody here is gone without a word."""

    def write(self, call: Call, payload: bytes) -> bool:
        raise NotImplementedError("streams of answers need a connection")

    async def writable(self, call: Call) -> None:
        raise NotImplementedError("streams of answers need a connection")


class InProcess:
    """Serves unary calls that come from the same event loop, as a ``Listener`` serves others.

    The arguments are those of ``Listener``.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        bounds: Mapping[str, RequestBounds] | None = None,
        interceptors: Sequence[Interceptor] = (),
        observers: Sequence[CallObserver] = (),
        authorize: Callable[[Call], None] | None = None,
        open_paths: frozenset[str] = frozenset(),
        map_error: ErrorMap | None = None,
    ) -> None:
        limits = Limits()
        self._serving = Serving(
            routes=routes(services, interceptors, limits, bounds),
            limits=limits,
            options=ListenerOptions(),
            observers=observers,
            authorize=authorize,
            map_error=map_error,
            open_paths=open_paths,
        )
        self._cut = False
        self._channel = Channel(self._serving.draining)

    def __repr__(self) -> str:
        state = "DRAINING" if self._serving.draining.is_set() else "OPEN"
        return f"<InProcess [{state}, calls: {len(self._serving.in_flight)}]>"

    @property
    def calls(self) -> frozenset[Call]:
        """The calls in flight."""
        return frozenset(self._serving.in_flight)

    async def call(
        self,
        path: str,
        request: bytes,
        *,
        timeout_s: float = math.inf,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        loses_answer: bool = False,
    ) -> bytes:
        """Make a unary call and return its answer, both serialized.

        Raises CallEnded. When cancelled, so is the call, as if its client had gone away. With
        ``loses_answer`` it is cancelled when its answer is on the way; what that handed out has
        been taken back by the time this raises.
        """
        if self._serving.draining.is_set():
            raise CallEnded(_DRAINING)
        head = RequestHead(
            path,
            timeout_seconds=None if timeout_s == math.inf else timeout_s,
            fields=tuple(_field(name, value) for name, value in metadata),
        )
        route = self._serving.routes.get(path, UNKNOWN_ROUTE)
        call = Call(self._channel, 1, head, route.method, trio.current_time())
        self._serving.begin(call)
        status = _GONE
        try:
            ended = self._serving.refusal(call) or await self._serve(call, request)
            await trio.lowlevel.checkpoint_if_cancelled()  # who has gone gets no answer
            status = ended
        finally:
            self._serving.finish(call, status.code)
            await self._undone(call, status.code is StatusCode.OK and not loses_answer)
        if loses_answer:
            raise CallEnded(_GONE)
        if status.code is not StatusCode.OK:
            raise CallEnded(status)
        assert call.reply is not None
        return call.reply

    async def _undone(self, call: Call, delivered: bool) -> None:
        """Take back what the answer handed out, unless it is ``delivered``."""
        undo, call.undo = call.undo, None
        if undo is not None and not delivered and not self._cut:
            with trio.CancelScope(shield=True):  # it has a deadline of its own
                await self._serving.undone(undo)

    async def _serve(self, call: Call, request: bytes) -> Status:
        route = self._serving.route(call)
        call.deliver(request, False)
        call.end_request()
        call.started = True
        try:
            if route.fast_path is not None and route.admission is not None:
                call.take()
                call.request = route.admission.at_once(request)
                call.reply = route.fast_path(call.request, call)
            if call.reply is None:
                with call.scope:
                    await route.serve(call)
        except Exception as error:  # noqa: BLE001  every failure of a handler ends its call alone
            return status_of(call, error, self._serving.map_error)
        return call.interruption or (_NO_ANSWER if call.reply is None else OK)

    def drain(self) -> None:
        """Take no new calls; those that only wait end UNAVAILABLE."""
        self._serving.draining.set()
        for call in self.calls:
            call.drain()

    def cut(self) -> None:
        """Cancel all calls, as when the process is killed: nobody gets an answer or undoes one."""
        self._cut = True
        for call in self.calls:
            call.cancel(_NO_ANSWER)
