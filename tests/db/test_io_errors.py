"""The disk fails: whoever cannot be told the truth is told so, and the store stops."""

import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import ledger
import pytest
import trio
import trio.testing

from globalstore.db import Busy, Closed, Damaged, IoFailed, Observers, Site, Store, StoreOptions
from globalstore.db.wal import Log

SEED = 44_100
CHILD = Path(__file__).with_name("child.py")


def _outgrow(path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHILD, path, "outgrow", "300000"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_after_a_failed_commit_nobody_is_told_a_story(tmp_path):
    path = tmp_path / "store.db"
    child = await trio.to_thread.run_sync(_outgrow, path)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    answered = {line.removeprefix("stored ") for line in lines if line.startswith("stored ")}
    assert len(answered) > 20
    assert "unknown" in lines
    assert lines[-1] == "failure OutcomeUnknown"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        assert answered <= set(await store.read(ledger.names))
        assert await store.write(ledger.add, "goes on") == "goes on"


async def test_damage_met_while_running_stops_writes_and_not_reads(tmp_path, caplog):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "a")
        for _ in range(50):
            await store.write(ledger.add_blob, 3000)
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name='blob'").fetchone()
    connection.close()
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        with path.open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)
        with pytest.raises(Damaged):
            await store.write(ledger.add_blob, 10)
        assert store.damaged
        assert "damaged" in store.degraded
        with pytest.raises(Damaged):
            await store.write(ledger.add, "b")
        assert await store.read(ledger.names) == ["a"]
    assert sum("writes are refused" in r.getMessage() for r in caplog.records) == 1


async def test_the_log_stays_short_under_constant_reads(tmp_path):
    options = StoreOptions(max_wal_bytes=16 << 20, readers=2)
    async with Store(tmp_path / "store.db", migrations=ledger.MIGRATIONS, options=options) as s:
        for _ in range(40):
            await s.write(ledger.add_blob, 1_000_000)
            await s.read(ledger.count)
        figures = s.statistics()
        assert figures.checkpoints >= 5
        assert figures.checkpoint_seconds > 0
        assert figures.wal_bytes < 16 << 20
    assert not (tmp_path / "store.db-wal").exists()


async def test_a_log_that_a_reader_holds_is_reported_once(tmp_path, caplog):
    path = tmp_path / "store.db"
    options = StoreOptions(max_wal_bytes=5 << 20)
    async with Store(path, migrations=ledger.MIGRATIONS, options=options) as store:
        await store.write(ledger.add, "a")
        foreign = sqlite3.connect(path, isolation_level=None)
        foreign.execute("BEGIN")
        foreign.execute("SELECT * FROM entry").fetchall()
        for _ in range(20):
            await store.write(ledger.add_blob, 1_000_000)
        warnings = [r for r in caplog.records if "write-ahead log above" in r.getMessage()]
        assert len(warnings) == 1
        foreign.execute("COMMIT")
        foreign.close()
        for _ in range(20):
            await store.write(ledger.add_blob, 1_000_000)
        assert store.statistics().wal_bytes < 40 << 20


async def test_the_length_of_the_log_is_what_sqlite_says_it_is(tmp_path):
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE a (b)")
    log = Log(f"{path}-wal")
    dice = random.Random(SEED)
    print("seed", SEED)
    for _ in range(200):
        if dice.random() < 0.1:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.execute("INSERT INTO a VALUES (zeroblob(?))", (dice.randrange(60_000),))
        if dice.random() < 0.5:
            frames, frame_bytes = log.frames()
            assert frame_bytes == 4096 + 24
            # Asking also copies, which changes neither the log nor its length.
            _, length, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            assert frames == length
    assert log.generation > 20
    log.close()
    connection.close()


async def test_a_foreign_tool_that_holds_the_file_delays_and_harms_nothing(tmp_path):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        await store.write(lambda tx: tx.all("PRAGMA busy_timeout = 10"))
        foreign = sqlite3.connect(path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy):
            await store.write(ledger.add, "a")
        assert await store.read(ledger.names) == []
        foreign.execute("ROLLBACK")
        foreign.close()
        assert await store.write(ledger.add, "a") == "a"


@pytest.mark.parametrize("site", [Site.BEFORE_CHECKPOINT, Site.BEFORE_CLOSE])
async def test_a_failed_checkpoint_stops_the_store_and_loses_nothing(tmp_path, site):
    def broken_disk(passed: Site) -> None:
        if passed is site:
            raise sqlite3.OperationalError("disk I/O error")

    # The store that failed keeps its files open for good; a copy is what the next start finds.
    path = tmp_path / "store.db"
    store = Store(path, migrations=ledger.MIGRATIONS, at_site=broken_disk)
    async with store:
        await store.write(ledger.add, "a")
        await store.write(ledger.add_blob, 6_000_000)
        if site is Site.BEFORE_CHECKPOINT:
            await store.failed.wait()
            with pytest.raises(Closed, match="stopped"):
                await store.write(ledger.add, "b")
    assert store.failed.is_set()
    (tmp_path / "next").mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", tmp_path / "next")
    async with Store(tmp_path / "next" / "store.db", migrations=ledger.MIGRATIONS) as store:
        assert await store.read(ledger.names) == ["a"]


async def test_observers_hear_of_groups_and_checkpoints():
    groups, checkpoints = [], []
    observers = Observers(
        group_committed=lambda operations, seconds: groups.append((operations, seconds)),
        checkpointed=checkpoints.append,
    )
    async with Store(None, migrations=ledger.MIGRATIONS, observers=observers) as store:
        await store.write(ledger.add_blob, 6_000_000)
        await store.write(ledger.add, "a")
        # The time of a group is added up after its answers; that of those two is by now.
        await store.write(lambda _: None)
        figures = store.statistics()
    groups = groups[:2]
    assert [operations for operations, _ in groups] == [1, 1]
    assert len(checkpoints) == 1
    assert 0 < sum(checkpoints) < figures.busy_seconds
    assert sum(seconds for _, seconds in groups) < figures.busy_seconds


async def test_little_free_space_is_reported_once(tmp_path, caplog, nursery, mock_clock):
    options = StoreOptions(min_free_bytes=1 << 60)
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS, options=options) as store:
        nursery.start_soon(store.watch)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
    assert sum("little free space" in r.getMessage() for r in caplog.records) == 1


def test_errors_of_the_disk_keep_sqlites_own_name():
    from globalstore.db.errors import mapped

    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    own = mapped(error)
    assert isinstance(own, IoFailed)
    assert own.code == "SQLITE_IOERR_FSYNC"
    assert mapped(sqlite3.ProgrammingError("closed")).__class__ is sqlite3.ProgrammingError
