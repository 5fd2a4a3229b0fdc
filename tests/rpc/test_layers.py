"""What the listener may know: nothing of the services above it, and the engine nothing of I/O."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import globalstore.rpc

PACKAGE = Path(globalstore.rpc.__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))
SANS_IO = {
    "blocks", "bodies", "control", "engine", "events", "floods", "frames", "headers", "ledger",
    "limits", "messages", "request_bounds", "sending", "status", "streams", "wire_walk",
}  # fmt: skip


def imports(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.stem)
def test_a_module_imports_nothing_from_the_floors_above(module):
    ours = {name for name in imports(module) if name.startswith("globalstore.")}
    allowed = (
        "globalstore.rpc", "globalstore.telemetry", "globalstore.text", "globalstore.gen.grpc"
    )  # fmt: skip
    assert {name for name in ours if not name.startswith(allowed)} == set()


@pytest.mark.parametrize("name", sorted(SANS_IO))
def test_the_protocol_is_free_of_io(name):
    io = {"trio", "socket", "ssl", "anyio", "time", "threading"}
    assert {each.partition(".")[0] for each in imports(PACKAGE / f"{name}.py")} & io == set()


def test_the_package_imports_alone_and_offers_what_it_names():
    program = "import globalstore.rpc as rpc; [getattr(rpc, name) for name in rpc.__all__]"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
