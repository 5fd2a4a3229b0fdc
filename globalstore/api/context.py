"""What a handler may use, and what all handlers are made of."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import attrs
from google.protobuf.message import Message

from globalstore.api.index_checks import IndexChecks
from globalstore.api.middleware.handler_slots import HandlerSlots
from globalstore.api.room import ListRoom
from globalstore.caches.keys import KeyCache
from globalstore.caches.worker_capacity import WorkerCapacity
from globalstore.caches.worker_digests import WorkerDigests
from globalstore.config import GlobalStoreConfig
from globalstore.db import Lane, Snapshot, Store, Transaction
from globalstore.leases.clock import Clock
from globalstore.liveness.daemon_locks import DaemonLocks
from globalstore.liveness.instances import Instances
from globalstore.liveness.workers import Workers
from globalstore.registry import idempotency
from globalstore.registry.idempotency import Basis, Token
from globalstore.rpc import Call
from globalstore.rules.values import UINT32_MAX
from globalstore.scheduling.refusal_reasons import Refusals
from globalstore.scheduling.transports import SourceQueues
from globalstore.telemetry.metrics import Metrics
from globalstore.waiting.chunk_reports import ChunkReports
from globalstore.waiting.drains import Drains
from globalstore.waiting.handouts import Handout, Handouts
from globalstore.waiting.realizations import RealizationWaiters

# What is kept of a caller's deadline for writing and sending the answer, in seconds.
_REPLY_MARGIN_S = 0.05

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


@attrs.frozen
class ServerInfo:
    """Where the server listens and what it calls itself; see GetServerInfo."""

    listen_host: str
    listen_port: int
    advertise_host: str
    advertise_port: int
    metrics_port: int
    version: str
    db_file: str
    cluster_id: str


@attrs.define(eq=False, kw_only=True)
class HandlerContext:
    """The components of the server that a call may use.

    ``info`` is set once the ports are bound.
    """

    config: GlobalStoreConfig
    store: Store
    clock: Clock
    metrics: Metrics
    handler_slots: HandlerSlots
    workers: Workers
    instances: Instances
    daemon_locks: DaemonLocks
    queues: SourceQueues
    refusals: Refusals
    drains: Drains
    handouts: Handouts
    chunk_reports: ChunkReports
    realization_waiters: RealizationWaiters
    keys: KeyCache
    worker_capacity: WorkerCapacity
    worker_digests: WorkerDigests
    index_checks: IndexChecks
    info: ServerInfo | None = None

    @property
    def heartbeat_interval_ms(self) -> int:
        """The heartbeat interval that daemons and instances are given, as the wire has it."""
        seconds = self.config.worker_policy.default_heartbeat_interval
        return min(round(seconds * 1000), UINT32_MAX)

    async def write(
        self,
        call: Call,
        operation: Callable[[Transaction, *Arguments], R],
        *args: *Arguments,
        lane: Lane = Lane.NORMAL,
    ) -> R:
        """Run an operation for a call and return its result once it is durable.

        Raises what the operation refuses with, and what ``Store.write`` raises; on cancellation see
        there.
        """
        self.handler_slots.release(call)
        return await self.store.write(operation, *args, lane=lane)

    async def once(
        self,
        call: Call,
        repeat: Token,
        act: Callable[[Transaction], R],
        encode: Callable[[R], Message],
        basis: Basis,
        now_us: int,
    ) -> idempotency.Reply:
        """Run an operation unless a request with this id ran before; return its encoded answer.

        ``basis`` is what an earlier answer has to rest on still. Raises what the operation refused
        with.
        """
        replays = self.metrics.control_plane.replays
        try:
            outcome = await self.write(
                call,
                idempotency.once,
                repeat,
                now_us,
                act,
                lambda result: encode(result).SerializeToString(),
                basis,
            )
        except idempotency.PayloadConflict:
            replays.labels(repeat.operation_kind, "payload_conflict").inc()
            raise
        if outcome.replayed:
            replays.labels(repeat.operation_kind, "hit").inc()
        return outcome

    async def holding(self, call: Call, *name: Hashable) -> Handout:
        """Have a call answer for what it hands out under a name; see ``waiting.handouts``."""
        await self.handouts.returned(name)
        return self.handouts.hold(call, name)

    async def read(self, query: Callable[[Snapshot, *Arguments], R], *args: *Arguments) -> R:
        """Run a query that sees all that was answered before.

        Raises what ``Store.read`` raises. A cancelled caller leaves at once.
        """
        return await self.store.read(query, *args)

    def list_room(self, cure: str, *, is_asked_for: bool = False) -> ListRoom:
        """Return the room of a list without pages; ``cure`` is what a caller of a long one can do.

        A long one that ``is_asked_for`` may have what a message may have.
        """
        limits = self.config.server.limits
        if is_asked_for:
            return ListRoom(limits.max_message_bytes, "server.limits.max_message_bytes", cure)
        return ListRoom(limits.max_answer_bytes, "server.limits.max_answer_bytes", cure)

    def patience_s(self, call: Call, wanted_s: float) -> float:
        """Return how long a call may wait: as it wants, but not so long that no answer arrives."""
        return min(wanted_s, max(0.0, call.time_remaining - _REPLY_MARGIN_S))

    @contextmanager
    def waiting(self, call: Call) -> Iterator[None]:
        """Mark a stretch in which a call does nothing but wait for something to happen.

        Its handler slot is free meanwhile, and from then on. A server that begins to drain ends the
        call UNAVAILABLE at once; the wait is cancelled.
        """
        self.handler_slots.release(call)
        with call.only_waiting():
            yield


class Handlers:
    """The RPCs of a noun. A service is made of the handlers of its nouns."""

    def __init__(self, context: HandlerContext) -> None:
        self.context = context
