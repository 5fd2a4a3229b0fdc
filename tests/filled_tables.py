"""Rows of every table, made from what the schema says of its columns."""

from graphlib import TopologicalSorter

from globalstore.db import Snapshot, Transaction


def tables(tx: Snapshot) -> list[str]:
    """Return all tables, each after those that it refers to."""
    names = tx.all("SELECT name FROM main.sqlite_schema WHERE type = 'table'")
    graph = {
        table: {parent for _, _, parent, *_ in tx.all(f"PRAGMA main.foreign_key_list({table})")}
        for (table,) in names
        if not table.startswith("sqlite_")
    }
    return list(TopologicalSorter(graph).static_order())


def insert(tx: Transaction, table: str, number: int, clause: str = "") -> int:
    """Insert a row whose values are a number, and which refers to the rows of number 1.

    ``clause`` goes to the end of the statement.
    """
    parents = {column for _, _, _, column, *_ in tx.all(f"PRAGMA foreign_key_list({table})")}
    values: dict[str, object] = {}
    for _, column, kind, _, _, key in tx.all(f"PRAGMA table_info({table})"):
        value: object = number
        if kind == "TEXT":
            value = f"x{number}"
        elif kind == "BLOB":
            value = b"%d" % number
        # The key of a row that belongs to one of another table is that row's.
        values[column] = 1 if column in parents and not (key and kind == "INTEGER") else value
    marks = ", ".join(f":{column}" for column in values)
    return tx.run(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks}) {clause}", values)
