"""What purerpc's own server gets wrong on an open network, each beside what ours does.

Every test makes one observation of both servers: of ours it must be the expected one, of the
stock server it must not, so that a later purerpc that closes a gap is noticed here.
"""

import functools
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import purerpc
import pytest
import trio
import trio.lowlevel
import trio.testing
from h2.errors import ErrorCodes
from purerpc.server import ConnectionHandler

from globalstore.rpc import Limits, Listener, ListenerOptions
from globalstore.rpc.connection import Connection
from globalstore.rpc.dispatch import routes
from globalstore.rpc.serving import Serving

from .echo import Echo, Peer, text
from .wire import head, message

# How long an observation may take. The stock server's answers never come, so waiting for them
# is cut short; ours come at once, but a loaded machine must not fail the test.
PATIENCE_SECONDS = {"stock": 0.3, "ours": 20.0}

both = pytest.mark.parametrize("kind", ["stock", "ours"])


def judge(kind: str, observed: object, expected: object) -> None:
    """Ours is as expected; the stock server is not, or the gap has been closed."""
    assert (observed == expected) is (kind == "ours"), observed


@attrs.frozen
class Running:
    """A server of either kind and its handlers."""

    port: int
    echo: Echo
    server: Any
    stop: trio.CancelScope


@asynccontextmanager
async def running(kind: str) -> AsyncIterator[Running]:
    echo = Echo()
    async with trio.open_nursery() as nursery:
        if kind == "ours":
            limits = Limits(goaway_seconds=0.05, flush_seconds=0.05)
            server: Any = Listener([echo.service], limits=limits)
            port = await nursery.start(server.serve)
        else:
            server = purerpc.Server(port=0)
            server.add_service(echo.service)
            port = await nursery.start(_serve_stock, server)
        yield Running(port, echo, server, nursery.cancel_scope)
        nursery.cancel_scope.cancel()


async def _serve_stock(server: Any, task_status: Any) -> None:
    await server.serve_async(task_status=task_status)


async def dial(port: int) -> Peer:
    peer = Peer(await trio.open_tcp_stream("127.0.0.1", port), None, None)
    peer.client.h2.config.validate_outbound_headers = False
    peer.client.h2.config.normalize_outbound_headers = False
    await peer.flush()
    await peer.read()
    return peer


async def status_of(kind: str, peer: Peer, stream_id: int) -> str | None:
    """The status of a call, None if none comes in good time."""
    with trio.move_on_after(PATIENCE_SECONDS[kind]):
        try:
            return (await peer.answer(stream_id)).status
        except (trio.BrokenResourceError, AssertionError):
            return "connection lost"
    return None


