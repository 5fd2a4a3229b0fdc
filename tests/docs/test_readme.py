"""The README's commands do what it says they do."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()

PATIENCE_S = 120


def console() -> list[tuple[str, list[str]]]:
    """Return every command of the console blocks, with the lines it is said to print."""
    commands: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
    return commands


def needed(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"not on the PATH: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not on the PATH: {', '.join(missing)}")


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
    commands = console()
    assert len(commands) > 8
    script = "\n".join(
        ["set -e -o pipefail"]
        + [
            f"{command.replace('uv run', f'uv run --project {ROOT}')}\necho '--- end of {number}'"
            for number, (command, _) in enumerate(commands)
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = re.split(r"--- end of \d+\n", done.stdout)
    for (command, promised), output in zip(commands, outputs, strict=False):
        pattern = ".*".join(
            "^" + re.escape(line).replace("…", ".*") + "$" for line in promised if line != "…"
        )
        assert re.search(pattern, output, re.DOTALL | re.MULTILINE), f"$ {command}\n{output}"


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text()):
            if not target.startswith("http"):
                assert (ROOT / target).exists(), f"{document}: {target}"
