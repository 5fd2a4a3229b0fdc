"""A load client that costs far less than any server it loads.

Requests are framed by hand on blocking sockets and answers are taken apart in place: some ten
microseconds a call, so that on a small machine the server is what is measured. Headers are sent
as a stock client sends them, literal the first time and as table references ever after.

A *slot* is one call in flight after another, written as a generator: it yields a ``Wanted`` call
and is resumed with the serialized answer. Slots live as long as their client; each ``run`` lets
them go on for a while and ends with nothing in flight.
"""

import heapq
import select
import socket
import time
from collections import defaultdict
from collections.abc import Generator, Iterable
from typing import NamedTuple

import attrs
from hpack import Encoder

import globalstore.rpc  # noqa: F401 - makes purerpc importable
from globalstore.rpc import frames
from globalstore.rpc.blocks import BlockDecoder


class Wanted(NamedTuple):
    """A call to make: at once, or when it is ``due`` by ``perf_counter``.

    The time that a call takes counts from when it was due, however late it could be sent.
    """

    path: str
    request: bytes
    due: float = 0.0


Slot = Generator[Wanted, bytes, None]

# Windows as large as the protocol allows: no call ever waits for the client.
_WINDOW = frames.WINDOW_MAX
_INITIAL_WINDOW_SIZE = 4
_ENABLE_PUSH = 2

# Answers of a few hundred bytes, some hundred of them.
_READ_BYTES = 256 << 10

# An answer that takes longer than this never comes.
_PATIENCE_S = 60.0


class CallFailed(Exception):
    """A call ended with another status than OK, or the connection ended."""


@attrs.frozen
class Load:
    """What came of a run: calls that ended, how long it took, seconds per call by method."""

    calls: int
    seconds: float
    latencies: dict[str, list[float]]

    @property
    def per_second(self) -> float:
        """Return how many calls were answered in a second."""
        return self.calls / self.seconds

    def quantile_us(self, method: str, quantile: float) -> float:
        """Return the latency in µs below which ``quantile`` of the calls of a method were."""
        values = sorted(self.latencies[method])
        return values[min(len(values) - 1, int(len(values) * quantile))] * 1e6


@attrs.define(eq=False)
class _Open:
    """A slot and its call, if one is in flight."""

    slot: Slot
    connection: "_Connection"
    wanted: Wanted
    sent_at: float = 0.0
    answer: bytes = b""


class _Connection:
    """One HTTP/2 connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._authority = f"127.0.0.1:{port}"
        self._encoder = Encoder()
        self._seen: set[str] = set()
        self._blocks: dict[str, bytes] = {}
        self._decoder = BlockDecoder(1 << 16)
        self._next_id = 1
        self._buffer = b""
        self._out = [
            frames.PREFACE,
            frames.settings(((_ENABLE_PUSH, 0), (_INITIAL_WINDOW_SIZE, _WINDOW))),
            frames.window_update(0, _WINDOW - frames.WINDOW_DEFAULT),
        ]
        self.in_flight: dict[int, _Open] = {}

    def send(self, call: _Open) -> None:
        path, request, _ = call.wanted
        stream_id = self._next_id
        self._next_id += 2
        self.in_flight[stream_id] = call
        block = self._blocks.get(path) or self._encode(path)
        message = b"\x00" + len(request).to_bytes(4, "big") + request
        self._out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block))
        self._out.append(frames.frame(frames.DATA, frames.END_STREAM, stream_id, message))

    def _encode(self, path: str) -> bytes:
        block = self._encoder.encode(
            (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "bench"),
            )
        )
        if path in self._seen:
            self._blocks[path] = block
        else:
            # A new entry moved those before it.
            self._seen.add(path)
            self._blocks.clear()
        return block

    def flush(self) -> None:
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self) -> list[_Open]:
        """Read once; return the calls that ended."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise CallFailed("the server closed the connection")
        if self._buffer:
            data = self._buffer + data
        done: list[_Open] = []
        position, end = 0, len(data)
        while end - position >= frames.HEADER_BYTES:
            high, low, kind, flags, stream_id = frames.read_header(data, position)
            body = position + frames.HEADER_BYTES
            after = body + (high << 8 | low)
            if after > end:
                break
            position = after
            if kind == frames.DATA:
                self.in_flight[stream_id].answer += data[body:after]
            elif kind == frames.HEADERS:
                fields = self._fields(data[body:after])
                if flags & frames.END_STREAM:
                    call = self.in_flight.pop(stream_id)
                    if fields.get(b"grpc-status") != b"0":
                        raise CallFailed(f"{call.wanted.path}: {fields}")
                    done.append(call)
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.PING and not flags & frames.ACK:
                self._out.append(frames.ping(data[body:after], ack=True))
            elif kind in {frames.GOAWAY, frames.RST_STREAM}:
                raise CallFailed(f"frame of type {kind}: {data[body:after]!r}")
        self._buffer = data[position:]
        return done

    def _fields(self, block: bytes) -> dict[bytes, bytes]:
        known = self._decoder.recall(block)
        if known is not None:
            return known
        decoded, steady = self._decoder.decode(block)
        fields = dict(decoded)
        if steady:
            self._decoder.remember(block, fields, len(block))
        return fields


