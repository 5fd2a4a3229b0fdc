"""``globalstore demo`` against a real server, and its ways to fail."""

import subprocess
import sys
from pathlib import Path

import pytest
from server_process import PATIENCE_S, running

from globalstore.daemon.safetensors import write_sample


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "globalstore", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_three_daemons_spread_a_file(tmp_path: Path) -> None:
    write_sample(tmp_path / "m.safetensors", 100_000)
    with running(tmp_path) as process:
        done = demo(str(tmp_path / "m.safetensors"), "--server", f"127.0.0.1:{process.port}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified 800,000 bytes") == 2
    assert "3 replicas, 3 available" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("done")


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--server", "nowhere"], "HOST:PORT", 2),
        (["/no/such/file", "--server", "127.0.0.1:1"], "No such file", 1),
        (["pyproject.toml", "--server", "127.0.0.1:1"], "not a safetensors file", 1),
    ],
)
def test_it_says_in_one_line_why_it_cannot_go_on(
    arguments: list[str], text: str, code: int
) -> None:
    done = demo(*arguments)
    assert done.returncode == code
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
