"""How a realization begins, and how parts join it.

The first join of a realization key (kind, id, epoch) has the version resolved and frozen. A later
one joins that realization, or is refused with what differs.
"""

import json
from collections.abc import Callable

import attrs

from globalstore.db import Transaction
from globalstore.registry.catalog import keys, realization_rows, realizations, version_sets
from globalstore.registry.catalog.realization_rows import (
    Member,
    Realization,
    RealizationState,
)
from globalstore.registry.catalog.realizations import keeping
from globalstore.registry.catalog.version_sets import Described, VersionSet
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import RealizationRowsWritten
from globalstore.rules.realizations import (
    VERSION_SET_PREFIX,
    Manifest,
    Part,
    Selection,
    digest_of,
    same_for_all,
    transaction_fingerprint,
)
from globalstore.rules.refusals import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)


@attrs.frozen
class SetReference:
    """A version set by its id, or None for an id that no set has.

    ``given_hash`` is the manifest hash that the caller expects, or empty.
    """

    version_set_id: str
    manifest_hash: bytes | None
    given_hash: bytes


@attrs.frozen
class KeyReference:
    """The version that a key points at; ``expected_generation`` None is any."""

    key: str
    namespace: str
    expected_generation: int | None


@attrs.frozen
class Identity:
    """The process that plays a part; blank texts are not compared."""

    daemon_id: str = ""
    daemon_session_id: str = ""
    worker_id: str = ""


@attrs.frozen
class Join:
    """A checked BeginOrJoinGroupRealization request.

    ``required_part_ids`` are sorted and differ. ``version`` is a manifest when the request has the
    selection itself. ``fingerprint`` is empty when the caller does not know it.
    """

    group_kind: str
    group_id: str
    epoch: int
    part_id: str
    required_part_ids: list[str]
    version: Manifest | SetReference | KeyReference
    fingerprint: bytes
    deadline_unix_nanos: int
    identity: Identity


@attrs.frozen
class Terms:
    """What the configuration allows: times in microseconds, 0 for no bound."""

    default_deadline_us: int
    ttl_us: int
    max_active: int


@attrs.frozen
class Joined:
    """A realization that the caller takes part in, and what its part gets."""

    realization: Realization
    part: Part


@attrs.frozen
class _Version:
    """The version that a reference leads to: a set that is stored or to be stored, and by which
    key.
    """

    stored: VersionSet | None
    manifest: Manifest | None
    described: Described = attrs.field(factory=Described)

    @property
    def content(self) -> VersionSet | Manifest:
        found = self.stored or self.manifest
        assert found is not None
        return found


@keeping
def begin_or_join(
    tx: Transaction,
    join: Join,
    terms: Terms,
    select: Callable[[str], Selection],
    now_us: int,
    clock: LeaseNow,
) -> Joined:
    """Join the realization with a realization key, which begins if there is none yet.

    ``select`` returns the selection of a whole artifact. Refuses with NotFound, AlreadyExists,
    FailedPrecondition and ResourceExhausted, as the contract has it in 8.2.
    """
    lease_us = clock()
    realization = realization_rows.find_by_realization_key(
        tx, join.group_kind, join.group_id, join.epoch
    )
    if realization is None:
        return _begin(tx, join, terms, select, now_us, lease_us)
    return _join(tx, realizations.observed(tx, realization, now_us, lease_us), join)


