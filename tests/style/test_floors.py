"""The floors of the house: imports point down, without circles, and a name means one thing."""

import ast
import re
import sqlite3
from collections.abc import Iterator

import pytest
from sources import MODULES, OURS, texts_of

from globalstore.registry.schema import MIGRATIONS

# Ground first. A part imports parts of lower floors, and of its own floor only itself.
FLOORS = (
    {"gen", "text"},
    {"host"},
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
    "rules": {"text"},
    "host": {"text"},
    "db": {"host", "telemetry"},
    "config": {"host", "text"},
    "telemetry": {"host", "text"},
    "rpc": {"gen", "telemetry", "text"},
    "http": {"host", "telemetry", "text"},
    "client": {"gen", "rpc", "telemetry"},
    "daemon": {"gen", "rules", "rpc", "client", "telemetry"},
    "registry": {"rules", "db"},
}


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


# What names the columns of ``replicas``, but for the schema itself.
ROWS = "globalstore.registry.runtime.replica_rows"

# Columns of one list from which on it counts as one. Two tables share no more than four of them.
LIST_MIN = 5


def replica_columns() -> frozenset[str]:
    connection = sqlite3.connect(":memory:")
    for step in MIGRATIONS:
        assert not callable(step.change)
        for statement in step.change:
            connection.execute(statement)
    return frozenset(row[1] for row in connection.execute("PRAGMA table_info(replicas)"))


def column_lists(tree: ast.AST, columns: frozenset[str]) -> Iterator[set[str]]:
    """Yield the columns that any list of a module names.

    A list is what stands between two keywords of an SQL text, taken apart at commas and brackets,
    and each item names the columns that are words of it; or a tuple, list, set or dictionary of
    Python, whose items or keys are names of columns. The fields of a row type are none.
    """
    for text in texts_of(tree):
        for clause in re.split(r"\b(?:[A-Z]{2,})\b", text):
            items = re.split(r"[,()]", clause)
            named = [columns.intersection(re.findall(r"\w+", item)) for item in items]
            if sum(map(bool, named)) > 1:
                yield set().union(*named)
    for node in ast.walk(tree):
        match node:
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                yield columns.intersection(constants(elements))
            case ast.Dict(keys=keys):
                yield columns.intersection(constants(keys))


def constants(nodes: list[ast.expr] | list[ast.expr | None]) -> list[str]:
    return [
        each.value
        for each in nodes
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def test_one_module_names_the_columns_of_replicas() -> None:
    """Whoever else lists them would have to agree with it by position, and notice a new one."""
    columns = replica_columns()
    found = {
        name: sorted(each)
        for name in OURS
        if name != ROWS
        for each in column_lists(ast.parse(MODULES[name].read_text()), columns)
        if len(each) >= LIST_MIN
    }
    assert found == {}


def test_nobody_but_the_schema_tells_which_replicas_nobody_holds() -> None:
    for name in OURS:
        for text in texts_of(ast.parse(MODULES[name].read_text())):
            telling = "replicas" in text and re.search(r"worker_key\s*(!=|<>|>)", text)
            assert not telling, f"{name}: {text}"


def test_rows_of_replicas_workers_and_leases_are_read_by_name() -> None:
    """A number says nothing of a column, and means another one when a column is added."""
    readers = [
        name
        for name in OURS
        if name.endswith(("registry.runtime.shard_leases", "registry.runtime.workers"))
        or any(each.endswith(("replica_rows", "worker_rows")) for each in imports(name))
    ]
    assert len(readers) > 8
    for name in readers:
        for node in ast.walk(ast.parse(MODULES[name].read_text())):
            match node:
                case ast.Subscript(value=ast.Name(), slice=ast.Constant(value=int(number))):
                    assert number < 2, f"{name} reads {ast.unparse(node)}"
