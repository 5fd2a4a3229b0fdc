"""A power cut takes what no fsync has covered. None of it had been answered.

A kill does not show that: the kernel keeps what the process wrote. Here a shim below SQLite keeps
a copy of each file as of its last fsync, and the store is opened again on these copies, without
or with some of the pages that the disk might have written on its own account.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import ledger
import pytest

from globalstore.db import Store

SEED = 5_150
HERE = Path(__file__).parent
PAGE = 4096


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the shim that watches fsync needs a C compiler")
    library = tmp_path_factory.mktemp("shim") / "durable.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "durable.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


def _killed_after(lines, path, durable, shim, verb) -> set[str]:
    """Run a child with the shim, kill it after some answers; returns the names it told of."""
    environment = os.environ | {"LD_PRELOAD": str(shim), "DURABLE": str(durable)}
    command = [sys.executable, HERE / "child.py", path, verb, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        output = b"".join(child.stdout.readline() for _ in range(lines))
        child.kill()
        rest, _, _ = child.stdout.read().rpartition(b"\n")
    return {f"{int(number):09}" for number in (output + rest).split()}


def _power_cut(path: Path, durable: Path, after: Path, dice: random.Random | None) -> Path:
    """The files as they might be found afterwards; with ``dice``, some unsynced pages made it."""
    after.mkdir()
    for name in ("store.db", "store.db-wal"):
        kept, written = durable / name, path.with_name(name)
        content = bytearray(kept.read_bytes() if kept.exists() else b"")
        if dice is not None and written.exists():
            now = written.read_bytes()
            for start in range(0, len(now), PAGE):
                if (
                    now[start : start + PAGE] != content[start : start + PAGE]
                    and dice.random() < 0.5
                ):
                    content.extend(bytes(max(0, start - len(content))))
                    content[start : start + PAGE] = now[start : start + PAGE]
        (after / name).write_bytes(content)
    return after / "store.db"


async def _created(directory: Path) -> tuple[Path, Path]:
    path, durable = directory / "live" / "store.db", directory / "durable"
    async with Store(path, migrations=ledger.MIGRATIONS):
        pass
    durable.mkdir()
    shutil.copy(path, durable)
    return path, durable


@pytest.mark.parametrize("answers", [1, 300, 1500, 6000])
async def test_no_answered_write_is_lost(tmp_path, shim, answers):
    print("seed", SEED)
    dice = random.Random(SEED + answers)
    path, durable = await _created(tmp_path)
    answered = _killed_after(answers, path, durable, shim, "flood")
    assert len(answered) >= answers
    for attempt in range(4):
        luck = None if attempt == 0 else dice
        found = _power_cut(path, durable, tmp_path / f"after {attempt}", luck)
        async with Store(found, migrations=ledger.MIGRATIONS) as store:
            assert answered <= set(await store.read(ledger.names))


async def test_the_model_notices_when_answers_are_not_synced(tmp_path, shim):
    path, durable = await _created(tmp_path)
    answered = _killed_after(1500, path, durable, shim, "flood_unsynced")
    found = _power_cut(path, durable, tmp_path / "after", None)
    async with Store(found, migrations=ledger.MIGRATIONS) as store:
        assert not answered <= set(await store.read(ledger.names))