def _begin(
    tx: Transaction,
    join: Join,
    terms: Terms,
    select: Callable[[str], Selection],
    now_us: int,
    lease_us: int,
) -> Joined:
    version = _resolve(tx, join, select, lease_us)
    content, described = version.content, version.described
    fingerprint = transaction_fingerprint(
        group_kind=join.group_kind,
        group_id=join.group_id,
        epoch=join.epoch,
        required_part_ids=join.required_part_ids,
        manifest_hash=content.manifest_hash,
        kind=content.kind,
        key_generation=described.key_generation,
    )
    _check_fingerprint(join, fingerprint)
    if realizations.live_count(tx, lease_us) >= terms.max_active:
        raise ResourceExhausted(
            f"{terms.max_active} group realizations are under way already; try again when one ends"
        )
    version_set = version.stored
    if version.manifest is not None:
        version_set = version_sets.ensure_version_set(tx, version.manifest, described, now_us)
    assert version_set is not None
    [part] = version_sets.parts(tx, version_set, [join.part_id])
    if described.key_generation is not None:
        keys.note_selection(
            tx, described.key, described.key_generation, part.selection.selection_hash
        )
    nanos, lifetime_us = _deadline(join, terms, now_us)
    row = tx.one(
        "INSERT INTO group_transactions (fingerprint, group_kind, group_id, epoch, version_set_key,"
        " required_part_ids, total_parts, namespace, key, key_generation, state,"
        " deadline_unix_nanos, deadline, lifetime, created_at)"
        " VALUES (:fingerprint, :group_kind, :group_id, :epoch, :version_set_key,"
        " :required_part_ids, :total_parts, :namespace, :key, :key_generation, :state,"
        " :deadline_unix_nanos, :deadline, :lifetime, :now)"
        " RETURNING transaction_key",
        {
            "fingerprint": fingerprint,
            "group_kind": join.group_kind,
            "group_id": join.group_id,
            "epoch": join.epoch,
            "version_set_key": version_set.version_set_key,
            "required_part_ids": json.dumps(join.required_part_ids, ensure_ascii=False),
            "total_parts": len(join.required_part_ids),
            "namespace": described.namespace,
            "key": described.key,
            "key_generation": described.key_generation,
            "state": int(RealizationState.PREPARING),
            "deadline_unix_nanos": nanos,
            "deadline": None if lifetime_us is None else lease_us + lifetime_us,
            "lifetime": lifetime_us,
            "now": now_us,
        },
    )
    assert row is not None
    realization = realization_rows.find_realization(tx, fingerprint)
    assert realization is not None
    _insert_member(tx, realization, join)
    if (granted := realizations.granted(realization)) is not None:
        tx.emit(granted)
    tx.emit(RealizationRowsWritten("begin", "group_transactions", 1))
    return Joined(realization, part)


def _resolve(
    tx: Transaction, join: Join, select: Callable[[str], Selection], lease_us: int
) -> _Version:
    match join.version:
        case Manifest() as wanted:
            return _wanted(tx, wanted, Described())
        case SetReference() as reference:
            return _Version(_stored(tx, reference, join.required_part_ids), None)
        case KeyReference(key, namespace, expected):
            # Keys live in the blank namespace; in any other there are none.
            mapping = None if namespace else keys.find_key(tx, key)
            if mapping is None or mapping.expired(lease_us):
                raise NotFound(f"no key {key[:80]!r} in namespace {namespace[:80]!r}")
            if expected not in {None, mapping.generation}:
                raise _generation_mismatch(expected, mapping.generation)
            described = Described(namespace, key, mapping.generation)
            if mapping.artifact_id:
                wanted = same_for_all(select(mapping.artifact_id), join.required_part_ids)
                return _wanted(tx, wanted, described)
            manifest_hash = digest_of(VERSION_SET_PREFIX, mapping.version_set_id)
            reference = SetReference(mapping.version_set_id, manifest_hash, b"")
            return _Version(_stored(tx, reference, join.required_part_ids), None, described)


def _wanted(tx: Transaction, wanted: Manifest, described: Described) -> _Version:
    known = version_sets.find_version_set(tx, wanted.manifest_hash)
    if known is not None:
        version_sets.check_same(tx, known, wanted)
    return _Version(known, None if known is not None else wanted, described)


def _stored(tx: Transaction, reference: SetReference, required: list[str]) -> VersionSet:
    manifest_hash = reference.manifest_hash
    found = None if manifest_hash is None else version_sets.find_version_set(tx, manifest_hash)
    if found is None:
        raise NotFound(f"no version set {reference.version_set_id[:80]!r}")
    _check_manifest_hash(reference, found)
    missing = version_sets.missing(tx, found, required)
    if missing:
        raise AlreadyExists(
            f"{found.version_set_id} has no part {missing[0][:80]!r}, which is required"
        )
    return found


def _join(tx: Transaction, realization: Realization, join: Join) -> Joined:
    if realization.state in {RealizationState.ABORTED, RealizationState.EXPIRED}:
        raise realizations.ended_otherwise(realization)
    if realization.required_part_ids != join.required_part_ids:
        raise AlreadyExists(f"{realization.transaction_id} is about other required_part_ids")
    _check_fingerprint(join, realization.fingerprint)
    [part] = version_sets.parts(tx, realization.version_set, [join.part_id])
    _check_version(realization, join, part)
    member = realization_rows.member(tx, realization, join.part_id)
    if member is not None:
        _identify(tx, realization, member, join.identity)
    elif not realization.state.is_final:
        _insert_member(tx, realization, join)
    return Joined(realization, part)


