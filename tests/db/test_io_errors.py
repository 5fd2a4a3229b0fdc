"""The disk fails: whoever cannot be told the truth is told so, and the store stops."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import ledger
import pytest
import trio

from globalstore.db import Damaged, IoFailed, Store, StoreOptions

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


def test_errors_of_the_disk_keep_sqlites_own_name():
    from globalstore.db.errors import mapped

    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    own = mapped(error)
    assert isinstance(own, IoFailed)
    assert own.code == "SQLITE_IOERR_FSYNC"
    assert mapped(sqlite3.ProgrammingError("closed")).__class__ is sqlite3.ProgrammingError
