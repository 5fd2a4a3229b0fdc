"""What may be opened, what is refused and left untouched, and who may read what was created."""

import hashlib
import os
import sqlite3
import stat
from pathlib import Path

import ledger
import pytest

from globalstore.db import (
    Closed,
    DatabaseDamaged,
    DatabaseFilesystem,
    DatabaseForeign,
    DatabaseNewer,
    Migration,
    StartRefused,
    Store,
    limits,
)
from globalstore.db.place import filesystem


async def _open(path, migrations=ledger.MIGRATIONS) -> list[str]:
    async with Store(path, migrations=migrations) as store:
        return await store.read(ledger.names)


async def _refused(path: Path, kind: type[StartRefused], match: str) -> None:
    """Opening is refused, and no byte of the database or its log has changed."""

    def contents():
        return {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in path.parent.iterdir()
            if p.is_file() and not p.name.endswith((".lock", "-shm"))
        }

    before = contents()
    with pytest.raises(kind, match=match) as refusal:
        await _open(path)
    assert str(path) in str(refusal.value)
    assert contents() == before


async def _filled(path: Path) -> None:
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        for i in range(200):
            await store.write(ledger.add, f"{i:03}")
            await store.write(ledger.add_blob, 2000)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_what_is_created_is_private_whatever_the_umask(tmp_path, umask):
    path = tmp_path / "new" / "deeper" / "store.db"
    before = os.umask(umask)
    try:
        async with Store(path, migrations=ledger.MIGRATIONS) as store:
            await store.write(ledger.add, "a")
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(
        ["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], 0o600
    )
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["ж 数据 🦆.db", "a?mode=memory#b%20c.db", 'it\'s "quoted".db'])
async def test_any_name_will_do(tmp_path, name):
    path = tmp_path / name
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "a")
    assert await _open(path) == ["a"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, name + ".lock"])


async def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    await _open(Path("~/data/store.db"))
    assert (tmp_path / "data" / "store.db").exists()


async def test_two_names_of_one_file_are_one_database(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "store.db")
    await _filled(tmp_path / "link.db")
    assert len(await _open(tmp_path / "store.db")) == 200
    assert (tmp_path / "link.db").is_symlink()


async def test_an_empty_file_becomes_a_database(tmp_path):
    (tmp_path / "store.db").touch()
    assert await _open(tmp_path / "store.db") == []


