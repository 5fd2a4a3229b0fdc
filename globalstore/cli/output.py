"""How a verb prints what it was told: as a table for people, or as JSON for programs."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tabulate import tabulate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the choice."""
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="default: %(default)s"
    )


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, fields that are unset included unless they are absent."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def as_json(value: Message | dict[str, Any] | list[Any]) -> str:
    """Return a message, or several as dictionaries, as JSON text."""
    plain = as_dict(value) if isinstance(value, Message) else value
    return json.dumps(plain, indent=2, ensure_ascii=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows below their titles, aligned by spaces."""
    return str(tabulate(rows, head, tablefmt="plain", disable_numparse=True))


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values, one pair a line; those without a value are left out."""
    return str(
        tabulate(
            [(f"{name}:", value) for name, value in pairs if value],
            tablefmt="plain",
            disable_numparse=True,
        )
    )
