"""Instances: the engine processes beside the daemons, and how they end."""

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry.signals import InstanceEnded
from globalstore.rules.values import signed64, unsigned64


@attrs.frozen
class InstanceState:
    """An instance as the database has it; times in microseconds since 1970.

    ``named_worker_id`` is blank for an instance that follows its daemon; ``labels_json`` is an
    object of texts.
    """

    instance_key: int
    instance_id: str
    daemon_id: str
    named_worker_id: str
    engine: str
    signals_endpoint: str
    labels_json: str
    execution_endpoint: str
    execution_host_kind: str
    capability_flags: int
    last_heartbeat_us: int
    generation: int


@attrs.frozen
class InstanceRegistered:
    """An instance is active under a generation that it never had before."""

    instance: InstanceState


# The latest heartbeat of an instance, as it is stored: instance_key, generation, last_heartbeat
# (µs), named_worker_id and capability_flags (signed).
LivenessRow = dict[str, int | str]


@attrs.frozen
class InstanceRegistration:
    """A checked RegisterInstance request.

    ``named_worker_id`` is blank for an instance that follows its daemon; ``labels_json`` is an
    object of texts.
    """

    instance_id: str
    daemon_id: str
    named_worker_id: str
    engine: str
    signals_endpoint: str
    labels_json: str
    execution_endpoint: str
    execution_host_kind: str
    capability_flags: int


_COLUMNS = (
    "instance_key, instance_id, daemon_id, named_worker_id, engine, signals_endpoint, labels_json,"
    " execution_endpoint, execution_host_kind, capability_flags, last_heartbeat, generation"
)


def _state(row: Row) -> InstanceState:
    fields = list(row)
    fields[9] = unsigned64(fields[9])
    return InstanceState(*fields)


def active_instances(tx: Snapshot) -> list[InstanceState]:
    """Return all active instances by their latest heartbeat, the oldest first."""
    return [
        _state(row)
        for row in tx.all(
            f"SELECT {_COLUMNS} FROM instances WHERE inactive_at IS NULL"
            " ORDER BY last_heartbeat, instance_id DESC"
        )
    ]


def ended(tx: Snapshot, required_flags: int, limit: int) -> list[InstanceState]:
    """Return ended instances that had all of the bits, the latest heartbeat first."""
    return [
        _state(row)
        for row in tx.all(
            f"SELECT {_COLUMNS} FROM instances WHERE inactive_at IS NOT NULL"
            " AND capability_flags & :flags = :flags"
            " ORDER BY last_heartbeat DESC, instance_id LIMIT :limit",
            {"flags": signed64(required_flags), "limit": limit},
        )
    ]


def register_instance(
    tx: Transaction, registration: InstanceRegistration, now_us: int
) -> InstanceState:
    """Make an instance active in a new generation and replace all that was known of it."""
    row = tx.one(
        "INSERT INTO instances (instance_id, daemon_id, named_worker_id, engine, signals_endpoint,"
        " labels_json, execution_endpoint, execution_host_kind, capability_flags, last_heartbeat,"
        " generation, registered_at) VALUES (:instance_id, :daemon_id, :named_worker_id, :engine,"
        " :signals_endpoint, :labels_json, :execution_endpoint, :execution_host_kind,"
        " :capability_flags, :now, 1, :now)"
        " ON CONFLICT (instance_id) DO UPDATE SET daemon_id = excluded.daemon_id,"
        " named_worker_id = excluded.named_worker_id, engine = excluded.engine,"
        " signals_endpoint = excluded.signals_endpoint, labels_json = excluded.labels_json,"
        " execution_endpoint = excluded.execution_endpoint,"
        " execution_host_kind = excluded.execution_host_kind,"
        " capability_flags = excluded.capability_flags,"
        " last_heartbeat = max(last_heartbeat, excluded.last_heartbeat),"
        " generation = generation + 1, registered_at = excluded.registered_at, inactive_at = NULL"
        f" RETURNING {_COLUMNS}",
        attrs.asdict(registration)
        | {"capability_flags": signed64(registration.capability_flags), "now": now_us},
    )
    assert row is not None
    state = _state(row)
    tx.emit(InstanceRegistered(state))
    return state


def unregister_instance(
    tx: Transaction, instance_id: str, unwritten: list[LivenessRow], now_us: int
) -> InstanceState | None:
    """End an instance on its own order; None when it is unknown or has ended already.

    ``unwritten`` is its latest liveness, if that may not be stored yet.
    """
    record_instance_heartbeats(tx, unwritten)
    row = tx.one(
        "UPDATE instances SET inactive_at = :now"
        f" WHERE instance_id = :instance_id AND inactive_at IS NULL RETURNING {_COLUMNS}",
        {"instance_id": instance_id, "now": now_us},
    )
    if row is None:
        return None
    state = _state(row)
    tx.emit(InstanceEnded(state.instance_key))
    return state


def expire_instances(tx: Transaction, silent: list[LivenessRow], now_us: int) -> set[int]:
    """End instances whose heartbeats are overdue; return the keys of those that it ended.

    One that ended or registered meanwhile is passed over.
    """
    record_instance_heartbeats(tx, silent)
    keys = set()
    for row in silent:
        changed = tx.run(
            "UPDATE instances SET inactive_at = :now WHERE instance_key = :instance_key"
            " AND generation = :generation AND inactive_at IS NULL",
            row | {"now": now_us},
        )
        if changed:
            key = int(row["instance_key"])
            keys.add(key)
            tx.emit(InstanceEnded(key))
    return keys


def record_instance_heartbeats(tx: Transaction, rows: list[LivenessRow]) -> int:
    """Store heartbeats; instances that ended or registered since are passed over."""
    return tx.many(
        "UPDATE instances SET last_heartbeat = max(last_heartbeat, :last_heartbeat),"
        " named_worker_id = :named_worker_id, capability_flags = :capability_flags"
        " WHERE instance_key = :instance_key AND generation = :generation"
        " AND inactive_at IS NULL",
        rows,
    )


def purge_instances(tx: Transaction, before_us: int, limit: int) -> int:
    """Delete up to ``limit`` instances that ended before a time."""
    return tx.run(
        "DELETE FROM instances WHERE instance_key IN (SELECT instance_key FROM instances"
        " WHERE inactive_at < :before ORDER BY inactive_at, instance_key LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )
