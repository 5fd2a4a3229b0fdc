"""Who may read and replace a database that was not made by us, or changed since."""

import logging
import os
import stat
from pathlib import Path

import ledger
import log_lines
import pytest

from globalstore.db import Store


async def _made(path: Path) -> None:
    async with Store(path, migrations=ledger.MIGRATIONS):
        pass


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return log_lines.told(caplog, logging.WARNING)


async def test_a_database_that_others_may_read_is_closed_to_them_and_told(tmp_path, caplog):
    path = tmp_path / "store.db"
    await _made(path)
    os.chmod(path, 0o666)
    os.chmod(tmp_path / "store.db.lock", 0o644)
    caplog.clear()
    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        await store.write(ledger.add, "b")
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    (line,) = _warnings(caplog)
    assert f'path={path} mode=0666 result="now 0600"' in line
    # Told once: now it is as it should be.
    caplog.clear()
    await _made(path)
    assert _warnings(caplog) == []


async def test_the_log_of_a_killed_server_is_closed_too(tmp_path, caplog):
    path = tmp_path / "store.db"
    await _made(path)
    (tmp_path / "store.db-wal").touch()
    os.chmod(tmp_path / "store.db-wal", 0o660)
    caplog.clear()
    await _made(path)
    (line,) = _warnings(caplog)
    assert 'store.db-wal mode=0660 result="now 0600"' in line


@pytest.mark.parametrize(("mode", "told"), [(0o770, True), (0o1777, False), (0o755, False)])
async def test_a_directory_in_which_others_may_replace_the_database_is_told(
    tmp_path, caplog, mode, told
):
    place = tmp_path / "data"
    place.mkdir()
    os.chmod(place, mode)
    await _made(place / "store.db")
    lines = _warnings(caplog)
    assert bool(lines) is told
    if told:
        assert f"path={place} mode=0770" in lines[0]
    assert stat.S_IMODE(place.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs privileges")
async def test_a_database_of_another_user_is_told(tmp_path, caplog):
    path = tmp_path / "store.db"
    await _made(path)
    os.chown(path, 12345, 12345)
    caplog.clear()
    await _made(path)
    assert any(f"path={path} uid=12345" in x for x in _warnings(caplog))


async def test_a_second_name_of_the_database_is_told(tmp_path, caplog):
    path = tmp_path / "store.db"
    await _made(path)
    (tmp_path / "other.db").hardlink_to(path)
    caplog.clear()
    await _made(path)
    (line,) = _warnings(caplog)
    assert "several names" in line
