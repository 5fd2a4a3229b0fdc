"""One process per database, by whatever path it is reached."""

import errno
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import ledger
import pytest

from globalstore.db import DatabaseDamaged, DatabaseFilesystem, DatabaseLocked, Store

CHILD = Path(__file__).with_name("child.py")


@contextmanager
def _holder(path):
    command = [sys.executable, CHILD, path, "hold"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"open\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_within_two_seconds_and_told_who_holds_it(tmp_path):
    path = tmp_path / "store.db"
    with _holder(path) as holder:
        begun = time.monotonic()
        command = [sys.executable, CHILD, path, "hold"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert time.monotonic() - begun < 2
    assert second.returncode == 3
    last = second.stderr.splitlines()[-1]
    assert last.startswith("db-locked: ")
    assert f"process {holder.pid}" in last
    assert f"{path}.lock" in last


async def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    path = tmp_path / "store.db"
    with _holder(path) as holder:
        holder.kill()
        holder.wait()
        async with Store(path, migrations=ledger.MIGRATIONS) as store:
            assert await store.write(ledger.add, "a") == "a"


async def test_a_second_store_in_the_same_process_is_refused_too(tmp_path):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        with pytest.raises(DatabaseLocked) as refusal:
            async with Store(path, migrations=ledger.MIGRATIONS):
                pass
        assert refusal.value.pid == os.getpid()
        assert await store.write(ledger.add, "a") == "a"


async def test_a_refusal_does_not_loosen_the_holders_grip(tmp_path):
    path = tmp_path / "store.db"
    with _holder(path):
        for _ in range(3):
            with pytest.raises(DatabaseLocked):
                async with Store(path, migrations=ledger.MIGRATIONS):
                    pass


async def test_a_released_lock_names_nobody_and_stays_a_file(tmp_path):
    path = tmp_path / "store.db"
    for _ in range(2):
        async with Store(path, migrations=ledger.MIGRATIONS):
            assert (tmp_path / "store.db.lock").read_text() == f"{os.getpid()}\n"
        assert (tmp_path / "store.db.lock").read_text() == ""


def _delete_lock_file(path: Path) -> Path:
    path.with_name("store.db.lock").unlink()
    return path


def _replace_lock_file(path: Path) -> Path:
    other = path.with_name("other")
    other.write_text("1\n")
    other.rename(path.with_name("store.db.lock"))
    return path


def _symlink(path: Path) -> Path:
    link = path.with_name("elsewhere") / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    return link


def _hard_link(path: Path) -> Path:
    link = path.with_name("elsewhere") / "link.db"
    link.parent.mkdir()
    link.hardlink_to(path)
    return link


def _bind_mount(path: Path) -> Path:
    other = path.with_name("elsewhere") / "mounted.db"
    other.parent.mkdir()
    other.touch()
    mount = ["mount", "--bind", path, other]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs privileges")
    return other


@pytest.mark.parametrize(
    "reach", [_delete_lock_file, _replace_lock_file, _symlink, _hard_link, _bind_mount]
)
def test_the_lock_is_that_of_the_file_and_not_of_a_name(tmp_path, reach):
    path = tmp_path / "store.db"
    with _holder(path) as holder:
        reached = reach(path)
        try:
            command = [sys.executable, CHILD, reached, "hold"]
            second = subprocess.run(
                command, capture_output=True, text=True, timeout=20, check=False
            )
        finally:
            if reach is _bind_mount:
                subprocess.run(["umount", "-l", reached], check=False)
    assert second.returncode == 3, second.stderr
    last = second.stderr.splitlines()[-1]
    assert last.startswith("db-locked: ")
    assert f"process {holder.pid}" in last


@pytest.mark.parametrize("reach", [_delete_lock_file, _replace_lock_file, _hard_link])
async def test_a_refused_store_leaves_the_locks_of_sqlite_to_the_one_that_serves(tmp_path, reach):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "a")
        before = _posix_locks(path)
        assert before
        reached = reach(path)
        for _ in range(3):
            with pytest.raises(DatabaseLocked) as refusal:
                async with Store(reached, migrations=ledger.MIGRATIONS):
                    pass
            assert refusal.value.pid == os.getpid()
        assert _posix_locks(path) == before
        assert await store.write(ledger.add, "b") == "b"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        assert await store.read(ledger.names) == ["a", "b"]


def _posix_locks(path: Path) -> list[str]:
    inode = f":{path.stat().st_ino}"
    lines = Path("/proc/locks").read_text().splitlines()
    found = [line.split()[1:] for line in lines if inode in line and "POSIX" in line]
    return sorted(" ".join(each) for each in found)


def test_of_many_that_create_one_database_at_once_one_has_it(tmp_path):
    path = tmp_path / "store.db"
    lock = tmp_path / "store.db.lock"
    command = [sys.executable, CHILD, path, "hold"]
    starting = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    try:
        # Whoever removes the lock file meanwhile lets nobody else in.
        while (
            all(each.poll() is None for each in starting)
            or sum(each.poll() is None for each in starting) > 1
        ):
            lock.unlink(missing_ok=True)
            os.sched_yield()
        (winner,) = [each for each in starting if each.poll() is None]
        assert winner.stdout.readline() == b"open\n"
        for each in starting:
            if each is not winner:
                assert each.returncode == 3
                assert b"db-locked: " in each.stderr.read()
    finally:
        for each in starting:
            each.kill()
            each.communicate()


async def test_a_refused_start_leaves_no_empty_database_behind(tmp_path):
    (tmp_path / "store.db-wal").write_bytes(b"somebody's log")
    with pytest.raises(DatabaseDamaged):
        async with Store(tmp_path / "store.db", migrations=ledger.MIGRATIONS):
            pass
    assert not (tmp_path / "store.db").exists()


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
async def test_what_is_no_lock_file_is_named(tmp_path, kind):
    lock = tmp_path / "store.db.lock"
    match kind:
        case "directory":
            lock.mkdir()
        case "link":
            lock.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(lock)
    with pytest.raises(DatabaseFilesystem, match=r"database.db_file .*store.db.lock"):
        async with Store(tmp_path / "store.db", migrations=ledger.MIGRATIONS):
            pass


async def test_a_lock_file_that_cannot_be_written_into_refuses_nobody(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("globalstore.db.lock.os.pwrite", full)
    async with Store(tmp_path / "store.db", migrations=ledger.MIGRATIONS) as store:
        assert await store.write(ledger.add, "a") == "a"
