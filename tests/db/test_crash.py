"""The process ends, at a chosen place or anywhere; no answered write is lost, none is halved."""

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import ledger
import pytest

from globalstore.db import Site, Store
from globalstore.db.backup import verify

SEED = 71_903
CHILD = Path(__file__).with_name("child.py")
ROUNDS = 20
WRITES = 100_000


def _run(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHILD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def _names(path, migrations=ledger.MIGRATIONS) -> list[str]:
    async with Store(path, migrations=migrations) as store:
        return await store.read(ledger.names)


WRITER_SITES = [
    (Site.BEFORE_BEGIN, 9),
    (Site.AFTER_BEGIN, 9),
    (Site.AFTER_OPERATION, 100),
    (Site.BEFORE_COMMIT, 9),
    (Site.AFTER_COMMIT, 9),
    (Site.AFTER_WAKE, 9),
    (Site.BEFORE_CHECKPOINT, 1),
    (Site.AFTER_CHECKPOINT, 1),
    (Site.BEFORE_CLOSE, 1),
    (Site.AFTER_CLOSE, 1),
]


@pytest.mark.parametrize(("site", "occurrence"), WRITER_SITES, ids=str)
async def test_no_answered_write_is_lost_wherever_the_writer_ends(tmp_path, site, occurrence):
    path = tmp_path / "store.db"
    child = _run(path, "enter", int(site), occurrence)
    assert child.returncode == 137, child.stderr
    lines = child.stdout.splitlines()
    answered = {line.removeprefix("stored ") for line in lines if line.startswith("stored ")}
    submitted = {line.removeprefix("asked ") for line in lines if line.startswith("asked ")}
    stored = set(await _names(path))
    assert answered <= stored <= submitted


@pytest.mark.parametrize("site", [Site.CREATED, Site.CREATED_AND_RENAMED])
async def test_a_creation_cut_short_is_completed_by_the_next_start(tmp_path, site):
    path = tmp_path / "store.db"
    assert _run(path, "enter", int(site), 1).returncode == 137
    assert await _names(path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.db", "store.db.lock"]


MIGRATION_SITES = [
    (Site.BEFORE_BACKUP, 1),
    (Site.BACKUP_COPIED, 1),
    (Site.BACKUP_VERIFIED, 1),
    (Site.BACKUP_RENAMED, 1),
    (Site.MIGRATION_BEGUN, 1),
    (Site.MIGRATION_BEFORE_COMMIT, 1),
    (Site.MIGRATION_COMMITTED, 1),
    (Site.MIGRATION_BEGUN, 2),
    (Site.MIGRATION_BEFORE_COMMIT, 2),
    (Site.MIGRATION_COMMITTED, 2),
]


@pytest.mark.parametrize(("site", "occurrence"), MIGRATION_SITES, ids=str)
async def test_a_migration_cut_short_is_completed_by_the_next_start(tmp_path, site, occurrence):
    path = tmp_path / "store.db"
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "kept")
    assert _run(path, "enter", int(site), occurrence, 3).returncode == 137
    from child import LATER

    assert await _names(path, LATER) == ["kept"]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    assert connection.execute("SELECT colour FROM entry").fetchall() == [(None,)]
    connection.close()
    verify(tmp_path / "pre-migration-1-3", 1, {"entry": 1, "blob": 0, "note": 0})
    assert not (tmp_path / "pre-migration-1-3.partial").exists()


def test_killed_at_random_moments_it_loses_no_answered_write(tmp_path):
    print("seed", SEED)
    dice = random.Random(SEED)
    path = tmp_path / "store.db"
    answered = 0
    highest = 0
    rounds = 0
    while rounds < ROUNDS or answered < WRITES:
        rounds += 1
        command = [sys.executable, CHILD, path, "flood", str(highest)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            lines = dice.randrange(1, 2 * WRITES // ROUNDS)
            output = b"".join(child.stdout.readline() for _ in range(lines))
            child.kill()
            # What it said before it died counts, except for a line it did not finish.
            rest, _, _ = child.stdout.read().rpartition(b"\n")
        numbers = [int(text) for text in (output + rest).split()]
        assert numbers, "the child said nothing"
        connection = sqlite3.connect(path)
        stored = {
            number
            for (number,) in connection.execute("SELECT size FROM entry WHERE size > ?", (highest,))
        }
        connection.close()
        assert stored.issuperset(numbers), f"lost in round {rounds}"
        answered += len(numbers)
        highest = max(stored)
    assert highest >= answered
    print(rounds, "rounds", answered, "answered writes")
