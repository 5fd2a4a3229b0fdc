"""RegisterWorker, WorkerHeartbeat, UnregisterWorker, ListActiveWorkers."""

import hashlib
import logging
import secrets
from collections.abc import Sequence
from itertools import islice
from typing import cast

from globalstore.api.context import Handlers
from globalstore.api.encoding import Joined, timestamp, token
from globalstore.api.middleware.status_codes import reason_trailer
from globalstore.api.turns import in_turns
from globalstore.db import Busy
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.workers import Heartbeat, LiveWorker
from globalstore.registry.idempotency import Basis
from globalstore.registry.runtime import replica_lists, workers
from globalstore.registry.runtime.workers import PreviousWorkerForeign, Registered
from globalstore.rpc import Call, fast_path
from globalstore.rules.addresses import routable
from globalstore.rules.refusals import InvalidArgument, Refusal
from globalstore.rules.values import (
    INTEGER_MAX,
    TEXT_BYTES_MAX,
    existing_or_blank,
    port,
    required,
    storable,
)
from globalstore.telemetry import add_call_fields, get_logger

_log = get_logger("globalstore.workers")

# A worker id is made of the node id and 16 more characters, and has to pass as an id itself.
_NODE_ID_BYTES_MAX = TEXT_BYTES_MAX - 64


# Ids of a heartbeat that are taken in or listed before other calls get a turn: some 0.3 ms.
_IDS_PER_TURN = 500

# Ids of a heartbeat that one query looks up, so that other queries get in between.
_LOOKED_UP_AT_ONCE = 1000


