"""ReconcileWorkerState: makes the rows of a worker follow its daemon's inventory."""

from collections.abc import AsyncIterator, Sequence

import trio

from globalstore import db
from globalstore.api.context import Handlers
from globalstore.api.runtime import reconcile_notes
from globalstore.api.runtime.inventories import (
    ENTRIES_PER_TURN,
    AnswerRoom,
    Inventory,
    inventory_of,
    list_changes,
)
from globalstore.api.turns import in_turns
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.daemon_locks import DaemonLockFull
from globalstore.liveness.workers import LiveWorker
from globalstore.registry.runtime import inventories, inventory_writes, reconcile
from globalstore.registry.runtime.inventories import Differences, ReportedReplica
from globalstore.registry.runtime.inventory_writes import Changes, Claim, Slice
from globalstore.registry.runtime.reconcile import Acceptance, Accepted
from globalstore.registry.runtime.replica_rows import HeldReplica
from globalstore.rpc import Call
from globalstore.rules.checksums import EMPTY
from globalstore.rules.refusals import NotFound, Refusal, ResourceExhausted
from globalstore.rules.values import TEXT_BYTES_MAX
from globalstore.telemetry import add_call_fields, get_logger

_log = get_logger("globalstore.reconcile")

# Rows that one query of a long comparison reads: some milliseconds of a reader.
_ROWS_READ = 500

# Rows that one transaction of a long reconcile writes: some 20 ms of the writer, on a slow or busy
# machine twice that.
_ROWS_WRITTEN = 800

# How long a reconcile in slices goes on although its caller has gone: several times what 100 000
# rows take. A server that stops waits for it, so it is shorter than any supervisor's patience.
_GOES_ON_S = 15.0

# How often a claim is checked again when the worker was ended or registered again meanwhile.
_DECISIONS_MAX = 3

_GAP_RETRY_MS = 100
_OVERLOAD_RETRY_MS = 500


