"""What docs/adding.md shows is carried out on a copy of the tree, and the tests agree with it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "adding.md").read_text()

# Where a block goes, and the block.
STEP = re.compile(
    r"^\*\*`(?P<path>[^`]+)`\*\*,"
    r" (?P<how>new|at the end|(?:after|instead of) `(?P<line>[^\n]+)`):\n\n"
    r"```\w*\n(?P<block>.*?)^```$"
    r"|^```console\n(?P<console>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)

# What notices a step that was left out, of the tests that are quick.
TOLD_BY = (
    "tests/worker_notes",
    "tests/schema",
    "tests/maintenance/test_row_limits.py",
    "tests/style/test_floors.py",
    "tests/style/test_sql.py",
    "tests/server/test_followers.py",
    "tests/config/test_config_schema.py",
    "tests/telemetry/test_telemetry_metrics.py",
    "tests/wire/test_generated_code.py",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree in which every step of the document was taken."""
    copy = tmp_path_factory.mktemp("tree") / "globalstore"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "dist", "container")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    for step in STEP.finditer(DOCUMENT):
        if step["console"] is not None:
            for command in step["console"].splitlines():
                run(copy, command.removeprefix("$ "))
        else:
            take(copy / step["path"], step["how"], step["line"], step["block"])
    return copy


def take(path: Path, how: str, line: str | None, block: str) -> None:
    if how == "new":
        assert not path.exists(), path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
        return
    text = path.read_text()
    if line is None:
        path.write_text(text + block)
        return
    assert text.count(f"{line}\n") == 1, f"{path}: {line!r} is there {text.count(line)} times"
    kept = f"{line}\n" if how.startswith("after") else ""
    path.write_text(text.replace(f"{line}\n", kept + block))


def run(tree: Path, command: str) -> None:
    """Run a command of the document in the environment that the tests have."""
    if command.startswith("uv run pytest"):
        return  # below, with all others
    inside = command.replace("uv run python", sys.executable)
    inside = inside.replace("uv run", sys.executable)
    done = subprocess.run(
        ["bash", "-c", inside],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_has_steps() -> None:
    steps = list(STEP.finditer(DOCUMENT))
    assert len(steps) > 20
    assert DOCUMENT.count("```") == 2 * len(steps), "a block that is no step"


def test_what_would_notice_a_missing_step_agrees(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *TOLD_BY],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_typed_and_formatted(tree: Path) -> None:
    checked = [str(path.relative_to(tree)) for path in tree.rglob("*worker_note*.py")] + [
        "globalstore/telemetry/keys.py",
        "globalstore/leases/kinds.py",
    ]
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", *command, *checked],
            cwd=tree, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
