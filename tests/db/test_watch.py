"""What passes by itself is noticed and acted on although nobody writes."""

import logging
import sqlite3
import time
from collections.abc import Callable

import ledger
import pytest
import trio
import trio.testing
from log_lines import told

from globalstore.db import Busy, Damaged, Full, Store, Transaction, limits
from globalstore.db.health import free_bytes

BLOB_BYTES = 50_000

# Longest that a thread may take on a machine that does other things too.
PATIENCE_S = 30


async def second(mock_clock: trio.testing.MockClock) -> None:
    """Let the watch look once; its writes may take a thread."""
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(limits.WATCH_S)
    await trio.testing.wait_all_tasks_blocked()


async def until(mock_clock: trio.testing.MockClock, condition: Callable[[], bool]) -> None:
    """Let the watch look until a condition holds; what it writes goes through a thread."""
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, "the condition does not come to hold"
        await second(mock_clock)


def bound(tx: Transaction, more_pages: int) -> None:
    (pages,) = tx.one("PRAGMA page_count")
    tx.all(f"PRAGMA max_page_count = {pages + more_pages}")


async def test_space_that_is_back_is_noticed_although_nobody_writes(
    new_store, nursery, mock_clock, caplog
):
    async with new_store() as store:
        nursery.start_soon(store.watch)
        await store.write(bound, 0)
        with pytest.raises(Full, match=r"^the disk is full; nothing was stored, try again when"):
            await store.write(ledger.add_blob, BLOB_BYTES)
        assert "full" in store.degraded
        assert not store.broken
        await store.write(bound, 1000)
        await until(mock_clock, lambda: store.degraded is None)
        assert await store.write(ledger.add_blob, BLOB_BYTES) == 1
    assert sum("space again" in r.getMessage() for r in caplog.records) == 1


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUIET_LOG_BYTES_MAX", 100_000)


async def test_a_log_that_a_reader_held_is_emptied_when_the_reader_has_left(
    tmp_path, nursery, mock_clock, small_log
):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        nursery.start_soon(store.watch)
        await store.write(ledger.add, "before")
        reader = sqlite3.connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        for _ in range(20):
            await store.write(ledger.add_blob, 50_000)
        for _ in range(5):
            await second(mock_clock)
        assert store.statistics().wal_bytes > 1_000_000
        reader.close()
        await until(mock_clock, lambda: store.statistics().wal_bytes == 0)
        assert await store.write(ledger.add, "after") == "after"


async def test_a_short_log_is_left_alone(tmp_path, nursery, mock_clock):
    async with Store(tmp_path / "store.db", migrations=ledger.MIGRATIONS) as store:
        nursery.start_soon(store.watch)
        await store.write(ledger.add, "a")
        groups = store.statistics().groups
        for _ in range(5):
            await second(mock_clock)
        assert store.statistics().groups == groups
        assert store.statistics().wal_bytes > 0


async def test_maintenance_empties_the_log(new_store):
    async with new_store() as store:
        await store.write(ledger.add, "a")
        assert store.statistics().wal_bytes > 0
        await store.maintain()
        # What waits after the checkpoint has been run when the next is answered.
        await store.write(lambda _: None)
        assert store.statistics().wal_bytes == 0


async def test_a_lock_of_another_program_is_told_once_and_its_end_is_noticed(
    tmp_path, nursery, mock_clock, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(limits, "BUSY_TIMEOUT_MS", 10)
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        nursery.start_soon(store.watch)
        await store.write(ledger.add, "a")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(Busy, match=r"another program .* locked; nothing was stored, try"):
                await store.write(ledger.add, "b")
        assert store.broken
        assert not store.damaged
        assert "another program" in store.degraded
        assert await store.read(ledger.names) == ["a"]
        other.execute("ROLLBACK")
        other.close()
        await until(mock_clock, lambda: store.degraded is None)
        assert not store.broken
        assert await store.write(ledger.add, "b") == "b"
    lines = [line for line in told(caplog) if "locked" in line]
    assert len(lines) == 2
    assert "holds the database locked" in lines[0]
    assert 'any more" seconds=' in lines[1] or "any more seconds=" in lines[1]


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_file_that_is_not_in_its_place_takes_no_more_writes(
    tmp_path, nursery, mock_clock, how, caplog
):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        nursery.start_soon(store.watch)
        await store.write(ledger.add, "a")
        path.unlink()
        if how == "replaced":
            path.touch()
        await until(mock_clock, lambda: store.damaged)
        with pytest.raises(Damaged, match="removed or replaced"):
            await store.write(ledger.add, "b")
        assert await store.read(ledger.names) == ["a"]
    assert sum("removed or replaced" in line for line in told(caplog)) == 1


async def test_what_is_to_be_written_first_is_owed_on_a_full_disk(new_store):
    events: list[object] = []

    def first(tx: Transaction, name: str) -> str:
        ledger.add_blob(tx, BLOB_BYTES)
        return ledger.add(tx, name)

    async with new_store(on_commit=events.extend) as store:
        await store.write(bound, 0)
        assert await store.write_first(first, "one") is None
        assert await store.write_first(first, "two") is None
        with pytest.raises(Full):
            await store.write(lambda _: None)
        assert await store.read(ledger.names) == []
        assert events == []

        store._writer.owed.insert(0, lambda tx: bound(tx, 1000))

        def refused(tx: Transaction) -> None:
            ledger.add(tx, "undone")
            raise KeyError

        with pytest.raises(KeyError):
            await store.write(refused)
        assert await store.read(ledger.names) == ["one", "two"]
        assert events == [1, "one", 2, "two"]
        assert await store.write(ledger.add, "three") == "three"
        assert await store.read(ledger.names) == ["one", "three", "two"]


async def test_what_is_written_first_is_answered_when_there_is_space(new_store):
    async with new_store() as store:
        assert await store.write_first(ledger.add, "one") == "one"


def test_of_a_directory_that_is_gone_no_space_is_known(tmp_path):
    assert free_bytes(str(tmp_path)) > 0
    assert free_bytes(str(tmp_path / "gone")) == 0
