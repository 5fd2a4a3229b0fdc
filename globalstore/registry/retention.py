"""The tables whose rows are deleted after some time, one row each."""

from collections.abc import Callable

import attrs

from globalstore.db import Transaction
from globalstore.registry import idempotency, memory_tiers
from globalstore.registry.catalog import keys, realizations
from globalstore.registry.runtime import chunks, instances, replicas, transport_ends, workers

# How long recorded answers, and all that has ended, stay: a retry comes within a day or never.
DAY_S = 86400.0

# Rows that one transaction deletes, so that none holds the database for long.
_ROWS = 1000


@attrs.frozen
class Retained:
    """A table whose rows go some time after they ended.

    ``purge`` is an operation that deletes up to so many rows that ended before a time (wall clock,
    in microseconds), and returns how many. ``age_s`` is how long they stay, infinite for good.
    ``batch`` rows are one transaction.
    """

    table: str
    purge: Callable[[Transaction, int, int], int]
    age_s: float
    batch: int = _ROWS


def retained(*, transports_s: float, tier_leases_s: float) -> tuple[Retained, ...]:
    """Return all tables that are pruned. Ages are seconds; ``transports_s`` 0 keeps transports."""
    return (
        # These carry the time at which they expire.
        Retained("replicas", replicas.remove_expired, 0.0),
        Retained("recorded_replies", idempotency.purge_replies, DAY_S),
        Retained("workers", workers.purge_workers, DAY_S),
        Retained("instances", instances.purge_instances, DAY_S),
        Retained("key_generations", keys.purge_history, DAY_S),
        Retained("key_swaps", keys.purge_swaps, DAY_S),
        Retained("group_members", realizations.purge_members, DAY_S),
        # Nodes were forgotten a while before; see ``maintenance.abandoned_nodes``.
        Retained("chunk_blocks", chunks.purge_chunks, 0.0),
        Retained("memory_tier_leases", memory_tiers.purge_tier_leases, tier_leases_s),
        Retained("transports", transport_ends.purge_transports, transports_s or float("inf")),
    )