class LoadClient:
    """Connections to one server, each with slots of its own. Use as ``with``."""

    def __init__(self, port: int, slots: Iterable[Iterable[Slot]]) -> None:
        """Prepare one connection for each element of ``slots``: the slots that share it."""
        self._open: list[_Open] = []
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        for shared in slots:
            connection = _Connection(port)
            number = connection.socket.fileno()
            self._connections[number] = connection
            self._poll.register(number, select.EPOLLIN)
            self._open += [_Open(slot, connection, next(slot)) for slot in shared]

    def __enter__(self) -> "LoadClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._poll.close()
        for connection in self._connections.values():
            connection.socket.close()

    def run(self, seconds: float) -> Load:
        """Keep every slot busy for ``seconds``, then wait for what is in flight."""
        latencies: dict[str, list[float]] = defaultdict(list)
        waiting: list[tuple[float, int, _Open]] = []
        in_flight = calls = 0
        began = now = time.perf_counter()
        until = began + seconds

        def go_on(call: _Open) -> None:
            nonlocal in_flight
            due = call.wanted.due
            if due > now:
                heapq.heappush(waiting, (due, id(call), call))
                return
            call.answer = b""
            call.sent_at = due or now
            call.connection.send(call)
            in_flight += 1

        for call in self._open:
            go_on(call)
        while True:
            now = time.perf_counter()
            while waiting and waiting[0][0] <= now < until:
                go_on(heapq.heappop(waiting)[2])
            for connection in self._connections.values():
                connection.flush()
            if not in_flight and (not waiting or now >= until):
                return Load(calls, now - began, dict(latencies))
            next_at = waiting[0][0] if waiting and now < until else now + _PATIENCE_S
            ready = self._poll.poll(next_at - now)
            if not ready and not waiting:
                raise CallFailed(f"no answer for {_PATIENCE_S} s")
            now = time.perf_counter()
            for number, _ in ready:
                for call in self._connections[number].receive():
                    in_flight -= 1
                    calls += 1
                    latencies[call.wanted.path.rpartition("/")[2]].append(now - call.sent_at)
                    # The five bytes before the message are its prefix.
                    call.wanted = call.slot.send(call.answer[5:])
                    if now < until:
                        go_on(call)


def call_once(port: int, path: str, request: bytes) -> bytes:
    """Make one call on a connection of its own; return the serialized answer."""
    return call_each(port, path, [request])[0]


def call_each(port: int, path: str, requests: list[bytes]) -> list[bytes]:
    """Make calls one after another on a connection of their own."""
    answers: list[bytes] = []

    def slot() -> Slot:
        for request in requests:
            answer = yield Wanted(path, request)
            answers.append(answer)
        yield Wanted(path, b"")  # never sent

    with LoadClient(port, [[slot()]]) as client:
        for _ in requests:
            client.run(0)
    return answers