class ReconcileHandlers(Handlers):
    """The call by which a daemon reports all that it holds."""

    async def ReconcileWorkerState(
        self, message: wire.ReconcileWorkerStateRequest, request: Call
    ) -> wire.ReconcileWorkerStateResponse:
        """Bring the rows of a worker in line with its inventory, in the order of its requests."""
        metrics = self.context.metrics
        began = trio.current_time()
        result = wire.RECONCILE_RESULT_KIND_FATAL
        outcome = "success"
        try:
            answer = await self._reconcile(message, request)
            result = answer.result_kind
        except Exception as error:
            outcome = "success" if isinstance(error, Refusal) else "error"
            raise
        finally:
            metrics.control_plane.reconciles.labels(outcome).inc()
            metrics.control_plane.reconcile_seconds.observe(trio.current_time() - began)
            metrics.control_plane.reconcile_results.labels(
                wire.ReconcileResultKind.Name(result)
            ).inc()
        return answer

    async def _reconcile(
        self, message: wire.ReconcileWorkerStateRequest, call: Call
    ) -> wire.ReconcileWorkerStateResponse:
        worker_id = message.worker_id.strip()
        add_call_fields(worker_id=worker_id)
        worker = self._active(worker_id)
        inventory = await inventory_of(message, worker.node_id)
        if worker.confirmed is None or worker.confirmed[0] != inventory.fingerprint:
            await inventory.entries()  # whatever is wrong with it comes before all else
            reconcile_notes.left_out(worker, inventory, self._conflict)
        try:
            async with self.context.daemon_locks.hold(worker.daemon_id, "reconcile"):
                for _ in range(_DECISIONS_MAX):
                    worker = self._active(worker_id)
                    answer = await self._decide(worker, message, inventory, call)
                    if answer is not None:
                        return answer
        except (DaemonLockFull, db.QueueFull) as error:
            return await self._retry_later(
                worker, message, _OVERLOAD_RETRY_MS, "overloaded", str(error)
            )
        except db.Busy as error:
            self._conflict("reconcile_tx_conflict_exhausted")
            return await self._retry_later(
                worker, message, _OVERLOAD_RETRY_MS, "tx_conflict_exhausted", str(error)
            )
        return await self._retry_later(
            worker, message, _GAP_RETRY_MS, "tx_conflict_exhausted", "the worker keeps changing"
        )

    def _active(self, worker_id: str) -> LiveWorker:
        worker = self.context.workers.find(worker_id)
        if worker is None:
            _log.limited(
                f"reconcile of {worker_id[:80]}",
                "reconcile of an unknown worker",
                worker_id=worker_id[:TEXT_BYTES_MAX],
            )
            raise NotFound(f"worker_id {worker_id[:80]!r} is not an active worker: register again")
        return worker

    async def _decide(
        self,
        worker: LiveWorker,
        message: wire.ReconcileWorkerStateRequest,
        inventory: Inventory,
        call: Call,
    ) -> wire.ReconcileWorkerStateResponse | None:
        """Answer a request by the first rule that fits; None when the worker changed meanwhile."""
        if message.daemon_id.strip() not in {"", worker.daemon_id}:
            return await self._rebase(worker, message, "daemon_mismatch", "of another daemon")
        if message.generation < worker.generation:
            return await self._stale(worker, message, "generation_stale")
        if message.generation > worker.generation:
            return await self._rebase(worker, message, "generation_future", "future generation")
        if message.request_seq == worker.request_seq:
            return await self._answer(worker, wire.RECONCILE_RESULT_KIND_NOOP)
        if message.request_seq < worker.request_seq:
            return await self._stale(worker, message, "request_stale")
        if message.request_seq > worker.request_seq + 1:
            return await self._gap(worker, message)
        if inventory.denies_all and await self._is_contradicted(worker):
            self.context.workers.doubt(worker)
            return await self._retry_later(
                worker,
                message,
                self.context.heartbeat_interval_ms,
                "contradicted_snapshot",
                "an empty snapshot, but the worker's heartbeat affirms what it holds",
            )
        return await self._accept(worker, message, inventory, call)

    # Answers that change nothing.

    async def _answer(
        self, worker: LiveWorker, kind: wire.ReconcileResultKind
    ) -> wire.ReconcileWorkerStateResponse:
        checksum = await self.context.worker_digests.checksum_of(worker)
        return wire.ReconcileWorkerStateResponse(
            result_kind=kind,
            new_state_version=worker.state_version,
            new_state_checksum=checksum,
        )

    def _conflict(self, scope: str, count: int = 1) -> None:
        self.context.metrics.control_plane.conflicts.labels(scope).inc(count)

    async def _stale(
        self, worker: LiveWorker, message: wire.ReconcileWorkerStateRequest, scope: str
    ) -> wire.ReconcileWorkerStateResponse:
        self._conflict(f"reconcile_{scope}")
        kind = wire.RECONCILE_RESULT_KIND_IGNORED_STALE
        reconcile_notes.refused(worker, message, kind, scope)
        return await self._answer(worker, kind)

    async def _retry_later(
        self,
        worker: LiveWorker,
        message: wire.ReconcileWorkerStateRequest,
        after_ms: int,
        label: str,
        reason: str,
    ) -> wire.ReconcileWorkerStateResponse:
        self.context.metrics.control_plane.retries_later.labels(label).inc()
        kind = wire.RECONCILE_RESULT_KIND_RETRY_LATER
        reconcile_notes.refused(worker, message, kind, reason)
        answer = await self._answer(worker, kind)
        answer.retry_after_ms = after_ms
        return answer

    async def _gap(
        self, worker: LiveWorker, message: wire.ReconcileWorkerStateRequest
    ) -> wire.ReconcileWorkerStateResponse:
        """Request the number that is missing; after a while, a heartbeat asks to register."""
        self.context.workers.request_missing(worker)
        self._conflict("reconcile_request_gap")
        reason = f"request_seq {worker.request_seq + 1} is missing"
        return await self._retry_later(worker, message, _GAP_RETRY_MS, "request_seq_gap", reason)

    async def _rebase(
        self,
        worker: LiveWorker,
        message: wire.ReconcileWorkerStateRequest,
        scope: str,
        reason: str,
    ) -> wire.ReconcileWorkerStateResponse:
        self._conflict(f"reconcile_{scope}")
        kind = wire.RECONCILE_RESULT_KIND_REBASE_REQUIRED
        reconcile_notes.refused(worker, message, kind, reason)
        answer = await self._answer(worker, kind)
        room = self._answer_room
        writer = room.writer()
        async for piece in self._rows(worker.key):
            for row in piece:
                writer.write(answer.expected_replicas.add(), row)
            # Daemons give up what a list lacks: none is better than a part.
            if room.is_full(writer):
                raise ResourceExhausted(
                    f"the replicas of {worker.worker_id!r} take more than {room.bytes_max} bytes"
                    " (server.limits.max_message_bytes): register the worker, and send its"
                    " inventory to the new generation"
                )
        return answer

    @property
    def _answer_room(self) -> AnswerRoom:
        return AnswerRoom(self.context.config.server.limits.max_message_bytes)

    async def _is_contradicted(self, worker: LiveWorker) -> bool:
        """Tell whether the latest heartbeat affirms replicas that an empty snapshot denies."""
        if not worker.accepting or worker.key not in self.context.workers.live():
            return False
        if worker.reported_checksum in {"", EMPTY}:
            return False
        return worker.reported_checksum == await self.context.worker_digests.checksum_of(worker)

    # Acceptance.

    async def _accept(
        self,
        worker: LiveWorker,
        message: wire.ReconcileWorkerStateRequest,
        inventory: Inventory,
        call: Call,
    ) -> wire.ReconcileWorkerStateResponse | None:
        claim = Claim(worker.key, worker.worker_id, worker.generation, message.request_seq)
        if not inventory.complete or self._is_unchanged(worker, inventory):
            acceptance = Acceptance(
                changed=False,
                complete=inventory.complete,
                fingerprint=inventory.fingerprint,
                compared_at=worker.replicas_revision,
            )
            moved = await self.context.write(
                call, reconcile.accept_inventory, claim, None, acceptance
            )
            return await self._answer(worker, wire.RECONCILE_RESULT_KIND_NOOP) if moved else None
        entries = await inventory.entries()
        small = len(entries) <= reconcile.WHOLE_MAX and await self.context.read(
            reconcile.is_small, worker.key
        )
        listed = wire.ReconcileWorkerStateResponse()
        carry_out = self._whole if small else self._in_slices
        accepted = await carry_out(worker, claim, inventory, entries, listed, call)
        if accepted is None:
            return None
        reconcile_notes.accepted(worker, message, inventory, accepted, self._conflict)
        if not accepted.changes:
            return await self._answer(worker, wire.RECONCILE_RESULT_KIND_NOOP)
        answer = await self._answer(worker, wire.RECONCILE_RESULT_KIND_APPLIED)
        listed.MergeFrom(answer)
        return listed

    def _is_unchanged(self, worker: LiveWorker, inventory: Inventory) -> bool:
        return not worker.needs_reconcile and worker.confirmed == (
            inventory.fingerprint,
            worker.replicas_revision,
        )

    async def _whole(
        self,
        _: LiveWorker,
        claim: Claim,
        inventory: Inventory,
        entries: list[ReportedReplica],
        listed: wire.ReconcileWorkerStateResponse,
        call: Call,
    ) -> Accepted | None:
        """Carry a reconcile out in one transaction; ``listed`` gets its changes."""
        accepted = await self.context.write(
            call,
            reconcile.whole,
            claim,
            inventory.fingerprint,
            entries,
            inventory.taken_us,
            self.context.workers.live(),
            self.context.clock.wall_us(),
        )
        if accepted is not None:
            room = self._answer_room
            await list_changes(accepted.changes, listed, room.writer(), room)
        return accepted

    async def _in_slices(
        self,
        live: LiveWorker,
        claim: Claim,
        inventory: Inventory,
        entries: list[ReportedReplica],
        listed: wire.ReconcileWorkerStateResponse,
        call: Call,
    ) -> Accepted | None:
        """Compare on a reader and write slice by slice, so that others are not held up.

        Each slice is a transaction of its own; the cursor and the version move with the last one.
        Should the server die before, the daemon sends the same request again, and what is left to
        do is done.
        """
        self.context.handler_slots.release(call)
        worker = await self.context.read(inventory_writes.claimed_incarnation, claim)
        if worker is None:
            return None
        revision = live.replicas_revision
        differences = Differences(worker, inventory.taken_us)
        async for turn in in_turns(entries, ENTRIES_PER_TURN):
            differences.expect(turn)
        async for piece in self._rows(claim.worker_key):
            differences.compare(piece)
        slice_ = Slice(
            claim,
            worker,
            differences.confirmation(),
            self.context.workers.live(),
            self.context.clock.wall_us(),
        )
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOES_ON_S) as scope:
            changes = await self._write(differences, slice_, listed)
            accepted = None if changes is None else Accepted(changes, differences)
            moved = accepted is not None and await self.context.store.write(
                reconcile.accept_inventory,
                claim,
                slice_.confirmation,
                Acceptance(
                    changed=len(accepted.changes) > 0,
                    complete=True,
                    fingerprint=accepted.agreeing(inventory.fingerprint),
                    compared_at=revision,
                ),
            )
        if scope.cancelled_caught:
            await trio.lowlevel.checkpoint()
            raise db.Busy(f"not carried out within {_GOES_ON_S:g} s; send it again")
        return accepted if moved else None

    async def _write(
        self,
        differences: Differences,
        slice_: Slice,
        listed: wire.ReconcileWorkerStateResponse,
    ) -> Changes | None:
        """Write all slices; what one changed is listed while the next is being written.

        None when the worker was ended or registered again meanwhile.
        """
        changes = Changes()
        room = self._answer_room
        writer = room.writer()

        async def take_in(done: Changes) -> None:
            changes.extend(done)
            await list_changes(done, listed, writer, room)

        steps = inventory_writes.steps(differences, slice_, _ROWS_WRITTEN)
        is_complete = await db.write_in_slices(
            self.context.store, steps, guard=slice_.holds, on_written=take_in
        )
        return changes if is_complete else None

    async def _rows(self, worker_key: int) -> AsyncIterator[Sequence[HeldReplica]]:
        """Yield all rows of a worker, a turn's worth at a time."""
        after = (0, 0)
        while True:
            rows, is_last = await self.context.read(inventories.rows, worker_key, after, _ROWS_READ)
            async for turn in in_turns(rows, ENTRIES_PER_TURN):
                yield turn
            if is_last:
                return
            after = rows[-1].position
