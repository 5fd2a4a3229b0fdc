"""Events as text: one line each, whatever a client's string contains."""

import enum
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from globalstore.text.printing import MASK, VALUE_CHARS_MAX, clipped, is_plain, printable
from globalstore.text.secret_fields import hidden, is_secret

# Room for a traceback of some thirty frames; the innermost ones, which matter, are kept.
TRACEBACK_CHARS_MAX: Final = 16384

_BARE = re.compile(r"[^\s\"'=\\,{}]+")


def plain(value: object) -> Any:
    """Return ``value`` as JSON can hold it, secrets inside mappings masked, long text clipped."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        # Six digits tell durations and shares apart; JSON has no NaN or infinity.
        rounded = float(f"{value:.6g}")
        return rounded if rounded - rounded == 0 else str(rounded)
    if isinstance(value, bytes):
        return clipped(value[: VALUE_CHARS_MAX + 1].hex())
    if isinstance(value, Mapping):
        return {
            clipped(str(key)): MASK if is_secret(str(key)) else plain(inner)
            for key, inner in _first(value.items())
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in _first(value)]
    try:
        if hasattr(value, "DESCRIPTOR"):
            value = hidden(value, MASK)
        return clipped(str(value))
    except Exception as error:  # noqa: BLE001 (a value that cannot be shown must not end a call)
        return f"<{type(value).__name__}: {type(error).__name__} in str()>"


def _first(items: Iterable[Any], limit: int = 32) -> list[Any]:
    """Return the first few items: enough to recognise a list by, whatever its length."""
    return [item for item, _ in zip(items, range(limit), strict=False)]


def pair(key: str, value: object) -> str:
    """Return ``key=value``, quoted where a reader could otherwise mistake its end."""
    if is_secret(key):
        return f"{key}={MASK}"
    simple = plain(value)
    if isinstance(simple, str):
        return f"{key}={quoted(simple)}"
    if isinstance(simple, dict | list):
        return f"{key}={quoted(json.dumps(simple, ensure_ascii=False))}"
    return f"{key}={json.dumps(simple)}"


def quoted(text: str) -> str:
    """Return ``text`` as one word: bare if it is one, else in double quotes with escapes."""
    if _BARE.fullmatch(text) and is_plain(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
