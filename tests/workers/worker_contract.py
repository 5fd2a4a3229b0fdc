"""The contract of workers and reconciliation in plain Python, for tests to compare with.

Written from what the calls promise, not from how the server keeps it: dictionaries, and two flags
per replica. It takes the requests themselves and says what must be answered, or raises the code.
Times are seconds on the clock that nobody sets; wall times are microseconds.
"""

from typing import Any

import attrs
from purerpc import StatusCode
from worker_facts import (
    GRACE_S,
    HEARTBEAT_INTERVAL_MS,
    TIMEOUT_S,
    Identity,
    Reconciled,
    Refused,
    Row,
    Worker,
    identity,
    usable,
)

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY, Entry, of_replicas


@attrs.define
class Contract:
    """What a server must know; ``now`` and ``wall_us`` are set before each call."""

    now: float
    wall_us: int
    workers: dict[str, Worker] = attrs.Factory(dict)  # by daemon
    rows: dict[Identity, Row] = attrs.Factory(dict)
    recorded: dict[str, tuple[bytes, int]] = attrs.Factory(dict)
    rows_made: int = 0

    def by_id(self, worker_id: str) -> Worker | None:
        return next((w for w in self.workers.values() if w.worker_id == worker_id), None)

    def active(self, worker_id: str) -> Worker | None:
        worker = self.by_id(worker_id)
        return worker if worker is not None and worker.active else None

    def held(self, worker_id: str) -> dict[Identity, Row]:
        return {key: row for key, row in self.rows.items() if row.owner == worker_id}

    def checksum(self, worker_id: str) -> str:
        return of_replicas(
            Entry(
                *key[:5],
                key.label,
                key.device if key.label == "GPU" else 0,
                available=row.available,
            )
            for key, row in self.held(worker_id).items()
        )

    def _hide(self, worker_id: str) -> None:
        for row in self.held(worker_id).values():
            row.confirmed = False

    def _end(self, worker: Worker) -> None:
        worker.active = worker.accepting = worker.doubted = False
        worker.prove_by = None
        self._hide(worker.worker_id)

    def _proven_in(self, row: Row) -> int:
        """The generation in which the worker of a row last said that it holds it."""
        worker = self.by_id(row.owner)
        return max(row.generation, worker.proven if worker else 0)

    def _is_alive(self, worker_id: str) -> bool:
        worker = self.by_id(worker_id)
        return worker is not None and worker.fresh(self.now)

    # What happens by itself.

    def pass_time(self, now: float) -> None:
        self.now = now
        for worker in self.workers.values():
            if worker.active and worker.prove_by is not None and worker.prove_by <= now:
                worker.prove_by = None
                for row in self.held(worker.worker_id).values():
                    if self._proven_in(row) < worker.process:
                        row.confirmed = False
            if worker.active and worker.expires_at <= now:
                self._end(worker)

    def restart(self) -> None:
        for row in self.rows.values():
            row.confirmed = False
        for worker in self.workers.values():
            worker.heartbeat_at = worker.gap_since = worker.prove_by = None
            worker.must_register = worker.doubted = False
            worker.reported_checksum = ""
            worker.expires_at = self.now + TIMEOUT_S + GRACE_S
            worker.needs_reconcile |= worker.active

    def _heard(self, worker: Worker) -> None:
        worker.heartbeat_at = self.now
        worker.expires_at = self.now + TIMEOUT_S + GRACE_S

    # Workers.

    def register(self, request: Any, new_worker_id: str) -> Worker | None:
        """Return the worker, or None where the body says STATUS_ERROR."""
        if not (request.daemon_id and request.grpc_port):
            raise Refused(StatusCode.INVALID_ARGUMENT)
        own = self.workers.get(request.daemon_id)
        endpoint = (request.node_address, request.grpc_port)
        recovery, previous_id = (
            request.is_recovery_registration,
            request.previous_worker_id,
        )
        previous = self.by_id(previous_id)
        if recovery and previous is not None and previous is not own:
            return None
        owner = next((w for w in self.workers.values() if w.endpoint == endpoint), None)
        if owner is not None and owner is not own:
            self._end(owner)
            owner.endpoint = None
        worker = own or Worker(new_worker_id, request.daemon_id, *[None] * 2, True, 0, 0, None, 0.0)
        self.workers[request.daemon_id] = worker
        worker.registration, worker.endpoint, worker.accepting = request, endpoint, True
        worker.flags, worker.free = (
            request.capability_flags,
            request.mem_pool_available_size,
        )
        worker.reported_checksum, worker.gap_since, worker.must_register = "", None, False
        self._heard(worker)
        if own is not None:
            self._start_generation(own, recovery)
        if recovery and previous_id and previous is None:
            for row in self.held(previous_id).values():
                row.owner, row.generation, row.confirmed = worker.worker_id, 0, False
        return worker

    def _start_generation(self, worker: Worker, recovery: bool) -> None:
        worker.generation += 1
        worker.seq = 0
        if not recovery:
            worker.process = worker.generation
        if not worker.active:
            worker.active = True
            worker.version += 1
            self._hide(worker.worker_id)
        worker.needs_reconcile |= bool(self.held(worker.worker_id))
        worker.prove_by = self.now + TIMEOUT_S if worker.needs_reconcile else None

    def heartbeat(self, beat: Any) -> tuple[Worker, bool, list[str]] | None:
        """Return the worker, whether it must sync, and what it does not hold; None: not found."""
        if beat.state_version == 0:
            raise Refused(StatusCode.INVALID_ARGUMENT)
        worker = self.active(beat.worker_id)
        if worker is None or beat.daemon_id not in {"", worker.daemon_id}:
            return None
        if worker.must_register:
            worker.gap_since, worker.must_register = None, False
            return None
        self._heard(worker)
        worker.accepting, worker.free = beat.accepting_new_requests, beat.mem_pool_available_size
        if beat.HasField("capability_flags"):
            worker.flags = beat.capability_flags
        worker.reported_checksum = beat.state_checksum
        if worker.accepting and beat.state_checksum == self.checksum(worker.worker_id):
            worker.doubted = False
        held = {key.artifact for key in self.held(worker.worker_id)}
        obsolete = [a for a in beat.registered_artifact_ids if a not in held]
        sync = (
            bool(obsolete)
            or worker.needs_reconcile
            or beat.state_version != worker.version
            or beat.state_checksum not in {"", self.checksum(worker.worker_id)}
        )
        return worker, sync, obsolete

    def unregister(self, request: Any) -> int:
        payload = request.SerializeToString(deterministic=True)
        if request.client_request_id in self.recorded:
            recorded, status = self.recorded[request.client_request_id]
            if recorded != payload:
                raise Refused(StatusCode.FAILED_PRECONDITION)
            if self.active(request.worker_id) is None:
                return status
        worker, changed = self.by_id(request.worker_id), False
        if worker is not None:
            changed = worker.active or bool(self.held(worker.worker_id))
            self._end(worker)
        status = wire.STATUS_NOT_FOUND if worker is None else wire.STATUS_OK
        if request.client_request_id and changed:
            self.recorded[request.client_request_id] = payload, status
        return status

    def listed(self, flags: int, include_unavailable: bool) -> list[Worker]:
        found = [
            worker
            for worker in self.workers.values()
            if worker.fresh(self.now)
            and (worker.accepting or include_unavailable)
            and worker.flags & flags == flags
        ]
        return sorted(found, key=lambda w: (-(w.heartbeat_at or 0), w.worker_id))

    # Replicas.

    def register_replica(self, request: Any) -> None:
        key, row = identity(request.artifact_id, request.mem_info), None
        owner = self.by_id(request.worker_id)
        keys = sum(request.mem_info.buffer_sizes)
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = self._new_row()
        elif not keys and row.owner == request.worker_id:
            process = owner.process if owner else 0
            keys = row.keys if self._proven_in(row) >= process else 0
        row.owner, row.generation = request.worker_id, owner.generation if owner else 0
        row.listed_available = row.confirmed = True
        row.size, row.keys = request.mem_info.memory_size, keys

    def _new_row(self) -> Row:
        self.rows_made += 1
        return Row("", self.rows_made, self.wall_us, True, 0, 0, 0)

    def sources(self, artifact: str, view: str) -> set[Identity]:
        """Return the replicas that a request may be sent to."""
        return {
            key
            for key, row in self.rows.items()
            if (key.artifact, key.view) == (artifact, view)
            and row.available
            and row.keys == row.size
            and self._is_alive(row.owner)
            and self.by_id(row.owner).accepting  # type: ignore[union-attr]
            and not self.by_id(row.owner).doubted  # type: ignore[union-attr]
        }

    # Reconciliation.

    def reconcile(self, request: Any) -> Reconciled:
        worker = self.active(request.worker_id)
        if worker is None:
            raise Refused(StatusCode.NOT_FOUND)
        if any(not entry.ref.artifact_id for entry in request.inventory):
            raise Refused(StatusCode.INVALID_ARGUMENT)
        if (
            request.daemon_id not in {"", worker.daemon_id}
            or request.generation > worker.generation
        ):
            return self._rebase(worker)
        if request.generation < worker.generation or request.request_seq < worker.seq:
            return self._reconciled(worker, wire.RECONCILE_RESULT_KIND_IGNORED_STALE)
        if request.request_seq == worker.seq:
            return self._reconciled(worker, wire.RECONCILE_RESULT_KIND_NOOP)
        if request.request_seq > worker.seq + 1:
            worker.gap_since = self.now if worker.gap_since is None else worker.gap_since
            worker.must_register = self.now - worker.gap_since > TIMEOUT_S
            return self._reconciled(worker, wire.RECONCILE_RESULT_KIND_RETRY_LATER, 100)
        snapshot = request.request_kind == wire.RECONCILE_REQUEST_KIND_SNAPSHOT
        if snapshot and not request.inventory and self._is_contradicted(worker):
            worker.doubted = True
            kind = wire.RECONCILE_RESULT_KIND_RETRY_LATER
            return self._reconciled(worker, kind, HEARTBEAT_INTERVAL_MS)
        worker.seq += 1
        worker.gap_since, worker.must_register, worker.doubted = None, False, False
        if not (request.inventory or snapshot):
            return self._reconciled(worker, wire.RECONCILE_RESULT_KIND_NOOP)
        changes = self._apply(worker, request.inventory)
        worker.version += bool(changes)
        worker.needs_reconcile, worker.prove_by = False, None
        worker.proven = worker.generation
        applied = wire.RECONCILE_RESULT_KIND_APPLIED
        kind = applied if changes else wire.RECONCILE_RESULT_KIND_NOOP
        return self._reconciled(worker, kind)._replace(changes=tuple(sorted(changes)))

    def _reconciled(self, worker: Worker, kind: int, retry_after_ms: int = 0) -> Reconciled:
        return Reconciled(kind, worker.version, self.checksum(worker.worker_id), retry_after_ms)

    def _rebase(self, worker: Worker) -> Reconciled:
        answer = self._reconciled(worker, wire.RECONCILE_RESULT_KIND_REBASE_REQUIRED)
        return answer._replace(expected=tuple(sorted(self.held(worker.worker_id))))

    def _is_contradicted(self, worker: Worker) -> bool:
        return (
            worker.fresh(self.now)
            and worker.accepting
            and worker.reported_checksum == self.checksum(worker.worker_id) != EMPTY
        )

    def _apply(self, worker: Worker, inventory: Any) -> list[tuple[int, Identity, bool]]:
        changes: list[tuple[int, Identity, bool]] = []
        entries: dict[object, tuple[Identity, Any]] = {}
        for entry in inventory:
            key = identity(entry.ref.artifact_id, entry.memory_info, worker.registration.node_id)
            entries[key.match] = key, entry
        began = [
            e.stats.registered_ts.ToMicroseconds()
            for e in inventory
            if e.stats.HasField("registered_ts")
        ]
        matched = []
        for key, row in sorted(self.held(worker.worker_id).items(), key=lambda kr: kr[1].order):
            found = entries.pop(key.match, None)
            if found is not None:
                matched.append((key, row, *found))
            elif not (began and row.created_us > min(began)):
                changes.append((wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA, key, row.available))
                del self.rows[key]
        for key, entry in entries.values():
            if self._add(worker, key, entry):
                available = self.rows[key].available
                changes.append((wire.StateChange.CHANGE_TYPE_ADD_REPLICA, key, available))
        for key, row, said_key, entry in matched:
            after = self._update(worker, key, row, said_key, entry)
            if after is not None:
                available = self.rows[after].available
                changes.append((wire.StateChange.CHANGE_TYPE_UPDATE_REPLICA, after, available))
        return changes

    def _add(self, worker: Worker, key: Identity, entry: Any) -> bool:
        row = self.rows.get(key)
        if row is None:
            row = self._new_row()
        elif self._is_alive(row.owner):
            return False
        row.owner, row.generation, row.confirmed = worker.worker_id, worker.generation, True
        row.listed_available = entry.stats.is_available or not entry.HasField("stats")
        row.size = entry.memory_info.memory_size
        row.keys = usable(sum(entry.memory_info.buffer_sizes), row.size, key)
        self.rows[key] = row
        return True

    def _update(
        self, worker: Worker, key: Identity, row: Row, said_key: Identity, entry: Any
    ) -> Identity | None:
        """Return where the replica is now if anything of it has changed."""
        before = key, row.available, row.size, row.keys
        after = key._replace(
            address=said_key.address or key.address, port=said_key.port or key.port
        )
        other = self.rows.get(after)
        if other is not None and other is not row:
            if other.owner == worker.worker_id or self._is_alive(other.owner):
                return None
            del self.rows[after]
        beat = entry.memory_info.buffer_sizes
        lives = self._proven_in(row) >= worker.process
        keys = sum(beat) if beat else row.keys if lives else 0
        row.size = entry.memory_info.memory_size or row.size
        row.keys = usable(keys, row.size, after)
        row.listed_available = (
            entry.stats.is_available if entry.HasField("stats") else row.listed_available
        )
        row.confirmed = True
        self.rows[after] = self.rows.pop(key)
        return after if before != (after, row.available, row.size, row.keys) else None
