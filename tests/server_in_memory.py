"""Calls to a server that has no sockets: its transport, and stubs as purerpc makes them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio
from google.protobuf.message_factory import GetMessageClass
from purerpc.grpclib.exceptions import raise_status
from purerpc.grpclib.status import Status

from globalstore.api.context import ServerInfo
from globalstore.config import GlobalStoreConfig
from globalstore.rpc import CallEnded, DrainReport, InProcess, Statistics
from globalstore.server import grpc_listener
from globalstore.server.components import Components


class Memory:
    """Calls that come from memory: what ``Server.serve`` needs where there are no sockets."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self.in_process = InProcess(**grpc_listener.served(components))

    def statistics(self) -> Statistics:
        """Nobody holds anything."""
        return Statistics()

    async def answer_probes(self, nursery: trio.Nursery) -> None:
        """Nobody asks."""

    async def take_calls(self, nursery: trio.Nursery, cluster_id: str) -> ServerInfo:
        return ServerInfo("memory", 0, "memory", 0, 0, "", "", cluster_id)

    def tasks(self) -> dict[str, Any]:
        return {}

    def reload(self, config: GlobalStoreConfig) -> None:
        """Nothing of it can change."""

    async def drain(self, grace_s: float) -> DrainReport:
        self.in_process.drain()
        return DrainReport(0, 0, 0)


class Stub:
    """The methods of a service as attributes, called as those of purerpc's stubs are.

    A call that is refused raises purerpc's error of its code. One that is cancelled cancels its
    handler, and ends with it; with ``loses_answer`` that happens when its answer is on the way.
    """

    def __init__(self, in_process: InProcess, service: Any) -> None:
        self._in_process = in_process
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            answer = GetMessageClass(method.output_type).FromString
            setattr(self, method.name, partial(self._call, path, answer))

    async def _call(
        self,
        path: str,
        parse: Callable[[bytes], Any],
        request: Any,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        loses_answer: bool = False,
    ) -> Any:
        # A call that is answered on the fast path waits for nothing; one that came by a socket
        # would have let others run.
        await trio.lowlevel.checkpoint()
        try:
            answer = await self._in_process.call(
                path,
                request.SerializeToString(),
                metadata=metadata,
                loses_answer=loses_answer,
            )
        except CallEnded as ended:
            raise_status(Status(ended.status.code, ended.status.message))
        return parse(answer)
