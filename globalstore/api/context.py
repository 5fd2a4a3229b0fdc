"""What a handler may use."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple, cast

import attrs
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from globalstore.api.middleware.handler_slots import HandlerSlots
from globalstore.caches.keys import KeyCache
from globalstore.config import GlobalStoreConfig
from globalstore.db import Lane, Snapshot, Store, Transaction
from globalstore.leases.clock import LeaseClock
from globalstore.liveness.daemon_locks import DaemonLocks
from globalstore.liveness.instances import Instances
from globalstore.liveness.workers import LiveWorker, Workers
from globalstore.registry import idempotency
from globalstore.registry.idempotency import Token
from globalstore.registry.runtime import replica_lists
from globalstore.rpc import Call
from globalstore.rules.refusals import Refusal
from globalstore.rules.values import UINT32_MAX, identifier
from globalstore.scheduling.refusal_reasons import Refusals
from globalstore.scheduling.transports import SourceQueues
from globalstore.telemetry.metrics import Metrics
from globalstore.waiting.chunk_reports import ChunkReports, WorkerSlots
from globalstore.waiting.drains import Drains
from globalstore.waiting.realizations import RealizationWaiters

# What ``derived`` calls the digest of a worker's replicas.
_CHECKSUM = "checksum"

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


@attrs.define(eq=False)
class HandlerContext:
    """The parts of the server that a call may use.

    ``wall_us`` tells the wall clock in microseconds since 1970; it is stored and shown, and
    measures no lifetime. ``info`` is set once the ports are bound.
    """

    config: GlobalStoreConfig
    store: Store
    workers: Workers
    instances: Instances
    queues: SourceQueues
    drains: Drains
    refusals: Refusals
    daemon_locks: DaemonLocks
    keys: KeyCache
    realization_waiters: RealizationWaiters
    handler_slots: HandlerSlots
    metrics: Metrics
    wall_us: Callable[[], int]
    lease_clock: LeaseClock
    chunk_reports: ChunkReports
    worker_slots: WorkerSlots
    info: ServerInfo | None = None

    @property
    def heartbeat_interval_ms(self) -> int:
        """How often daemons and instances are told to report, as the wire has it."""
        seconds = self.config.worker_policy.default_heartbeat_interval
        return min(round(seconds * 1000), UINT32_MAX)

    async def write(
        self,
        call: Call,
        operation: Callable[[Transaction, *Arguments], R],
        *args: *Arguments,
        lane: Lane = Lane.NORMAL,
    ) -> R:
        """Run an operation for a call and return its result once it is durable."""
        self.handler_slots.release(call)
        return await self.store.write(operation, *args, lane=lane)

    async def once(
        self,
        call: Call,
        repeat: Token,
        act: Callable[[Transaction], R],
        encode: Callable[[R], Message],
        now_us: int,
    ) -> idempotency.Reply:
        """Run an operation unless a request with this id ran before; return its encoded answer.

        Raises what the operation refused with, now or then.
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
            )
        except idempotency.PayloadConflict:
            replays.labels(repeat.operation_kind, "payload_conflict").inc()
            raise
        if isinstance(outcome, Refusal):
            raise outcome
        if outcome.replayed:
            replays.labels(repeat.operation_kind, "hit").inc()
        return outcome

    async def read(self, query: Callable[[Snapshot, *Arguments], R], *args: *Arguments) -> R:
        """Run a query that sees all that was answered before."""
        return await self.store.read(query, *args)

    async def checksum_of(self, worker: LiveWorker) -> str:
        """Return the digest of what a worker holds; see ``rules.checksums``."""
        return await self.derived(
            worker, _CHECKSUM, lambda: self.read(replica_lists.checksum_of_worker, worker.key)
        )

    def known_checksum_of(self, worker: LiveWorker) -> str | None:
        """Return the same if it was asked for since the worker's replicas last changed."""
        revision, checksum = worker.derived.get(_CHECKSUM, (None, None))
        return cast("str", checksum) if revision == worker.replicas_revision else None

    async def derived(
        self, worker: LiveWorker, what: object, look_up: Callable[[], Awaitable[R]]
    ) -> R:
        """Return something that follows from a worker's replicas, read once per change of them."""
        revision = worker.replicas_revision
        known = worker.derived.get(what)
        if known is not None and known[0] == revision:
            return known[1]  # type: ignore[return-value]
        value = await look_up()
        if any(of != revision for of, _ in worker.derived.values()):
            worker.derived.clear()
        worker.derived[what] = revision, value
        return value


class Encoded:
    """An answer that is encoded already, to be given many times."""

    __slots__ = ("_body",)

    def __init__(self, message: Message) -> None:
        self._body = message.SerializeToString()

    def SerializeToString(self) -> bytes:
        return self._body


def timestamp(us: int) -> Timestamp:
    """Return microseconds since 1970 as the wire has them."""
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


def microseconds(stamp: Timestamp) -> int:
    """Return a wire timestamp in microseconds since 1970; finer parts are dropped."""
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def token(request: Message, kind: str, client_request_id: str) -> Token | None:
    """Return what a repeat of this request is recognised by; None if it names no id."""
    request_id = identifier("client_request_id", client_request_id)
    if not request_id:
        return None
    payload = request.SerializeToString(deterministic=True)
    return Token(request_id, kind, hashlib.sha256(payload).digest())
