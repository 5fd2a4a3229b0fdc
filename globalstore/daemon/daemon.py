"""A worker: registered, live, in step with the store, and back whenever the store lost it."""

import secrets
import uuid
from collections.abc import Callable
from functools import partial

import attrs
import purerpc
import trio

from globalstore.client.store import StoreClient, Unreachable
from globalstore.daemon.cursor import Cursor, Then
from globalstore.daemon.identity import Identity
from globalstore.daemon.inventory import Held, Inventory
from globalstore.daemon.outbox import Outbox, OutboxFull
from globalstore.daemon.safetensors import Artifact
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# Deadlines of the calls, in seconds. A snapshot may be long.
_HEARTBEAT_TIMEOUT_S = 5.0
_REGISTER_TIMEOUT_S = 10.0
_RECONCILE_TIMEOUT_S = 30.0
_CALL_TIMEOUT_S = 10.0

# How long a daemon that leaves waits for a store that is away: an orchestrator kills it soon after.
_LEAVE_PATIENCE_S = 20.0

# Pause after a registration that failed for a reason which may pass.
_REGISTER_PAUSE_S = 1.0

# Registrations in a row that reconciles may ask for. More are needed only when another process
# registers with the same identity all the time, and then both had better go slowly.
_REGISTRATIONS_MAX = 3

# Shortest pause before a reconcile is sent again, whatever the store asks for.
_RESEND_PAUSE_S = 0.05


class Refused(Exception):
    """The store understood and said no; trying again changes nothing."""


@attrs.frozen
class Source:
    """Where the store sends a requester, and the transport to complete afterwards."""

    transport_id: str
    node_id: str
    node_address: str
    node_port: int
    memory_key: str


