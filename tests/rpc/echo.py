"""A service with one method of each kind and of each temper, and ways to serve it."""

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import purerpc
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import StringValue
from h2.errors import ErrorCodes

from globalstore.rpc import Limits, Listener, ListenerOptions, fast_path
from globalstore.rpc.connection import Connection
from globalstore.rpc.dispatch import routes
from globalstore.rpc.serving import Serving

from .wire import StrictClient, head, message

C = purerpc.Cardinality
NAMES = (
    "unary", "plain", "metadata", "count", "flood", "collect", "chat", "late_chat", "hang", "wait",
    "held", "stubborn", "immovable", "abort", "not_found", "fail", "fail_in_nursery",
    "bad_metadata", "missing", "missing_stream", "quick", "hand_out", "hand_out_and_hang", "large",
)  # fmt: skip


def text(value: str) -> bytes:
    return StringValue(value=value).SerializeToString()


class Recorder:
    """An observer that writes down what it saw."""

    def __init__(self) -> None:
        self.started_paths: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.changed = trio.Event()

    def started(self, call: Any) -> None:
        self.started_paths.append(call.method.path)

    def finished(self, call: Any, code: Any, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append((call.method.path.rpartition("/")[2], code.name))
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, count: int) -> None:
        """Wait until ``count`` calls have ended."""
        while len(self.ended) < count:
            await self.changed.wait()


class Echo:
    """The handlers; ``running`` and ``log`` tell what they went through."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.running = trio.Event()
        self.release = trio.Event()
        self.ended = trio.Event()
        self.sent = 0
        self.taken_back: list[str] = []
        self.made = 0

    async def unary(self, message: Any, request: Any) -> Any:
        return StringValue(value=message.value)

    async def plain(self, message: Any) -> Any:
        return StringValue(value="plain " + message.value)

    async def metadata(self, message: Any, request: Any) -> Any:
        request.initial_metadata.append(("early", "1"))
        request.trailing_metadata.append(("late-bin", b"\x00\x01"))
        request.trailing_metadata.append(("peer", request.peer))
        return StringValue(value=repr(dict(request.metadata)))

    async def count(self, message: Any) -> AsyncIterator[Any]:
        for number in range(int(message.value)):
            self.sent = number + 1
            yield StringValue(value=str(number))

    async def flood(self, message: Any) -> AsyncIterator[Any]:
        """More than any buffer of a kernel holds, in messages of 10 kB."""
        for number in range(int(message.value)):
            self.sent = number + 1
            yield StringValue(value="x" * 10_000)

    async def collect(self, input_messages: Any) -> Any:
        values = [m.value async for m in input_messages]
        return StringValue(value=",".join(values))

    async def chat(self, input_messages: Any) -> AsyncIterator[Any]:
        async for m in input_messages:
            yield m

    async def late_chat(self, input_messages: Any) -> AsyncIterator[Any]:
        """Reads nothing until released."""
        await self.release.wait()
        async for m in input_messages:
            yield m

    async def hang(self, message: Any) -> Any:
        self.running.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        finally:
            self.ended.set()

    async def wait(self, message: Any, request: Any) -> Any:
        self.running.set()
        with request.only_waiting():
            await trio.sleep_forever()

    async def held(self, message: Any) -> Any:
        self.running.set()
        await self.release.wait()
        return message

    async def stubborn(self, message: Any) -> Any:
        """Swallows its cancellation once, and answers all the same."""
        self.running.set()
        try:
            await trio.sleep_forever()
        except BaseException:  # noqa: BLE001 - what a careless handler does
            self.log.append("swallowed")
        return StringValue(value="still alive")

    async def immovable(self, message: Any) -> Any:
        """Does not end when cancelled."""
        self.running.set()
        with trio.CancelScope(shield=True):
            await self.release.wait()
        return message

    async def abort(self, message: Any, request: Any) -> Any:
        request.abort(purerpc.StatusCode.ABORTED, "try again", [("hint", "soon")])

    async def not_found(self, message: Any) -> Any:
        raise purerpc.NotFoundError("no such thing")

    async def fail(self, message: Any) -> Any:
        raise ValueError("a secret of the server")

    async def fail_in_nursery(self, message: Any) -> Any:
        async with trio.open_nursery():
            raise KeyError("typed")

    async def bad_metadata(self, message: Any, request: Any) -> Any:
        request.trailing_metadata.append(("x", "a\nb"))
        return message

    def _quick_fast(self, message: Any, request: Any) -> Any:
        """Answers what begins with a q, refuses an x, breaks over a !, and leaves the rest."""
        if message.value.startswith("x"):
            request.abort(purerpc.StatusCode.ABORTED, "no x")
        if message.value == "!":
            raise ValueError("a secret of the server")
        if not message.value.startswith("q"):
            return None
        return StringValue(value="at once " + message.value)

    @fast_path(_quick_fast)
    async def quick(self, message: Any, request: Any) -> Any:
        return StringValue(value="later " + message.value)

    async def large(self, message: Any, request: Any) -> Any:
        """Waits for its turn, and answers with as many characters as asked for."""
        await request.large_answer()
        self.made += 1
        return StringValue(value="y" * int(message.value))

    def _take_back_of(self, value: str) -> Any:
        async def take_back() -> None:
            await trio.lowlevel.checkpoint()
            self.taken_back.append(value)

        return take_back

    async def hand_out(self, message: Any, request: Any) -> Any:
        """Hands something out when released; gives the answer the size that is asked for."""
        self.running.set()
        await self.release.wait()
        request.if_undelivered(self._take_back_of(message.value))
        return StringValue(value=message.value.ljust(int(message.value.partition(" ")[2] or 0)))

    async def hand_out_and_hang(self, message: Any, request: Any) -> Any:
        """Has something handed out, and does not get round to saying so."""
        request.if_undelivered(self._take_back_of(message.value))
        await self.hang(message)

    async def missing(self, message: Any) -> Any:
        raise NotImplementedError

    async def missing_stream(self, message: Any) -> Any:
        raise NotImplementedError

    @property
    def service(self) -> purerpc.Service:
        service = purerpc.Service("test.Echo")
        kinds = {
            "count": C.UNARY_STREAM,
            "flood": C.UNARY_STREAM,
            "collect": C.STREAM_UNARY,
            "chat": C.STREAM_STREAM,
            "late_chat": C.STREAM_STREAM,
            "missing_stream": C.UNARY_STREAM,
        }
        for name in NAMES:
            signature = purerpc.RPCSignature(
                kinds.get(name, C.UNARY_UNARY), StringValue, StringValue
            )
            public = "".join(part.capitalize() for part in name.split("_"))
            service.add_method(public, getattr(self, name), signature)
        return service


class InMemory:
    """The server's end of a stream in memory."""

    def __init__(self, stream: Any) -> None:
        self.aclose = stream.aclose
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self._receive_some = stream.receive_some

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._receive_some(max_bytes))