def _check_version(realization: Realization, join: Join, part: Part) -> None:
    """Refuse a version that is not the frozen one; keys are not looked up again."""
    frozen = realization.version_set
    match join.version:
        case Manifest() as wanted:
            # All parts have the same selection, so that comparing the caller's own is enough.
            same = wanted.parts[0].selection.encoded == part.selection.encoded
            if wanted.manifest_hash != frozen.manifest_hash or not same:
                raise _other_version(realization)
        case SetReference() as reference:
            if reference.manifest_hash != frozen.manifest_hash:
                raise _other_version(realization)
            _check_manifest_hash(reference, frozen)
        case KeyReference(key, namespace, expected):
            if (key, namespace) != (realization.key, realization.namespace):
                raise AlreadyExists(
                    f"{realization.transaction_id} is about "
                    + (
                        f"the version of key {realization.key[:80]!r}"
                        if realization.key
                        else "no key"
                    )
                )
            if expected is not None and expected != realization.key_generation:
                raise _generation_mismatch(expected, realization.key_generation)


def _check_fingerprint(join: Join, fingerprint: bytes) -> None:
    if join.fingerprint and join.fingerprint != fingerprint:
        raise AlreadyExists(
            f"transaction_fingerprint is {join.fingerprint.hex()[:64]}, but that of this slot is"
            f" {fingerprint.hex()}"
        )


def _check_manifest_hash(reference: SetReference, version_set: VersionSet) -> None:
    if reference.given_hash and reference.given_hash != version_set.manifest_hash:
        raise AlreadyExists(
            f"manifest_hash is {reference.given_hash.hex()[:64]}, but that of"
            f" {version_set.version_set_id} is its id"
        )


def _other_version(realization: Realization) -> AlreadyExists:
    return AlreadyExists(
        f"{realization.transaction_id} is about {realization.version_set.version_set_id}"
    )


def _generation_mismatch(expected: int | None, generation: int | None) -> FailedPrecondition:
    return FailedPrecondition(
        f"key generation mismatch: expected_generation is {expected}, the generation {generation}"
    )


def _insert_member(tx: Transaction, realization: Realization, join: Join) -> None:
    tx.run(
        "INSERT INTO group_members (transaction_key, part_id, daemon_id, daemon_session_id,"
        " worker_id) VALUES (:transaction, :part_id, :daemon_id, :daemon_session_id, :worker_id)",
        attrs.asdict(join.identity)
        | {"transaction": realization.transaction_key, "part_id": join.part_id},
    )
    tx.emit(RealizationRowsWritten("join", "group_members", 1))


def _identify(
    tx: Transaction, realization: Realization, member: Member, identity: Identity
) -> None:
    """Record which process plays a part; refuse another one, unless it is the same daemon,
    restarted.
    """
    restarted = (
        not member.is_prepared
        and not realization.state.is_final
        and bool(identity.daemon_session_id)
        and member.daemon_id == identity.daemon_id != ""
    )
    merged = {}
    for field, new in attrs.asdict(identity).items():
        old = getattr(member, field)
        if old and new and old != new and not restarted:
            raise AlreadyExists(
                f"part {member.part_id[:80]!r} has been joined by another {field}: {old[:80]!r}"
            )
        merged[field] = new or old
    changed = any(merged[field] != getattr(member, field) for field in merged)
    if changed and not realization.state.is_final:
        tx.run(
            "UPDATE group_members SET daemon_id = :daemon_id,"
            " daemon_session_id = :daemon_session_id, worker_id = :worker_id"
            " WHERE transaction_key = :transaction AND part_id = :part_id",
            merged | {"transaction": realization.transaction_key, "part_id": member.part_id},
        )
        tx.emit(RealizationRowsWritten("join", "group_members", 1))


def _deadline(join: Join, terms: Terms, now_us: int) -> tuple[int, int | None]:
    """Return when a realization expires, in nanoseconds since 1970, and how far away that is."""
    nanos = join.deadline_unix_nanos
    away_us = nanos // 1000 - now_us if nanos else terms.default_deadline_us or terms.ttl_us
    if not nanos and not away_us:
        return 0, None
    if terms.ttl_us and away_us > terms.ttl_us:
        nanos, away_us = 0, terms.ttl_us
    return nanos or (now_us + away_us) * 1000, away_us
