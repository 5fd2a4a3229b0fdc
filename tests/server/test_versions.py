"""The server starts only on libraries that are new enough, and the documented install gets them."""

import re
from pathlib import Path

import pytest
from server_process import Process, write_config

from globalstore.server.versions import FLOORS

ROOT = Path(__file__).parents[2]


def started_beside(folder: Path, name: str, version: str, *flags: str) -> tuple[int, str]:
    """Start a server that finds another version of a library first; return how it ended."""
    place = folder / "libraries"
    about = place / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    process = Process(write_config(folder), {"PYTHONPATH": str(place)}, flags=flags)
    code = process.wait()
    assert not any("Traceback" in line for line in process.lines)
    return code, process.lines[-1]


OLD = {
    "h2": "3.2.0",
    "hpack": "3.0.0",
    "hyperframe": "5.2.0",
    "hypercorn": "0.17.3",
    "h11": "0.15.99",
    "wsproto": "1.1.0.post1",
}


@pytest.mark.parametrize(("name", "version"), OLD.items())
def test_a_library_below_its_floor_is_refused_with_the_way_to_install(
    tmp_path: Path, name: str, version: str
) -> None:
    code, line = started_beside(tmp_path, name, version)
    assert code == 4
    assert line.startswith(f"host: {name} is {version}, expected {FLOORS[name][0]} or later (")
    assert "pip install --no-deps --require-hashes -r container/requirements.txt" in line


def test_the_check_says_the_same(tmp_path: Path) -> None:
    code, line = started_beside(tmp_path, "h2", "3.2.0", "--check-config")
    assert code == 4
    assert line.startswith("host: h2 is 3.2.0")


def test_every_floor_is_tried() -> None:
    assert set(OLD) == set(FLOORS)


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_the_requirements_of_the_image_pass_the_floors_and_are_what_the_readme_installs() -> None:
    text = (ROOT / "container" / "requirements.txt").read_text()
    pinned = dict(re.findall(r"(?m)^([\w-]+)==(\d[\d.]*\d)", text))
    for name, (floor, _) in FLOORS.items():
        assert numbers(pinned[name]) >= numbers(floor), name
    command = "pip install --no-deps --require-hashes -r container/requirements.txt"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text().replace(
        '"$tools/plain/bin/pip"', "pip"
    ).replace(" -q", "")