@both
async def test_a_malformed_request_leaves_the_other_calls_of_its_connection_alone(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        good = await peer.call("Held")
        await it.echo.running.wait()
        bad = [(n, v) for n, v in head() if n != ":path"]
        peer.client.call(text("x"), bad)
        await peer.flush()
        with trio.move_on_after(PATIENCE_SECONDS["stock"]):
            await peer.read()
        it.echo.release.set()
        judge(kind, await status_of(kind, peer, good), "0")


@both
async def test_after_a_protocol_fault_the_socket_is_closed(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        await peer.stream.send_all(b"\xff" * 50)
        closed = False
        with trio.move_on_after(PATIENCE_SECONDS[kind]):
            while await peer.stream.receive_some(1000):
                pass
            closed = True
        judge(kind, closed, True)


@both
async def test_a_reset_cancels_the_handler(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        stream_id = await peer.call("Hang")
        await it.echo.running.wait()
        peer.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        await peer.flush()
        with trio.move_on_after(PATIENCE_SECONDS[kind]):
            await it.echo.ended.wait()
        judge(kind, it.echo.log, ["cancelled"])


@both
async def test_a_deadline_is_kept(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        stream_id = await peer.call("Hang", "x", ("grpc-timeout", "20m"))
        judge(kind, await status_of(kind, peer, stream_id), "4")


@both
async def test_a_failing_handler_is_internal_and_leaks_nothing(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        answer = await peer.answer(await peer.call("Fail"))
        judge(kind, (answer.status, "secret" in answer.status_message), ("13", False))


@both
async def test_cancellation_passes_through_a_connection(kind):
    scopes, outcomes, ended = [], [], trio.Event()

    async def watched(stream: Any) -> None:
        if kind == "ours":
            serve = Connection(serving, stream, "client").run
        else:
            serve = functools.partial(ConnectionHandler({}, purerpc.Server(port=0)), stream)
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await serve()
        outcomes.append(scope.cancelled_caught)
        ended.set()

    serving = Serving(
        routes=routes([Echo().service], ()),
        limits=Limits(),
        options=ListenerOptions(),
        observers=(),
        authorize=None,
        map_error=None,
    )
    async with trio.open_nursery() as nursery:
        serving.calls = nursery
        if kind == "ours":
            (listener,) = await nursery.start(
                functools.partial(trio.serve_tcp, watched, 0, host="127.0.0.1")
            )
            port = listener.socket.getsockname()[1]
        else:
            stock = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = stock.extra(anyio.abc.SocketAttribute.local_port)
            nursery.start_soon(stock.serve, watched)
        await dial(port)
        scopes[0].cancel()
        await ended.wait()
        judge(kind, outcomes, [True])
        nursery.cancel_scope.cancel()


@both
async def test_a_compressed_request_is_answered(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        stream_id = await peer.begin("Unary", ("grpc-encoding", "gzip"))
        data = message(gzip.compress(text("z" * 100)), compressed=True)
        peer.client.h2.send_data(stream_id, data, end_stream=True)
        await peer.flush()
        judge(kind, await status_of(kind, peer, stream_id), "0")


@both
async def test_a_client_that_does_not_read_stops_the_handler_that_sends(kind):
    messages = 4000  # 40 MB, several times what the kernel buffers on loopback
    async with running(kind) as it:
        peer = await dial(it.port)
        peer.client.h2.increment_flow_control_window(1 << 30)
        stream_id = await peer.begin("Flood")
        peer.client.h2.increment_flow_control_window(1 << 30, stream_id)
        await peer.send(stream_id, str(messages), end=True)
        while not it.echo.sent:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.05)
        judge(kind, it.echo.sent < messages, True)


@both
async def test_a_call_in_flight_survives_the_order_to_stop(kind):
    async with running(kind) as it, trio.open_nursery() as nursery:
        peer = await dial(it.port)
        stream_id = await peer.call("Held")
        await it.echo.running.wait()
        if kind == "ours":
            nursery.start_soon(it.server.drain, 10)
        else:
            it.stop.cancel()  # it offers nothing else
        await trio.testing.wait_all_tasks_blocked()
        it.echo.release.set()
        judge(kind, await _status_despite_cancellation(kind, peer, stream_id), "0")


async def _status_despite_cancellation(kind: str, peer: Peer, stream_id: int) -> str | None:
    with trio.CancelScope(shield=True):
        return await status_of(kind, peer, stream_id)


@both
async def test_a_flood_of_pings_ends_the_connection(kind):
    async with running(kind) as it:
        peer = await dial(it.port)
        with trio.move_on_after(PATIENCE_SECONDS[kind]):
            for _ in range(100):
                for _ in range(100):
                    peer.client.h2.ping(b"x" * 8)
                await peer.flush()
                if peer.client.goaway is not None or not await peer.read():
                    break
        code = peer.client.goaway and peer.client.goaway.error_code
        judge(kind, code, ErrorCodes.ENHANCE_YOUR_CALM)


@both
async def test_only_the_address_asked_for_is_bound(kind):
    async with running(kind) as it:
        try:
            socket.create_connection(("127.0.0.2", it.port), 1).close()
        except ConnectionRefusedError:
            reachable = False
        else:
            reachable = True
        judge(kind, reachable, False)


@both
async def test_a_second_server_on_the_port_is_refused(kind):
    async with running(kind) as it, trio.open_nursery() as nursery:
        try:
            if kind == "ours":
                await Listener([], options=ListenerOptions(port=it.port)).bind()
            else:
                await nursery.start(_serve_stock, purerpc.Server(port=it.port))
        except OSError:
            refused = True
        else:
            refused = False
        judge(kind, refused, True)
        nursery.cancel_scope.cancel()
