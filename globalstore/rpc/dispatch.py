"""From a path to its handler: built once, at start, from purerpc services."""

import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import attrs
from purerpc import Cardinality, Service, StatusCode

from globalstore.rpc.admission import Admission
from globalstore.rpc.call import Call, RequestStream
from globalstore.rpc.fair_slots import FairSlots
from globalstore.rpc.limits import Limits
from globalstore.rpc.method import UNKNOWN, Method
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rpc.status import Abort, Status, declared, sole_cause
from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

# Serves one call: reads its messages, sends messages or sets its reply, raises to refuse.
Handler = Callable[[Call], Awaitable[None]]
ErrorMap = Callable[[Exception], Status | None]


# Wraps the handler of a method; composed once, the first interceptor outermost.
Interceptor = Callable[[Method, Handler], Handler]


class CallObserver(Protocol):
    """Sees every call, also those refused before a handler. Must not raise."""

    def started(self, call: Call) -> None:
        """Take in that a call's head has arrived."""

    def finished(self, call: Call, code: StatusCode, seconds: float) -> None:
        """Take in that a call has ended, ``seconds`` after its head arrived."""


# Makes the serialized answer to a request, or None.
FastPath = Callable[[Any, Call], bytes | None]


@attrs.frozen
class Route:
    """A method and the handler that serves it, interceptors included.

    ``fast_path`` is tried first, if there is one; see the decorator of that name.
    """

    method: Method
    handler: Handler
    admission: Admission | None = None
    fast_path: FastPath | None = None

    @property
    def bytes_max(self) -> int:
        """The largest request."""
        return 0 if self.admission is None else self.admission.bounds.bytes_max

    async def serve(self, call: Call) -> None:
        """Take the request in and run the handler."""
        if self.admission is not None and not self.method.streams_requests and call.request is None:
            call.request = await self.admission.next(call)
        await self.handler(call)


F = TypeVar("F", bound=Callable[..., Any])


def fast_path(answer: Callable[[Any, Any, Call], Any]) -> Callable[[F], F]:
    """Give a unary method that takes its call an ``answer`` for when nothing has to be waited for.

    ``answer(servicer, message, call)`` returns the reply, or None, having done nothing, to let the
    method itself serve the call. It runs without a task of its own and without the
    interceptors: it logs nothing and takes some microseconds.
    """

    def mark(method: F) -> F:
        method.fast_path = answer  # type: ignore[attr-defined]
        return method

    return mark


async def _unimplemented(call: Call) -> None:
    raise Abort(StatusCode.UNIMPLEMENTED, f"no method {call.path[:200]!r} on this server")


UNKNOWN_ROUTE = Route(UNKNOWN, _unimplemented)


def routes(
    services: Iterable[Service],
    interceptors: Sequence[Interceptor],
    limits: Limits | None = None,
    bounds: Mapping[str, RequestBounds] | None = None,
) -> dict[str, Route]:
    """Build the routes of ``services``; ``bounds`` are those of requests, by path.

    Raises ValueError if two services carry one name.
    """
    table: dict[str, Route] = {}
    large_turn = FairSlots(1)
    bounds = bounds or {}
    unbounded = RequestBounds(bytes_max=(limits or Limits()).message_bytes_max)
    for service in services:
        for name, bound in service.methods.items():
            path = f"/{service.name}/{name}"
            if path in table:
                raise ValueError(f"{path}: offered twice")
            method = Method(path, service.name, name, bound.signature.cardinality)
            admission = Admission(
                bound.signature.request_type, bounds.get(path, unbounded), large_turn
            )
            handler = _handler(bound.method_fn, bound.signature, admission)
            for interceptor in reversed(interceptors):
                handler = interceptor(method, handler)
            table[path] = Route(method, handler, admission, _fast_path(bound.method_fn))
    return table


def _handler(function: Any, signature: Any, admission: Admission) -> Handler:
    async def unary_unary(call: Call) -> None:
        reply = await function(call.request, call)
        call.reply = reply.SerializeToString()

    async def unary_stream(call: Call) -> None:
        await _send_all(call, function(call.request, call))

    async def stream_unary(call: Call) -> None:
        reply = await function(RequestStream(call, admission), call)
        call.reply = reply.SerializeToString()

    async def stream_stream(call: Call) -> None:
        await _send_all(call, function(RequestStream(call, admission), call))

    return {
        Cardinality.UNARY_UNARY: unary_unary,
        Cardinality.UNARY_STREAM: unary_stream,
        Cardinality.STREAM_UNARY: stream_unary,
        Cardinality.STREAM_STREAM: stream_stream,
    }[signature.cardinality]


def _fast_path(function: Any) -> FastPath | None:
    answer = getattr(function, "fast_path", None)
    if answer is None:
        return None
    servicer = function.__self__

    def answered(message: Any, call: Call) -> bytes | None:
        reply = answer(servicer, message, call)
        return None if reply is None else reply.SerializeToString()

    return answered


async def _send_all(call: Call, messages: Any) -> None:
    if inspect.iscoroutine(messages):
        # A servicer's method that was not overridden is a coroutine that raises.
        messages = await messages
    stream: AsyncIterator[Any] = messages
    if not hasattr(stream, "aclose"):
        async for message in stream:
            await call.send(message.SerializeToString())
        return
    async with aclosing(stream):  # type: ignore[type-var]
        async for message in stream:
            await call.send(message.SerializeToString())


def status_of(call: Call, error: Exception, map_error: ErrorMap | None) -> Status:
    """Return the status with which a handler's error ends its call.

    What neither the error itself nor ``map_error`` names is INTERNAL: the client gets a reference
    number, the log the traceback under the same number.
    """
    cause = sole_cause(error)
    status = declared(cause)
    if status is None and map_error is not None and isinstance(cause, Exception):
        try:
            status = map_error(cause)
        except Exception as failure:  # noqa: BLE001 - the hook's own failure is logged below
            failure.__context__ = error
            return internal(call, failure)
    return status or internal(call, error)


def internal(call: Call, error: Exception) -> Status:
    """Return INTERNAL for an error nobody expected, logged under the number its client gets."""
    reference = secrets.token_hex(4)
    call.died = True
    log.exception(
        "handler failed", error=error, reference=reference, method=call.method.path, peer=call.peer
    )
    return Status(StatusCode.INTERNAL, f"internal error, reference {reference}")
