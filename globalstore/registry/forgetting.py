"""How names are forgotten that nobody uses, from tables that fill up.

Until then their rows stay: what begins anew goes on where it stopped, as the contract has it. An
operation looks at a slice of a table, in the order of its key.
"""

from collections.abc import Callable
from typing import Any

import attrs

from globalstore.db import Transaction
from globalstore.registry.forgotten_names import KEYS, SHARD_LEASES, raise_floor
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import LeaseEnded, LeaseKind
from globalstore.rules.values import INTEGER_MAX, ordered64

# How long leases and keys are remembered after their end in any case: an hour is longer than
# whoever had them needs to give them up, or to ask for them again.
_REMEMBERED_US = 3_600_000_000

# The same for samples: a day, longer than any node is out of order.
_SAMPLES_REMEMBERED_NS = 86_400_000_000_000


@attrs.frozen
class Looked:
    """What became of a slice.

    ``last`` is the key of its last row, None at the end of the table.
    """

    last: Any
    deleted: int


@attrs.frozen
class Forgettable:
    """A table, and the operation that forgets what is not used of its next rows.

    It takes the key of the last row that was looked at, None at the beginning, the wall clock (µs),
    the lease clock, and how many rows to look at.
    """

    table: str
    forget: Callable[[Transaction, Any, int, LeaseNow, int], Looked]


def forget_endpoints(
    tx: Transaction, last: int | None, _wall_us: int, _clock: LeaseNow, limit: int
) -> Looked:
    """Forget places without replicas."""
    rows = tx.all(
        "SELECT endpoint_key, EXISTS (SELECT 1 FROM replicas r"
        " WHERE r.endpoint_key = e.endpoint_key) FROM endpoints e"
        " WHERE endpoint_key > :last ORDER BY endpoint_key LIMIT :limit",
        {"last": last or 0, "limit": limit},
    )
    unused = [(key,) for key, is_used in rows if not is_used]
    if unused:
        tx.run_rows("DELETE FROM endpoints WHERE endpoint_key IN (VALUES …)", unused)
    return Looked(rows[-1][0] if len(rows) == limit else None, len(unused))


def forget_keys(
    tx: Transaction, last: int | None, wall_us: int, _clock: LeaseNow, limit: int
) -> Looked:
    """Forget keys that have pointed at nothing for long.

    Those are left of which an earlier target or a swap is still recorded.
    """
    rows = tx.all(
        "SELECT mapping_key, generation, artifact_key IS NULL AND version_set_id = ''"
        " AND updated_at < :before"
        " AND NOT EXISTS (SELECT 1 FROM key_generations g WHERE g.mapping_key = m.mapping_key)"
        " AND NOT EXISTS (SELECT 1 FROM key_swaps s WHERE s.mapping_key = m.mapping_key)"
        " FROM key_mappings m WHERE mapping_key > :last ORDER BY mapping_key LIMIT :limit",
        {"last": last or 0, "before": wall_us - _REMEMBERED_US, "limit": limit},
    )
    unused = [(key, generation) for key, generation, is_unused in rows if is_unused]
    if unused:
        raise_floor(tx, KEYS, max(generation for _, generation in unused))
        tx.run_rows(
            "DELETE FROM key_mappings WHERE mapping_key IN (VALUES …)",
            [(key,) for key, _ in unused],
        )
    return Looked(rows[-1][0] if len(rows) == limit else None, len(unused))


def forget_shard_leases(
    tx: Transaction, last: int | None, _wall_us: int, clock: LeaseNow, limit: int
) -> Looked:
    """Forget shards whose leases ended long ago."""
    rows = tx.all(
        "SELECT shard_id, generation, expires_at < :before FROM shard_leases"
        " WHERE shard_id >= :first ORDER BY shard_id LIMIT :limit",
        {
            "first": -INTEGER_MAX - 1 if last is None else last + 1,
            "before": clock() - _REMEMBERED_US,
            "limit": limit,
        },
    )
    ended = [(shard_id, generation) for shard_id, generation, is_over in rows if is_over]
    if ended:
        raise_floor(tx, SHARD_LEASES, max(generation for _, generation in ended))
        tx.run_rows(
            "DELETE FROM shard_leases WHERE shard_id IN (VALUES …)",
            [(shard_id,) for shard_id, _ in ended],
        )
    for shard_id, _ in ended:
        tx.emit(LeaseEnded(LeaseKind.SHARD_HOME, shard_id))
    more = len(rows) == limit and rows[-1][0] < INTEGER_MAX
    return Looked(rows[-1][0] if more else None, len(ended))


def forget_samples(
    tx: Transaction, last: tuple[str, int] | None, wall_us: int, _clock: LeaseNow, limit: int
) -> Looked:
    """Forget samples of long ago; a node that reports has newer ones, unless its clock is wrong."""
    node_id, epoch = last or ("", 0)
    rows = tx.all(
        "SELECT node_id, epoch FROM memory_tier_snapshots"
        " WHERE (node_id, epoch) > (:node_id, :epoch) ORDER BY node_id, epoch LIMIT :limit",
        {"node_id": node_id, "epoch": epoch, "limit": limit},
    )
    before = ordered64(wall_us * 1000 - _SAMPLES_REMEMBERED_NS)
    old = [row for row in rows if row[1] < before]
    if old:
        tx.run_rows("DELETE FROM memory_tier_snapshots WHERE (node_id, epoch) IN (VALUES …)", old)
    return Looked(rows[-1] if len(rows) == limit else None, len(old))


FORGETTABLE = (
    Forgettable("endpoints", forget_endpoints),
    Forgettable("key_mappings", forget_keys),
    Forgettable("shard_leases", forget_shard_leases),
    Forgettable("memory_tier_snapshots", forget_samples),
)
