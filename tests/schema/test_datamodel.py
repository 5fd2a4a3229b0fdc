"""The schema in files: what its steps lead to, and what ``datamodel.sql`` says they do."""

import hashlib
import re
import sqlite3
from importlib import resources
from typing import Any

from globalstore.db import Migration
from globalstore.registry import schema
from globalstore.registry.schema import MIGRATIONS

DATAMODEL = Migration(1, "datamodel", (resources.files(schema) / "datamodel.sql").read_text())


def made_by(*steps: Migration) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for step in steps:
        assert not callable(step.change)
        for statement in step.change:
            connection.execute(statement)
    return connection


def normalised(text: str) -> str:
    """Return a statement without comments, and without white space that says nothing."""
    text = re.sub(r"--[^\n]*", " ", text)
    return re.sub(r"\s*([(),])\s*", r"\1", " ".join(text.split()))


def objects(connection: sqlite3.Connection) -> dict[tuple[str, str, str], str | None]:
    """Return the statement of each table, index, trigger and view by its kind, name and table."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
    return {
        tuple(names): None if sql is None else normalised(sql)
        for *names, sql in rows
        if names[1] != "sqlite_sequence"
    }


def details(connection: sqlite3.Connection) -> dict[str, list[list[Any]]]:
    """Return what SQLite itself says of each table and view."""
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")
    return {
        name: [
            connection.execute(f"PRAGMA {pragma}({name})").fetchall()
            for pragma in ("table_xinfo", "foreign_key_list")
        ]
        + [sorted(row[1:] for row in connection.execute(f"PRAGMA index_list({name})"))]
        for (name,) in names.fetchall()
    }


def contents(connection: sqlite3.Connection) -> dict[str, list[Any]]:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in names}


def test_the_datamodel_is_what_the_steps_lead_to() -> None:
    stepwise, at_once = made_by(*MIGRATIONS), made_by(DATAMODEL)
    assert objects(at_once) == objects(stepwise)
    assert details(at_once) == details(stepwise)
    assert contents(at_once) == contents(stepwise)


def test_the_steps_are_numbered_without_a_gap() -> None:
    assert [step.number for step in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


# The statements of each step that databases exist of, as the beginning of their SHA-256.
TAKEN = {
    1: "b4264e8d1f6d76d3",
    2: "223e038004013b4a",
    3: "5336d95074bfd8fd",
    4: "3c52519c8494ecc0",
    5: "d9d619639e9954eb",
    6: "bca696998801845f",
    7: "091c00220ae892c0",
    8: "494151057bf67d2c",
}


def digest(step: Migration) -> str:
    assert not callable(step.change)
    return hashlib.sha256("\n".join(step.change).encode()).hexdigest()[:16]


def test_a_step_that_databases_have_taken_is_never_edited() -> None:
    assert {step.number: digest(step) for step in MIGRATIONS if step.number in TAKEN} == TAKEN
