"""The floors of the house: imports point down, without circles, and a name means one thing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "globalstore"

# Ground first. A part imports parts of lower floors, and of its own floor only itself.
FLOORS = (
    {"gen"},
    {"telemetry"},
    {"rules", "db", "config", "rpc"},
    {"registry", "http", "client"},
    {"liveness", "daemon"},
    {"waiting", "caches", "leases", "maintenance"},
    {"scheduling"},
    {"api"},
    {"server"},
    {"cli"},
)
FLOOR_OF = {part: number for number, parts in enumerate(FLOORS) for part in parts}

# Parts that stand beside the others, and all that each may import below its floor.
BESIDE = {
    "rules": set(),
    "db": set(),
    "config": set(),
    "telemetry": set(),
    "rpc": {"gen"},
    "http": {"telemetry"},
    "client": {"gen", "rpc", "telemetry"},
    "daemon": {"gen", "rules", "rpc", "client", "telemetry"},
    "registry": {"rules", "db"},
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
OURS = sorted(name for name in MODULES if not name.startswith("globalstore.gen"))


def names_of(node: ast.AST) -> Iterator[str]:
    """Yield every dotted name that an import statement may mean."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module, "imports are absolute"
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(name: str, *, also_late: bool = True) -> set[str]:
    """Return our modules that a module imports; ``also_late``, inside of functions too."""
    tree = ast.parse(MODULES[name].read_text())
    nodes = ast.walk(tree) if also_late else iter(tree.body)
    found = {each for node in nodes for each in names_of(node) if each in MODULES}
    return found - {name}


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_part_has_a_floor() -> None:
    parts = {part_of(name) for name in MODULES} - {"", "__main__"}
    assert parts == set(FLOOR_OF)


@pytest.mark.parametrize("name", OURS)
def test_imports_point_down(name: str) -> None:
    part = part_of(name)
    allowed = {other for other, floor in FLOOR_OF.items() if floor < FLOOR_OF.get(part, 99)}
    allowed = BESIDE.get(part, allowed) | {part, ""}
    stray = {each for each in imports(name) if part_of(each) not in allowed}
    assert not stray, f"{name} imports {sorted(stray)}"


def test_the_catalog_knows_nothing_of_the_runtime() -> None:
    """What artifacts and keys are outlives every worker."""
    catalog = [name for name in OURS if name.startswith("globalstore.registry.catalog.")]
    assert catalog
    for name in catalog:
        stray = {each for each in imports(name) if "registry.runtime" in each}
        assert not stray, f"{name} imports {sorted(stray)}"


def test_nothing_imports_in_a_circle() -> None:
    """Packages do not count as importers of what they offer, but do where it is taken from them."""
    graph = {name: imports(name) for name in OURS}
    for name, targets in graph.items():
        # ``from package import module`` names both; only the module is needed.
        graph[name] = {
            each
            for each in targets
            if each in graph and not any(other.startswith(f"{each}.") for other in targets)
        }
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for each in sorted(graph[name]):
                follow(each, (*path, name))
            done.add(name)

    for name in OURS:
        follow(name, ())


def public_names(name: str) -> Iterator[str]:
    """Yield what a module defines for others."""
    for node in ast.parse(MODULES[name].read_text()).body:
        match node:
            case ast.FunctionDef(name=defined) | ast.ClassDef(name=defined):
                names = [defined]
            case ast.Assign(targets=targets):
                names = [each.id for each in targets if isinstance(each, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=defined)):
                names = [defined]
            case _:
                names = []
        yield from (each for each in names if not each.startswith("_"))


def test_a_public_name_of_the_registry_is_defined_once() -> None:
    """The name of an operation in a log line, or of a type in an error, leads to one place."""
    places: dict[str, list[str]] = {}
    for name in OURS:
        if name.startswith("globalstore.registry"):
            for each in public_names(name):
                places.setdefault(each, []).append(name)
    assert {each: names for each, names in places.items() if len(names) > 1} == {}
