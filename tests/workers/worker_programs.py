"""Random programs of calls: each step is run by the server and by the contract, then compared."""

import copy
import random
from pathlib import Path
from typing import Any

import attrs
import trio
from purerpc import StatusCode
from socketless import CallFailed, Host
from worker_contract import Contract, Identity, Reconciled, Refused, Worker, identity

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY

DAEMONS = 4
GHOST = "worker_lost_00000000"

# Between two steps, so that no two things are ever heard at the same time, and no age is exactly a
# timeout: what happens then is nobody's business.
TICK_S = 0.003

_STATUS = {True: wire.CONNECTION_STATUS_CONNECTED, False: wire.CONNECTION_STATUS_RECONNECTING}
_ORDER = [
    wire.StateChange.CHANGE_TYPE_ADD_REPLICA,
    wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA,
    wire.StateChange.CHANGE_TYPE_UPDATE_REPLICA,
]
OK, ERROR, NOT_FOUND = wire.STATUS_OK, wire.STATUS_ERROR, wire.STATUS_NOT_FOUND


def same(observed: Any, promised: Any, of: Any = "") -> None:
    assert observed == promised, f"{of}\nobserved {observed}\npromised {promised}"


@attrs.frozen
class Step:
    """A method of ``Program`` and its arguments."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({said})"


# What each argument may be; the first, the usual one, as often as all others together.
_PLACE: dict[str, list[Any]] = {
    "artifact": ["a", "a", "b", "c"],
    "view": ["", "v"],
    "node": [None, 0, 1],
    "port": [1, 2],
    "tier": [1, 2, 3],
    "device": [0, 1],
    "size": [100, 200],
    "keys": ["valid", "none"],
}
_ENTRY = _PLACE | {
    "keys": ["valid", "none", "wrong"],
    "port": [1, 2, 0],
    "available": [True, False, None],
}
_CALLS: dict[str, dict[str, list[Any]]] = {
    "register": {
        "endpoint": [None, *range(DAEMONS)],
        "node": [None, 0, 1],
        "port": [50052, 50052, 50052, 0],
        "recovery": [False, True],
        "previous": ["", "own", "other", "ghost"],
        "flags": [0, 1, 5],
    },
    "heartbeat": {
        "version": [0, -1, 1, None],
        "checksum": ["right", "", "wrong", "empty"],
        "accepting": [True, True, False],
        "flags": [None, 0, 4],
        "artifacts": [[], ["a"], ["b", "a"], ["c"]],
        "speaks_for": ["own", "", "other"],
    },
    "reconcile": {
        "entries": ["some", "mirror", "mirror", "empty"],
        "kind": [1, 2, 0],
        "seq": [1, 1, 0, -1, 2],
        "generation": [0, 0, 0, -1, 1],
        "speaks_for": ["own", "", "", "other"],
        "taken_s_ago": [None, 0, 6],
        "malformed": [False, False, False, True],
    },
    "unregister": {"graceful": [False, True], "request_id": ["", "u1", "u2"]},
    "replica": {"lost": [False, False, True]} | _PLACE,
}
_OTHERS: dict[str, dict[str, list[Any]]] = {
    "again": {},
    "claim": {"artifact": ["a", "b", "c"], "view": ["", "v"]},
    "listing": {"flags": [0, 1, 4], "unavailable": [False, True]},
    "everybody_beats": {},
    "sleep": {"seconds": [0.5, 3.0, 6.0, 10.2, 12.0]},
    "set_wall_clock": {"seconds": [-3, 7, -7200, 3600]},
    "restart": {"graceful": [False, True]},
}
_WEIGHTS = {
    "register": 10,
    "heartbeat": 12,
    "reconcile": 26,
    "unregister": 4,
    "replica": 12,
    "again": 6,
    "cut": 6,
    "claim": 6,
    "listing": 3,
    "everybody_beats": 10,
    "sleep": 6,
    "set_wall_clock": 3,
    "restart": 3,
}


def _draw(rng: random.Random, choices: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        name: values[0] if rng.random() < 0.5 else rng.choice(values)
        for name, values in choices.items()
    }


def _step(rng: random.Random, name: str) -> Step:
    if name == "cut":
        call = _step(rng, rng.choice([*_CALLS]))
        return Step(name, {"call": call, "turns": rng.randrange(7)})
    arguments = _draw(rng, _CALLS.get(name) or _OTHERS[name])
    if name in _CALLS:
        arguments["daemon"] = rng.randrange(DAEMONS)
    if arguments.get("entries") == "some":
        arguments["entries"] = [_draw(rng, _ENTRY) for _ in range(rng.randint(1, 4))]
    return Step(name, arguments)


def program(seed: int, length: int) -> list[Step]:
    """Return the steps that follow from a seed."""
    rng = random.Random(seed)
    return [_step(rng, rng.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]) for _ in range(length)]


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

    def _worker(self, daemon: int) -> Worker | None:
        return self.contract.workers.get(f"d{daemon}")

    def _worker_id(self, daemon: int) -> str:
        worker = self._worker(daemon)
        return worker.worker_id if worker else GHOST

    # Calls: what is asked, and what is then compared.

    async def register(self, **said: Any) -> None:
        await self._ask(self._register_request(**said))

    async def heartbeat(self, **said: Any) -> None:
        await self._ask(self._heartbeat_request(**said))

    async def reconcile(self, **said: Any) -> None:
        await self._ask(self._reconcile_request(**said))

    async def unregister(self, **said: Any) -> None:
        await self._ask(self._unregister_request(**said))

    async def replica(self, **said: Any) -> None:
        await self._ask(self._replica_request(**said))

    async def again(self) -> None:
        """The answer was lost: the same request comes once more."""
        if self.last is not None:
            await self._ask(self.last)

    async def cut(self, call: Step, turns: int) -> None:
        """The client goes away in the middle: all of it happened, or nothing."""
        request = getattr(self, f"_{call.name}_request")(**call.arguments)
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
        if await self._observed() != self._promised() or not self._heard_as_promised():
            self.contract = before

    def _heard_as_promised(self) -> bool:
        """Tell whether what is in memory alone is as the contract has it."""
        return {
            (w.state.worker_id, w.heard_at, w.accepting, w.said_checksum, w.gap_since)
            for w in self.host.running.workers._by_key.values()
        } == {
            (w.worker_id, w.heard_at, w.accepting, w.said_checksum, w.gap_since)
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
        same(_told(request, answer), expected, request)

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
                heard = contract.heartbeat(request)
                if heard is None:
                    return NOT_FOUND
                return OK, heard[0].version, heard[1], heard[2]
            case wire.UnregisterWorkerRequest():
                return contract.unregister(request)
            case wire.RegisterReplicaRequest():
                contract.register_replica(request)
                return OK
            case _:
                return contract.reconcile(request)

    def _register_request(self, **said: Any) -> Any:
        daemon, node = said["daemon"], said["node"]
        place = daemon if said["endpoint"] is None else said["endpoint"]
        previous = {"own": daemon, "other": (daemon + 1) % DAEMONS}.get(said["previous"])
        return wire.RegisterWorkerRequest(
            daemon_id=f"d{daemon}",
            node_id=f"n{place % 2 if node is None else node}",
            node_address=f"h{place}.example",
            grpc_port=said["port"],
            p2p_port=1,
            mem_pool_total_size=1000,
            mem_pool_available_size=400,
            capability_flags=said["flags"],
            is_recovery_registration=said["recovery"],
            previous_worker_id=(
                self._worker_id(previous)
                if previous is not None
                else GHOST if said["previous"] == "ghost" else ""
            ),
        )  # fmt: skip

    def _heartbeat_request(self, **said: Any) -> Any:
        daemon = said["daemon"]
        worker_id, worker = self._worker_id(daemon), self._worker(daemon)
        version = worker.version if worker else 1
        request = wire.WorkerHeartbeatRequest(
            worker_id=worker_id,
            state_version=0 if said["version"] is None else version + said["version"],
            state_checksum={
                "right": self.contract.checksum(worker_id),
                "wrong": "0" * 16,
                "empty": EMPTY,
            }.get(said["checksum"], ""),
            accepting_new_requests=said["accepting"],
            mem_pool_available_size=300,
            registered_artifact_ids=said["artifacts"],
            daemon_id=_speaks_for(said),
        )
        if said["flags"] is not None:
            request.capability_flags = said["flags"]
        return request

    def _reconcile_request(self, **said: Any) -> Any:
        worker = self._worker(said["daemon"])
        request = wire.ReconcileWorkerStateRequest(
            worker_id=self._worker_id(said["daemon"]),
            daemon_id=_speaks_for(said),
            generation=max(0, (worker.generation if worker else 1) + said["generation"]),
            request_seq=max(0, (worker.seq if worker else 0) + said["seq"]),
            request_kind=said["kind"],
        )
        if said["entries"] == "mirror":
            rows = self.contract.held(request.worker_id)
            request.inventory.extend(_mirror(key, row.size, row.keys) for key, row in rows.items())
        elif said["entries"] != "empty":
            for entry in said["entries"]:
                request.inventory.append(_inventory_entry(said["daemon"], entry))
        if request.inventory and said["taken_s_ago"] is not None:
            taken = self.host.wall_us() - said["taken_s_ago"] * 1_000_000
            request.inventory[0].stats.registered_ts.FromMicroseconds(taken)
        if said["malformed"]:
            request.inventory.append(common.ReplicaInfo())
        return request

    def _unregister_request(self, **said: Any) -> Any:
        return wire.UnregisterWorkerRequest(
            worker_id=self._worker_id(said["daemon"]),
            is_graceful_shutdown=said["graceful"],
            client_request_id=said["request_id"],
        )

    def _replica_request(self, **said: Any) -> Any:
        return wire.RegisterReplicaRequest(
            artifact_id=said["artifact"],
            worker_id=GHOST if said["lost"] else self._worker_id(said["daemon"]),
            max_concurrency=1,
            mem_info=_memory_info(said["daemon"], said),
        )

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
        told = [
            (
                *(w.worker_id, w.daemon_id, w.node_id, w.node_address, w.grpc_port),
                *(w.mem_pool_available_size, w.accepting_new_requests, w.state_version),
                *(w.capability_flags, w.status),
            )
            for w in answer.workers
        ]
        promised = [
            (
                *(w.worker_id, w.daemon_id, w.asked.node_id, *(w.endpoint or ())),
                *(w.free, w.accepting, w.version, w.flags, _STATUS[w.accepting]),
            )
            for w in self.contract.listed(flags, unavailable)
        ]
        same(told, promised)

    async def everybody_beats(self) -> None:
        for daemon in range(DAEMONS):
            await self.heartbeat(
                daemon=daemon, version=0, checksum="", accepting=True, flags=None, artifacts=[],
                speaks_for="",
            )  # fmt: skip
            await self.sleep(0.7)

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
            live = self.host.running.workers.find(worker.worker_id)
            assert (live is not None) == worker.active
            if live is not None:
                checksum = await self.host.running.app.checksum_of(live)
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


def _speaks_for(said: dict[str, Any]) -> str:
    daemon = said["daemon"]
    return {"own": f"d{daemon}", "other": f"d{(daemon + 1) % DAEMONS}"}.get(said["speaks_for"], "")


def _memory_info(daemon: int, said: dict[str, Any]) -> Any:
    place = daemon if said["node"] is None else said["node"]
    info = common.MemoryInfo(
        node_id=f"n{place % 2}",
        node_address=f"h{place}.example",
        node_port=said["port"],
        memory_type=said["tier"],
        device_id=said["device"],
        memory_size=said["size"],
    )
    if said["view"]:
        info.byte_space.kind, info.byte_space.id = common.BYTE_SPACE_KIND_VIEW, said["view"]
    if said["keys"] != "none":
        info.remote_memory_keys.append("k")
        info.buffer_sizes.append(said["size"] if said["keys"] == "valid" else 7)
    return info


def _inventory_entry(daemon: int, said: dict[str, Any]) -> Any:
    entry = common.ReplicaInfo(memory_info=_memory_info(daemon, said))
    entry.ref.artifact_id = said["artifact"]
    if said["available"] is not None:
        entry.stats.is_available = said["available"]
    return entry


def _mirror(key: Identity, size: int, keys: int) -> Any:
    """What a daemon would say that holds what the server believes."""
    said = key._asdict() | {"node": None, "size": size, "available": True}
    said |= {"tier": {"RAM": 1, "GPU": 2}.get(key.label, 3), "keys": "valid" if keys else "none"}
    entry = _inventory_entry(0, said)
    entry.memory_info.node_id, entry.memory_info.node_address = key.node, key.address
    return entry


def _told(request: Any, answer: Any) -> Any:
    """What of an answer the contract speaks of."""
    match answer:
        case wire.RegisterWorkerResponse(status=wire.STATUS_OK):
            return (
                answer.status,
                answer.worker_id,
                answer.state_sync_required,
                answer.expected_state_version,
                answer.reconcile_generation,
            )
        case wire.WorkerHeartbeatResponse(status=wire.STATUS_OK):
            return (
                answer.status,
                answer.expected_state_version,
                answer.state_sync_required,
                list(answer.obsolete_replicas),
            )
        case wire.ReconcileWorkerStateResponse():
            changes = [
                (c.type, _identity_of(c.replica_info), c.replica_info.stats.is_available)
                for c in answer.state_changes
            ]
            kinds = [_ORDER.index(kind) for kind, *_ in changes]
            same(kinds, sorted(kinds), "order of the changes")
            return Reconciled(
                answer.result_kind,
                answer.new_state_version,
                answer.new_state_checksum,
                answer.retry_after_ms,
                tuple(sorted(map(_identity_of, answer.expected_replicas))),
                tuple(sorted(changes)),
            )
        case StatusCode():
            return answer
        case _:
            return answer.status


def _identity_of(info: Any) -> Identity:
    return identity(info.ref.artifact_id, info.memory_info)
