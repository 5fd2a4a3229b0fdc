"""Store daemons of a simulated cluster, and what their calls tell about the server.

A daemon keeps the contract; its network, its process and its clock do not. Whatever it learns goes
to ``Witness``, which knows what really happened and so what may not be answered.
"""

import random
from typing import Any

import attrs
import trio
from purerpc import StatusCode
from simulated_host import CallFailed
from witness import Witness

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import Entry, of_replicas

ARTIFACTS = 40
SLOTS = 2
BEAT_S = 5.0
SIZE = 100

# Everything daemons do falls on this grid, so that much happens at the same instant.
GRID_S = 0.05


def _must_be(failed: CallFailed, *codes: StatusCode) -> None:
    """What a well-behaved daemon may be told."""
    if failed.code not in codes:
        raise failed


@attrs.define(eq=False)
class Daemon:
    """A daemon. ``memory`` are the artifacts it holds; a crash empties it, a pause does not."""

    name: str
    witness: Witness
    rng: random.Random
    memory: set[str] = attrs.Factory(set)
    worker_id: str = ""
    generation: int = 0
    seq: int = 0
    version: int = 1
    in_step: bool = False
    scope: trio.CancelScope | None = None
    awake: trio.Event = attrs.Factory(trio.Event)
    lossy: bool = False
    leaving: bool = False
    settled: bool = False
    turn: trio.Lock = attrs.Factory(trio.Lock)
    started: trio.Event = attrs.Factory(trio.Event)
    ended: trio.Event = attrs.Factory(trio.Event)

    # Its process.

    async def run(self) -> None:
        """Live as a new process until cancelled by ``crash`` or until it has said goodbye."""
        self.memory = set()
        self.in_step = self.leaving = False
        self.awake.set()
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.started.set()
        with self.scope:
            await self._register(recovery=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work)
                await self._beat_until_leaving()
                nursery.cancel_scope.cancel()
            await self._say_goodbye()
        self.started = trio.Event()
        self.ended.set()
        self.scope = None

    def crash(self) -> None:
        assert self.scope is not None
        self.scope.cancel()

    def pause(self) -> None:
        self.awake = trio.Event()

    def resume(self) -> None:
        self.awake.set()

    async def _sleep(self, low: float, high: float) -> None:
        await trio.sleep(round(self.rng.uniform(low, high) / GRID_S) * GRID_S)
        await self.awake.wait()

    # Its network.

    async def _call(self, request: Any) -> Any:
        """Make a call that may get lost on its way there or back."""
        lost = self.lossy and self.rng.random() < 0.6
        if lost and self.rng.random() < 0.5:
            await self._sleep(0.5, 1)
            raise CallFailed(StatusCode.UNAVAILABLE, "request lost")
        answer = await self.witness.call(self.name, request)
        if lost:
            raise CallFailed(StatusCode.UNAVAILABLE, "answer lost")
        return answer

    async def _insist(self, request: Any) -> Any:
        while True:
            try:
                return await self._call(request)
            except CallFailed as failed:
                _must_be(failed, StatusCode.UNAVAILABLE)
            await self._sleep(0.5, 2)

    # Being a worker.

    async def _register(self, *, recovery: bool) -> None:
        answer = await self._insist(
            wire.RegisterWorkerRequest(
                daemon_id=self.name,
                node_id=f"node-{self.name}",
                node_address=f"{self.name}.example",
                grpc_port=50052,
                p2p_port=50053,
                is_recovery_registration=recovery,
                previous_worker_id=self.worker_id if recovery else "",
            )
        )
        assert answer.status == wire.STATUS_OK, (self.name, answer)
        self.worker_id = answer.worker_id
        self.generation, self.seq = answer.reconcile_generation, 0
        self.version = answer.expected_state_version

    async def _beat_until_leaving(self) -> None:
        await self._sleep(0, BEAT_S)
        while not self.leaving:
            try:
                await self._beat()
            except CallFailed as failed:
                _must_be(failed, StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND)
            await self._sleep(BEAT_S - 0.5, BEAT_S)

    async def _beat(self) -> None:
        answer = await self._call(
            wire.WorkerHeartbeatRequest(
                worker_id=self.worker_id,
                daemon_id=self.name,
                state_version=self.version,
                state_checksum=self.checksum(),
                accepting_new_requests=True,
            )
        )
        if answer.status == wire.STATUS_NOT_FOUND:
            self.in_step = False
            await self._register(recovery=True)
            await self._reconcile()
            return
        self.in_step = not answer.state_sync_required
        if answer.state_sync_required:
            await self._reconcile()

    async def _reconcile(self) -> None:
        async with self.turn:
            await self._reconcile_in_turn()

    async def _reconcile_in_turn(self) -> None:
        answer = await self._call(
            wire.ReconcileWorkerStateRequest(
                worker_id=self.worker_id,
                daemon_id=self.name,
                generation=self.generation,
                request_seq=self.seq + 1,
                request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
                inventory=[self._entry(artifact_id) for artifact_id in sorted(self.memory)],
            )
        )
        kind = answer.result_kind
        if kind in {wire.RECONCILE_RESULT_KIND_APPLIED, wire.RECONCILE_RESULT_KIND_NOOP}:
            self.seq += 1
            self.version = answer.new_state_version
        elif kind != wire.RECONCILE_RESULT_KIND_RETRY_LATER:
            await self._register(recovery=True)

    async def _say_goodbye(self) -> None:
        """Leave as a daemon should; the order to do so comes again until it is answered."""
        self.memory = set()
        request_id = f"{self.worker_id} leaves"  # the same at each of its ends
        while True:
            try:
                await self._reconcile()
                break
            except CallFailed as failed:
                if failed.code is StatusCode.NOT_FOUND:
                    return
            await self._sleep(1, 2)
        await self._insist(
            wire.UnregisterWorkerRequest(
                worker_id=self.worker_id, is_graceful_shutdown=True, client_request_id=request_id
            )
        )

    # What it holds, and what it is for.

    def checksum(self) -> str:
        where = f"node-{self.name}", f"{self.name}.example", 50053
        return of_replicas(Entry(name, "", *where, "RAM", 0, True) for name in self.memory)

    def _memory_info(self) -> Any:
        return common.MemoryInfo(
            node_id=f"node-{self.name}",
            node_address=f"{self.name}.example",
            node_port=50053,
            memory_type=common.MEMORY_TYPE_RAM,
            memory_size=SIZE,
            remote_memory_keys=["key"],
            buffer_sizes=[SIZE],
        )

    def _entry(self, artifact_id: str) -> Any:
        return common.ReplicaInfo(
            ref=common.ReplicaRef(artifact_id=artifact_id),
            memory_info=self._memory_info(),
            stats=common.ReplicaStats(is_available=True, max_concurrency=SLOTS),
        )

    async def _work(self) -> None:
        while not self.settled:
            await self._sleep(5, 60)
            try:
                await self._want(f"artifact-{self.rng.randrange(ARTIFACTS)}")
            except CallFailed as failed:
                _must_be(failed, StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND)

    async def _want(self, artifact_id: str) -> None:
        """Load an artifact from a peer, or make it if nobody has it; drop it if it is here."""
        if artifact_id in self.memory:
            self.memory.discard(artifact_id)  # the next heartbeat's checksum tells
            return
        request = wire.RequestReplicaTransportRequest(
            artifact_id=artifact_id,
            source_node_id=f"node-{self.name}",
            source_address=f"{self.name}.example",
            requester_worker_id=self.worker_id,
            request_id=f"{self.name} {self.rng.random()}",
        )
        request.wait_timeout_dur.FromSeconds(self.rng.choice([0, 5, 20]))
        granted = await self._call(request)
        if granted.status == wire.STATUS_OK:
            await self._sleep(0.5, 12)
            await self._insist(
                wire.CompleteReplicaTransportRequest(
                    transport_id=granted.transport_id,
                    outcome=wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS,
                )
            )
        elif granted.status != wire.STATUS_NOT_FOUND:
            return
        self.memory.add(artifact_id)
        if self.rng.random() < 0.3:
            return  # the next reconcile tells
        registration = wire.RegisterReplicaRequest(
            artifact_id=artifact_id,
            worker_id=self.worker_id,
            max_concurrency=SLOTS,
            mem_info=self._memory_info(),
        )
        in_two_steps = self.rng.random() < 0.5
        if in_two_steps:
            registration.mem_info.ClearField("remote_memory_keys")
            registration.mem_info.ClearField("buffer_sizes")
        # The same whenever it loads this artifact.
        registration.client_request_id = f"{self.worker_id} {artifact_id} {in_two_steps}"
        await self._call(registration)
        if in_two_steps:
            await self._sleep(0.1, 0.5)
            await self._reconcile()
