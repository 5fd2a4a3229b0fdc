"""Runs programs of calls: each step by the server and by the contract, then compared."""

import copy
from pathlib import Path
from typing import Any

import trio
from purerpc import StatusCode
from simulated_host import CallFailed, Host
from worker_contract import Contract
from worker_facts import Refused, identity
from worker_messages import reading
from worker_messages import request as request_of
from worker_steps import DAEMONS, Step

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# Between two steps, so that no two things are ever heard at the same time, and no age is exactly a
# timeout: what happens then is nobody's business.
TICK_S = 0.003

_STATUS = {True: wire.CONNECTION_STATUS_CONNECTED, False: wire.CONNECTION_STATUS_RECONNECTING}
OK, ERROR, NOT_FOUND = wire.STATUS_OK, wire.STATUS_ERROR, wire.STATUS_NOT_FOUND


def same(observed: Any, promised: Any, of: Any = "") -> None:
    assert observed == promised, f"{of}\nobserved {observed}\npromised {promised}"


# Workers, replicas and recorded answers, as sorted rows.
Promise = tuple[list[Any], list[Any], list[Any]]


class Program:
    """Runs steps against a server on a file, and against the contract."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.host = Host(folder, nursery, worker_policy={"heartbeat_timeout": "10s"})
        self.contract = Contract(trio.current_time(), self.host.wall_us())
        self.last: Any = None
        self.cursors: dict[str, tuple[int, ...]] = {}

    async def run(self, program: list[Step]) -> None:
        await self.host.start()
        self.contract.restart()
        for step in program:
            await trio.sleep(TICK_S)
            self._look_at_the_clocks()
            await getattr(self, step.name)(**step.arguments)
            self._look_at_the_clocks()
            await self.compare()

    def _look_at_the_clocks(self) -> None:
        self.contract.pass_time(trio.current_time())
        self.contract.wall_us = self.host.wall_us()

    # Calls: what is asked, and what is then compared.

    async def register(self, **fields: Any) -> None:
        await self._ask(request_of(self.contract, "register", fields))

    async def heartbeat(self, **fields: Any) -> None:
        await self._ask(request_of(self.contract, "heartbeat", fields))

    async def reconcile(self, **fields: Any) -> None:
        await self._ask(request_of(self.contract, "reconcile", fields))

    async def unregister(self, **fields: Any) -> None:
        await self._ask(request_of(self.contract, "unregister", fields))

    async def replica(self, **fields: Any) -> None:
        await self._ask(request_of(self.contract, "replica", fields))

    async def again(self) -> None:
        """The answer was lost: the same request comes once more."""
        if self.last is not None:
            await self._ask(self.last)

    async def cut(self, call: Step, turns: int) -> None:
        """The client goes away in the middle: all of it happened, or nothing."""
        request = request_of(self.contract, call.name, call.arguments)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_in_vain, request)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        self.last = request
        before = copy.deepcopy(self.contract)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        minted = {w[0]: w[1] for w in (await self._observed())[0]}
        try:
            self._expected(request, minted.get(getattr(request, "daemon_id", ""), "none"))
        except Refused:
            self.contract = before
        if (
            await self._observed() != self._promised()
            or not self._heard_as_promised()
            or not await self._is_written(request)
        ):
            self.contract = before

    async def _is_written(self, request: Any) -> bool:
        """Tell whether a replica was registered, for one that was there and looks the same."""
        if not isinstance(request, wire.RegisterReplicaRequest):
            return True
        sql = "SELECT 1 FROM replicas WHERE updated_at = ?"
        return bool(await self.host.rows(sql, self.contract.wall_us))

    def _heard_as_promised(self) -> bool:
        """Tell whether what is in memory alone is as the contract has it."""
        workers = self.host.running.components.workers
        return {
            (
                *(w.worker_id, w.heartbeat_at, w.accepting, w.reported_checksum),
                *(w.gap_since, w.must_register, workers.is_doubted(w)),
            )
            for w in workers._by_key.values()
        } == {
            (
                *(w.worker_id, w.heartbeat_at, w.accepting, w.reported_checksum),
                *(w.gap_since, w.must_register, w.doubted),
            )
            for w in self.contract.workers.values()
            if w.active
        }

    async def _ask_in_vain(self, request: Any) -> None:
        try:
            await self.host.call(request)
        except CallFailed as failed:
            assert failed.code is not StatusCode.INTERNAL, failed  # noqa: PT017

    async def _ask(self, request: Any) -> None:
        self.last = request
        answer: Any = None
        try:
            answer = await self.host.call(request)
        except CallFailed as failed:
            answer = failed.code
        try:
            expected = self._expected(request, getattr(answer, "worker_id", ""))
        except Refused as refused:
            expected = refused.code
        same(reading(request, answer), expected, request)

    def _expected(self, request: Any, minted: str) -> Any:
        contract = self.contract
        match request:
            case wire.RegisterWorkerRequest():
                worker = contract.register(request, minted)
                if worker is None:
                    return ERROR
                sync = worker.needs_reconcile or request.is_recovery_registration
                return OK, worker.worker_id, sync, worker.version, worker.generation
            case wire.WorkerHeartbeatRequest():
                outcome = contract.heartbeat(request)
                if outcome is None:
                    return NOT_FOUND
                return OK, outcome[0].version, outcome[1], outcome[2]
            case wire.UnregisterWorkerRequest():
                return contract.unregister(request)
            case wire.RegisterReplicaRequest():
                contract.register_replica(request)
                return OK
            case _:
                return contract.reconcile(request)

    # Other steps.

    async def claim(self, artifact: str, view: str) -> None:
        request = wire.RequestReplicaTransportRequest(
            artifact_id=artifact, source_node_id="r", source_address="r.example", request_id="r"
        )
        if view:
            request.requested_byte_space.kind = common.BYTE_SPACE_KIND_VIEW
            request.requested_byte_space.id = view
        answer = await self.host.call(request)
        sources = self.contract.sources(artifact, view)
        assert (answer.status == OK) == bool(sources), (answer, sources)
        if sources:
            assert identity(artifact, answer.remote_memory_info) in sources
            await self.host.call(
                wire.CompleteReplicaTransportRequest(transport_id=answer.transport_id, outcome=2)
            )

    async def listing(self, flags: int, unavailable: bool) -> None:
        answer = await self.host.call(
            wire.ListActiveWorkersRequest(
                required_capability_flags=flags, include_unavailable=unavailable
            )
        )
        reading = [
            (
                *(w.worker_id, w.daemon_id, w.node_id, w.node_address, w.grpc_port),
                *(w.mem_pool_available_size, w.accepting_new_requests, w.state_version),
                *(w.capability_flags, w.status),
            )
            for w in answer.workers
        ]
        promised = [
            (
                *(w.worker_id, w.daemon_id, w.registration.node_id, *(w.endpoint or ())),
                *(w.free, w.accepting, w.version, w.flags, _STATUS[w.accepting]),
            )
            for w in self.contract.listed(flags, unavailable)
        ]
        same(reading, promised)

    async def everybody_beats(self) -> None:
        for daemon in range(DAEMONS):
            await self.heartbeat(
                daemon=daemon, version=0, checksum="", accepting=True, flags=None, artifacts=[],
                speaks_for="",
            )  # fmt: skip
            await self.sleep(0.7)

    async def leave_a_gap(self, daemon: int, beats: int) -> None:
        """A request got lost, and its daemon does not notice for a while."""
        fields = {"daemon": daemon, "entries": "mirror", "kind": 1, "seq": 2, "generation": 0}
        fields |= {"speaks_for": "own", "taken_s_ago": None, "malformed": False}
        for _ in range(beats):
            await self.reconcile(**fields)
            await self.everybody_beats()
        await self.reconcile(**fields)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._look_at_the_clocks()

    async def set_wall_clock(self, seconds: int) -> None:
        self.host.wall_step_us += seconds * 1_000_000

    async def restart(self, graceful: bool) -> None:
        if graceful:
            await self.host.stop()
        else:
            # What was said within the last flush interval may be lost.
            await self.sleep(0.3)
            await self.host.kill()
        await self.host.start()
        self.contract.restart()

    # Comparing.

    async def compare(self) -> None:
        observed = await self._observed()
        same(observed, self._promised())
        for daemon, _, _, _, *cursor in observed[0]:
            before = self.cursors.get(daemon, (0, 0, 0))
            generation, seq, version = cursor[:3]
            assert (generation, version) >= (before[0], before[2])
            assert version >= before[2]
            assert seq >= before[1] or generation > before[0]
            self.cursors[daemon] = generation, seq, version
        for worker in self.contract.workers.values():
            live = self.host.running.components.workers.find(worker.worker_id)
            assert (live is not None) == worker.active
            if live is not None:
                checksum = await self.host.running.components.context.worker_digests.checksum_of(
                    live
                )
                assert checksum == self.contract.checksum(worker.worker_id)
        await self.listing(0, True)
        await self.listing(0, False)

    async def _observed(self) -> Promise:
        workers = await self.host.rows(
            "SELECT daemon_id, worker_id, node_address || ':' || grpc_port, inactive_at IS NULL,"
            " generation, request_seq, state_version, needs_reconcile FROM workers"
            " JOIN worker_ids USING (worker_key) JOIN worker_cursors USING (worker_key)"
        )
        rows = await self.host.rows(
            "SELECT artifact_id, view_id, node_id, node_address, node_port,"
            " CASE memory_tier WHEN 0 THEN 'GPU' WHEN 1 THEN 'RAM' ELSE 'DISK' END, device_id,"
            " worker_id, is_available AND r.confirmation = i.confirmation, memory_size,"
            " transfer_size FROM replicas r JOIN artifacts USING (artifact_key)"
            " JOIN endpoints USING (endpoint_key) JOIN worker_ids i USING (worker_key)"
        )
        recorded = await self.host.rows("SELECT request_id FROM recorded_replies")
        return sorted(map(tuple, workers)), sorted(map(tuple, rows)), sorted(map(tuple, recorded))

    def _promised(self) -> Promise:
        workers = [
            (
                *(
                    w.daemon_id,
                    w.worker_id,
                    f"{w.endpoint[0]}:{w.endpoint[1]}" if w.endpoint else None,
                ),
                *(w.active, w.generation, w.seq, w.version, w.needs_reconcile),
            )
            for w in self.contract.workers.values()
        ]
        rows = [
            (*key, row.owner, row.available, row.size, row.keys)
            for key, row in self.contract.rows.items()
        ]
        return sorted(workers), sorted(rows), sorted((name,) for name in self.contract.recorded)
