"""The README's commands do what it says they do."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from consoles import PATIENCE_S, ROOT, check, commands_of, needed

README = (ROOT / "README.md").read_text()


def start_command() -> str:
    line = next(line for line in README.splitlines() if "--config=configs/" in line)
    assert line.startswith("pip install uv && uv run ")
    return line.removeprefix("pip install uv && ")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[None]:
    """The server, started by the README's own command at the README's own ports."""
    needed("uv", "grpcurl", "curl", "bash")
    for port in (50051, 8001):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something else listens on port {port}")
    log = (tmp_path / "log").open("w+")
    child = subprocess.Popen(
        ["bash", "-c", f"exec {start_command()}"], cwd=ROOT, stderr=log, start_new_session=True
    )
    try:
        done = subprocess.run(
            ["curl", "-s", "--retry", "60", "--retry-connrefused", "--retry-delay", "1",
             "--retry-all-errors", "-f", "http://127.0.0.1:8001/ready"],
            capture_output=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        log.seek(0)
        assert done.returncode == 0, log.read()
        yield
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(PATIENCE_S)
        log.close()


def test_the_first_conversation_goes_as_told(server: None, tmp_path: Path) -> None:
    commands = commands_of(README)
    assert len(commands) > 8
    check(commands, tmp_path)


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/upgrading.md"):
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text()):
            if not target.startswith("http"):
                assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"