class Peer:
    """A strict client on the other end of a stream in memory."""

    def __init__(self, stream: Any, connection: Any, serving: Any) -> None:
        self.stream = stream
        self.connection = connection
        self.serving = serving
        self.client = StrictClient()
        self.closed = trio.Event()
        self._sending = trio.Lock()

    async def flush(self) -> None:
        """Send what the client has to say."""
        async with self._sending:
            if data := self.client.output():
                await self.stream.send_all(data)

    async def begin(self, method: str, *extra: tuple[str, str]) -> int:
        """Send the head of a call."""
        stream_id = self.client.start(head(f"/test.Echo/{method}", *extra))
        await self.flush()
        return stream_id

    async def send(self, stream_id: int, value: str, *, end: bool = False) -> None:
        """Send one message of a call."""
        self.client.h2.send_data(stream_id, message(text(value)), end_stream=end)
        await self.flush()

    async def call(self, method: str, value: str = "x", *extra: tuple[str, str]) -> int:
        """Send a whole unary request."""
        stream_id = self.client.call(text(value), head(f"/test.Echo/{method}", *extra))
        await self.flush()
        return stream_id

    async def cancel(self, stream_id: int, code: int = ErrorCodes.CANCEL) -> None:
        """Reset a stream, also one whose answer is under way."""
        self.client.cancel(stream_id, code)
        await self.flush()

    async def read(self) -> bool:
        """Take what the server has sent; False at the end of the connection."""
        data = bytes(await self.stream.receive_some(1 << 16))
        self.client.receive(data)
        await self.flush()
        return bool(data)

    async def answer(self, stream_id: int) -> Any:
        """Wait for the end of a call and return what came back."""
        answer = self.client.answers[stream_id]
        while not answer.ended and answer.reset is None:
            assert await self.read(), "the connection ended before the call"
        return answer


@asynccontextmanager
async def served(
    echo: Echo | None = None,
    *,
    limits: Limits | None = None,
    options: ListenerOptions | None = None,
    pair: Any = None,
    **hooks: Any,
) -> AsyncIterator[Peer]:
    """One connection over a stream in memory, its client settled; without pings by default."""
    interceptors = hooks.pop("interceptors", ())
    hooks = {"observers": (), "authorize": None, "map_error": None} | hooks
    serving = Serving(
        routes=routes([(echo or Echo()).service], interceptors, limits, hooks.pop("bounds", None)),
        limits=limits or Limits(),
        options=options or ListenerOptions(keepalive_time=math.inf),
        **hooks,
    )
    near, far = pair or trio.testing.memory_stream_pair()
    async with serving.undoing(), trio.open_nursery() as nursery:
        serving.calls = nursery
        connection = Connection(serving, InMemory(far), "client:1")
        peer = Peer(near, connection, serving)

        async def run() -> None:
            await connection.run()
            await far.aclose()
            peer.closed.set()

        nursery.start_soon(run)
        await peer.flush()
        await peer.read()
        yield peer
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(*services: purerpc.Service, **settings: Any) -> AsyncIterator[Listener]:
    """A listener on a free port of the loopback address."""
    listener = Listener(services or [Echo().service], **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.serve)
        yield listener
        nursery.cancel_scope.cancel()


async def dial(listener: Listener, tls: ssl.SSLContext | None = None) -> Peer:
    """A strict client connected to a listener over the network."""
    stream: Any = await trio.open_tcp_stream("127.0.0.1", listener.port)
    if tls is not None:
        stream = trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)
        await stream.do_handshake()
    peer = Peer(stream, None, None)
    await peer.flush()
    await peer.read()
    return peer
