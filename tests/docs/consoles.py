"""Documents with console blocks: their commands, run, and what those are said to print."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PATIENCE_S = 120

Commands = list[tuple[str, list[str]]]


def commands_of(document: str) -> Commands:
    """Return every command of a document's console blocks, with the lines it is said to print."""
    commands: Commands = []
    for block in re.findall(r"```console\n(.*?)```", document, re.DOTALL):
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


def check(commands: Commands, folder: Path) -> None:
    """Run commands one after another in a folder; each has to print what it is said to."""
    script = "\n".join(
        ["set -e -o pipefail"]
        + [
            f"{command.replace('uv run', f'uv run --project {ROOT}')}\necho '--- end of {number}'"
            for number, (command, _) in enumerate(commands)
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = re.split(r"--- end of \d+\n", done.stdout)
    for (command, promised), output in zip(commands, outputs, strict=False):
        pattern = ".*".join(
            "^" + re.escape(line).replace("…", ".*") + "$" for line in promised if line != "…"
        )
        assert re.search(pattern, output, re.DOTALL | re.MULTILINE), f"$ {command}\n{output}"
