"""A worker: registered, heard, and registered again whenever the store lost it."""

import secrets
import uuid
from collections.abc import Callable

import attrs
import purerpc
import trio

from globalstore.daemon.client import StoreClient, Unreachable
from globalstore.daemon.safetensors import Artifact
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# Deadlines of the calls, in seconds.
_HEARTBEAT_TIMEOUT_S = 5.0
_REGISTER_TIMEOUT_S = 10.0
_CALL_TIMEOUT_S = 10.0

# Pause after a registration that failed for a reason which may pass.
_REGISTER_PAUSE_S = 1.0


class Refused(Exception):
    """The store understood and said no; trying again changes nothing."""


@attrs.frozen
class Identity:
    """Who a daemon is. ``node_address`` is what other machines dial; pool size in bytes."""

    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    pool_bytes: int = 0


@attrs.frozen
class Held:
    """A replica that this daemon offers under one memory key."""

    artifact: Artifact
    memory_key: str
    max_concurrency: int


@attrs.frozen
class Source:
    """Where the store sends a requester, and the transport to complete afterwards."""

    transport_id: str
    node_id: str
    node_address: str
    node_port: int
    memory_key: str


class Daemon:
    """Keeps one worker alive and offers what it holds.

    ``cluster_token`` is compared with the server's; blank skips that. ``on_event`` gets a line for
    people whenever something happened.
    """

    def __init__(
        self,
        client: StoreClient,
        identity: Identity,
        cluster_token: str = "",
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._identity = identity
        self._cluster_token = cluster_token
        self._on_event = on_event
        self._held: dict[str, Held] = {}
        self._state_version = 1
        self._checked_connection = 0
        self.worker_id = ""
        self.accepting = True

    def __repr__(self) -> str:
        return f"<Daemon [{self._identity.daemon_id}, worker: {self.worker_id or 'none'}]>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register and stay registered, until cancelled. Started means registered.

        Raises Refused when the store refuses this daemon for good.
        """
        interval_s = await self._register(recovery=False)
        task_status.started()
        while True:
            await trio.sleep(interval_s)
            try:
                if self._checked_connection != self._client.connections:
                    await self._check_server()
                known = await self._heartbeat()
            except Unreachable:
                continue
            except purerpc.RpcFailedError as error:
                self._on_event(f"heartbeat failed: {error.status}")
                continue
            if not known:
                interval_s = await self._register(recovery=True)
                for held in list(self._held.values()):
                    await self._register_replica(held)

    async def _check_server(self) -> None:
        """After a connection was made: is this still the cluster we belong to?"""
        connection = self._client.connections
        answer = await self._client.call(
            "admin",
            "HealthCheck",
            wire.HealthCheckRequest(),
            timeout_s=_HEARTBEAT_TIMEOUT_S,
            repeatable=True,
        )
        if self._cluster_token not in {"", answer.cluster_token}:
            raise Refused("the server at this address belongs to another cluster")
        self._checked_connection = connection

    async def _register(self, *, recovery: bool) -> float:
        """Register until it worked; return the heartbeat interval in seconds."""
        identity = self._identity
        request = wire.RegisterWorkerRequest(
            node_id=identity.node_id,
            node_address=identity.node_address,
            grpc_port=identity.grpc_port,
            p2p_port=identity.p2p_port,
            mem_pool_total_size=identity.pool_bytes,
            mem_pool_available_size=identity.pool_bytes,
            is_recovery_registration=recovery,
            previous_worker_id=self.worker_id if recovery else "",
            daemon_id=identity.daemon_id,
        )
        while True:
            try:
                await self._check_server()
                answer = await self._client.call(
                    "runtime",
                    "RegisterWorker",
                    request,
                    timeout_s=_REGISTER_TIMEOUT_S,
                    repeatable=False,
                )
            except Unreachable:
                continue  # the client paces its own reconnecting
            except purerpc.RpcFailedError as error:
                if error.status.status_code is purerpc.StatusCode.INVALID_ARGUMENT:
                    raise Refused(f"registration refused: {error.status.status_message}") from error
                self._on_event(f"registration failed: {error.status}")
                await trio.sleep(_REGISTER_PAUSE_S)
                continue
            if answer.status != wire.STATUS_OK:
                raise Refused(
                    f"registration refused: {identity.node_address}:{identity.grpc_port} belongs"
                    " to another worker"
                )
            self.worker_id = answer.worker_id
            self._state_version = answer.expected_state_version
            self._on_event(f"registered as {self.worker_id}")
            return float(answer.heartbeat_interval_ms) / 1000

    async def _heartbeat(self) -> bool:
        """Send a heartbeat; False when the store does not know this worker any more."""
        answer = await self._client.call(
            "runtime",
            "WorkerHeartbeat",
            wire.WorkerHeartbeatRequest(
                worker_id=self.worker_id,
                daemon_id=self._identity.daemon_id,
                mem_pool_available_size=self._identity.pool_bytes,
                accepting_new_requests=self.accepting,
                state_version=self._state_version,
                registered_artifact_ids=sorted(self._held),
            ),
            timeout_s=_HEARTBEAT_TIMEOUT_S,
            repeatable=True,
        )
        if answer.status == wire.STATUS_NOT_FOUND:
            return False
        self._state_version = answer.expected_state_version
        for artifact_id in answer.obsolete_replicas:
            if artifact_id in self._held:
                await self._register_replica(self._held[artifact_id])
        return True

    async def offer(self, artifact: Artifact, max_concurrency: int) -> Held:
        """Register a replica of an artifact in this daemon's memory, and keep it registered."""
        held = Held(artifact, f"{secrets.token_hex(20)}", max_concurrency)
        self._held[artifact.artifact_id] = held
        await self._register_replica(held)
        return held

    async def _register_replica(self, held: Held) -> None:
        artifact, identity = held.artifact, self._identity
        await self._client.call(
            "runtime",
            "RegisterReplica",
            wire.RegisterReplicaRequest(
                artifact_id=artifact.artifact_id,
                mem_info=common.MemoryInfo(
                    node_id=identity.node_id,
                    node_address=identity.node_address,
                    node_port=identity.p2p_port,
                    memory_size=artifact.size,
                    memory_type=common.MEMORY_TYPE_RAM,
                    remote_memory_keys=[held.memory_key],
                    buffer_sizes=[artifact.size],
                ),
                max_concurrency=held.max_concurrency,
                worker_id=self.worker_id,
                tensor_index_data=artifact.index,
                client_request_id=str(uuid.uuid4()),
            ),
            timeout_s=_REGISTER_TIMEOUT_S,
            repeatable=True,
        )

    async def claim(self, artifact_id: str, patience_s: float) -> Source | None:
        """Ask for a source of an artifact, waiting up to ``patience_s``; None when none came."""
        answer = await self._client.call(
            "runtime",
            "RequestReplicaTransport",
            self._claim_request(artifact_id, patience_s),
            timeout_s=patience_s + _CALL_TIMEOUT_S,
            repeatable=True,
        )
        if answer.status != wire.STATUS_OK:
            return None
        info = answer.remote_memory_info
        return Source(
            answer.transport_id,
            info.node_id,
            info.node_address,
            info.node_port,
            info.remote_memory_keys[0],
        )

    def _claim_request(
        self, artifact_id: str, patience_s: float
    ) -> wire.RequestReplicaTransportRequest:
        request = wire.RequestReplicaTransportRequest(
            artifact_id=artifact_id,
            source_node_id=self._identity.node_id,
            source_address=self._identity.node_address,
            source_port=self._identity.p2p_port,
            requester_worker_id=self.worker_id,
            request_id=str(uuid.uuid4()),
        )
        request.wait_timeout_dur.FromMilliseconds(round(patience_s * 1000))
        return request

    async def complete(self, source: Source, succeeded: bool, detail: str = "") -> None:
        """Tell the store how a transport went; that frees the source for the next requester."""
        outcome = (
            wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS
            if succeeded
            else wire.TRANSPORT_COMPLETION_OUTCOME_FAILED
        )
        await self._client.call(
            "runtime",
            "CompleteReplicaTransport",
            wire.CompleteReplicaTransportRequest(
                transport_id=source.transport_id, outcome=outcome, outcome_detail=detail
            ),
            timeout_s=_CALL_TIMEOUT_S,
            repeatable=True,
        )

    async def leave(self) -> None:
        """Unregister gracefully."""
        await self._client.call(
            "runtime",
            "UnregisterWorker",
            wire.UnregisterWorkerRequest(
                worker_id=self.worker_id,
                is_graceful_shutdown=True,
                client_request_id=str(uuid.uuid4()),
            ),
            timeout_s=_CALL_TIMEOUT_S,
            repeatable=True,
        )
