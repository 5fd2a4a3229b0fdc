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
from server_in_memory import Memory
from servers import configuration

from globalstore.config import GlobalStoreConfig
from globalstore.db import Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rpc import CallEnded
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


class _Process:
    """A server in a cancel scope: ending that is what ``kill -9`` does."""

    def __init__(self, config: GlobalStoreConfig, wall: Any) -> None:
        self.server = Server(config, wall, Runner.INLINE)
        self.components = self.server.components
        self.memory = Memory(self.components)
        self.life = trio.CancelScope()
        self.ended = trio.Event()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with self.life:
            await self.server.serve(self.memory, task_status=task_status)
        assert self.components.store.failure is None
        assert not self.components.health.failing, self.components.health.failing.reason
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
        server.server.stop()
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
        server.memory.in_process.cut()
        server.life.cancel()
        await server.ended.wait()

    async def call(self, message: Any) -> Any:
        """Make a call; which one, the type of the message tells.

        Raises CallFailed. When cancelled, so is the call, as if its client had gone away.
        """
        method = _ANSWERED_BY[message.DESCRIPTOR.full_name]
        if self.server is None:
            raise CallFailed(StatusCode.UNAVAILABLE, "no server")
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            reply = await self.server.memory.in_process.call(path, message.SerializeToString())
        except CallEnded as ended:
            raise CallFailed(ended.status.code, ended.status.message) from ended
        return _ANSWERS[method.name].FromString(reply)

    async def rows(self, sql: str, *values: object) -> list[Any]:
        """Look into the database."""
        return await self.running.components.store.read(lambda tx: tx.all(sql, values))
