"""``globalstore demo`` against a real server, and its ways to fail."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import PATIENCE_S, Process, running

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


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("demo")) as started:
        yield started


def assert_refused(done: subprocess.CompletedProcess[str], text: str, code: int) -> None:
    """The demo must have ended with this code, and with one line that has this text."""
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("/no/such/file", "No such file"),
        ("/no\x01/file", "No such file"),
        ("/", "Is a directory"),
        ("pyproject.toml", "not a safetensors file"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_in_one_line(
    process: Process, file: str, text: str
) -> None:
    assert_refused(demo(file, "--server", f"127.0.0.1:{process.port}"), text, 2)


def test_an_address_that_leads_nowhere_is_said_in_one_line() -> None:
    assert_refused(demo("--server", "nowhere"), "HOST:PORT", 2)
    assert_refused(demo("--server", "127.0.0.1:1"), "Connection refused", 6)


def test_a_port_that_speaks_something_else_is_said_in_one_line(process: Process) -> None:
    port = process.wait_for(r"http listening .*port=(\d+)")[1]
    assert_refused(demo("--server", f"127.0.0.1:{port}"), "no gRPC", 6)


def test_a_server_that_dies_in_the_middle_is_said_in_one_line(tmp_path: Path) -> None:
    write_sample(tmp_path / "m.safetensors", 100_000)
    with running(tmp_path) as server:
        command = [sys.executable, "-m", "globalstore", "demo", str(tmp_path / "m.safetensors")]
        started = subprocess.Popen(
            [*command, "--server", f"127.0.0.1:{server.port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert started.stdout is not None
        for line in started.stdout:
            if "registered as" in line:
                server.child.kill()
                break
        out, error = started.communicate(timeout=PATIENCE_S)
    assert started.returncode in {1, 5, 7}, out + error
    assert error.startswith("demo: ")
    assert error.count("\n") == 1
