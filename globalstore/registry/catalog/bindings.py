"""Bindings: which artifact an assembly was sealed to. Written once."""

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.rules.refusals import FailedPrecondition


@attrs.frozen
class Binding:
    """What an assembly was sealed to, and when, in microseconds since 1970."""

    from_artifact_id: str
    to_artifact_id: str
    created_at_us: int


def bind(
    tx: Transaction, from_artifact_id: str, to_artifact_id: str, now_us: int
) -> tuple[Binding, bool]:
    """Bind an assembly; return the binding and whether it is new.

    Raises FailedPrecondition when it is bound to something else.
    """
    binding = find_binding(tx, from_artifact_id)
    if binding is None:
        binding = Binding(from_artifact_id, to_artifact_id, now_us)
        tx.run(
            "INSERT INTO artifact_bindings"
            " VALUES (:from_artifact_id, :to_artifact_id, :created_at_us)",
            attrs.asdict(binding),
        )
        return binding, True
    if binding.to_artifact_id != to_artifact_id:
        raise FailedPrecondition(
            f"artifact binding conflict: {from_artifact_id} is sealed to {binding.to_artifact_id}"
        )
    return binding, False


def find_binding(tx: Snapshot, from_artifact_id: str) -> Binding | None:
    """Return what an assembly was sealed to, or None."""
    row = tx.one(
        "SELECT from_artifact_id, to_artifact_id, created_at FROM artifact_bindings"
        " WHERE from_artifact_id = :from_artifact_id",
        {"from_artifact_id": from_artifact_id},
    )
    return None if row is None else Binding(*row)
