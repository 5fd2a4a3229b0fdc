"""The HTTP app: metrics for scrapers, health for probes and people."""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry

from globalstore.http.exposition import Exposition, form_of
from globalstore.http.heads import REFUSAL
from globalstore.http.health import HealthState, Verdict, health, liveness, readiness

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

_PROBES: Final[dict[str, Callable[[HealthState], Verdict]]] = {
    "/health": health,
    "/ready": readiness,
    "/livez": liveness,
}
_JSON: Final = b"application/json"

_WITH_BODY: Final = Verdict(413, "body refused", "no request has a body")
_REFUSED_HEADS: Final = {
    400: Verdict(400, "bad request", "expected HTTP/1.1"),
    431: Verdict(431, "head too large", "request line and headers are too large"),
    505: Verdict(505, "version not supported", "expected HTTP/1.1"),
}


class HttpApp:
    """An ASGI application with four paths; it never touches the database.

    ``GET`` and ``HEAD`` of ``/metrics``, ``/health``, ``/ready`` and ``/livez``. Any other path is
    404, any other method 405, a body 413, a head that is too large 431, one of another protocol
    505. Probes answer one JSON object with ``status`` and, unless all is well, ``reason``.
    """

    def __init__(self, registry: CollectorRegistry, state: HealthState) -> None:
        """Show the metrics of ``registry`` at ``/metrics``, and ``state`` to the probes."""
        self._exposition = Exposition(registry)
        self._state = state

    def __repr__(self) -> str:
        return f"<HttpApp [ready: {self._state.ready}, {self._exposition!r}]>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as the ASGI server calls for."""
        if scope["type"] == "http":
            await self._answer(scope, send)

    async def _answer(self, scope: Scope, send: Send) -> None:
        method, path = scope["method"], _path(scope["path"])
        if code := _header(scope, REFUSAL):
            await _respond(send, int(code), _body(_REFUSED_HEADS[int(code)]), _JSON)
        elif method not in {"GET", "HEAD"}:
            refusal = Verdict(405, "method not allowed", "only GET and HEAD are answered")
            await _respond(send, refusal.code, _body(refusal), _JSON, [(b"allow", b"GET, HEAD")])
        elif _header(scope, b"transfer-encoding") or _header(scope, b"content-length").strip("0"):
            await _respond(send, _WITH_BODY.code, _body(_WITH_BODY), _JSON)
        elif path == "/metrics":
            form = form_of(_header(scope, b"accept"), _header(scope, b"accept-encoding"))
            encoding = [(b"content-encoding", b"gzip")] if form.is_compressed else []
            more = [(b"vary", b"accept, accept-encoding"), *encoding]
            body = await self._exposition.render(form)
            await _respond(send, 200, body, form.content_type, more)
        elif path in _PROBES:
            verdict = _PROBES[path](self._state)
            await _respond(send, verdict.code, _body(verdict), _JSON)
        else:
            paths = ", ".join(["/metrics", *_PROBES])
            missing = Verdict(404, "not found", f"the paths are {paths}")
            await _respond(send, missing.code, _body(missing), _JSON)


def _path(target: str) -> str:
    """Return the path of a request's target, which a proxy may have sent with scheme and host."""
    if target.startswith("/"):
        return target
    scheme, _, rest = target.partition("://")
    if scheme.lower() in {"http", "https"}:
        return f"/{rest.partition('/')[2]}"
    return target


def _header(scope: Scope, name: bytes) -> str:
    """Return the values of a request's header as one list."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


def _body(verdict: Verdict) -> bytes:
    answer = {"status": verdict.status}
    if verdict.reason:
        answer["reason"] = verdict.reason
    return json.dumps(answer).encode() + b"\n"


async def _respond(
    send: Send, code: int, body: bytes, content_type: bytes, more: _Headers = ()
) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *more,
    ]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
