"""One process per database."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import ledger
import pytest

from globalstore.db import DatabaseLocked, Store

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
