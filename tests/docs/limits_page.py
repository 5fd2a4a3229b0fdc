"""Writes docs/limits.md from the tables of bounds: ``python tests/docs/limits_page.py``."""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from globalstore.api.bounds.answers import ANSWERS, Extent
from globalstore.api.bounds.fields import COUNTS, MESSAGES, SIZES, TEXT, Bound
from globalstore.api.bounds.methods import BYTES_STEP, request_bounds
from globalstore.config import GlobalStoreConfig
from globalstore.rpc import limits as listener
from globalstore.server.grpc_listener import _limits as listener_limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "limits.md"

_INTRODUCTION = """\
# Limits

What one request, one answer and one client may have, and why. Nobody who uses the store as it is
meant comes near any of these; where an operator may need another number, the setting is named.

This page is written by `uv run python tests/docs/limits_page.py > docs/limits.md` from the tables
that the server itself reads; a test compares the two.
"""

_REQUESTS = f"""\
## Requests

A request is refused before it is read when it has more bytes than its method can make use of: what
its fields may have, and room for what newer clients say. Compressed ones count as inflated. Every
method that is not listed takes {BYTES_STEP >> 10} KiB. No method takes more than
`server.limits.max_message_bytes`.
"""

_TEXTS = f"""\
## Strings and bytes

In bytes, of strings in UTF-8. A longer one is refused with INVALID_ARGUMENT, and where a setting
has the number with RESOURCE_EXHAUSTED; the refusal names the field.

A string that is not listed has at most {TEXT.most} bytes. {TEXT.reason}
Handlers say more precisely what is wrong with an id.
"""

_LISTS = """\
## Lists and maps

In entries. Where the contract has a code of its own for too many, that is what callers get.
"""

_MESSAGES = """\
## Messages within requests

In bytes, serialized. These come back whole in an answer.
"""

_ANSWERS = """\
## Answers

gRPC's own clients take answers of 4 MiB unless they are told to take more. An answer that is not
listed has ids, numbers and texts of some kilobytes.
"""

_LISTENER = """\
## Connections, calls and memory

What a client may cost the process, whatever it calls; of `globalstore/rpc/limits.py`.
"""


def page() -> str:
    """Return the page."""
    parts = (
        _INTRODUCTION,
        _REQUESTS,
        _table(("method", "bytes"), _request_rows()),
        _TEXTS,
        _table(("most", "fields", "why", "setting"), _bound_rows(SIZES, _bytes)),
        _LISTS,
        _table(("most", "fields", "why", "setting"), _bound_rows(COUNTS, str)),
        _MESSAGES,
        _table(("most", "messages", "why", "setting"), _bound_rows(MESSAGES, _bytes)),
        _ANSWERS,
        _table(("answer", "calls"), _answer_rows()),
        _LISTENER,
        _table(("limit", "default", "why", "setting"), _listener_rows()),
    )
    return "\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _bytes(size: float) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{round(size / (1 << power), 2):g} {unit}"
    return f"{size:g}"


def _request_rows() -> Iterator[tuple[str, str]]:
    for path, bounds in request_bounds(GlobalStoreConfig()).items():
        if bounds.bytes_max > BYTES_STEP:
            yield f"`{path.rpartition('/')[2]}`", _bytes(bounds.bytes_max)


def _bound_rows(table: Mapping[str, Bound], shown: Any) -> Iterator[tuple[str, ...]]:
    """Yield a row for each bound, with all that it bounds."""
    named: dict[Bound, list[str]] = {}
    for full_name, bound in table.items():
        named.setdefault(bound, []).append(_short(full_name))
    for bound, names in named.items():
        setting = f"`{bound.key}`" if bound.key else ""
        yield shown(bound.most), ", ".join(f"`{name}`" for name in names), bound.reason, setting


def _short(full_name: str) -> str:
    """Return a name without its package: from the first part with a capital on."""
    parts = full_name.split(".")
    first = next(number for number, part in enumerate(parts) if part[0].isupper())
    return ".".join(parts[first:])


def _answer_rows() -> Iterator[tuple[str, str]]:
    for extent in Extent:
        calls = sorted(
            {path.rpartition("/")[2] for path, each in ANSWERS.items() if each is extent}
        )
        yield extent.value, ", ".join(f"`{call}`" for call in calls)


def _listener_rows() -> Iterator[tuple[str, ...]]:
    settings = _settings()
    configured = listener_limits(GlobalStoreConfig())
    for name, reason in _reasons():
        value = getattr(configured, name)
        shown = _bytes(value) if "bytes" in name else f"{value:g}"
        yield f"`{name}`", shown, reason, settings.get(name, "")


def _reasons() -> Iterator[tuple[str, str]]:
    """Yield the limits with the comments above them; one may be about several."""
    comment: list[str] = []
    done = True
    for line in inspect.getsource(listener.Limits).splitlines():
        if found := re.match(r"    # (.*)", line):
            comment = [found[1]] if done else [*comment, found[1]]
            done = False
        elif found := re.match(r"    (\w+): \w+ = ", line):
            yield found[1], " ".join(comment)
            done = True


def _settings() -> dict[str, str]:
    """Return which settings have which limits: those that change with them."""
    config = GlobalStoreConfig()
    before = listener_limits(config)
    found: dict[str, str] = {}
    for section in ("server.limits", "server.grpc"):
        holder = config.server.limits if section == "server.limits" else config.server.grpc
        for field in attrs.fields(type(holder)):
            value = getattr(holder, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            changed = attrs.evolve(holder, **{field.name: value * 3 + 1})
            server = attrs.evolve(config.server, **{section.partition(".")[2]: changed})
            after = listener_limits(attrs.evolve(config, server=server))
            for name in attrs.asdict(after):
                if not math.isclose(getattr(before, name), getattr(after, name)):
                    found.setdefault(name, f"`{section}.{field.name}`")
    return found


if __name__ == "__main__":
    print(page(), end="")
