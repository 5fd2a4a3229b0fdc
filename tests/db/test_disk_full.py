"""A full disk: who is refused, who is not, and that nothing has to be restarted afterwards."""

import contextlib
import logging
import os
import shutil
import subprocess

import ledger
import pytest
import trio

from globalstore.db import Full, Snapshot, Store, Transaction

BLOB_BYTES = 50_000


def _bound(tx: Transaction, more_pages: int) -> None:
    (pages,) = tx.one("PRAGMA page_count")
    tx.all(f"PRAGMA max_page_count = {pages + more_pages}")


def _unbound(tx: Transaction) -> None:
    tx.all("PRAGMA max_page_count = 1000000")


def _blobs(tx: Snapshot) -> list[int]:
    return [identity for (identity,) in tx.all("SELECT id FROM blob ORDER BY id")]


async def _try(store, outcomes, operation, *arguments):
    try:
        outcomes.append(await store.write(operation, *arguments))
    except Full as error:
        outcomes.append(error)


@pytest.mark.parametrize("add_blob", [ledger.add_blob, ledger.add_blob_or_lose_all])
async def test_what_does_not_fit_is_refused_and_its_neighbours_are_stored(new_store, add_blob):
    events, small, large = [], [], []
    async with new_store(on_commit=events.extend) as store:
        await store.write(ledger.add, "before")
        await store.write(_bound, 30)
        async with trio.open_nursery() as nursery:
            for i in range(60):
                nursery.start_soon(_try, store, small, ledger.add, f"{i}")
                nursery.start_soon(_try, store, large, add_blob, BLOB_BYTES)
        assert sorted(small) == sorted(f"{i}" for i in range(60))
        stored = [answer for answer in large if isinstance(answer, int)]
        assert len(large) == 60
        assert len(stored) == 2
        assert {error.code for error in large if isinstance(error, Full)} == {"SQLITE_FULL"}
        assert await store.read(_blobs) == sorted(stored)
        assert sorted(map(str, events)) == sorted(["before", *small, *map(str, stored)])
        assert len(events) == len(set(events))


async def test_reads_go_on_and_writes_come_back_with_the_space(new_store, caplog):
    caplog.set_level(logging.INFO)
    async with new_store() as store:
        await store.write(ledger.add, "a")
        await store.write(_bound, 0)
        for _ in range(3):
            with pytest.raises(Full):
                await store.write(ledger.add_blob, BLOB_BYTES)
        assert "full" in store.degraded
        assert await store.read(ledger.names) == ["a"]
        await store.write(_unbound)
        assert await store.write(ledger.add_blob, BLOB_BYTES) == 1
        assert store.degraded is None
    full = [r for r in caplog.records if "disk full" in r.getMessage()]
    assert len(full) == 1


async def test_an_operation_that_swallows_the_error_gets_nothing_more_through(new_store):
    def stubborn(tx: Transaction) -> str:
        ledger.add(tx, "first")
        try:
            ledger.add_blob_or_lose_all(tx, BLOB_BYTES)
        except Full:
            tx.run("INSERT INTO entry VALUES ('outside of any transaction', 1)")
            tx.many("INSERT INTO entry VALUES (?, 1)", [("outside",)])
        return "done"

    def very_stubborn(tx: Transaction) -> str:
        with contextlib.suppress(Full):
            stubborn(tx)
        return "done"

    async with new_store() as store:
        await store.write(_bound, 1)
        for operation in (stubborn, very_stubborn):
            with pytest.raises(Full):
                await store.write(operation)
        assert await store.read(ledger.names) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    mount = shutil.which("mount")
    directory = tmp_path / "disk"
    directory.mkdir()
    if mount is None or os.getuid() != 0:
        pytest.skip("mounting a file system takes root")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "none", os.fspath(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", os.fspath(directory)], check=True)


async def test_a_disk_that_is_really_full_refuses_and_recovers(small_disk):
    ballast = small_disk / "ballast"
    outcomes = []
    async with Store(small_disk / "store.db", migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "a")
        # All but two pages: neither the log nor the database can grow by an operation.
        free = store.statistics().free_bytes
        ballast.write_bytes(bytes(free - 8192))
        async with trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(_try, store, outcomes, ledger.add_blob, BLOB_BYTES + i)
        assert all(isinstance(answer, Full) for answer in outcomes)
        assert store.degraded is not None
        assert store.failure is None
        assert await store.read(ledger.names) == ["a"]
        ballast.unlink()
        assert await store.write(ledger.add_blob, BLOB_BYTES) == 1
        assert await store.write(ledger.add, "b") == "b"
        assert store.degraded is None
    async with Store(small_disk / "store.db", migrations=ledger.MIGRATIONS) as store:
        assert await store.read(ledger.names) == ["a", "b"]
        assert await store.read(_blobs) == [1]