class WorkerHandlers(Handlers):
    """The calls of store daemons: register, heartbeat, unregister, and their list."""

    async def RegisterWorker(
        self, message: wire.RegisterWorkerRequest, request: Call
    ) -> wire.RegisterWorkerResponse:
        """Make a daemon's worker active; a recovery of another's worker is refused in the body."""
        try:
            registration = _registration(message)
            outcome = await self._register(registration, request)
        except Refusal:
            self._count_rejected(message)
            raise
        if not isinstance(outcome, Registered):
            self._count_rejected(message)
            self._log_conflict(registration, outcome)
            # The body has no place for it.
            request.trailing_metadata.append(
                reason_trailer(
                    f"previous_worker_id {outcome.worker_id!r} belongs to another daemon,"
                    f" {outcome.daemon_id!r}: leave it blank, or register as that daemon"
                )
            )
            return wire.RegisterWorkerResponse(status=wire.STATUS_ERROR)
        self._log_registered(registration, outcome, request)
        worker = outcome.worker
        return wire.RegisterWorkerResponse(
            status=wire.STATUS_OK,
            worker_id=worker.worker_id,
            heartbeat_interval_ms=self.context.heartbeat_interval_ms,
            state_sync_required=outcome.state_sync_required,
            expected_state_version=worker.state_version,
            reconcile_generation=worker.generation,
        )

    async def _register(
        self, registration: workers.WorkerRegistration, call: Call
    ) -> Registered | PreviousWorkerForeign:
        worker_id = f"worker_{registration.node_id}_{secrets.token_hex(4)}"
        async with self.context.daemon_locks.hold(registration.daemon_id, "register"):
            return await self.context.write(
                call,
                workers.register_worker,
                registration,
                worker_id,
                self.context.clock.wall_us(),
            )

    def _count_rejected(self, message: wire.RegisterWorkerRequest) -> None:
        kind = "new"
        if message.is_recovery_registration:
            kind = "recovery"
        elif self.context.workers.id_of_daemon(message.daemon_id.strip()):
            kind = "renew"
        self.context.metrics.workers.registrations.labels(kind, "rejected").inc()

    def _log_registered(
        self, registration: workers.WorkerRegistration, outcome: Registered, call: Call
    ) -> None:
        self.context.metrics.workers.registrations.labels(outcome.kind, "ok").inc()
        worker = outcome.worker
        if outcome.evicted is not None:
            self.context.metrics.workers.evicted.inc()
            self.context.metrics.control_plane.conflicts.labels("endpoint_takeover").inc()
            evicted = outcome.evicted
            # Two daemons that are configured with one address evict each other again and again.
            _log.bind(**evicted.log_fields()).limited(
                f"eviction of {evicted.worker_id} by {worker.worker_id}",
                "worker evicted",
                by_worker_id=worker.worker_id,
                by_daemon_id=worker.daemon_id,
                by_node_id=worker.node_id,
            )
        if outcome.moved_from is not None:
            self.context.metrics.workers.moved.inc()
            # Whoever may register may register as any daemon: a move may be somebody else's doing.
            _log.bind(**worker.log_fields()).limited(
                f"move of {worker.daemon_id}",
                "address of a live worker changed",
                old_address="{}:{}".format(*outcome.moved_from),
                peer=call.peer,
            )
        _log.info(
            "worker registered",
            kind=outcome.kind,
            recovery=registration.is_recovery,
            previous_worker_id=registration.previous_worker_id,
            **worker.log_fields(),
        )

    def _log_conflict(
        self, registration: workers.WorkerRegistration, outcome: PreviousWorkerForeign
    ) -> None:
        endpoint = f"{registration.node_address}:{registration.grpc_port}"
        _log.limited(
            f"conflict {registration.daemon_id} {endpoint}",
            "worker registration conflict",
            level=logging.ERROR,
            reason="previous_worker_id belongs to another daemon",
            endpoint=endpoint,
            owner_worker_id=outcome.worker_id,
            owner_daemon_id=outcome.daemon_id,
            owner_node_id=outcome.node_id,
            daemon_id=registration.daemon_id,
            node_id=registration.node_id,
        )

    def _beat_fast(
        self, message: wire.WorkerHeartbeatRequest, _: Call
    ) -> wire.WorkerHeartbeatResponse | None:
        """Take in the heartbeat of a worker whose state is known, as nearly all are."""
        worker = self.context.workers.find(message.worker_id.strip())
        if (
            worker is None
            or worker.must_register
            or self.context.workers.is_doubted(worker)
            or self.context.workers.heartbeats.is_expiring(worker.key)
            or message.daemon_id.strip() not in {"", worker.daemon_id}
            or message.state_version == 0
            or message.registered_artifact_ids
            or message.mem_pool_available_size > INTEGER_MAX
        ):
            return None
        in_step = _is_at_version(worker, message)
        if in_step and message.state_checksum:
            known = self.context.worker_digests.known_checksum_of(worker)
            if known is None:
                return None
            in_step = message.state_checksum == known
        now_us = self.context.clock.wall_us()
        self.context.workers.heartbeat(worker, _heartbeat(message), now_us)
        return self._beaten(worker, now_us, in_step=in_step)

    @fast_path(_beat_fast)
    async def WorkerHeartbeat(
        self, message: wire.WorkerHeartbeatRequest, request: Call
    ) -> wire.WorkerHeartbeatResponse:
        """Keep a worker alive and tell it whether the two views of what it holds agree."""
        if message.state_version == 0:
            self._count_unheeded(message, "invalid")
            _log.limited(
                f"version 0 of {message.worker_id[:80]}",
                "heartbeat rejected",
                worker_id=message.worker_id,
                state_version=0,
            )
            raise InvalidArgument("state_version is 0, expected the last version that was answered")
        add_call_fields(worker_id=message.worker_id)
        heartbeat = _heartbeat(message)
        worker = await self._worker_of(message)
        if worker is None:
            self._count_unheeded(message, "not_found")
            _log.limited(
                f"heartbeat of {message.worker_id[:80]}",
                "heartbeat of an unknown worker",
                worker_id=message.worker_id,
                state_version=message.state_version,
            )
            return wire.WorkerHeartbeatResponse(status=wire.STATUS_NOT_FOUND)
        if worker.must_register:
            return self._told_to_register(worker, message)
        now_us = self.context.clock.wall_us()
        self.context.workers.heartbeat(worker, heartbeat, now_us)
        obsolete = await self._not_held(worker, message.registered_artifact_ids)
        agrees = await self._agrees(worker, message.state_checksum)
        if agrees and message.state_checksum and message.accepting_new_requests:
            self.context.workers.settled(worker)
        in_step = not obsolete and _is_at_version(worker, message) and agrees
        beaten = self._beaten(worker, now_us, in_step=in_step)
        if not obsolete:
            return beaten
        answer = Joined()
        answer.add(beaten)
        async for turn in in_turns(obsolete, _IDS_PER_TURN):
            answer.add(wire.WorkerHeartbeatResponse(obsolete_replicas=turn))
        return cast(wire.WorkerHeartbeatResponse, answer)

    def _beaten(
        self, worker: LiveWorker, now_us: int, *, in_step: bool
    ) -> wire.WorkerHeartbeatResponse:
        self.context.metrics.workers.heartbeats["ok" if in_step else "sync_required"].inc()
        self.context.daemon_locks.passed(worker.daemon_id, "heartbeat")
        return wire.WorkerHeartbeatResponse(
            status=wire.STATUS_OK,
            state_sync_required=not in_step,
            expected_state_version=worker.state_version,
            server_timestamp_ts=timestamp(now_us),
        )

    def _count_unheeded(self, message: wire.WorkerHeartbeatRequest, result: str) -> None:
        self.context.metrics.workers.heartbeats[result].inc()
        self.context.daemon_locks.passed(message.daemon_id, "heartbeat", succeeded=False)

    def _told_to_register(
        self, worker: LiveWorker, message: wire.WorkerHeartbeatRequest
    ) -> wire.WorkerHeartbeatResponse:
        """Answer a worker whose reconciles lack a number for good: a new generation begins at 1."""
        self.context.workers.told_to_register(worker)
        self._count_unheeded(message, "not_found")
        _log.bind(**worker.log_fields()).limited(
            f"gap of {worker.worker_id}",
            "worker has to register: a reconcile is missing for too long",
            seq=worker.request_seq + 1,
        )
        return wire.WorkerHeartbeatResponse(status=wire.STATUS_NOT_FOUND)

    async def _worker_of(self, message: wire.WorkerHeartbeatRequest) -> LiveWorker | None:
        """Return the active worker of a heartbeat."""
        worker_id = message.worker_id.strip()
        worker = await self.context.workers.decided(worker_id)
        daemon_id = message.daemon_id.strip()
        if worker is not None and daemon_id not in {"", worker.daemon_id}:
            self.context.metrics.control_plane.conflicts.labels("heartbeat_daemon_mismatch").inc()
            return None
        return worker

    async def _not_held(self, worker: LiveWorker, artifact_ids: Sequence[str]) -> list[str]:
        if not artifact_ids:
            return []
        ids: dict[str, None] = {}
        digest = hashlib.blake2b(digest_size=16)
        async for turn in in_turns(artifact_ids, _IDS_PER_TURN):
            stripped = list(map(str.strip, turn))
            ids.update(dict.fromkeys(stripped))
            digest.update("\0".join([*stripped, ""]).encode())

        async def look_up() -> list[str]:
            missing = []
            rest = iter(ids)
            while some := list(islice(rest, _LOOKED_UP_AT_ONCE)):
                missing += await self.context.read(
                    replica_lists.artifacts_not_held, worker.key, some
                )
            return missing

        return await self.context.worker_digests.not_held(worker, digest.digest(), look_up)

    async def _agrees(self, worker: LiveWorker, checksum: str) -> bool:
        return not checksum or checksum == await self.context.worker_digests.checksum_of(worker)

    async def UnregisterWorker(
        self, message: wire.UnregisterWorkerRequest, request: Call
    ) -> wire.UnregisterWorkerResponse:
        """End a worker on its own order; with a client_request_id, once."""
        worker_id = existing_or_blank("worker_id", message.worker_id)
        graceful = message.is_graceful_shutdown
        now_us = self.context.clock.wall_us()
        repeat = token(message, "UnregisterWorker", message.client_request_id)
        worker = self.context.workers.find(worker_id)
        # One that is not active has no lock to wait for.
        daemon_id = worker.daemon_id if worker is not None else worker_id
        try:
            async with self.context.daemon_locks.hold(daemon_id, "unregister"):
                if repeat is None:
                    found = await self.context.write(
                        request, workers.unregister_worker, worker_id, graceful, now_us
                    )
                    response, replayed = _unregister_response(found), False
                else:
                    reply = await self.context.once(
                        request,
                        repeat,
                        lambda tx: workers.unregister_worker(tx, worker_id, graceful, now_us),
                        _unregister_response,
                        Basis(
                            lambda _: 0,
                            lambda tx, *_: not workers.is_active(tx, worker_id),
                            is_end=True,
                        ),
                        now_us,
                    )
                    response = wire.UnregisterWorkerResponse.FromString(reply.body)
                    replayed = reply.replayed
        except Busy:
            conflicts = self.context.metrics.control_plane.conflicts
            conflicts.labels("unregister_worker_tx_conflict").inc()
            raise
        if not replayed:
            self._count_unregistered(worker_id, worker, graceful, response)
        return response

    def _count_unregistered(
        self,
        worker_id: str,
        worker: LiveWorker | None,
        graceful: bool,
        response: wire.UnregisterWorkerResponse,
    ) -> None:
        found = response.status == wire.STATUS_OK
        self.context.metrics.workers.unregistrations.labels(
            "true" if graceful else "false", "ok" if found else "not_found"
        ).inc()
        if found:
            known = {"worker_id": worker_id} if worker is None else worker.log_fields()
            _log.info("worker unregistered", graceful=graceful, **known)

    async def ListActiveWorkers(
        self, message: wire.ListActiveWorkersRequest, request: Call
    ) -> wire.ListActiveWorkersResponse:
        """List the live workers, the latest heartbeat first."""
        found = self.context.workers.listed(
            message.required_capability_flags, message.include_unavailable
        )
        response = wire.ListActiveWorkersResponse(workers=map(_worker_info, found))
        room = self.context.list_room("set required_capability_flags, or let clients take more")
        room.take([response])
        return response


