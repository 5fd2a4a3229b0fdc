"""From any schema to the newest, with a way back."""

import sqlite3

import attrs
import ledger
import pytest

from globalstore.db import Migration, MigrationFailed, Store, StoreOptions, Transaction, limits
from globalstore.db.backup import Unsound, count_rows, verify


def _double(tx: Transaction) -> None:
    tx.run("UPDATE entry SET size = size * 2")


STEPS = (
    *ledger.MIGRATIONS,
    Migration(2, "colour", ["ALTER TABLE entry ADD COLUMN colour TEXT"]),
    Migration(3, "double", _double),
)


async def _at_first_schema(path) -> None:
    async with Store(path, migrations=STEPS[:1]) as store:
        await store.write(ledger.add, "a", 21)


def _facts(path) -> tuple[int, list[tuple]]:
    connection = sqlite3.connect(path)
    try:
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        return schema, connection.execute("SELECT * FROM entry").fetchall()
    finally:
        connection.close()


async def test_a_new_database_gets_every_step_and_no_backup(tmp_path):
    path = tmp_path / "store.db"
    async with Store(path, migrations=STEPS) as store:
        assert await store.read(lambda tx: tx.all("SELECT colour FROM entry")) == []
    assert _facts(path) == (3, [])
    assert not list(tmp_path.glob("pre-migration-*"))


async def test_an_old_database_gets_the_missing_steps_after_a_backup(tmp_path):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    async with Store(path, migrations=STEPS):
        pass
    assert _facts(path) == (3, [("a", 42, None)])
    copy = tmp_path / "pre-migration-1-3"
    verify(copy, 1, {"entry": 1, "blob": 0, "note": 0})
    assert _facts(copy) == (1, [("a", 21)])
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "pre-migration-1-3",
        "store.db",
        "store.db.lock",
    ]


async def test_a_database_that_is_up_to_date_is_not_backed_up(tmp_path):
    path = tmp_path / "store.db"
    for _ in range(2):
        async with Store(path, migrations=STEPS):
            pass
    assert not list(tmp_path.glob("pre-migration-*"))


async def test_the_backup_serves_as_a_database(tmp_path):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    async with Store(path, migrations=STEPS):
        pass
    copy = (tmp_path / "pre-migration-1-3").rename(tmp_path / "restored.db")
    async with Store(copy, migrations=STEPS[:1]) as store:
        assert await store.read(ledger.names) == ["a"]
        assert await store.write(ledger.add, "b") == "b"


async def test_a_backup_goes_where_it_is_told_to(tmp_path):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    options = StoreOptions(backup_directory=tmp_path / "backups")
    async with Store(path, migrations=STEPS, options=options):
        pass
    assert [p.name for p in (tmp_path / "backups").iterdir()] == ["pre-migration-1-3"]


async def test_without_a_backup_there_is_no_migration(tmp_path):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    (tmp_path / "file").touch()
    options = StoreOptions(backup_directory=tmp_path / "file")
    with pytest.raises(MigrationFailed, match=r"not migrated from schema 1 to 3.*backup"):
        async with Store(path, migrations=STEPS, options=options):
            pass
    assert _facts(path) == (1, [("a", 21)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["UPDATE entry SET size = 0", "CREATE TABLE entry (a)"], "already exists"),
        (["INSERT INTO note (entry) VALUES ('nobody')"], "refers to a missing row of entry"),
        (lambda tx: tx.run("UPDATE entry SET size = NULL"), "NOT NULL"),
    ],
)
async def test_a_failing_step_leaves_the_schema_before_it(tmp_path, change, reason):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    broken = (*STEPS, Migration(4, "broken", change))
    with pytest.raises(MigrationFailed, match=f"migration 4 \\(broken\\).*{reason}") as refusal:
        async with Store(path, migrations=broken):
            pass
    assert refusal.value.word == "migration"
    assert _facts(path) == (3, [("a", 42, None)])
    async with Store(path, migrations=(*STEPS, attrs.evolve(broken[-1], change=[]))):
        pass
    assert _facts(path)[0] == 4


async def test_a_table_can_be_rebuilt_under_its_references(tmp_path):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    async with Store(path, migrations=STEPS[:1]) as store:
        await store.write(ledger.add_note, "a")
    rebuild = Migration(
        4,
        "rebuild",
        """
        CREATE TABLE fresh (name TEXT PRIMARY KEY, size INTEGER) STRICT, WITHOUT ROWID;
        INSERT INTO fresh SELECT name, size FROM entry; -- all; of them
        DROP TABLE entry;
        ALTER TABLE fresh RENAME TO entry;
        """,
    )
    async with Store(path, migrations=(*STEPS, rebuild)) as store:
        assert await store.read(lambda tx: tx.all("SELECT entry FROM note")) == [("a",)]
        assert await store.write(lambda tx: tx.one("PRAGMA foreign_keys")) == (1,)


async def test_a_database_in_memory_is_migrated_too(new_store):
    async with new_store(migrations=STEPS) as store:
        assert await store.read(lambda tx: tx.one("PRAGMA user_version")) == (3,)


async def test_verification_finds_what_is_wrong_with_a_copy(tmp_path):
    path = tmp_path / "store.db"
    await _at_first_schema(path)
    rows = {"entry": 1, "blob": 0, "note": 0}
    verify(path, 1, rows)
    connection = sqlite3.connect(path, isolation_level=None)
    assert count_rows(connection) == rows
    with pytest.raises(Unsound, match="schema number 2"):
        verify(path, 2, rows)
    with pytest.raises(Unsound, match="row counts differ"):
        verify(path, 1, rows | {"entry": 2})
    connection.execute("INSERT INTO note (entry) VALUES ('nobody')")
    with pytest.raises(Unsound, match="foreign key"):
        verify(path, 1)
    connection.execute("PRAGMA application_id=5")
    with pytest.raises(Unsound, match="application id"):
        verify(path, 1)
    connection.execute(f"PRAGMA application_id={limits.APPLICATION_ID}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x55" * 4096 + content[8192:])
    with pytest.raises(Unsound):
        verify(path, 1)
