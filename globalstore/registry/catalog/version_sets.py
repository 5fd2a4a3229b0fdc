"""Version sets: the selection that each part of a group gets; named by content, never changed."""

import json

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry.signals import RealizationRowsWritten
from globalstore.rules.realizations import (
    VERSION_SET_PREFIX,
    ByteSpace,
    Manifest,
    Part,
    RealizationKind,
    Selection,
)
from globalstore.rules.refusals import AlreadyExists

# Parts that one statement inserts: below SQLite's bound of parameters, and some milliseconds.
_ROWS = 1000


@attrs.frozen
class Described:
    """What describes a set besides its content; the first to register it decides."""

    namespace: str = ""
    key: str = ""
    key_generation: int | None = None


@attrs.frozen
class VersionSet:
    """A set that is stored, without its parts."""

    version_set_key: int
    manifest_hash: bytes = attrs.field(repr=bytes.hex)
    kind: RealizationKind

    @property
    def version_set_id(self) -> str:
        """The id by which clients name the set."""
        return VERSION_SET_PREFIX + self.manifest_hash.hex()


def register_version_set(
    tx: Transaction, wanted: Manifest, described: Described, now_us: int
) -> Manifest:
    """Store a set unless it is there; return it as it is stored.

    Raises AlreadyExists when another set has the same hash; that takes a selection to which its
    maker gave the hash of another one.
    """
    version_set = ensure_version_set(tx, wanted, described, now_us)
    return Manifest(wanted.kind, tuple(parts(tx, version_set)), wanted.manifest_hash)


def ensure_version_set(
    tx: Transaction, wanted: Manifest, described: Described, now_us: int
) -> VersionSet:
    """Store a set unless it is there; refuses as ``register`` does."""
    known = find_version_set(tx, wanted.manifest_hash)
    if known is not None:
        check_same(tx, known, wanted)
        return known
    saved = tx.one(
        "INSERT INTO version_sets (manifest_hash, realization_kind, namespace, key, key_generation,"
        " created_at) VALUES (:manifest_hash, :kind, :namespace, :key, :key_generation, :now)"
        " RETURNING version_set_key",
        {
            "manifest_hash": wanted.manifest_hash,
            "kind": int(wanted.kind),
            "namespace": described.namespace,
            "key": described.key,
            "key_generation": described.key_generation,
            "now": now_us,
        },
    )
    assert saved is not None
    version_set_key: int = saved[0]
    selections: dict[Selection, int] = {}
    rows = []
    for part in wanted.parts:
        if part.selection not in selections:
            selections[part.selection] = _store_selection(tx, part.selection)
        space = part.space
        rows.append(
            (version_set_key, part.part_id, selections[part.selection], space.kind, space.id,
             part.metadata_json)
        )  # fmt: skip
    for start in range(0, len(rows), _ROWS):
        tx.run_rows(
            "INSERT INTO version_set_parts SELECT * FROM (VALUES …)", rows[start : start + _ROWS]
        )
    tx.emit(RealizationRowsWritten("register", "version_sets", 1))
    tx.emit(RealizationRowsWritten("register", "version_set_parts", len(rows)))
    return VersionSet(version_set_key, wanted.manifest_hash, wanted.kind)


def check_same(tx: Snapshot, known: VersionSet, wanted: Manifest) -> None:
    """Raise AlreadyExists unless a set has the wanted selections."""
    rows = tx.all(
        "SELECT p.part_id, s.encoded FROM version_set_parts p JOIN selections s"
        " USING (selection_key) WHERE p.version_set_key = ? ORDER BY p.part_id",
        (known.version_set_key,),
    )
    if rows != [(part.part_id, part.selection.encoded) for part in wanted.parts]:
        raise AlreadyExists(
            f"{known.version_set_id} exists with another selection of the same selection_hash"
        )


def find_version_set(tx: Snapshot, manifest_hash: bytes) -> VersionSet | None:
    """Return the set with a manifest hash, or None."""
    row = tx.one(
        "SELECT version_set_key, manifest_hash, realization_kind FROM version_sets"
        " WHERE manifest_hash = ?",
        (manifest_hash,),
    )
    return None if row is None else VersionSet(row[0], row[1], RealizationKind(row[2]))


def parts(tx: Snapshot, version_set: VersionSet, part_ids: list[str] | None = None) -> list[Part]:
    """Return the parts of a set in the order of their ids: all, or those that it has of some."""
    rows = tx.all(
        "SELECT p.part_id, s.encoded, s.artifact_id, s.view_id, s.selection_hash,"
        " s.logical_layout_hash, p.space_kind, p.space_id, p.metadata_json"
        " FROM version_set_parts p JOIN selections s USING (selection_key)"
        " WHERE p.version_set_key = :set"
        " AND (:ids IS NULL OR p.part_id IN (SELECT value FROM json_each(:ids)))"
        " ORDER BY p.part_id",
        {
            "set": version_set.version_set_key,
            "ids": None if part_ids is None else json.dumps(part_ids, ensure_ascii=False),
        },
    )
    return [
        Part(part_id, Selection(*selection), ByteSpace(kind, id_), metadata)
        for part_id, *selection, kind, id_, metadata in rows
    ]


def missing(tx: Snapshot, version_set: VersionSet, part_ids: list[str]) -> list[str]:
    """Return those of some part ids that a set does not have."""
    rows = tx.all(
        "SELECT value FROM json_each(:ids) WHERE NOT EXISTS (SELECT 1 FROM version_set_parts"
        " WHERE version_set_key = :set AND part_id = value)",
        {
            "set": version_set.version_set_key,
            "ids": json.dumps(part_ids, ensure_ascii=False),
        },
    )
    return [part_id for (part_id,) in rows]


def _store_selection(tx: Transaction, selection: Selection) -> int:
    saved = tx.one(
        "INSERT INTO selections (encoded, artifact_id, view_id, selection_hash,"
        " logical_layout_hash) VALUES (:encoded, :artifact_id, :view_id, :selection_hash,"
        " :logical_layout_hash) RETURNING selection_key",
        attrs.asdict(selection),
    )
    assert saved is not None
    key: int = saved[0]
    return key
