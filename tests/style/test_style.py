"""What every file has to keep: types, lint, format, and the floors of the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "globalstore"

# What each part may import besides itself; gen and telemetry are open to all.
ABOVE_GROUND = {"gen", "telemetry"}
FLOORS = {
    "rules": set(),
    "db": set(),
    "rpc": set(),
    "telemetry": set(),
    "config": set(),
    "http": set(),
    "registry": {"rules", "db"},
    "scheduling": {"rules", "db", "registry"},
    "timers": {"rules", "db", "registry", "scheduling"},
    "api": {"rules", "db", "registry", "scheduling", "timers", "rpc", "config"},
    "daemon": {"rules", "rpc"},
}


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_types() -> None:
    run("mypy")


def test_lint() -> None:
    run("ruff", "check", ".")


def test_format() -> None:
    run("ruff", "format", "--check", ".")


def imported(path: Path) -> set[str]:
    """Return the parts of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "globalstore" and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.parametrize("part", sorted(FLOORS))
def test_imports_point_down(part: str) -> None:
    allowed = FLOORS[part] | ABOVE_GROUND | {part}
    for path in sorted((PACKAGE / part).rglob("*.py")):
        stray = imported(path) - allowed
        assert not stray, f"{path.relative_to(ROOT)} imports {sorted(stray)}"


def test_every_part_has_a_floor() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert parts == set(FLOORS) | {"gen", "cli"}


def test_no_lock_file_and_no_foreign_path_is_tracked() -> None:
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    names = {Path(name).name for name in done.stdout.splitlines()}
    assert not names & {"uv.lock", "package-lock.json", "poetry.lock"}