def _is_at_version(worker: LiveWorker, message: wire.WorkerHeartbeatRequest) -> bool:
    return not worker.needs_reconcile and message.state_version == worker.state_version


def _registration(message: wire.RegisterWorkerRequest) -> workers.WorkerRegistration:
    return workers.WorkerRegistration(
        daemon_id=required("daemon_id", message.daemon_id),
        node_id=required("node_id", message.node_id, _NODE_ID_BYTES_MAX),
        node_address=routable("node_address", message.node_address),
        grpc_port=port("grpc_port", message.grpc_port),
        p2p_port=port("p2p_port", message.p2p_port),
        mem_pool_total_size=storable("mem_pool_total_size", message.mem_pool_total_size),
        mem_pool_available_size=storable(
            "mem_pool_available_size", message.mem_pool_available_size
        ),
        capability_flags=message.capability_flags,
        is_recovery=message.is_recovery_registration,
        previous_worker_id=existing_or_blank("previous_worker_id", message.previous_worker_id),
    )


def _heartbeat(message: wire.WorkerHeartbeatRequest) -> Heartbeat:
    return Heartbeat(
        storable("mem_pool_available_size", message.mem_pool_available_size),
        message.accepting_new_requests,
        message.capability_flags if message.HasField("capability_flags") else None,
        message.state_checksum,
    )


def _unregister_response(found: bool) -> wire.UnregisterWorkerResponse:
    return wire.UnregisterWorkerResponse(status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND)


def _worker_info(worker: LiveWorker) -> wire.ListActiveWorkersResponse.WorkerInfo:
    return wire.ListActiveWorkersResponse.WorkerInfo(
        worker_id=worker.worker_id,
        node_id=worker.node_id,
        node_address=worker.node_address,
        grpc_port=worker.grpc_port,
        p2p_port=worker.p2p_port,
        mem_pool_total_size=worker.mem_pool_total_size,
        mem_pool_available_size=min(worker.mem_pool_available_size, worker.mem_pool_total_size),
        accepting_new_requests=worker.accepting,
        last_heartbeat_ts=timestamp(worker.last_heartbeat_us),
        state_version=worker.state_version,
        status=(
            wire.CONNECTION_STATUS_CONNECTED
            if worker.accepting
            else wire.CONNECTION_STATUS_RECONNECTING
        ),
        daemon_id=worker.daemon_id,
        capability_flags=worker.capability_flags,
    )
