"""How many replicas there are, as counted at a start: those that belong to nobody are left out."""

import sqlite3
from collections.abc import Iterator, Sequence

import pytest

from globalstore.db import Snapshot, StoreOptions
from globalstore.db.opening import open_memory
from globalstore.db.sites import unobserved
from globalstore.registry.runtime.replica_lists import totals, totals_by_artifact
from globalstore.registry.runtime.replicas import MemoryTier
from globalstore.registry.schema import MIGRATIONS
from globalstore.registry.worker_ids import NOBODY

SOMEBODY = NOBODY + 1


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    opened = open_memory(MIGRATIONS, StoreOptions(), unobserved)
    # What the replicas refer to is of no interest here.
    opened.writer.execute("PRAGMA foreign_keys=OFF")
    yield opened.writer
    opened.close()


def store(database: sqlite3.Connection, *replicas: tuple[str, int, MemoryTier]) -> None:
    """Store replicas, each as (artifact, worker, memory type); artifacts are as old as named."""
    artifacts = list(dict.fromkeys(artifact for artifact, _, _ in replicas))
    insert(database, "artifacts", [{"artifact_id": artifact} for artifact in artifacts])
    rows = [
        {
            "replica_id": bytes([number]),
            "artifact_key": artifacts.index(artifact) + 1,
            "endpoint_key": number,
            "worker_key": worker,
            "memory_tier": int(tier),
        }
        for number, (artifact, worker, tier) in enumerate(replicas)
    ]
    insert(database, "replicas", rows)


def insert(database: sqlite3.Connection, table: str, rows: Sequence[dict[str, object]]) -> None:
    """Insert rows; a column that is not named and must not be absent is 1."""
    for row in rows:
        needed = {
            name: 1
            for _, name, kind, not_null, default, _ in database.execute(
                f"PRAGMA table_info({table})"
            )
            if not_null and default is None and kind != "BLOB"
        }
        every = needed | row
        marks = ", ".join("?" * len(every))
        database.execute(
            f"INSERT INTO {table} ({', '.join(every)}) VALUES ({marks})", [*every.values()]
        )


def test_what_belongs_to_nobody_is_not_counted(database: sqlite3.Connection) -> None:
    gpu, ram, disk = MemoryTier
    store(
        database,
        ("a", SOMEBODY, gpu),
        ("a", SOMEBODY, disk),
        ("a", NOBODY, disk),
        ("b", NOBODY, ram),
        ("c", SOMEBODY, gpu),
    )
    snapshot = Snapshot(database)
    assert totals(snapshot) == {"GPU": 2, "DISK": 1}
    assert totals_by_artifact(snapshot, 10) == {"a": 2, "c": 1}


def test_only_so_many_artifacts_are_counted_the_oldest_that_have_any(
    database: sqlite3.Connection,
) -> None:
    ram = MemoryTier.RAM
    store(database, ("a", NOBODY, ram), ("b", SOMEBODY, ram), ("c", SOMEBODY, ram))
    assert totals_by_artifact(Snapshot(database), 1) == {"b": 1}


def test_an_empty_database_has_none(database: sqlite3.Connection) -> None:
    assert totals(Snapshot(database)) == {}
    assert totals_by_artifact(Snapshot(database), 10) == {}