class Daemon:
    """Keeps one worker alive and the store's view of it true.

    ``inventory`` is what the daemon holds. ``cluster_token`` is compared with the server's; blank
    skips that. ``on_event`` gets a line for people whenever something happened.
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
        self._cursor = Cursor()
        self._outbox = Outbox(client, self.until_in_step)
        self._owes_snapshot = False
        self._interval_s = 0.0
        self._checked_connection = 0
        # One exchange at a time, so that nothing registers what is just leaving.
        self._turn = trio.Lock()
        self._due = trio.Event()
        self._resumed = trio.Event()
        self._resumed_on = -1
        self._left = False
        self.inventory = Inventory(identity)
        self.worker_id = ""
        self.accepting = True

    def __repr__(self) -> str:
        return (
            f"<Daemon [{self._identity.daemon_id}, worker: {self.worker_id or 'none'},"
            f" generation: {self._cursor.generation}, waiting: {len(self._outbox)}]>"
        )

    @property
    def in_step(self) -> bool:
        """Whether the store knows this worker and its replicas, on the connection that stands."""
        return self._resumed_on == self._client.connection > 0

    # Staying in step.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register and stay registered, until cancelled or gone. Started means registered.

        Raises Refused when the store refuses this daemon for good (in a group, once started).
        """
        await self._register(recovery=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outbox.run)
            nursery.start_soon(self._notice_connections)
            await self._exchange(heartbeat=False)
            task_status.started()
            while not self._left:
                with trio.move_on_after(self._interval_s):
                    await self._due.wait()
                self._due = trio.Event()
                await self._exchange()
            nursery.cancel_scope.cancel()

    async def _notice_connections(self) -> None:
        connection = self._client.connections
        while True:
            connection = await self._client.newer_than(connection)
            self._due.set()

    async def until_in_step(self) -> None:
        """Return as soon as the store knows this worker and its replicas."""
        while not self.in_step:
            await self._resumed.wait()

    async def _exchange(self, *, heartbeat: bool = True) -> None:
        """Tell the store of this worker and do what it asks for; what fails waits for the next."""
        async with self._turn:
            if self._left:
                return
            try:
                await self._synchronise(heartbeat)
            except Unreachable:
                return  # the client is at it, and a new connection makes an exchange due
            except purerpc.RpcFailedError as error:
                self._on_event(f"the store answered {error.status}")

    async def _synchronise(self, heartbeat: bool) -> None:
        await self._check_server()
        connection = self._client.connection
        if heartbeat:
            await self._heartbeat()
        if self._owes_snapshot:
            await self._reconcile()
        if not self._owes_snapshot:
            self._resumed_on = connection
            self._resumed.set()
            self._resumed = trio.Event()

    async def _check_server(self) -> None:
        """Check, after a connection was made, that this is still the cluster we belong to."""
        connection = self._client.connections
        if connection == self._checked_connection:
            return
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

    async def _register(self, *, recovery: bool) -> None:
        """Register until it worked."""
        identity = self._identity
        self._resumed_on = -1
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
                await trio.sleep(self._client.jittered(_REGISTER_PAUSE_S))
                continue
            if answer.status != wire.STATUS_OK:
                raise Refused(
                    f"registration refused: {request.previous_worker_id} belongs to another daemon"
                )
            self.worker_id = answer.worker_id
            self._cursor.registered(answer)
            self._interval_s = float(answer.heartbeat_interval_ms) / 1000
            self._owes_snapshot = answer.state_sync_required or len(self.inventory) > 0
            self._on_event(f"registered as {self.worker_id}")
            return

    async def _heartbeat(self) -> None:
        """Send a heartbeat; register again when the store does not know this worker any more."""
        answer = await self._client.call(
            "runtime",
            "WorkerHeartbeat",
            wire.WorkerHeartbeatRequest(
                worker_id=self.worker_id,
                daemon_id=self._identity.daemon_id,
                mem_pool_available_size=self._identity.pool_bytes,
                accepting_new_requests=self.accepting,
                state_version=self._cursor.state_version,
                state_checksum=self.inventory.checksum(),
            ),
            timeout_s=_HEARTBEAT_TIMEOUT_S,
            repeatable=True,
        )
        if answer.status == wire.STATUS_NOT_FOUND:
            await self._register(recovery=True)
        elif answer.state_sync_required:
            self._owes_snapshot = True

    async def _reconcile(self) -> None:
        """Tell the store all that is held, until it accepts that or a heartbeat is due first."""
        until = trio.current_time() + self._interval_s
        registrations = 0
        while True:
            then, pause_s = await self._send_snapshot()
            if then is Then.GO_ON:
                self._owes_snapshot = False
                return
            if then is Then.SEND_AGAIN:
                if trio.current_time() + pause_s > until:
                    return
                await trio.sleep(pause_s)
                continue
            if registrations == _REGISTRATIONS_MAX:
                self._on_event("the store keeps asking for registrations: a twin of this daemon?")
                return
            registrations += 1
            await self._register(recovery=True)

    async def _send_snapshot(self) -> tuple[Then, float]:
        """Send a reconcile; return what to do next, and the seconds to wait before."""
        request = self._cursor.request(
            self.worker_id, self._identity.daemon_id, self.inventory.snapshot()
        )
        try:
            answer = await self._client.call(
                "runtime",
                "ReconcileWorkerState",
                request,
                timeout_s=_RECONCILE_TIMEOUT_S,
                repeatable=True,
            )
        except purerpc.RpcFailedError as error:
            if error.status.status_code is purerpc.StatusCode.NOT_FOUND:
                return Then.REGISTER, 0.0
            raise
        return self._cursor.answered(answer), max(answer.retry_after_ms / 1000, _RESEND_PAUSE_S)

    # What it holds.

    async def offer(self, artifact: Artifact, max_concurrency: int, memory_key: str = "") -> Held:
        """Hold a replica of an artifact in this daemon's memory; see ``publish``.

        Without a ``memory_key`` a random one is made.
        """
        return await self.publish(
            Held(
                artifact.artifact_id,
                artifact.size,
                memory_key or secrets.token_hex(20),
                max_concurrency,
                index=artifact.index,
            )
        )

    async def publish(self, held: Held) -> Held:
        """Add a replica to the inventory, and return it when the store knows of it.

        During an outage that takes as long as the outage; cancelled, the replica stays held and is
        published all the same. Raises OutboxFull when too much waits for the store already, and
        purerpc's RpcFailedError when it refuses; then the replica is not held.
        """
        held = self.inventory.put(held)
        try:
            await self._outbox.deliver("RegisterReplica", partial(self._registration, held))
        except (OutboxFull, purerpc.RpcFailedError):
            self.inventory.remove(held)
            raise
        return held

    def _registration(self, held: Held) -> wire.RegisterReplicaRequest | None:
        if held not in self.inventory:
            return None
        return wire.RegisterReplicaRequest(
            artifact_id=held.artifact_id,
            mem_info=self.inventory.memory_info(held),
            max_concurrency=held.max_concurrency,
            worker_id=self.worker_id,
            tensor_index_data=held.index,
            client_request_id=str(uuid.uuid4()),
        )

    def withdraw(self, held: Held) -> None:
        """Take a replica out of the inventory; the store hears of it with a heartbeat sent now."""
        self.inventory.remove(held)
        self._due.set()

    # Transports.

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
        """Tell the store how a transport went; that frees the source for the next requester.

        During an outage that waits in the same queue as ``publish``. Raises OutboxFull.
        """
        outcome = (
            wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS
            if succeeded
            else wire.TRANSPORT_COMPLETION_OUTCOME_FAILED
        )
        request = wire.CompleteReplicaTransportRequest(
            transport_id=source.transport_id, outcome=outcome, outcome_detail=detail
        )
        await self._outbox.deliver("CompleteReplicaTransport", lambda: request)

    async def leave(self, patience_s: float = _LEAVE_PATIENCE_S) -> None:
        """Drain, unregister and end ``run``: no new readers, nothing held.

        Transports in progress run to their end. Raises Unreachable when the store did not answer in
        time and purerpc's RpcFailedError when it refused; the worker then stays, without new
        readers.
        """
        with trio.move_on_after(patience_s) as patience:
            await self._leave()
        if patience.cancelled_caught:
            raise Unreachable(f"no store for {patience_s:g} s; the worker will be expired")

    async def _leave(self) -> None:
        async with self._turn:
            self.accepting = False
            await self._heartbeat()
            self.inventory.clear()
            await self._reconcile()
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
            self._left = True
            self._due.set()
