"""A whole server without sockets: its calls come from memory, its database runs inline.

Everything between the bytes of a request and the bytes of its answer is the real thing, and a mock
clock drives all of it. A crash leaves what a killed process leaves: the files as they are.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from google.protobuf.message_factory import GetMessageClass
from purerpc import StatusCode
from serving import configuration

from globalstore.api.middleware.status_codes import status_of as map_error
from globalstore.config import GlobalStoreConfig
from globalstore.db import Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rpc import Call
from globalstore.rpc.dispatch import Route, status_of
from globalstore.rpc.headers import RequestHead
from globalstore.server import grpc_listener
from globalstore.server.gauges import Gauges
from globalstore.server.lifecycle import Server

_METHODS = [
    method for service in wire.DESCRIPTOR.services_by_name.values() for method in service.methods
]
_ANSWERS = {m.name: GetMessageClass(m.output_type) for m in _METHODS}
_ANSWERED_BY = {m.input_type.full_name: m for m in _METHODS}

# Mock clocks begin anywhere; the wall clock of a simulation begins here.
EPOCH_US = 1_700_000_000_000_000


# A disk in memory where there is one: what fsync costs is no part of a simulation.
_RAM_DISK = Path("/dev/shm")


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that is gone afterwards, for databases that need not outlive a power cut."""
    ram = _RAM_DISK if os.access(_RAM_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        yield Path(folder)


class CallFailed(Exception):
    """A call ended with a gRPC code; UNAVAILABLE also when there was no answer at all."""

    def __init__(self, code: StatusCode, text: str = "") -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code


class _Channel:
    """What a call needs of a connection."""

    peer = "memory"
    message_bytes_max = 4 << 20

    def __init__(self) -> None:
        self.draining = trio.Event()

    def consumed(self, call: Call, size: int) -> None:
        """Nothing is buffered here."""


class _Process(Server):
    """A server that starts, runs and stops like the real one, but for its listeners."""

    def __init__(self, config: GlobalStoreConfig, wall: Any) -> None:
        super().__init__(config, wall, Runner.INLINE)
        self.channel = _Channel()
        self.calls: set[Call] = set()
        self.routes: dict[str, Route] = {}
        self.life = trio.CancelScope()
        self.ended = trio.Event()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with self.life:
            async with self.store, self.queues, trio.open_nursery() as nursery:
                await self._recover()
                self.listener = grpc_listener.listener(self.context, self.grpc_health, self.tokens)
                self.routes = self.listener._serving.routes
                self.stalls.on_second = Gauges(self, self.listener).look
                self._start_background(nursery)
                task_status.started()
                await self._until_stopped()
                self.channel.draining.set()
                self.queues.stop()
                for call in list(self.calls):
                    call.drain()
                await self.heartbeats.flush()
                nursery.cancel_scope.cancel()
        assert self.store.failure is None
        assert not self.health.failing, self.health.failing.reason
        self.ended.set()


class Host:
    """The machine on which a server runs: its file and its wall clock outlive the process.

    ``folder`` takes the database; a crash moves on to a copy of it.
    """

    def __init__(self, folder: Path, nursery: trio.Nursery, **sections: Any) -> None:
        self._folder = folder
        self._nursery = nursery
        self._sections = sections
        self._crashes = 0
        self._began = trio.current_time()
        self.wall_step_us = 0
        self.server: _Process | None = None

    def wall_us(self) -> int:
        passed_us = round((trio.current_time() - self._began) * 1_000_000)
        return EPOCH_US + passed_us + self.wall_step_us

    @property
    def _file(self) -> Path:
        return self._folder / f"store-{self._crashes}.db"

    @property
    def running(self) -> _Process:
        assert self.server is not None, "no server is running"
        return self.server

    async def start(self) -> None:
        config = configuration(database={"db_file": str(self._file)}, **self._sections)
        server = _Process(config, self.wall_us)
        await self._nursery.start(server.run)
        self.server = server

    async def stop(self) -> None:
        """Stop as a signal does."""
        server, self.server = self.running, None
        server.stop()
        await server.ended.wait()

    async def kill(self) -> None:
        """End the process at this instant; whoever waits for an answer gets none."""
        server, self.server = self.running, None
        before = self._file
        self._crashes += 1
        for ending in ("", "-wal"):
            source = before.with_name(before.name + ending)
            if source.exists():
                shutil.copyfile(source, self._file.with_name(self._file.name + ending))
        for call in server.calls:
            call.scope.cancel()
        server.life.cancel()
        await server.ended.wait()

    async def call(self, message: Any) -> Any:
        """Make a call; which one, the type of the message tells.

        Raises CallFailed. When cancelled, so is the call, as if its client had gone away.
        """
        method = _ANSWERED_BY[message.DESCRIPTOR.full_name]
        server = self.server
        if server is None or server.channel.draining.is_set():
            raise CallFailed(StatusCode.UNAVAILABLE, "no server")
        path = f"/{method.containing_service.full_name}/{method.name}"
        route = server.routes[path]
        call = Call(server.channel, 1, RequestHead(path), route.method, trio.current_time())
        call.deliver(message.SerializeToString(), False)
        call.end_request()
        server.calls.add(call)
        try:
            with call.scope:
                await route.handler(call)
        except Exception as error:
            status = status_of(call, error, map_error)
            raise CallFailed(status.code, status.message) from error
        finally:
            server.calls.discard(call)
        if call.reply is None:
            raise CallFailed(StatusCode.UNAVAILABLE, "no answer")
        return _ANSWERS[method.name].FromString(call.reply)

    async def rows(self, sql: str, *values: object) -> list[Any]:
        """Look into the database."""
        return await self.running.store.read(lambda tx: tx.all(sql, values))
