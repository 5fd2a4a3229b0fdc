"""Realizations and their members as they are stored, and look-ups of them."""

import enum
import json

import attrs

from globalstore.db import Row, Snapshot
from globalstore.registry.catalog.version_sets import VersionSet
from globalstore.rules.realizations import TRANSACTION_PREFIX, RealizationKind


class RealizationState(enum.IntEnum):
    """The state of a realization; the numbers of the wire."""

    PREPARING = 3
    READY_TO_PUBLISH = 4
    PUBLISHED = 5
    ABORTED = 6
    EXPIRED = 7

    @property
    def is_final(self) -> bool:
        """Whether no other state can follow."""
        return self >= RealizationState.PUBLISHED


class MemberState(enum.IntEnum):
    """The state of a part; the numbers of the wire."""

    JOINED = 1
    PREPARED = 3
    PUBLISHED = 4
    FAILED = 5
    CANCELLED = 6
    EXPIRED = 7


@attrs.frozen
class Realization:
    """A realization, without its members.

    ``key`` is blank and ``key_generation`` None when no key gave the version. ``is_fenced`` when it
    was aborted because a source was not as reported. ``deadline_us`` is of the lease clock, None
    for one that does not expire; ``deadline_unix_nanos`` is what is shown of it.
    """

    transaction_key: int
    fingerprint: bytes = attrs.field(repr=bytes.hex)
    group_kind: str
    group_id: str
    epoch: int
    version_set: VersionSet
    required_part_ids: list[str]
    namespace: str
    key: str
    key_generation: int | None
    state: RealizationState
    prepared_count: int
    is_fenced: bool
    failure_code: str
    failure_detail: str
    deadline_unix_nanos: int
    deadline_us: int | None

    @property
    def transaction_id(self) -> str:
        """The id by which clients name the realization."""
        return TRANSACTION_PREFIX + self.fingerprint.hex()

    def is_due(self, lease_us: int) -> bool:
        """Tell whether its deadline has passed and it has not ended yet."""
        return (
            not self.state.is_final
            and self.deadline_us is not None
            and self.deadline_us <= lease_us
        )

    def member_state(self, *, is_prepared: bool) -> MemberState:
        """Return the state of a part that has joined."""
        match self.state:
            case RealizationState.PUBLISHED:
                return MemberState.PUBLISHED
            case RealizationState.ABORTED:
                return MemberState.FAILED if self.is_fenced else MemberState.CANCELLED
            case RealizationState.EXPIRED:
                return MemberState.EXPIRED
        return MemberState.PREPARED if is_prepared else MemberState.JOINED

    def count(self, state: MemberState) -> int:
        """Return how many parts are PREPARED, FAILED or PUBLISHED."""
        is_theirs = self.member_state(is_prepared=True) is state
        return self.prepared_count if is_theirs else 0


@attrs.frozen
class Member:
    """A part that has joined. What it has reported is blank, or 0, until it ``is_prepared``."""

    part_id: str
    is_prepared: bool
    daemon_id: str
    daemon_session_id: str
    worker_id: str
    fingerprint: bytes
    staged_daemon_id: str
    staged_session_id: str
    staged_binding_id: str
    staged_binding_value_id: str
    staging_token: str
    staging_epoch: int
    materialization_attempt_id: str
    source_replica_id: str
    source_export_generation: int
    child_transport_request_id: str
    expected_previous_seal_generation: int
    prepared_value_hash: bytes


_REALIZATION = """
SELECT t.transaction_key, t.fingerprint, t.group_kind, t.group_id, t.epoch,
       v.version_set_key, v.manifest_hash, v.realization_kind, t.required_part_ids, t.namespace,
       t.key, t.key_generation, t.state, t.prepared_count, t.is_fenced, t.failure_code,
       t.failure_detail, t.deadline_unix_nanos, t.deadline
FROM group_transactions t JOIN version_sets v USING (version_set_key)
"""

_MEMBER = """
SELECT part_id, is_prepared, daemon_id, daemon_session_id, worker_id, fingerprint,
       staged_daemon_id, staged_session_id, staged_binding_id, staged_binding_value_id,
       staging_token, staging_epoch, materialization_attempt_id, source_replica_id,
       source_export_generation, child_transport_request_id, expected_previous_seal_generation,
       prepared_value_hash
FROM group_members
"""


def find_realization(tx: Snapshot, fingerprint: bytes) -> Realization | None:
    """Return a realization as it is stored, whether or not its deadline has passed."""
    row = tx.one(_REALIZATION + "WHERE t.fingerprint = ?", (fingerprint,))
    return None if row is None else _realization(row)


def find_by_realization_key(
    tx: Snapshot, group_kind: str, group_id: str, epoch: int
) -> Realization | None:
    """Return the realization with a realization key, as it is stored."""
    row = tx.one(
        _REALIZATION + "WHERE t.group_kind = :kind AND t.group_id = :id AND t.epoch = :epoch",
        {"kind": group_kind, "id": group_id, "epoch": epoch},
    )
    return None if row is None else _realization(row)


def _realization(row: Row) -> Realization:
    key, fingerprint, kind, id_, epoch, set_key, manifest, realization, required, *rest = row
    namespace, name, generation, state, prepared, fenced, *end = rest
    return Realization(
        key,
        fingerprint,
        kind,
        id_,
        epoch,
        VersionSet(set_key, manifest, RealizationKind(realization)),
        json.loads(required),
        namespace,
        name,
        generation,
        RealizationState(state),
        prepared,
        bool(fenced),
        *end,
    )


def find_open_realizations(tx: Snapshot, transaction_keys: list[int]) -> list[Realization]:
    """Return those of some realizations that have not ended."""
    rows = tx.all(
        _REALIZATION + "WHERE t.transaction_key IN (SELECT value FROM json_each(:keys))"
        " AND t.ended_at IS NULL",
        {"keys": json.dumps(transaction_keys)},
    )
    return [_realization(row) for row in rows]


def member(tx: Snapshot, realization: Realization, part_id: str) -> Member | None:
    """Return a part that has joined, or None."""
    row = tx.one(
        _MEMBER + "WHERE transaction_key = :transaction AND part_id = :part",
        {"transaction": realization.transaction_key, "part": part_id},
    )
    return None if row is None else Member(*row)


def show(tx: Snapshot, fingerprint: bytes) -> tuple[Realization, list[Member]] | None:
    """Return a realization as it is stored, and its members in the order of their ids."""
    realization = find_realization(tx, fingerprint)
    if realization is None:
        return None
    rows = tx.all(
        _MEMBER + "WHERE transaction_key = ? ORDER BY part_id", (realization.transaction_key,)
    )
    return realization, [Member(*row) for row in rows]
