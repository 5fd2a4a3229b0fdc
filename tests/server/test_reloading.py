"""SIGHUP: what is taken up, and what keeps the old configuration."""

import signal
import threading
from pathlib import Path

import pytest
from server_process import Process, started, write_config

KEPT = "configuration not reloaded, the old one stays in use"


@pytest.fixture
def process(tmp_path: Path):
    with started(write_config(tmp_path, observability={"logging": {"level": "DEBUG"}})) as process:
        yield process
        assert process.stop() == 0


def reloaded(process: Process, pattern: str) -> str:
    process.signal(signal.SIGHUP)
    return process.wait_for(pattern).string


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ('{"server": {"listen": {"po', "syntax|expected|unterminated"),
        ('{"backup": {"directory": "/b"}}', "backup.directory"),
        ('{"server": {"listen": {"host": "[::1]"}}}', "without brackets"),
    ],
    ids=["empty", "half", "not built", "wrong"],
)
def test_a_file_that_cannot_be_meant_keeps_the_old_settings(
    process: Process, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    line = reloaded(process, KEPT)
    assert " ERROR " in line
    assert any(each in line.lower() for each in said.split("|"))
    # The level of the log is still that of the old file.
    write_config(tmp_path, observability={"logging": {"level": "DEBUG"}})
    reloaded(process, "configuration reloaded")
    assert not any("needs a restart" in each for each in process.lines)


def test_a_file_that_is_being_written_keeps_the_old_settings(
    process: Process, tmp_path: Path
) -> None:
    ended = threading.Event()

    def write_on() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            write_config(tmp_path, meta={"description": "x" * number})

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        line = reloaded(process, KEPT)
    finally:
        ended.set()
        writer.join()
    assert "is being written" in line or "empty" in line or "expected" in line
