"""SQL that writes: rows and parameters alone decide its effect, so that others can replay it.

Which rows a LIMIT picks is a matter of the plan unless an order without ties says it.
"""

import ast
import re
import sqlite3
from collections.abc import Iterator

import pytest
from sources import MODULES, OURS, texts_of

from globalstore.registry.schema import MIGRATIONS

REGISTRY = [name for name in OURS if name.startswith("globalstore.registry")]

WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE)\b")
LIMIT = re.compile(r"\bLIMIT\b")
ORDERED = re.compile(r"\bORDER BY ([^()]+?)\s+LIMIT\b")

# What says something else each time it is asked, or in each place.
FICKLE = re.compile(
    r"\b(random|randomblob|date|time|datetime|julianday|strftime|changes|last_insert_rowid)\s*\(|"
    r"\bCURRENT_(TIME|DATE|TIMESTAMP)\b|\bDEFERRED\b"
)


def schema() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for step in MIGRATIONS:
        assert not callable(step.change)
        for statement in step.change:
            connection.execute(statement)
    return connection


def unique_keys() -> dict[str, list[set[str]]]:
    """Return for each table the sets of columns that no two of its rows have in common."""
    connection = schema()
    keys: dict[str, list[set[str]]] = {}
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    for (table,) in tables:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        found = [{name for _, name, _, _, _, of_key in columns if of_key}]
        for _, index, is_unique, _, is_partial in connection.execute(f"PRAGMA index_list({table})"):
            if is_unique and not is_partial:
                info = connection.execute(f"PRAGMA index_info({index})")
                found.append({name for _, _, name in info})
        keys[table] = [key for key in found if key]
    return keys


KEYS = unique_keys()


def complaints(text: str) -> Iterator[str]:
    """Yield what is wrong with a text; one that does not write may be anything."""
    if not WRITES.match(text):
        return
    if FICKLE.search(text):
        yield "it depends on more than rows and parameters"
    orders = ORDERED.findall(text)
    if len(orders) != len(LIMIT.findall(text)):
        yield "a LIMIT has no ORDER BY"
    # A column that is compared with a parameter is the same in all rows.
    same = set(re.findall(r"(\w+) = :\w+", text))
    tables = set(re.findall(r"\w+", text)) & KEYS.keys()
    for order in orders:
        terms = {re.sub(r"\s+(ASC|DESC)$", "", term.strip()) for term in order.split(",")}
        if not any(key <= terms | same for table in tables for key in KEYS[table]):
            yield f"rows may tie in ORDER BY {order}"


@pytest.mark.parametrize("name", REGISTRY)
def test_a_write_does_not_depend_on_the_plan_or_the_hour(name: str) -> None:
    for text in texts_of(ast.parse(MODULES[name].read_text())):
        assert not list(complaints(text)), text


def test_the_schema_has_no_fickle_default_and_defers_no_constraint() -> None:
    for step in MIGRATIONS:
        for statement in step.change:
            assert not FICKLE.search(statement), statement


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM replicas WHERE seq IN (SELECT seq FROM replicas LIMIT 5)",
        "DELETE FROM transports WHERE transport_key IN (SELECT transport_key FROM transports"
        " ORDER BY completed_at LIMIT :limit)",
        "UPDATE workers SET inactive_at = CURRENT_TIMESTAMP",
        "INSERT INTO endpoints (node_id) VALUES (random())",
    ],
)
def test_what_does_is_found(text: str) -> None:
    assert list(complaints(text))
