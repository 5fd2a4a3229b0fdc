"""The generated code is that of the .proto files, and keeps to its own package."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from wire_contract import PROTOS

ROOT = PROTOS.parent

# Longest that a build of the wheel may take on a machine that does other things too.
PATIENCE_S = 60

IMPORT_ALL = """
import importlib, pkgutil, sys
import globalstore.gen
for module in pkgutil.walk_packages(globalstore.gen.__path__, "globalstore.gen."):
    importlib.import_module(module.name)
assert "globalstore.gen.tensorcast.memory_tier.v1.memory_tier_grpc" in sys.modules
assert "globalstore.gen.grpc.health.v1.health_pb2" in sys.modules
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_the_generated_code_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, PROTOS / "generate.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_stale_code_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(PROTOS, tmp_path / "protos")
    shutil.copytree(ROOT / "globalstore" / "gen", tmp_path / "globalstore" / "gen")
    layout = tmp_path / "protos" / "tensorcast" / "layout" / "v1" / "layout.proto"
    layout.write_text(layout.read_text() + "\nmessage Later {}\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "protos" / "generate.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "layout_pb2.py" in done.stderr
    assert "common_pb2" not in done.stderr


def test_importing_it_takes_no_name_outside_its_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "globalstore" in loaded
    assert not {"tensorcast", "grpc", "grpc_tools"} & set(loaded)


def test_the_wheel_is_told_to_hold_one_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["globalstore"]}


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="fetches the build backend")
def test_the_wheel_holds_one_package_with_all_generated_code(tmp_path: Path) -> None:
    subprocess.run(
        ["uv", "build", "--wheel", f"--out-dir={tmp_path}", ROOT],
        check=True, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    packages = {name.split("/")[0] for name in held}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"globalstore"}
    for path in (ROOT / "globalstore" / "gen").rglob("*.py*"):
        if "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in held
