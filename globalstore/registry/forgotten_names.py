"""What is kept of names that were forgotten: one number for each kind of them.

A generation must not come again for another holder or target. So a name that is new, or was
forgotten, begins above the last generation that any forgotten name of its kind had.
"""

from globalstore.db import Snapshot, Transaction

# Kinds of names that have generations.
SHARD_LEASES = "shard_leases"
KEYS = "key_mappings"


def first_generation(tx: Snapshot, kind: str, least: int) -> int:
    """Return the generation at which a new name begins: ``least``, or above the forgotten ones."""
    row = tx.one("SELECT generation FROM generation_floors WHERE kind = ?", (kind,))
    return least if row is None else max(least, row[0] + 1)


def raise_floor(tx: Transaction, kind: str, generation: int) -> None:
    """Have new names begin above a generation."""
    tx.run(
        "INSERT INTO generation_floors VALUES (:kind, :generation) ON CONFLICT (kind) DO UPDATE"
        " SET generation = max(generation, excluded.generation)",
        {"kind": kind, "generation": generation},
    )
