"""Every benchmark runs to its end on the smallest sizes; none of its figures is judged here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"

# What each script needs to be done in a second or two, and the tables that it prints then: for each
# the number of its rows.
SCRIPTS = {
    "listener": (["--rounds=1", "--seconds=0.05"], [6]),
    "writes": (["--rounds=1", "--seconds=0.1"], [3]),
    "claims": (
        [
            "--replicas",
            "20",
            "--rounds=1",
            "--operations=5",
            "--seconds=0.15",
            "--sources",
            "2",
            "--waiters=5",
        ],
        [1, 3, 1],
    ),
    "start": (["--replicas=100", "--rounds=1"], [15]),
    "memory": (["--replicas=2000", "--seconds=0.1"], [1]),
    "calls": (["--rounds=1", "--seconds=0.05"], [6]),
    "keys": (["--many=128", "--rounds=1", "--seconds=0.05"], [5]),
    "groups": (["--waiters", "2", "--rounds=1"], [1]),
    "switching": (["--intervals-ms", "0.5", "--rounds=1", "--seconds=0.05"], [1]),
    "herd": (["--daemons=2", "--replicas=1", "--rounds=1"], [2]),
    "reconcile": (["--replicas=900"], [5]),
    "chunks": (["--chunks", "300", "--rounds=1"], [3]),
    "leases": (["--leases=100", "--sizes", "50", "--rounds=1"], [1]),
    "largest_requests": (["--methods", "ListKeys", "GetServerInfo"], [2]),
    "control_plane": (["--times", "1", "--seconds=0.2"], [5]),
}


def tables(text: str) -> list[int]:
    """Return the number of rows below the head of each Markdown table, whose cells are all full."""
    found: list[int] = []
    in_table = False
    for line in text.splitlines():
        if re.fullmatch(r"\|(-+:?\|)+", line):
            found.append(0)
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table:
            assert all(cell.strip() for cell in line.strip("|").split("|")), line
            found[-1] += 1
    return found


def run(name: str, arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_benchmark_is_tried_here() -> None:
    scripts = {path.stem for path in BENCH.glob("*.py") if "argparse" in path.read_text()}
    assert scripts == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_prints_its_tables(name: str, tmp_path: Path) -> None:
    arguments, rows = SCRIPTS[name]
    assert tables(run(name, arguments, tmp_path)) == rows
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_slow_disk_slows_one_client_down(tmp_path: Path) -> None:
    slow = run("writes", ["--rounds=1", "--seconds=0.3", "--fsync-ms=50"], tmp_path)
    rate = re.search(r"^\| 1 \| (\d+) ", slow, re.MULTILINE)
    assert rate is not None, slow
    # An fsync of 50 ms a call: whatever the machine, no more than 20 calls a second.
    assert int(rate.group(1)) <= 20


def test_the_readme_names_every_benchmark_and_its_command() -> None:
    readme = (BENCH / "README.md").read_text()
    for name in SCRIPTS:
        assert f"uv run bench/{name}.py" in readme
