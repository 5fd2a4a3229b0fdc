"""To which daemons the things belong that a request can name."""

from globalstore.db import Snapshot


def daemons_of_worker(tx: Snapshot, worker_id: str) -> set[str]:
    """Return the daemon of a worker, active or not; none for an unknown id."""
    return _daemons(
        tx,
        "SELECT daemon_id FROM workers JOIN worker_ids USING (worker_key) WHERE worker_id = :it",
        worker_id,
    )


def daemons_of_replica(tx: Snapshot, replica_id: bytes) -> set[str]:
    """Return the daemon that holds a replica."""
    return _daemons(
        tx,
        "SELECT daemon_id FROM replicas JOIN workers USING (worker_key) WHERE replica_id = :it",
        replica_id,
    )


def daemons_of_transport(tx: Snapshot, transport_id: bytes) -> set[str]:
    """Return the daemons at both ends of a transport; none if its requester named no worker."""
    return _daemons(
        tx,
        "SELECT daemon_id FROM transports t JOIN worker_ids i"
        " ON i.worker_key = t.source_worker_key OR i.worker_id = t.requester_worker_id"
        " JOIN workers w ON w.worker_key = i.worker_key"
        " WHERE t.transport_id = :it AND t.requester_worker_id != ''",
        transport_id,
    )


def daemons_of_instance(tx: Snapshot, instance_id: str) -> set[str]:
    """Return the daemon of an active instance."""
    return _daemons(
        tx,
        "SELECT daemon_id FROM instances WHERE instance_id = :it AND inactive_at IS NULL",
        instance_id,
    )


def daemons_of_node(tx: Snapshot, node_id: str) -> set[str]:
    """Return the daemons with an active worker on a node."""
    return _daemons(
        tx, "SELECT daemon_id FROM workers WHERE node_id = :it AND inactive_at IS NULL", node_id
    )


def daemons_of_tier_lease(tx: Snapshot, lease_id: str) -> set[str]:
    """Return the daemons with an active worker on the node whose memory a lease is on."""
    return _daemons(
        tx,
        "SELECT daemon_id FROM memory_tier_leases JOIN workers USING (node_id)"
        " WHERE lease_id = :it AND inactive_at IS NULL",
        lease_id,
    )


def daemons_at_endpoint(tx: Snapshot, node_address: str, port: int) -> set[str]:
    """Return the daemons whose active workers take calls or give bytes at an address and port."""
    return _daemons(
        tx,
        "SELECT daemon_id FROM workers WHERE node_address = :it"
        " AND :port IN (grpc_port, p2p_port) AND inactive_at IS NULL",
        node_address,
        port=port,
    )


def _daemons(tx: Snapshot, sql: str, it: str | bytes, **more: int) -> set[str]:
    return {daemon_id for (daemon_id,) in tx.all(sql, {"it": it, **more})}
