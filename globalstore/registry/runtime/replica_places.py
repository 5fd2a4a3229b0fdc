"""Where replicas live: in which memory, of which device, served from where."""

import enum

import attrs

from globalstore.db import Transaction


class MemoryTier(enum.IntEnum):
    """Where a replica's bytes are, fastest first: the order in which sources are preferred."""

    GPU = 0
    RAM = 1
    DISK = 2


@attrs.frozen
class Place:
    """Where a replica lives. Together with artifact and view this is its identity."""

    node_id: str
    node_address: str
    node_port: int
    memory_tier: MemoryTier
    device_id: int


def intern_endpoint(tx: Transaction, node_id: str, address: str, port: int) -> int:
    """Return the key of a place that replicas are served from."""
    fields = {"id": node_id, "address": address, "port": port}
    row = tx.one(
        "SELECT endpoint_key FROM endpoints WHERE node_id = :id AND node_address = :address"
        " AND node_port = :port",
        fields,
    ) or tx.one(
        "INSERT INTO endpoints (node_id, node_address, node_port) VALUES (:id, :address, :port)"
        " RETURNING endpoint_key",
        fields,
    )
    assert row is not None
    key: int = row[0]
    return key