async def test_the_file_carries_our_application_id_and_the_schema_number(tmp_path):
    await _open(tmp_path / "store.db")
    connection = sqlite3.connect(tmp_path / "store.db")
    assert connection.execute("PRAGMA application_id").fetchone() == (limits.APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


async def test_the_writer_is_durable_and_checks_foreign_keys(tmp_path):
    async with Store(tmp_path / "store.db", migrations=ledger.MIGRATIONS) as store:
        for pragma, value in (("synchronous", 2), ("foreign_keys", 1), ("wal_autocheckpoint", 0)):
            question = f"PRAGMA {pragma}"
            assert await store.write(lambda tx, q: tx.one(q), question) == (value,)
        assert await store.read(lambda tx: tx.one("PRAGMA query_only")) == (1,)


async def test_a_file_that_is_no_database_is_foreign(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear all, " * 100)
    await _refused(path, DatabaseForeign, "not an SQLite database")


async def test_a_database_of_another_program_is_foreign(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE a (b)")
    connection.commit()
    connection.close()
    await _refused(path, DatabaseForeign, "another program")


async def test_a_newer_schema_is_refused_even_if_only_the_log_knows_it(tmp_path):
    path = tmp_path / "store.db"
    await _filled(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA user_version=7")
    await _refused(path, DatabaseNewer, "schema 7, this program knows schemas up to 1")
    connection.close()
    await _refused(path, DatabaseNewer, "schema 7")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: data[:50], "cut off after 50 bytes"),
        (lambda data: data[: len(data) // 2], "cannot be read|failed its check"),
        (lambda data: bytes(4096) + data[4096:], "begins with zeros"),
        (lambda data: data[:4096] + b"\xff" * 8192 + data[12288:], "cannot be read|failed its"),
    ],
    ids=["header cut", "half", "first page zeroed", "two pages overwritten"],
)
async def test_a_damaged_file_is_refused(tmp_path, damage, match):
    path = tmp_path / "store.db"
    await _filled(path)
    path.write_bytes(damage(path.read_bytes()))
    await _refused(path, DatabaseDamaged, match)


async def test_a_row_that_refers_to_nothing_is_damage(tmp_path):
    path = tmp_path / "store.db"
    await _filled(path)
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO note (entry) VALUES ('nobody')")
    connection.commit()
    connection.close()
    await _refused(path, DatabaseDamaged, "a row of table note refers to a missing row of entry")


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
async def test_a_log_without_its_database_is_not_thrown_away(tmp_path, suffix):
    path = tmp_path / "store.db"
    (tmp_path / f"store.db{suffix}").write_bytes(b"precious" * 100)
    await _refused(path, DatabaseDamaged, "without its database")


async def test_a_directory_is_not_a_database(tmp_path):
    path = tmp_path / "store.db"
    path.mkdir()
    await _refused(path, DatabaseFilesystem, "not a regular file")


async def test_a_path_below_a_file_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseFilesystem, match=r"Not a directory|File exists"):
        await _open(tmp_path / "file" / "store.db")


async def test_a_refused_start_releases_the_lock(tmp_path):
    path = tmp_path / "store.db"
    await _open(path, (*ledger.MIGRATIONS, Migration(2, "nothing", [])))
    with pytest.raises(DatabaseNewer):
        await _open(path)
    assert await _open(path, (*ledger.MIGRATIONS, Migration(2, "nothing", []))) == []


def test_every_refusal_has_a_word_of_its_own():
    words = {kind.__name__: kind.word for kind in StartRefused.__subclasses__()}
    assert words == {
        "DatabaseLocked": "db-locked",
        "DatabaseForeign": "db-foreign",
        "DatabaseNewer": "db-newer",
        "DatabaseDamaged": "db-damaged",
        "DatabaseFilesystem": "db-filesystem",
        "MigrationFailed": "migration",
    }


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:30 / /srv rw,relatime shared:1 - nfs4 server:/export rw
24 23 254:1 / /srv/local\\040disk rw - xfs /dev/vdb rw
25 22 0:31 / /mnt rw - ext4 /dev/vdc rw
26 22 0:32 / /mnt rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/store.db", "ext4"),
        ("/srv/store.db", "nfs4"),
        ("/srv/local disk/store.db", "xfs"),
        ("/srvice/store.db", "ext4"),
        ("/mnt/store.db", "fuse.sshfs"),
    ],
)
def test_the_innermost_latest_mount_tells_the_file_system(path, kind):
    assert filesystem(Path(path), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"])
async def test_a_network_file_system_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("globalstore.db.place.filesystem", lambda path: kind)
    with pytest.raises(DatabaseFilesystem, match=f"network file system \\({kind}\\)"):
        await _open(tmp_path / "store.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_database_in_memory_leaves_no_name_behind_even_while_it_is_open(
    tmp_path, monkeypatch
):
    # A root of its own: what other processes open at this moment is in the usual ones.
    monkeypatch.setattr("globalstore.db.memory._roomiest", lambda: str(tmp_path))
    async with Store(None, migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "a")
        assert list(tmp_path.iterdir()) == []
        for _ in range(30):
            await store.write(ledger.add_blob, 1_000_000)
        assert await store.read(ledger.count) == 1
        assert list(tmp_path.iterdir()) == []
    async with Store(None, migrations=ledger.MIGRATIONS) as store:
        assert await store.read(ledger.count) == 0


def test_what_a_killed_process_left_in_memory_is_swept_and_what_lives_is_not(tmp_path):
    from globalstore.db.memory import MemoryPlace

    left = tmp_path / "globalstore-memory-left"
    left.mkdir()
    (left / "database").touch()
    alive = MemoryPlace(os.fspath(tmp_path))
    alive.database.touch()
    assert not left.exists()
    second = MemoryPlace(os.fspath(tmp_path))
    assert alive.database.exists()
    for place in (alive, second):
        place.vanish()
    assert list(tmp_path.iterdir()) == []


async def test_a_store_opens_once():
    store = Store(None, migrations=ledger.MIGRATIONS)
    async with store:
        pass
    with pytest.raises(RuntimeError):
        await store.__aenter__()
    with pytest.raises(Closed):
        await store.read(ledger.names)
