"""How a verb prints what it was told: as a table for people, or as JSON for programs."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from globalstore.text.printing import MASK, printable, printable_json

if TYPE_CHECKING:
    from google.protobuf.message import Message


Row = TypeVar("Row")

# What a list that ``--limit`` has cut off says, with the number of its rows.
CUT: Final = "there are more; these are {} of them"

# Rows of one call: as many as a server gives at once.
_PAGE_ROWS: Final = 1000


class NotWritten(Exception):
    """Standard output takes nothing more; the text says why."""


def say(line: str) -> None:
    """Write a line to standard output, at once, as it may be shown. Raises NotWritten."""
    write(printable(line))


def write(text: str) -> None:
    """Write the lines of a text to standard output, as ``say`` does.

    What others wrote must not bring lines of its own: ``table``, ``facts`` and ``as_json`` see to
    that.
    """
    text = "\n".join(map(printable, text.split("\n")))
    if sys.stdout is None:
        raise NotWritten("standard output is closed")
    try:
        print(text, flush=True)
    except OSError as error:
        # What Python still holds back would fail again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise NotWritten(f"standard output: {error.strerror}") from None


def note(verb: str, text: str) -> None:
    """Say on stderr what a reader of the output has to know about it."""
    complain(f"{verb}: {text}")


def complain(line: str) -> None:
    """Write a line to stderr, if there is one: that it takes nothing changes no exit code."""
    line = printable(line)
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def _whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most}, got {text!r}"
        )
    return int(text)


def count(text: str) -> int:
    """Return the value of an argument that says how many."""
    return _whole(text, 1, (1 << 32) - 1)


def seconds(text: str) -> int:
    """Return the value of an argument that is a duration: up to what protobuf's can be."""
    return _whole(text, 0, 315_576_000_000)


def generation(text: str) -> int:
    """Return the value of an argument that is a generation."""
    return _whole(text, 0, (1 << 64) - 1)


def collect(
    page: Callable[[str, int], tuple[Sequence[Row], str]], limit: int
) -> tuple[list[Row], bool]:
    """Return up to ``limit`` rows from pages of a list, and whether there are more.

    ``page`` returns the rows after a name, so many at most, and the name after which the next page
    begins, "" after the last.
    """
    found: list[Row] = []
    after = ""
    while len(found) < limit:
        rows, after = page(after, min(limit - len(found), _PAGE_ROWS))
        found += rows
        if not after:
            break
    return found, bool(after)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the choice."""
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="default: %(default)s"
    )


def as_dict(message: "Message") -> dict[str, Any]:
    """Return a message as JSON has it, its secrets masked.

    Fields that are unset are included unless they are absent.
    """
    from google.protobuf.json_format import MessageToDict

    from globalstore.text.secret_fields import hidden

    fields = MessageToDict(
        hidden(message, MASK),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    _with_numbers(fields, message.DESCRIPTOR)
    return fields


def _with_numbers(fields: dict[str, Any], descriptor: Any) -> None:
    """Make numbers of the strings that protobuf's JSON has for integers of 64 bits."""
    for field in descriptor.fields:
        value = fields.get(field.name)
        is_wide = field.cpp_type in {field.CPPTYPE_INT64, field.CPPTYPE_UINT64}
        for at, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(each, dict) and field.message_type is not None:
                _with_numbers(each, field.message_type)
            elif is_wide and each is not None:
                holder: Any = fields if at is None else value
                holder[field.name if at is None else at] = int(each)


def as_json(value: "Message | dict[str, Any] | list[Any]") -> str:
    """Return a message, or several as dictionaries, as JSON text."""
    plain = value if isinstance(value, dict | list) else as_dict(value)
    return printable_json(json.dumps(plain, indent=2, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows below their titles, aligned by spaces."""
    # Titles stand a little apart also where every value is shorter.
    return _aligned([head, *rows], [len(title) + 2 for title in head])


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values, one pair a line; those without a value are left out."""
    return _aligned([(f"{name}:", value) for name, value in pairs if value], [0, 0])


def _aligned(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Return rows as lines, each column as wide as its widest cell and as ``widths`` asks."""
    cells = [[printable(cell).strip() for cell in row] for row in rows]
    columns = zip(widths, *([len(cell) for cell in row] for row in cells), strict=True)
    wide = [max(column) for column in columns]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
        for row in cells
    )
