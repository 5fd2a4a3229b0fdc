"""A client that can be cut off at a chosen moment of its call, in every way a client can be."""

import enum
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing
from h2.errors import ErrorCodes
from rpc.wire import StrictClient, head, message
from server_process import PATIENCE_S
from servers import Serving, configuration, serving_over_tcp
from stuck_disk import StuckDisk

from globalstore.db import Site
from globalstore.db.ticket import name_of
from globalstore.rpc import frames
from globalstore.server.lifecycle import Server

# Seconds of the mock clock between the server's pings and for their answers, and of a deadline.
PING_S = 1
DEADLINE_S = 2


class Way(enum.Enum):
    """How a client is cut off."""

    CANCELLED = "resets its stream"
    VANISHED = "its machine is gone"
    FROZEN = "is stopped, and its connection stays"
    LATE = "named a deadline, which passes"


class Moment(enum.Enum):
    """When it is cut off."""

    QUEUED = "its operation waits for the writer"
    RUNNING = "its operation has run, and is not committed"
    COMMITTED = "its operation is committed, and nobody has been told"
    ANSWERED = "its answer is written, and nothing says that it has arrived"


# What comes over the loopback comes within this, on a machine that does other things too: a client
# whose answer to a ping came later would be taken for a silent one.
_CUSHION_S = 0.02

_SITES = {Moment.RUNNING: Site.BEFORE_COMMIT, Moment.COMMITTED: Site.AFTER_COMMIT}


class Gate:
    """Holds the writer at a site of the commit of one operation."""

    def __init__(self, server: Server) -> None:
        self._store = server.components.store
        self._store._observe = self._observe
        self._wanted: tuple[Site, str] | None = None
        self._reached = trio.Event()
        self._open = threading.Event()
        self._token = trio.lowlevel.current_trio_token()

    def close_at(self, site: Site, operation: str) -> None:
        """Hold the next commit of an operation of this name."""
        self._wanted = (site, operation)

    def _observe(self, site: Site) -> None:
        if self._wanted is None or site is not self._wanted[0]:
            return
        running = self._store._writer.running
        if any(name_of(each.operation) == self._wanted[1] for each in running):
            self._wanted = None
            self._token.run_sync_soon(self._reached.set)
            assert self._open.wait(PATIENCE_S)

    async def reached(self) -> None:
        """Wait until the commit is held."""
        await self._reached.wait()

    def open(self) -> None:
        """Let the commit go on."""
        self._open.set()


@attrs.define(eq=False)
class Caller:
    """A client over TCP that answers what the server sends until it is cut off."""

    stream: trio.SocketStream
    client: StrictClient = attrs.Factory(StrictClient)
    answered: trio.Event = attrs.Factory(trio.Event)
    stops_at_answer: bool = False
    clock: trio.testing.MockClock = attrs.field(kw_only=True)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    sending: trio.Lock = attrs.Factory(trio.Lock)

    async def run(self) -> None:
        """Read, and answer SETTINGS and PING, until the connection ends or ``scope`` does."""
        with self.scope:
            try:
                while data := await self.stream.receive_some(1 << 16):
                    self.client.receive(bytes(data))
                    if any(answer.ended for answer in self.client.answers.values()):
                        self.answered.set()
                        if self.stops_at_answer:
                            return
                    await self._send()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def call(self, path: str, request: Any, timeout_s: float | None = None) -> int:
        """Make a call; return its stream."""
        more = [] if timeout_s is None else [("grpc-timeout", f"{round(timeout_s * 1000)}m")]
        stream_id = self.client.start(head(path, *more))
        self.client.h2.send_data(stream_id, message(request.SerializeToString()), end_stream=True)
        await self._send()
        return stream_id

    async def _send(self) -> None:
        async with self.sending:
            await self.stream.send_all(self.client.output())

    async def cut(self, way: Way, stream_id: int) -> None:
        """Be cut off, and wait until the server must have noticed."""
        if way is Way.CANCELLED:
            async with self.sending:
                self.scope.cancel()
                await self.stream.send_all(frames.rst_stream(stream_id, ErrorCodes.CANCEL))
        elif way is Way.VANISHED:
            self.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            linger = struct.pack("ii", 1, 0)
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await self.stream.aclose()
        elif way is Way.FROZEN:
            self.scope.cancel()
            await self._pass_time(4 * PING_S)
        else:
            await self._pass_time(DEADLINE_S)
        await trio.testing.wait_all_tasks_blocked(_CUSHION_S)

    async def _pass_time(self, seconds: float) -> None:
        """Let time pass in steps in which everybody who lives answers a PING."""
        for _ in range(round(2 * seconds)):
            self.clock.jump(0.5)
            await trio.testing.wait_all_tasks_blocked(_CUSHION_S)


@asynccontextmanager
async def gated(**sections: Any) -> AsyncIterator[tuple[Serving, Gate]]:
    """Run a server over TCP whose writer can be held, and that pings often."""
    gates: list[Gate] = []
    grpc = {"keepalive_time": f"{PING_S}s", "keepalive_timeout": f"{PING_S}s"}
    config = configuration(server={"grpc": grpc}, **sections)
    async with serving_over_tcp(config, prepare=lambda server: gates.append(Gate(server))) as store:
        yield store, gates[0]


async def cut_off(
    store: Serving,
    gate: Gate,
    path: str,
    request: Any,
    way: Way,
    moment: Moment,
    operation: str,
    clock: trio.testing.MockClock,
    *,
    trigger: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Make a call whose client is cut off, and let everything settle.

    ``operation`` is what the call has the writer do. ``trigger`` is what ends the wait of one that
    waits for something first.
    """
    stream = await trio.open_tcp_stream("127.0.0.1", store.info.listen_port)
    async with trio.open_nursery() as nursery:
        caller = Caller(stream, stops_at_answer=moment is Moment.ANSWERED, clock=clock)
        nursery.start_soon(caller.run)
        timeout_s = DEADLINE_S if way is Way.LATE else None

        async def begin() -> int:
            stream_id = await caller.call(path, request, timeout_s)
            await trio.testing.wait_all_tasks_blocked(_CUSHION_S)
            return stream_id

        if moment is Moment.QUEUED:
            async with StuckDisk(store, nursery):
                await caller.cut(way, await begin())
            if trigger is not None:
                await trigger()
        elif moment is Moment.ANSWERED:
            stream_id = await begin()
            if trigger is not None:
                await trigger()
            await caller.answered.wait()
            await caller.cut(way, stream_id)
        else:
            if trigger is None:
                gate.close_at(_SITES[moment], operation)
            stream_id = await begin()
            if trigger is not None:
                await settled(store)  # its first try is over then
                gate.close_at(_SITES[moment], operation)
                await trigger()
            await gate.reached()
            await caller.cut(way, stream_id)
            gate.open()
        await settled(store)
        nursery.cancel_scope.cancel()
    await stream.aclose()


async def settled(store: Serving) -> None:
    """Let what was begun end: tasks, what they have the writer do, and what follows from it."""
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked(_CUSHION_S)
        await store.components.store.write(lambda tx: None)
