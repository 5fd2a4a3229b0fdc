"""What the log and the metrics are told of reconciles."""

from collections.abc import Callable

from globalstore.api.runtime.inventories import Inventory
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.workers import LiveWorker
from globalstore.registry.runtime.reconcile import Accepted
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.reconcile")

# Rows kept although not listed that the log names one by one.
_KEPT_LOGGED = 20

# Counts conflicts with the state by their scope.
Conflicts = Callable[[str, int], None]


def refused(
    worker: LiveWorker,
    message: wire.ReconcileWorkerStateRequest,
    kind: wire.ReconcileResultKind,
    reason: str,
) -> None:
    """Note a request that was not applied."""
    _log.limited(
        f"reconcile {worker.worker_id} {reason}",
        "reconcile not applied",
        result_kind=wire.ReconcileResultKind.Name(kind),
        reason=reason,
        worker_id=worker.worker_id,
        daemon_id=worker.daemon_id,
        generation=message.generation,
        seq=message.request_seq,
        inventory=len(message.inventory),
    )


def left_out(worker: LiveWorker, inventory: Inventory, conflict: Conflicts) -> None:
    """Note entries of an inventory whose objects their daemon keeps to itself, if there are any."""
    if not inventory.left_out:
        return
    conflict("reconcile_session_local", len(inventory.left_out))
    _log.limited(
        f"left out of {worker.worker_id}",
        "inventory entries left out: their ids mean something to a daemon alone",
        worker_id=worker.worker_id,
        daemon_id=worker.daemon_id,
        entries=len(inventory.left_out),
        first=inventory.left_out[0][:80],
    )


def accepted(
    worker: LiveWorker,
    message: wire.ReconcileWorkerStateRequest,
    inventory: Inventory,
    outcome: Accepted,
    conflict: Conflicts,
) -> None:
    """Note what a reconcile did."""
    changes, differences = outcome.changes, outcome.differences
    log = _log.bind(worker_id=worker.worker_id, daemon_id=worker.daemon_id)
    if differences.listed_twice:
        log.warning("inventory lists replicas twice", entries=differences.listed_twice)
    if changes.foreign:
        conflict("reconcile_owner_conflict", len(changes.foreign))
        log.warning(
            "replicas of other workers that are alive were reported",
            replicas=len(changes.foreign),
            first=changes.foreign[0],
        )
    for kept in differences.kept[:_KEPT_LOGGED]:
        log.info(
            "replica kept, registered after the inventory was begun",
            artifact_id=kept.row.artifact_id,
            registered_us=kept.row.created_at,
            inventory_us=kept.taken_us,
        )
    if inventory.denies_all and changes.removed:
        # Who has said that it takes no more requests is leaving, and this is how that is done.
        write = log.warning if worker.accepting else log.info
        write("an empty snapshot removed replicas", replicas=len(changes.removed))
    if changes:
        log.info(
            "reconcile applied",
            generation=message.generation,
            seq=message.request_seq,
            adds=len(changes.added),
            removes=len(changes.removed),
            updates=len(changes.updated),
        )
