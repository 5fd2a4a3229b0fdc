"""How a verb prints what it was told: as a table for people, or as JSON for programs."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the choice."""
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="default: %(default)s"
    )


def as_dict(message: "Message") -> dict[str, Any]:
    """Return a message as JSON has it, fields that are unset included unless they are absent."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def as_json(value: "Message | dict[str, Any] | list[Any]") -> str:
    """Return a message, or several as dictionaries, as JSON text."""
    plain = value if isinstance(value, dict | list) else as_dict(value)
    return json.dumps(plain, indent=2, ensure_ascii=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows below their titles, aligned by spaces."""
    # Titles stand a little apart also where every value is shorter.
    return _aligned([head, *rows], [len(title) + 2 for title in head])


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values, one pair a line; those without a value are left out."""
    return _aligned([(f"{name}:", value) for name, value in pairs if value], [0, 0])


def _aligned(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Return rows as lines, each column as wide as its widest cell and as ``widths`` asks."""
    cells = [[cell.strip() for cell in row] for row in rows]
    columns = zip(widths, *([len(cell) for cell in row] for row in cells), strict=True)
    wide = [max(column) for column in columns]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
        for row in cells
    )
